"""Find which layers of an int8 graph must stay in float for its loss to be within a bound: sensitivity analysis.

As `export.trt.mixed` does for fp16, a list grows from the layers most at fault and is as short as holds: layers are ranked by the
labels that change when one of them alone is quantised, and the shortest head of that ranking is searched for which the bound holds.
Equal inputs give an equal list.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx

from export.errors import CheckFailed
from export.int8.quantise import Calibrated

OnStatus = Callable[[str], None]


def float_layers(
    source: Calibrated, holds: Callable[[onnx.ModelProto], bool], agreement: Callable[[onnx.ModelProto], float],
    on_status: OnStatus = lambda text: None,
) -> tuple[str, ...]:  # fmt: skip
    """Return the layers to keep in float, most sensitive first; none where the bound holds with all in int8.

    Args:
        source: the calibrated graph.
        holds: says whether a graph's loss is within the bound.
        agreement: share of pixels that have the same label as in fp32, 0 to 1; what layers are ranked by.
        on_status: is told what is being done.

    Raises:
        CheckFailed: with a single layer in int8 the bound still does not hold.
    """
    if holds(source.quantised()):
        return ()
    layers = source.layers
    on_status(f"the loss is beyond the bound: rank {len(layers)} layers by what quantising each alone changes")
    alone = {name: agreement(source.quantised(only=[name])) for name in layers}
    ranked = sorted(layers, key=lambda name: alone[name])  # a stable sort: equal ones in the order of the graph

    def held(count: int) -> bool:
        within = holds(source.quantised(ranked[:count]))
        on_status(f"{count} of {len(layers)} layers in float: {'within' if within else 'beyond'} the bound")
        return within

    fails, count = 0, 1
    while count < len(layers) and not held(count):
        fails, count = count, 2 * count
    if count >= len(layers):
        if not held(count := len(layers) - 1):
            raise CheckFailed(f"int8 loses more than the bound allows, even with {count} of {len(layers)} layers in float; allow "
                              "more, calibrate with other images, or stay with fp32")  # fmt: skip
    while count - fails > 1:
        middle = (fails + count) // 2
        fails, count = (fails, middle) if held(middle) else (middle, count)
    return tuple(ranked[:count])

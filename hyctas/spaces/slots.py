"""List what a supernet must hold: every weight slot of a space, with the largest version of each of its layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from hyctas.arch.operators import Layer, Norm, Operator, Scalar
from hyctas.plan import lower
from hyctas.spaces.search_space import SearchSpace

Layers = dict[str, Layer | Norm | Scalar]
"""By name."""


@lru_cache(maxsize=4)
def slots(space: SearchSpace, num_classes: int) -> Mapping[str, Layers]:
    """Map every slot to layers at least as wide as any that a network of the space puts there; the same map each time."""
    found: dict[str, Layers] = {}
    for slot, operator in space.cells():
        _grow(found.setdefault(slot, {}), operator, (0,))
    cells = set(found)
    # the largest branch set comes first: with it, all of fusion's blocks appear
    for genotype in space.covering_networks():
        for node in lower(genotype, (32, 32), num_classes).nodes:
            if node.slot not in cells:
                _grow(found.setdefault(node.slot, {}), node.operator, node.blocks)
    return found


def _grow(slot: Layers, operator: Operator, blocks: Sequence[int]) -> None:
    """Widen a slot so that it holds an operator too."""
    for layer in operator.layers():
        known = slot.get(layer.name)
        if known is None and isinstance(layer, Layer) and len(layer.sources) > 1:
            known = replace(layer, sources=(0,) * (max(blocks) + 1))  # no channels in the blocks that a space never uses
        if known is None:
            slot[layer.name] = layer
        elif isinstance(layer, Norm) and isinstance(known, Norm):
            slot[layer.name] = replace(known, channels=max(known.channels, layer.channels))
        elif isinstance(layer, Layer) and isinstance(known, Layer):
            sources = list(known.sources)
            for block, channels in zip(blocks if len(sources) > 1 else (0,), layer.sources, strict=True):
                sources[block] = max(sources[block], channels)
            out, kernel = max(known.out, layer.out), max(known.kernel, layer.kernel)
            slot[layer.name] = replace(known, sources=tuple(sources), out=out, kernel=kernel, groups=out if known.depthwise else 1)

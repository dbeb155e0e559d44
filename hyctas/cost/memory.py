"""Predict the memory that a network takes: its weights, and the activations that are alive at once, corrected for a runtime.

A runtime keeps more than a plan lists: packed weights beside the file's, a pool that is never full, scratch memory. How much more
is fitted to measured networks by `python -m benchmarks.memory_fidelity`, which writes `memory.json` beside this file, with the
error on networks that it was not fitted to. No torch here.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from export.codec import NotNegative, Share, decode
from hyctas.arch.node import IMAGE, Node
from hyctas.arch.operators import BYTES_PER_ELEMENT, DownUp, Layer, Operator, SelfAttention, Shape
from hyctas.plan import Plan

FORMAT_VERSION = 1
GRAPH_LOGITS = 1 << 22
"""Logits of an attention that an exported graph holds at a time (`hyctas.attention.chunked.GRAPH_ELEMENTS`)."""
FITTED = Path(__file__).with_name("memory.json")


@dataclass(frozen=True)
class MemoryFit:
    """Memory in MiB = constant + per_weight * weights + per_live * live activations, both in MiB of fp32."""

    constant_mib: NotNegative
    per_weight: NotNegative
    per_live: NotNegative
    networks: int
    """That it was fitted to."""
    mape: Share
    """Mean error on networks that it was not fitted to, as a share."""
    worst: NotNegative
    """Largest error on those."""
    versions: dict[str, str]
    """Of the runtime."""

    def mib(self, plan: Plan) -> float:
        """Return the memory that a plan's network takes."""
        return self.constant_mib + self.per_weight * weights_mib(plan) + self.per_live * live_mib(plan)


@dataclass(frozen=True)
class _Fits:
    fits: dict[str, MemoryFit]


UNFITTED = MemoryFit(0.0, 1.0, 1.0, 0, 0.0, 0.0, {})
"""For a runtime that was not measured: the least that any must hold."""


@functools.cache
def fits() -> dict[str, MemoryFit]:
    """Return what was fitted, by runtime."""
    return decode(_Fits, FITTED, FORMAT_VERSION).fits


def predicted_mib(plan: Plan, runtime: str) -> float:
    """Predict the memory that a network takes on a runtime, for instance `onnxruntime-cpu`, in MiB."""
    return fits().get(runtime, UNFITTED).mib(plan)


def weights_mib(plan: Plan) -> float:
    """Return the size of a plan's weights in fp32."""
    return plan.parameters * BYTES_PER_ELEMENT / 2**20


def live_mib(plan: Plan) -> float:
    """Return the most memory of fp32 activations that are alive at once: while a node runs, its inputs, its output, what it holds
    inside, and outputs that later nodes need."""
    last_use = {name: index for index, node in enumerate(plan.nodes) for name in node.inputs}
    alive = {IMAGE: 3 * plan.padded[0] * plan.padded[1]}
    peak = 0
    for index, node in enumerate(plan.nodes):
        alive[node.name] = _elements(node.shape)
        peak = max(peak, sum(alive.values()) + inner_elements(node))
        alive = {name: size for name, size in alive.items() if last_use.get(name, len(plan.nodes)) > index}
    return BYTES_PER_ELEMENT * peak / 2**20


def inner_elements(node: Node) -> int:
    """Return how many activations a node holds at once besides its inputs and its output."""
    operator, shapes = node.operator, node.input_shapes
    size = operator.input_size(shapes)
    return _gathered(shapes, size) + max(_between_layers(operator, size), _attended(operator, size), _resized(operator, size))


def _gathered(shapes: Sequence[Shape], size: tuple[int, int]) -> int:
    """Count the copies of several inputs that are resized and concatenated."""
    if len(shapes) == 1:
        return 0
    resized = sum(channels for channels, *small in shapes if tuple(small) != size)
    return (resized + sum(channels for channels, _, _ in shapes)) * size[0] * size[1]


def _between_layers(operator: Operator, size: tuple[int, int]) -> int:
    """Count what two layers in a row give, but for the last one, which gives the output."""
    sizes = operator.layer_sizes(*size)
    outputs = [layer.out * sizes[layer.name][0] * sizes[layer.name][1] for layer in operator.layers() if isinstance(layer, Layer)]
    inner = outputs[:-1]
    return max((sum(inner[index : index + 2]) for index in range(len(inner))), default=0)


def _attended(operator: Operator, size: tuple[int, int]) -> int:
    """Count the logits of an attention and their softmax."""
    if not isinstance(operator, SelfAttention):
        return 0
    sizes = operator.layer_sizes(*size)
    (height, width), (key_height, key_width) = sizes["query"], sizes["key"]
    return 2 * min(GRAPH_LOGITS, operator.heads * height * width * key_height * key_width)


def _resized(operator: Operator, size: tuple[int, int]) -> int:
    """Count what a block brings back to its input's size."""
    return operator.out * size[0] * size[1] if isinstance(operator, DownUp) and operator.stride == 1 else 0


def _elements(shape: Shape) -> int:
    channels, height, width = shape
    return channels * height * width

"""Write self-attention into ONNX graphs as one `hyctas::SelfAttention` node, for the TensorRT builder.

Such a file is an intermediate: runtimes such as OpenVINO reject nodes of other domains, whatever functions come with them.
The bodies that nodes may have are in `hyctas.attention.onnx.bodies`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

DOMAIN, NAME = "hyctas", "SelfAttention"
HEAD_SIZES = (16, 256)
"""The channels per head that TensorRT fuses; multiples of 8."""
_EMITTING: ContextVar[bool] = ContextVar("emitting hyctas::SelfAttention", default=False)


@contextmanager
def nodes() -> Iterator[None]:
    """Make ONNX exports inside write nodes instead of standard operators."""
    token = _EMITTING.set(True)
    try:
        yield
    finally:
        _EMITTING.reset(token)


def emitting_nodes() -> bool:
    """Return whether `nodes` is in force."""
    return _EMITTING.get()


def head_size(qk_channels: int, value_channels: int) -> int:
    """Return the channels per head with which TensorRT fuses attention; the larger number where it fuses none."""
    larger = max(qk_channels, value_channels)
    return max(HEAD_SIZES[0], -(-larger // 8) * 8) if larger <= HEAD_SIZES[1] else larger


def as_node(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Trace one node: inputs q, k, v, output o (B, h, e, N).

    Attributes: `scale`; `padding` and `value_padding`, as ONNX's Pad takes them: what brings q and k, and v, to `head_size`
    channels; `channels`, those of v.
    Bodies and plugins are chosen by shape, so `export.onnx.functions.nodes_of` refuses nodes of dynamic shapes.
    """
    shape = (q.shape[0], q.shape[1], v.shape[2], q.shape[3])
    size = head_size(q.shape[2], v.shape[2])
    padding, value_padding = ([0, 0, 0, 0, 0, 0, size - x.shape[2], 0] for x in (q, v))
    attributes: dict[str, Any] = {"scale": float(scale), "padding": padding, "value_padding": value_padding}
    attributes["channels"] = [v.shape[2]]
    output: Tensor = torch.onnx.ops.symbolic(f"{DOMAIN}::{NAME}", [q, k, v], attributes, dtype=v.dtype, shape=shape, version=1)
    return output

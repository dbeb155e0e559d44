"""Write self-attention into ONNX graphs as one `hyctas::SelfAttention` node, for the TensorRT builder.

Such a file is an intermediate: runtimes such as OpenVINO reject nodes of other domains, whatever functions come with them.
The bodies that nodes may have are in `hyctas.attention.onnx_function`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

DOMAIN, NAME = "hyctas", "SelfAttention"
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


def as_node(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Trace one node: inputs q, k, v, output o (B, h, e, N).

    Attributes: `scale`; `padding`, as ONNX's Pad takes it: what brings q and k to v's channels, nothing where they have more.
    Bodies and plugins are chosen by shape, so `export.onnx_function.nodes_of` refuses nodes of dynamic shapes.
    """
    shape = (q.shape[0], q.shape[1], v.shape[2], q.shape[3])
    padding = [0, 0, 0, 0, 0, 0, max(0, v.shape[2] - q.shape[2]), 0]
    output: Tensor = torch.onnx.ops.symbolic(
        f"{DOMAIN}::{NAME}", [q, k, v], {"scale": float(scale), "padding": padding}, dtype=v.dtype, shape=shape, version=1
    )
    return output

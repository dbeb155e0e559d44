"""Compute self-attention channels-first, exactly and in bounded memory, on CPUs and CUDA GPUs (README.md beside this file).

`torch.ops.hyctas.self_attention(q, k, v, scale)` is the operator; importing this package defines it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from hyctas.attention import block as _block
from hyctas.attention import op as _op  # these define the operators
from hyctas.attention.arguments import check
from hyctas.attention.chunked import self_attention_graph
from hyctas.attention.dispatch import Choice, explain
from hyctas.attention.onnx.nodes import as_node, emitting_nodes

__all__ = ["Choice", "decompositions", "explain", "fp16_qk_autocast", "self_attention", "self_attention_graph"]
_ = (_op, _block)


def fp16_qk_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Make the projections inside compute q and k in fp16 where autocast asks for bfloat16 on a GPU, without gradients.

    Logits are unscaled, so that bfloat16's 8 bits in q and k cost up to 1 % of the output. With gradients they stay in
    bfloat16: fp16 gradients would underflow, since training in bfloat16 scales no loss.
    """
    if device.type != "cuda" or torch.is_grad_enabled() or not torch.is_autocast_enabled("cuda"):
        return nullcontext()
    if torch.get_autocast_dtype("cuda") != torch.bfloat16:
        return nullcontext()
    return torch.autocast("cuda", dtype=torch.float16)


def self_attention(q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0) -> Tensor:
    """Attend from every query to all keys: o = v softmax(scale * q^T k)^T.

    While a network is exported to ONNX, the result is traced as standard operators (`self_attention_graph`), or as one
    `hyctas::SelfAttention` node inside `hyctas.attention.onnx.nodes.nodes()`.

    Args:
        q: (B, h, d, N) float16, bfloat16, float32 or float64; any strides.
        k: (B, h, d, M), of q's dtype.
        v: (B, h, e, M); its dtype may differ (fp16 logits with bfloat16 values).
        scale: factor on the logits q.k; 1: none, as published.

    Returns:
        o (B, h, e, N), contiguous, in v's dtype. A query of which a logit is NaN or +inf, or all are -inf, gives NaN, as
        softmax does; others are not touched by it. No batch, no heads, no queries or no values (e = 0) give an empty result.

    Gradients are those of the same formula, but have no gradients themselves: a second derivative raises RuntimeError
    (`self_attention_graph` has them).

    Raises:
        ValueError: ranks other than 4, sizes that do not fit together, no keys, different devices.
        TypeError: other dtypes; q and k of different dtypes.
    """
    if torch.onnx.is_in_onnx_export():
        check(q, k, v)
        return as_node(q, k, v, scale) if emitting_nodes() else self_attention_graph(q, k, v, scale)[0]
    output: Tensor = torch.ops.hyctas.self_attention(q, k, v, scale)[0]
    return output


def decompositions() -> dict[Any, Callable[..., tuple[Tensor, Tensor]]]:
    """Return what makes programs of torch.export free of our operator, so that they open without this package."""
    return {torch.ops.hyctas.self_attention.default: self_attention_graph}

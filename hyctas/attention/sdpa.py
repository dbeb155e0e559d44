"""Compute self-attention with PyTorch's memory-efficient kernel: the fallback on GPUs without Triton or before sm_80.

Called by its own name instead of through `scaled_dot_product_attention`, which silently materialises the N x N map for
channels-first views and for channel counts that no fused kernel takes, and does not return the log-sum-exp. Here q, k and v are
made contiguous with channels last, q and k padded with zero channels to the alignment of the kernel; what it refuses is an error.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_FORWARD = torch.ops.aten._scaled_dot_product_efficient_attention
_BACKWARD = torch.ops.aten._scaled_dot_product_efficient_attention_backward
_LSE_ALIGNMENT = 32
"""The kernel keeps the log-sum-exp of so many queries at a time; the rest is +inf."""


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float, _choice: object = None) -> tuple[Tensor, Tensor]:
    """Attend; shapes as `hyctas.attention.self_attention`."""
    query, key, value = (_padded(t.to(_dtype(q, v))) for t in (q, k, v))
    o, lse, _, _ = _FORWARD(query, key, value, None, compute_log_sumexp=True, dropout_p=0.0, is_causal=False, scale=scale)
    o = o[..., : v.shape[2]].transpose(2, 3).to(v.dtype)  # (B, h, e, N)
    return o.contiguous(), lse[..., : q.shape[3]].contiguous()


def backward(
    grad_o: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, scale: float, _choice: object = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v."""
    query, key, value, grad, output = (_padded(t.to(_dtype(q, v))) for t in (q, k, v, grad_o, o))
    statistics = F.pad(lse, (0, -lse.shape[2] % _LSE_ALIGNMENT), value=float("inf"))
    seed = torch.zeros((), dtype=torch.int64, device=q.device)
    grads = _BACKWARD(
        grad, query, key, value, None, output, statistics, seed, seed, 0.0, [True, True, True, False], False, scale=scale
    )
    results = (g[..., : t.shape[2]].transpose(2, 3).to(t.dtype) for g, t in zip(grads, (q, k, v), strict=False))
    grad_q, grad_k, grad_v = (g.contiguous() for g in results)
    return grad_q, grad_k, grad_v


def _dtype(q: Tensor, v: Tensor) -> torch.dtype:
    """Return the one dtype of a call: what holds both q and v, fp32 for fp16 logits with bfloat16 values."""
    return torch.promote_types(q.dtype, v.dtype)


def _padded(x: Tensor) -> Tensor:
    """Turn x (B, h, c, N) into contiguous (B, h, N, c'), c' the next multiple of 8."""
    return F.pad(x.transpose(2, 3), (0, -x.shape[2] % 8)).contiguous()

"""Compute self-attention channels-first, exactly and in bounded memory.

`torch.ops.hyctas.self_attention(q, k, v, scale)` is the one entry. In plain torch it goes over the queries in chunks, so that no
more than `CHUNK_ELEMENTS` logits exist at a time; torch.export and the ONNX exporter see the standard operators inside.
"""

from __future__ import annotations

import torch

CHUNK_ELEMENTS = 1 << 22
"""Most logits (heads x queries x keys) held at a time: 16 MiB in fp32."""

_LIBRARY = torch.library.Library("hyctas", "DEF")
_LIBRARY.define("self_attention(Tensor q, Tensor k, Tensor v, float scale=1.0) -> (Tensor, Tensor)")


def query_chunked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend from every query to all keys.

    Args:
        q: (B, h, d, N), float.
        k: (B, h, d, M).
        v: (B, h, e, M).
        scale: factor on the logits q.k.

    Returns:
        o (B, h, e, N) in q's dtype, and the logits' log-sum-exp (B, h, N) in fp32.

    Raises:
        ValueError: ranks or sizes do not fit together.
    """
    if not (q.dim() == k.dim() == v.dim() == 4):
        raise ValueError(f"self_attention takes rank-4 tensors, got {q.dim()}, {k.dim()}, {v.dim()}")
    if q.shape[:3] != k.shape[:3] or k.shape[:2] != v.shape[:2] or k.shape[3] != v.shape[3]:
        raise ValueError(f"self_attention: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)} do not fit together")
    heads, queries, keys = q.shape[1], q.shape[3], k.shape[3]
    chunk = max(1, min(queries, CHUNK_ELEMENTS // max(1, heads * keys)))
    outputs, sums = [], []
    for start in range(0, max(queries, 1), chunk):
        part = q[..., start : start + chunk]  # (B, h, d, n)
        logits = torch.matmul(part.transpose(2, 3), k).float() * scale  # (B, h, n, M)
        weights = torch.softmax(logits, dim=3).to(v.dtype)
        outputs.append(torch.matmul(v, weights.transpose(2, 3)))  # (B, h, e, n)
        sums.append(torch.logsumexp(logits, dim=3))  # (B, h, n)
    if len(outputs) == 1:
        return outputs[0], sums[0]
    return torch.cat(outputs, dim=3), torch.cat(sums, dim=2)


_LIBRARY.impl("self_attention", query_chunked, "CompositeImplicitAutograd")


def self_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """Return only the output of `torch.ops.hyctas.self_attention` (shapes and errors there)."""
    output: torch.Tensor = torch.ops.hyctas.self_attention(q, k, v, scale)[0]
    return output

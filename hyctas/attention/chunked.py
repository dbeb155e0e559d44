"""Compute self-attention and its gradients exactly in plain torch, a chunk of queries at a time.

The implementation on CPUs, for float64 and wherever no kernel fits; the reference of all others. `self_attention_graph` is
the same in operators that exporters can trace.
"""

from __future__ import annotations

import torch
from torch import Tensor

CACHE_ELEMENTS = 1 << 18
"""Logits held at a time on a CPU: 1 MiB in fp32, so that the passes over them stay in its cache."""
DEVICE_ELEMENTS = 1 << 24
"""Logits held at a time on a GPU: 64 MiB in fp32."""
MIN_ROWS = 64
"""Queries per chunk at least, however many keys there are: below, matrix products are slow."""
GRAPH_ELEMENTS = 1 << 22
"""Logits (heads x queries x keys) held at a time in an exported graph: 16 MiB in fp32."""


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float, _choice: object = None) -> tuple[Tensor, Tensor]:
    """Attend; arguments and results as `hyctas.attention.self_attention`'s, but any strides, and not differentiable."""
    batch, heads, _, queries = q.shape
    keys, precise = k.shape[3], _precise(q, v)
    o = v.new_empty(batch, heads, v.shape[2], queries)
    lse = torch.empty(batch, heads, queries, dtype=precise, device=q.device)
    rows = _rows(q, keys)
    buffer = torch.empty(min(rows, queries) * keys, dtype=precise, device=q.device)
    for b in range(batch):
        for h in range(heads):
            query, key = (q[b, h].to(precise) * scale).t().contiguous(), k[b, h].to(precise)
            value = v[b, h].t().to(precise).contiguous()  # (M, e): with few rows, this product is fast in this order alone
            for start in range(0, queries, rows):
                part = query[start : start + rows]  # (n, d)
                logits = buffer[: len(part) * keys].view(len(part), keys)
                torch.mm(part, key, out=logits)
                top = logits.amax(1, keepdim=True)
                logits.sub_(top).exp_()  # NaN in a row of -inf alone, as torch.softmax gives
                total = logits.sum(1, keepdim=True)
                o[b, h, :, start : start + rows] = torch.mm(logits, value).div_(total).t()
                lse[b, h, start : start + rows] = total.log_().add_(top)[:, 0]
    return o, lse


def backward(
    grad_o: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, scale: float, _choice: object = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v (of their shapes and dtypes) from that of o (B, h, e, N); weights are computed again."""
    batch, heads, _, queries = q.shape
    keys, precise = k.shape[3], _precise(q, v)
    grads = [torch.zeros(t.shape, dtype=precise, device=t.device) for t in (q, k, v)]
    grad_q, grad_k, grad_v = grads
    delta = (grad_o.to(precise) * o.to(precise)).sum(2)  # (B, h, N)
    rows = _rows(q, keys)
    for b in range(batch):
        for h in range(heads):
            query, key, value, grad = (t[b, h].to(precise) for t in (q, k, v, grad_o))
            for start in range(0, queries, rows):
                part = slice(start, start + rows)
                weights = torch.mm(query[:, part].t() * scale, key).sub_(lse[b, h, part, None]).exp_()  # (n, M)
                grad_v[b, h].addmm_(grad[:, part], weights)
                inner = torch.mm(grad[:, part].t(), value).sub_(delta[b, h, part, None])
                inner.mul_(weights).mul_(scale)  # the logits' gradient, times scale
                grad_q[b, h, :, part] = torch.mm(key, inner.t())
                grad_k[b, h].addmm_(query[:, part], inner)
    return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype)


def self_attention_graph(q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Attend in traceable standard operators, unrolled over chunks of queries; arguments as `self_attention`'s.

    For exporters: with static shapes no more than `GRAPH_ELEMENTS` logits exist at a time, on every runtime. With a dynamic
    number of queries there is a single chunk.
    """
    heads, queries, keys = q.shape[1], q.shape[3], k.shape[3]
    static = isinstance(queries, int) and isinstance(keys, int)
    chunk = max(1, min(queries, GRAPH_ELEMENTS // max(1, heads * keys))) if static else queries
    outputs, sums = [], []
    for start in range(0, max(queries, 1), chunk) if static else (0,):
        part = q[..., start : start + chunk] if static else q  # (B, h, d, n)
        logits = torch.matmul(part.transpose(2, 3), k).to(_precise(q, v)) * scale  # (B, h, n, M)
        weights = torch.softmax(logits, dim=3).to(v.dtype)
        outputs.append(torch.matmul(v, weights.transpose(2, 3)))  # (B, h, e, n)
        sums.append(torch.logsumexp(logits, dim=3))  # (B, h, n)
    if len(outputs) == 1:
        return outputs[0], sums[0]
    return torch.cat(outputs, dim=3), torch.cat(sums, dim=2)


def _rows(q: Tensor, keys: int) -> int:
    elements = CACHE_ELEMENTS if q.device.type == "cpu" else DEVICE_ELEMENTS
    return max(MIN_ROWS, elements // max(1, keys))


def _precise(q: Tensor, v: Tensor) -> torch.dtype:
    """Return the dtype to compute in: at least fp32."""
    return torch.float64 if torch.float64 in (q.dtype, v.dtype) else torch.float32

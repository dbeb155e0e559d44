"""Compute self-attention in Triton for TensorRT: the forward pass with the arguments that its plugins are called with.

TensorRT passes inputs, int32 scalars, outputs, and nothing else. So there is no log-sum-exp, no split over the keys (it would need
a workspace and a second launch) and no scale, which belongs into q. What it has in common with `hyctas.attention.triton.kernels`,
whose header names shapes and symbols, is the arithmetic: fp32 statistics and sums, weights in v's dtype, logits in units of log 2.
"""

# mypy: disable-error-code="no-untyped-def"
# Triton reads a kernel's annotations as its own (constexpr or nothing).

from __future__ import annotations

import triton
import triton.language as tl

from hyctas.attention.triton.kernels import LOG2E, finite, load, operand


@triton.jit
def plugin_kernel(
    q_ptr, k_ptr, v_ptr, N, M, o_ptr,
    D: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_D: tl.constexpr,
    EVEN_KEYS: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Attend from ROWS queries to all keys, for CHANNELS channels of v. Grid: (ceil(N / ROWS), ceil(C / CHANNELS), G)."""
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    g = tl.program_id(2).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    q_ptr += g * D * N
    k_ptr += g * D * M
    v_ptr += g * C * M

    q = operand(tl.trans(load(q_ptr, d, n, N, D, N, False)), UPCAST)  # [ROWS, BLOCK_D]
    sums = tl.zeros([ROWS, CHANNELS], dtype=tl.float32)
    top = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    total = tl.zeros([ROWS], dtype=tl.float32)
    for start in range(0, M, COLUMNS):
        m = start + tl.arange(0, COLUMNS)
        k = operand(load(k_ptr, d, m, M, D, M, EVEN_KEYS and D == BLOCK_D), UPCAST)
        logits = tl.dot(q, k, input_precision=PRECISION) * LOG2E  # [ROWS, COLUMNS]
        if not EVEN_KEYS:
            logits = tl.where(m[None, :] < M, logits, float("-inf"))
        new_top = tl.maximum(top, tl.max(logits, 1))
        shift = finite(new_top)
        weights = tl.math.exp2(logits - shift[:, None])
        shrink = tl.math.exp2(top - shift)
        total = total * shrink + tl.sum(weights, 1)
        v = load(v_ptr, c, m, M, C, M, EVEN_KEYS and C % CHANNELS == 0)
        weights = operand(weights.to(v.dtype), UPCAST)
        sums = tl.dot(weights, tl.trans(operand(v, UPCAST)), sums * shrink[:, None], input_precision=PRECISION)
        top = new_top

    o = tl.trans(sums * (1.0 / total)[:, None])  # [CHANNELS, ROWS]
    inside = (c[:, None] < C) & (n[None, :] < N)
    tl.store(o_ptr + g * C * N + c[:, None] * N + n[None, :], o.to(o_ptr.dtype.element_ty), mask=inside)

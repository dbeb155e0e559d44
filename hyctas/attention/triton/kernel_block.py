"""Compute a whole attention block in one Triton launch, for inference: projections, attention, shortcut, batch norm, ReLU.

    y = ReLU(norm_scale * (x + Wv (x A^T) + bv) + norm_shift),   A = softmax((Wq x + bq)^T (Wk x) * scale)

Three identities make it one pass (all exact): the bias of k adds the same to all logits of a query and cancels in the softmax;
the bias of v passes through the average; and Wv, being linear, may follow the average, so that x itself is what is averaged and
v never exists. gamma, or the batch norm that joins the attention to its input, is part of Wv and bv (`hyctas.attention.block`).
"""

# mypy: disable-error-code="no-untyped-def"
# Triton reads a kernel's annotations as its own (constexpr or nothing).

from __future__ import annotations

import triton
import triton.language as tl

from hyctas.attention.triton.kernels import finite, load, operand


@triton.jit
def block_kernel(
    x_ptr, k_ptr, wq_ptr, bq_ptr, wk_ptr, wv_ptr, bv_ptr, norm_scale_ptr, norm_shift_ptr, y_ptr, N, scale,
    D: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_D: tl.constexpr,
    EVEN: tl.constexpr, PROJECT_K: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Compute ROWS positions of y (G, C, N) from x. Grid: (ceil(N / ROWS), G); CHANNELS is C's next power of two.

    PROJECT_K: compute k = Wk x here, once per block of queries, instead of reading k (G, D, N).
    """
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    g = tl.program_id(1).to(tl.int64)
    c = tl.arange(0, CHANNELS)
    d = tl.arange(0, BLOCK_D)
    x_ptr += g * C * N
    k_ptr += g * D * N

    own = load(x_ptr, c, n, N, C, N, False)  # [CHANNELS, ROWS]
    dtype = own.dtype
    wq = operand(load(wq_ptr, d, c, C, D, C, D == BLOCK_D and C == CHANNELS), UPCAST)
    bq = tl.load(bq_ptr + d, mask=d < D, other=0.0).to(tl.float32)
    q = tl.dot(tl.trans(operand(own, UPCAST)), tl.trans(wq), input_precision=PRECISION) + bq[None, :]
    q = operand(q.to(dtype), UPCAST)  # [ROWS, BLOCK_D]
    if PROJECT_K:
        wk = operand(load(wk_ptr, d, c, C, D, C, D == BLOCK_D and C == CHANNELS), UPCAST)
    sums = tl.zeros([ROWS, CHANNELS], dtype=tl.float32)
    top = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    total = tl.zeros([ROWS], dtype=tl.float32)
    for start in range(0, N, COLUMNS):
        m = start + tl.arange(0, COLUMNS)
        x = operand(load(x_ptr, c, m, N, C, N, EVEN and C == CHANNELS), UPCAST)  # [CHANNELS, COLUMNS]
        if PROJECT_K:
            k = operand(tl.dot(wk, x, input_precision=PRECISION).to(dtype), UPCAST)
        else:
            k = operand(load(k_ptr, d, m, N, D, N, EVEN and D == BLOCK_D), UPCAST)
        logits = tl.dot(q, k, input_precision=PRECISION) * scale
        if not EVEN:
            logits = tl.where(m[None, :] < N, logits, float("-inf"))
        new_top = tl.maximum(top, tl.max(logits, 1))
        shift = finite(new_top)
        weights = tl.math.exp2(logits - shift[:, None])
        shrink = tl.math.exp2(top - shift)
        total = total * shrink + tl.sum(weights, 1)
        weights = operand(weights.to(dtype), UPCAST)
        sums = tl.dot(weights, tl.trans(x), sums * shrink[:, None], input_precision=PRECISION)
        top = new_top

    average = operand((sums * (1.0 / total)[:, None]).to(dtype), UPCAST)  # [ROWS, CHANNELS]
    wv = operand(load(wv_ptr, c, c, C, C, C, C == CHANNELS), UPCAST)
    y = tl.dot(wv, tl.trans(average), input_precision=PRECISION)  # [CHANNELS, ROWS]
    bv = tl.load(bv_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    norm_scale = tl.load(norm_scale_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    norm_shift = tl.load(norm_shift_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    shortcut = load(x_ptr, c, n, N, C, N, False).to(tl.float32)
    y = norm_scale[:, None] * (y + bv[:, None] + shortcut) + norm_shift[:, None]
    y = tl.where(y > 0, y, tl.where(y != y, y, 0.0))  # NaN stays NaN
    inside = (c[:, None] < C) & (n[None, :] < N)
    tl.store(y_ptr + g * C * N + c[:, None] * N + n[None, :], y.to(y_ptr.dtype.element_ty), mask=inside)

"""Compute self-attention in Triton: one pass over the keys per block of queries, channels first, no map in memory.

Forward, its split over the keys (`SPLIT`: fp32 partial sums, merged by `combine_kernel`), and the backward pass, which computes
the weights again from the saved log-sum-exp. Statistics and sums are fp32; the weights are rounded to v's dtype before they meet
v, as in FlashAttention-2 (arXiv 2307.08691, algorithm 1; here d != e and no transposes). Logits are kept in units of log 2.

Shapes: q (G, D, N), k (G, D, M), v (G, C, M), o (G, C, N), lse (G, N), with G = batch x heads, innermost axis contiguous.
N, M, D and C may be anything: what lies outside is masked. `UPCAST` is for the interpreter alone, whose dot multiplies the bit
patterns of bfloat16 (triton-lang/triton issue 11584).
"""

# mypy: disable-error-code="no-untyped-def"
# Triton reads a kernel's annotations as its own (constexpr or nothing).

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def load(ptr, rows, columns, stride, row_end, column_end, EVEN: tl.constexpr):
    """Load a tile [rows, columns] of a row-major matrix; zeros outside unless EVEN says that there is no outside."""
    pointers = ptr + rows[:, None] * stride + columns[None, :]
    if EVEN:
        return tl.load(pointers)
    return tl.load(pointers, mask=(rows[:, None] < row_end) & (columns[None, :] < column_end), other=0.0)


@triton.jit
def operand(x, UPCAST: tl.constexpr):
    """Make a tile an operand of a dot."""
    if UPCAST:
        return x.to(tl.float32)
    return x


@triton.jit
def finite(top):
    """Replace a maximum of -inf by 0, so that rows without any finite logit so far give weights of 0, not NaN."""
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit
def forward_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, partial_ptr, statistics_ptr, N, M, keys_per_split, scale,
    D: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_D: tl.constexpr,
    EVEN_KEYS: tl.constexpr, SPLIT: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Attend from ROWS queries to a part of the keys. Grid: (ceil(N / ROWS), splits * ceil(C / CHANNELS), G)."""
    channel_blocks: tl.constexpr = (C + CHANNELS - 1) // CHANNELS
    split = tl.program_id(1) // channel_blocks
    channel_block = tl.program_id(1) % channel_blocks
    g = tl.program_id(2).to(tl.int64)
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK_D)
    c = channel_block * CHANNELS + tl.arange(0, CHANNELS)
    q_ptr += g * D * N
    k_ptr += g * D * M
    v_ptr += g * C * M

    q = operand(tl.trans(load(q_ptr, d, n, N, D, N, False)), UPCAST)  # [ROWS, BLOCK_D]
    sums = tl.zeros([ROWS, CHANNELS], dtype=tl.float32)
    top = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    total = tl.zeros([ROWS], dtype=tl.float32)
    low = split * keys_per_split
    high = tl.minimum(low + keys_per_split, M)
    for start in range(low, high, COLUMNS):
        m = start + tl.arange(0, COLUMNS)
        k = operand(load(k_ptr, d, m, M, D, high, EVEN_KEYS and D == BLOCK_D), UPCAST)
        logits = tl.dot(q, k, input_precision=PRECISION) * scale  # [ROWS, COLUMNS]
        if not EVEN_KEYS:
            logits = tl.where(m[None, :] < high, logits, float("-inf"))
        new_top = tl.maximum(top, tl.max(logits, 1))
        shift = finite(new_top)
        weights = tl.math.exp2(logits - shift[:, None])
        shrink = tl.math.exp2(top - shift)
        total = total * shrink + tl.sum(weights, 1)
        v = load(v_ptr, c, m, M, C, high, EVEN_KEYS and C % CHANNELS == 0)
        weights = operand(weights.to(v.dtype), UPCAST)
        sums = tl.dot(weights, tl.trans(operand(v, UPCAST)), sums * shrink[:, None], input_precision=PRECISION)
        top = new_top

    inside = (c[:, None] < C) & (n[None, :] < N)
    if SPLIT:
        part = g * (tl.num_programs(1) // channel_blocks) + split
        tl.store(partial_ptr + part * C * N + c[:, None] * N + n[None, :], tl.trans(sums), mask=inside)
        if channel_block == 0:
            tl.store(statistics_ptr + part * 2 * N + n, top, mask=n < N)
            tl.store(statistics_ptr + part * 2 * N + N + n, total, mask=n < N)
    else:
        o = tl.trans(sums * (1.0 / total)[:, None])
        tl.store(o_ptr + g * C * N + c[:, None] * N + n[None, :], o.to(o_ptr.dtype.element_ty), mask=inside)
        if channel_block == 0:
            tl.store(lse_ptr + g * N + n, (top + tl.math.log2(total)) * LN2, mask=n < N)


@triton.jit
def combine_kernel(
    partial_ptr, statistics_ptr, o_ptr, lse_ptr, N, splits, C: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):
    """Merge the parts of a split forward pass. Grid: (ceil(N / ROWS), ceil(C / CHANNELS), G)."""
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    g = tl.program_id(2).to(tl.int64)
    inside = (c[:, None] < C) & (n[None, :] < N)
    top = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    total = tl.zeros([ROWS], dtype=tl.float32)
    sums = tl.zeros([CHANNELS, ROWS], dtype=tl.float32)
    for split in range(0, splits):
        part = g * splits + split
        part_top = tl.load(statistics_ptr + part * 2 * N + n, mask=n < N, other=0.0)
        part_total = tl.load(statistics_ptr + part * 2 * N + N + n, mask=n < N, other=1.0)
        new_top = tl.maximum(top, part_top)
        shift = finite(new_top)
        shrink = tl.math.exp2(top - shift)
        share = tl.math.exp2(part_top - shift)
        part_sums = tl.load(partial_ptr + part * C * N + c[:, None] * N + n[None, :], mask=inside, other=0.0)
        sums = sums * shrink[None, :] + part_sums * share[None, :]
        total = total * shrink + part_total * share
        top = new_top
    o = sums / total[None, :]
    tl.store(o_ptr + g * C * N + c[:, None] * N + n[None, :], o.to(o_ptr.dtype.element_ty), mask=inside)
    if tl.program_id(1) == 0:
        tl.store(lse_ptr + g * N + n, (top + tl.math.log2(total)) * LN2, mask=n < N)


@triton.jit
def delta_kernel(grad_ptr, o_ptr, delta_ptr, N, C: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Sum grad_o * o over the channels: (G, N) in fp32. Grid: (ceil(N / ROWS), G)."""
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    g = tl.program_id(1).to(tl.int64)
    total = tl.zeros([ROWS], dtype=tl.float32)
    for start in range(0, C, CHANNELS):
        c = start + tl.arange(0, CHANNELS)
        grad = load(grad_ptr + g * C * N, c, n, N, C, N, False).to(tl.float32)
        o = load(o_ptr + g * C * N, c, n, N, C, N, False).to(tl.float32)
        total += tl.sum(grad * o, 0)
    tl.store(delta_ptr + g * N + n, total, mask=n < N)


@triton.jit
def grad_v_kernel(
    q_ptr, k_ptr, grad_ptr, lse_ptr, grad_v_ptr, N, M, scale,
    D: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Sum the weighted grad_o over all queries, for COLUMNS keys. Grid: (ceil(M / COLUMNS), ceil(C / CHANNELS), G)."""
    m = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    g = tl.program_id(2).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    q_ptr += g * D * N
    grad_ptr += g * C * N
    lse_ptr += g * N
    k = operand(load(k_ptr + g * D * M, d, m, M, D, M, False), UPCAST)  # [BLOCK_D, COLUMNS]
    sums = tl.zeros([CHANNELS, COLUMNS], dtype=tl.float32)
    for start in range(0, N, ROWS):
        n = start + tl.arange(0, ROWS)
        q = operand(tl.trans(load(q_ptr, d, n, N, D, N, False)), UPCAST)
        lse = tl.load(lse_ptr + n, mask=n < N, other=float("inf")) * LOG2E
        weights = tl.math.exp2(tl.dot(q, k, input_precision=PRECISION) * scale - lse[:, None])  # 0 in rows outside
        grad = load(grad_ptr, c, n, N, C, N, False)  # [CHANNELS, ROWS]
        weights = operand(weights.to(grad.dtype), UPCAST)
        sums = tl.dot(operand(grad, UPCAST), weights, sums, input_precision=PRECISION)
    inside = (c[:, None] < C) & (m[None, :] < M)
    tl.store(grad_v_ptr + g * C * M + c[:, None] * M + m[None, :], sums.to(grad_v_ptr.dtype.element_ty), mask=inside)


@triton.jit
def grad_logits(
    q, k, grad_ptr, v_ptr, lse_ptr, delta_ptr, n, m, N, M, scale,
    C: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Return weights * (grad of the weights - delta) in fp32 for q [ROWS, D] and k [D, COLUMNS]; 0 outside."""
    of_weights = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    for start in range(0, C, CHANNELS):
        c = start + tl.arange(0, CHANNELS)
        grad = operand(load(grad_ptr, c, n, N, C, N, False), UPCAST)
        v = operand(load(v_ptr, c, m, M, C, M, False), UPCAST)
        of_weights = tl.dot(tl.trans(grad), v, of_weights, input_precision=PRECISION)
    lse = tl.load(lse_ptr + n, mask=n < N, other=float("inf")) * LOG2E
    delta = tl.load(delta_ptr + n, mask=n < N, other=0.0)
    logits = tl.dot(q, k, input_precision=PRECISION) * scale
    weights = tl.math.exp2(tl.where(m[None, :] < M, logits, float("-inf")) - lse[:, None])
    return weights * (of_weights - delta[:, None])


@triton.jit
def grad_qk_kernel(
    q_ptr, k_ptr, v_ptr, grad_ptr, lse_ptr, delta_ptr, grad_q_ptr, grad_k_ptr, N, M, scale,
    D: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_D: tl.constexpr,
    ATOMIC: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Sum the gradient of COLUMNS keys over all queries; with ATOMIC add that of q into fp32. Grid: (ceil(M / COLUMNS), G)."""
    m = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    g = tl.program_id(1).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    q_ptr += g * D * N
    grad_ptr += g * C * N
    grad_q_ptr += g * D * N
    k = operand(load(k_ptr + g * D * M, d, m, M, D, M, False), UPCAST)  # [BLOCK_D, COLUMNS]
    sums = tl.zeros([BLOCK_D, COLUMNS], dtype=tl.float32)
    for start in range(0, N, ROWS):
        n = start + tl.arange(0, ROWS)
        q = operand(load(q_ptr, d, n, N, D, N, False), UPCAST)  # [BLOCK_D, ROWS]
        inner = grad_logits(
            tl.trans(q), k, grad_ptr, v_ptr + g * C * M, lse_ptr + g * N, delta_ptr + g * N, n, m, N, M, scale,
            C, ROWS, COLUMNS, CHANNELS, PRECISION, UPCAST,
        )  # fmt: skip
        inner = operand(inner.to(v_ptr.dtype.element_ty), UPCAST)
        sums = tl.dot(q.to(inner.dtype), inner, sums, input_precision=PRECISION)
        if ATOMIC:
            of_q = tl.dot(k.to(inner.dtype), tl.trans(inner), input_precision=PRECISION) * (scale * LN2)  # [BLOCK_D, ROWS]
            inside = (d[:, None] < D) & (n[None, :] < N)
            tl.atomic_add(grad_q_ptr + d[:, None] * N + n[None, :], of_q, mask=inside, sem="relaxed")
    inside = (d[:, None] < D) & (m[None, :] < M)
    result = (sums * (scale * LN2)).to(grad_k_ptr.dtype.element_ty)
    tl.store(grad_k_ptr + g * D * M + d[:, None] * M + m[None, :], result, mask=inside)


@triton.jit
def grad_q_kernel(
    q_ptr, k_ptr, v_ptr, grad_ptr, lse_ptr, delta_ptr, grad_q_ptr, N, M, scale,
    D: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Sum the gradient of ROWS queries over all keys, in a fixed order. Grid: (ceil(N / ROWS), G)."""
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    g = tl.program_id(1).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    k_ptr += g * D * M
    q = operand(tl.trans(load(q_ptr + g * D * N, d, n, N, D, N, False)), UPCAST)  # [ROWS, BLOCK_D]
    sums = tl.zeros([BLOCK_D, ROWS], dtype=tl.float32)
    for start in range(0, M, COLUMNS):
        m = start + tl.arange(0, COLUMNS)
        k = operand(load(k_ptr, d, m, M, D, M, False), UPCAST)
        inner = grad_logits(
            q, k, grad_ptr + g * C * N, v_ptr + g * C * M, lse_ptr + g * N, delta_ptr + g * N, n, m, N, M, scale,
            C, ROWS, COLUMNS, CHANNELS, PRECISION, UPCAST,
        )  # fmt: skip
        inner = operand(inner.to(v_ptr.dtype.element_ty), UPCAST)
        sums = tl.dot(k.to(inner.dtype), tl.trans(inner), sums, input_precision=PRECISION)
    inside = (d[:, None] < D) & (n[None, :] < N)
    result = (sums * (scale * LN2)).to(grad_q_ptr.dtype.element_ty)
    tl.store(grad_q_ptr + g * D * N + d[:, None] * N + n[None, :], result, mask=inside)

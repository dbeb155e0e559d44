"""Launch the Triton kernels: arguments, grids and splits. Imports Triton; `hyctas.attention.dispatch` decides who comes here.

Nothing but outputs, statistics and, where the keys are split, fp32 partial sums is allocated. Inputs whose innermost layout is
not channels-first are copied first.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hyctas.attention.triton import kernels
from hyctas.attention.triton.kernel_block import block_kernel
from hyctas.attention.triton.tiles import COMBINE, DELTA, Tile, block

if TYPE_CHECKING:
    from hyctas.attention.dispatch import Choice

LOG2E = 1.4426950408889634
MAX_SPLITS = 8
FULL_ENOUGH = 0.8
"""Do not split where the programs fill this share of a GPU's multiprocessors already (as FlashAttention-3 does)."""


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float, choice: Choice) -> tuple[Tensor, Tensor]:
    """Attend; shapes as `hyctas.attention.self_attention`. `choice.tiles["forward"]` is the tile."""
    assert choice.tiles is not None
    return run_forward(q, k, v, scale, choice.tiles["forward"])


def run_forward(q: Tensor, k: Tensor, v: Tensor, scale: float, tile: Tile) -> tuple[Tensor, Tensor]:
    """Attend with a given tile."""
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    batch, heads, d, queries = q.shape
    keys, c, groups = k.shape[3], v.shape[2], batch * heads
    o = v.new_empty(batch, heads, c, queries)
    lse = torch.empty(batch, heads, queries, dtype=torch.float32, device=q.device)
    channels = min(tile.channels, block(c))
    programs = -(-queries // tile.rows) * -(-c // channels)
    splits, per_split = split(keys, tile, programs * groups, multiprocessors(q))
    partial = statistics = lse
    if splits > 1:
        partial = torch.empty(groups, splits, c, queries, dtype=torch.float32, device=q.device)
        statistics = torch.empty(groups, splits, 2, queries, dtype=torch.float32, device=q.device)
    with on_device(q):
        kernels.forward_kernel[(-(-queries // tile.rows), splits * -(-c // channels), groups)](
            q, k, v, o, lse, partial, statistics, queries, keys, per_split, scale * LOG2E,
            D=d, C=c, ROWS=tile.rows, COLUMNS=tile.columns, CHANNELS=channels, BLOCK_D=block(d),
            EVEN_KEYS=keys % tile.columns == 0, SPLIT=splits > 1, **common(tile, q, v),
        )  # fmt: skip
        if splits > 1:
            kernels.combine_kernel[(-(-queries // COMBINE.rows), -(-c // COMBINE.channels), groups)](
                partial, statistics, o, lse, queries, splits, C=c, ROWS=COMBINE.rows, CHANNELS=COMBINE.channels,
                num_warps=COMBINE.warps, num_stages=COMBINE.stages,
            )  # fmt: skip
    return o, lse


def backward(
    grad_o: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, scale: float, choice: Choice
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v.

    That of q is summed by atomic additions in fp32, in an order that varies; under
    `torch.use_deterministic_algorithms(True)` by a kernel of its own in a fixed order.
    """
    assert choice.tiles is not None
    return run_backward(grad_o, q, k, v, o, lse, scale, choice.tiles, torch.are_deterministic_algorithms_enabled())


def run_backward(
    grad_o: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, scale: float, tiles: dict[str, Tile], fixed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients with given tiles; `fixed`: in a fixed order of additions."""
    grad_o, q, k, v, o, lse = (t.contiguous() for t in (grad_o, q, k, v, o, lse))
    batch, heads, d, queries = q.shape
    keys, c, groups = k.shape[3], v.shape[2], batch * heads
    grad_k, grad_v = torch.empty_like(k), torch.empty_like(v)
    grad_q = torch.empty_like(q) if fixed else torch.zeros(q.shape, dtype=torch.float32, device=q.device)
    delta = torch.empty_like(lse)
    scaled, sizes = scale * LOG2E, {"D": d, "C": c, "BLOCK_D": block(d)}
    with on_device(q):
        kernels.delta_kernel[(-(-queries // DELTA.rows), groups)](
            grad_o, o, delta, queries, C=c, ROWS=DELTA.rows, CHANNELS=DELTA.channels, num_warps=DELTA.warps, num_stages=DELTA.stages
        )
        tile = tiles["grad_v"]
        channels = min(tile.channels, block(c))
        kernels.grad_v_kernel[(-(-keys // tile.columns), -(-c // channels), groups)](
            q, k, grad_o, lse, grad_v, queries, keys, scaled, **sizes, **blocks(tile, channels), **common(tile, q, v)
        )
        tile = tiles["grad_qk"]
        kernels.grad_qk_kernel[(-(-keys // tile.columns), groups)](
            q, k, v, grad_o, lse, delta, grad_q, grad_k, queries, keys, scaled,
            **sizes, **blocks(tile, min(tile.channels, block(c))), ATOMIC=not fixed, **common(tile, q, v),
        )  # fmt: skip
        if fixed:
            tile = tiles["grad_q"]
            kernels.grad_q_kernel[(-(-queries // tile.rows), groups)](
                q, k, v, grad_o, lse, delta, grad_q, queries, keys, scaled,
                **sizes, **blocks(tile, min(tile.channels, block(c))), **common(tile, q, v),
            )  # fmt: skip
    return grad_q.to(q.dtype), grad_k, grad_v


def run_block(
    x: Tensor, wq: Tensor, bq: Tensor, wk: Tensor, wv: Tensor, bv: Tensor, norm_scale: Tensor, norm_shift: Tensor, scale: float,
    tile: Tile, *, project_k: bool = True,
) -> Tensor:  # fmt: skip
    """Compute an attention block (shapes as `hyctas.attention.block`) with a given tile.

    `project_k`: compute k inside, in the one launch; else by a matrix product before it.
    """
    x, wq, wk, wv = (t.contiguous() for t in (x, wq, wk, wv))
    bq, bv, norm_scale, norm_shift = (t.contiguous() for t in (bq, bv, norm_scale, norm_shift))
    batch, c, n, d = x.shape[0], x.shape[1], x.shape[2] * x.shape[3], wq.shape[0]
    y = torch.empty_like(x)  # contiguous, as x is now
    k = x if project_k else torch.matmul(wk, x.flatten(2))
    with on_device(x):
        block_kernel[(-(-n // tile.rows), batch)](
            x, k, wq, bq, wk, wv, bv, norm_scale, norm_shift, y, n, scale * LOG2E,
            D=d, C=c, BLOCK_D=block(d), **blocks(tile, block(c)), EVEN=n % tile.columns == 0, PROJECT_K=project_k,
            **common(tile, x),
        )  # fmt: skip
    return y


def split(keys: int, tile: Tile, programs: int, processors: int) -> tuple[int, int]:
    """Return into how many parts the keys are divided, and the keys per part (a multiple of the tile's columns)."""
    wanted = tile.splits
    if not wanted:
        wanted = 1 if programs >= FULL_ENOUGH * processors else min(MAX_SPLITS, processors // programs)
    per_split = -(-keys // max(1, wanted))
    per_split = -(-per_split // tile.columns) * tile.columns
    return -(-keys // per_split), per_split


def blocks(tile: Tile, channels: int) -> dict[str, int]:
    """Return a tile as a kernel's compile-time arguments."""
    return {"ROWS": tile.rows, "COLUMNS": tile.columns, "CHANNELS": channels}


def common(tile: Tile, *tensors: Tensor) -> dict[str, Any]:
    """Return what all kernels take: warps, stages, the precision of fp32 dots, and the interpreter's mend for bfloat16."""
    upcast = interpreted() and any(tensor.dtype == torch.bfloat16 for tensor in tensors)
    return {"PRECISION": precision(), "UPCAST": upcast, "num_warps": tile.warps, "num_stages": tile.stages}


def precision() -> str:
    """Return how fp32 operands are multiplied: in three TF32 passes, close to fp32; in one where torch allows TF32."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"


def interpreted() -> bool:
    """Return whether Triton's interpreter runs the kernels, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def multiprocessors(tensor: Tensor) -> int:
    """Return a GPU's number of multiprocessors; 1 under the interpreter."""
    if tensor.device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Make a tensor's GPU the current one, which is where Triton launches."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else nullcontext()

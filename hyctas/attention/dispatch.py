"""Choose the implementation of self-attention for a device, dtype and shape, and say why.

| tensors                                                             | implementation                                      |
|---------------------------------------------------------------------|-----------------------------------------------------|
| on a CPU, or float64                                                | `chunked`: plain torch, a chunk of queries at a time |
| CUDA, compute capability 8.0 on, with Triton and a C compiler for it | `triton`: the fused kernels                          |
| CUDA before 8.0, or without one of these                            | `sdpa`: PyTorch's memory-efficient kernel            |
| neither can compute it (bfloat16 before 8.0, AMD GPUs)              | `chunked`                                            |

`triton` needs a tile per kernel: from the GPU's own table, else the shipped ones (`hyctas.attention.triton.tiles`). A table
(`tables/<gpu>.json`, written by `python -m benchmarks.gpu_suite`) wins over the shipped tiles, and may say that `sdpa` is faster
for a shape. It is looked up at every call (by name, time and size of the file; read only when these change), so that one
written while a process runs, by whomever, counts from the next call on.

`HYCTAS_ATTENTION=chunked|sdpa|triton` forces an implementation on GPUs; where it cannot run, that is an error. Tensors on a CPU
are always computed by `chunked`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from types import ModuleType

import torch
from torch import Tensor

from export.errors import InvalidInput, Unavailable
from hyctas.attention.measured import Entry, TableFile, find_table, read_table
from hyctas.attention.triton.tiles import TWO_STEP, Tile, architecture, shipped

VARIABLE = "HYCTAS_ATTENTION"
SMALL_BLOCK = 32
"""Blocks of queries below which the one-launch kernel, which cannot split the keys, leaves most of a GPU idle."""
QK_CHANNELS = 64
"""Channels of q and k per head up to which every shipped tile fits into shared memory."""
GRID_LIMIT = 65535
"""Batch x heads that one launch covers: CUDA's limit for the second and third axis of a grid."""
IMPLEMENTATIONS: dict[str, Callable[[], ModuleType]] = {
    "chunked": lambda: importlib.import_module("hyctas.attention.chunked"),
    "sdpa": lambda: importlib.import_module("hyctas.attention.sdpa"),
    "triton": lambda: importlib.import_module("hyctas.attention.triton.launch"),
}


@dataclass(frozen=True)
class Problem:
    """Shapes and dtypes of one call."""

    batch: int
    heads: int
    qk_channels: int
    """d, per head."""
    value_channels: int
    """e, per head."""
    queries: int
    keys: int
    qk_dtype: torch.dtype
    value_dtype: torch.dtype

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor) -> Problem:
        """Read a problem off checked tensors."""
        batch, heads, d, queries = q.shape
        return cls(batch, heads, d, v.shape[2], queries, k.shape[3], q.dtype, v.dtype)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to compute."""
        return 0 in (self.batch, self.heads, self.value_channels, self.queries)

    @property
    def item_bytes(self) -> int:
        """Bytes of an element, of the wider of both dtypes."""
        return max(self.qk_dtype.itemsize, self.value_dtype.itemsize)

    @property
    def aligned(self) -> bool:
        """Whether rows of queries and of keys start where wide loads may; otherwise other tiles fit (`tiles.RAGGED`)."""
        return self.queries % 16 == 0 and self.keys % 16 == 0


@dataclass(frozen=True)
class Choice:
    """How one call is computed."""

    implementation: str
    """One of `IMPLEMENTATIONS`; for a block also `steps`."""
    reason: str
    tiles: dict[str, Tile] | None = None
    """Tile by kernel, for `triton`."""


def choose(problem: Problem, device: torch.device, *, backward: bool = False) -> Choice:
    """Choose an implementation.

    Args:
        problem: shapes and dtypes.
        device: where the tensors are.
        backward: choose for the backward pass.

    Raises:
        InvalidInput: `HYCTAS_ATTENTION` is none of the implementations, `HYCTAS_ATTENTION_TABLES` no folder.
        Unavailable: `HYCTAS_ATTENTION` names an implementation that cannot compute this on this GPU.
        CorruptFile: the GPU's table cannot be used.
    """
    if device.type != "cuda":
        return Choice("chunked", f"the tensors are on {device.type}, not on a GPU")
    if problem.empty:
        return Choice("chunked", "there is nothing to compute")
    index = _index(device)
    gpu = torch.cuda.get_device_name(index)
    return _choose(problem, index, backward, os.environ.get(VARIABLE, ""), gpu, find_table(gpu))


def explain(q: Tensor, k: Tensor, v: Tensor, *, backward: bool = False) -> Choice:
    """Say how `self_attention` would compute these tensors, and why; nothing is computed.

    Raises:
        ValueError, TypeError: as `hyctas.attention.arguments.check`.
        InvalidInput, Unavailable, CorruptFile: as `choose`.
    """
    from hyctas.attention.arguments import check

    check(q, k, v)
    return choose(Problem.of(q, k, v), q.device, backward=backward)


def choose_block(x: Tensor, qk_channels: int) -> Choice:
    """Choose how `attention_block` is computed for x (B, C, H, W): by its one kernel (`triton`), or in steps (all else).

    Raises:
        InvalidInput, Unavailable, CorruptFile: as `choose`.
    """
    c, n = x.shape[1], x.shape[2] * x.shape[3]
    problem = Problem(x.shape[0], 1, qk_channels, c, n, n, x.dtype, x.dtype)
    choice = choose(problem, x.device)
    if choice.implementation != "triton":
        return choice
    index = _index(x.device)
    gpu = torch.cuda.get_device_name(index)
    return _choose_block(problem, index, gpu, find_table(gpu))


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


@lru_cache(maxsize=4096)
def _choose(problem: Problem, index: int, backward: bool, forced: str, gpu: str, table: TableFile | None) -> Choice:
    if forced and forced not in IMPLEMENTATIONS:
        raise InvalidInput(f"{VARIABLE}={forced} is unknown; set it to {', '.join(IMPLEMENTATIONS)}, or not at all")
    entry = None if table is None else nearest(read_table(table, gpu), problem, backward)
    tiles = _tiles(problem, index, entry)
    reasons = _refusals(problem, index, backward, entry, tiles)
    if forced:
        if reasons[forced]:
            raise Unavailable(f"{VARIABLE}={forced}", reasons[forced], f"unset {VARIABLE}")
        return Choice(forced, f"{VARIABLE} says so", tiles if forced == "triton" else None)
    if entry is not None and not reasons[entry.implementation]:
        where = f"d = {entry.qk_channels}, e = {entry.value_channels}, N = {entry.queries}, M = {entry.keys}"
        reason = f"measured fastest on this GPU at {where}: {entry.ms:.3f} ms"
        return Choice(entry.implementation, reason, tiles if entry.implementation == "triton" else None)
    if not reasons["triton"]:
        return Choice("triton", "the fused kernels run on this GPU", tiles)
    if not reasons["sdpa"]:
        return Choice("sdpa", f"not triton: {reasons['triton']}")
    return Choice("chunked", f"not triton: {reasons['triton']}; not sdpa: {reasons['sdpa']}")


def _tiles(problem: Problem, index: int, entry: Entry | None) -> dict[str, Tile]:
    """Return the tile of every kernel that has one: the measured ones, else the shipped."""
    arch = architecture(torch.cuda.get_device_capability(index))
    if arch is None:
        return {}
    tiles = {kernel: shipped(arch, kernel, problem.value_channels, problem.item_bytes, problem.aligned) for kernel in TWO_STEP}
    found = {kernel: tile for kernel, tile in tiles.items() if tile is not None}
    return {**found, **entry.tiles} if entry is not None and entry.implementation == "triton" else found


def _refusals(problem: Problem, index: int, backward: bool, entry: Entry | None, tiles: dict[str, Tile]) -> dict[str, str]:
    """Return for each implementation why it cannot run on a GPU; empty where it can."""
    capability = torch.cuda.get_device_capability(index)
    old, name = capability < (8, 0), f"compute capability {capability[0]}.{capability[1]}"
    sdpa = triton = ""
    if torch.float64 in (problem.qk_dtype, problem.value_dtype):
        sdpa = triton = "it does not compute in float64"
    elif torch.version.hip:
        sdpa = triton = "this is an AMD GPU, which it was not made for"
    elif problem.batch * problem.heads > GRID_LIMIT:
        sdpa = triton = f"batch x heads is {problem.batch * problem.heads}, above the {GRID_LIMIT} of one launch"
    elif old:
        triton = f"{name} is below 8.0, where Triton has no tensor cores"
        sdpa = f"{name} has no bfloat16" if torch.bfloat16 in (problem.qk_dtype, problem.value_dtype) else ""
    else:
        triton = triton_missing() or _tiles_missing(problem, backward, entry, tiles)
    return {"chunked": "", "sdpa": sdpa, "triton": triton}


def _tiles_missing(problem: Problem, backward: bool, entry: Entry | None, tiles: dict[str, Tile]) -> str:
    """Return what tiles the kernels of a pass lack; empty if none."""
    needed = TWO_STEP[1:] if backward else TWO_STEP[:1]
    if missing := [kernel for kernel in needed if kernel not in tiles]:
        what = f"{problem.value_channels} channels of {problem.item_bytes} bytes"
        return f"no tile fits {what} in the kernels {', '.join(missing)} on this GPU"
    measured = entry is not None and set(needed) <= set(entry.tiles)
    if problem.qk_channels > QK_CHANNELS and not measured:
        return f"q and k have {problem.qk_channels} channels per head, above the {QK_CHANNELS} that the tiles were made for"
    return ""


@cache
def triton_missing() -> str:
    """Return why Triton cannot be used; empty where it can. Asked once per process."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton; a CUDA build of torch brings it)"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton needs a C compiler for its launchers, and there is none: install gcc or clang, or set CC"
    return ""


@lru_cache(maxsize=4096)
def _choose_block(problem: Problem, index: int, gpu: str, table: TableFile | None) -> Choice:
    entry = None if table is None else nearest(read_table(table, gpu), problem, backward=False, block=True)
    if entry is not None:
        return Choice(entry.implementation, f"measured fastest for the whole block: {entry.ms:.3f} ms", dict(entry.tiles))
    arch = architecture(torch.cuda.get_device_capability(index))
    tile = None if arch is None else shipped(arch, "block", problem.value_channels, problem.item_bytes, problem.aligned)
    if tile is None:
        return Choice("steps", f"the one-launch kernel has no tile for {problem.value_channels} channels of {problem.qk_dtype}")
    blocks = problem.batch * -(-problem.queries // tile.rows)
    if blocks < SMALL_BLOCK:
        return Choice("steps", f"{blocks} blocks of {tile.rows} positions fill too few multiprocessors without splitting the keys")
    return Choice("triton", "one launch for the whole block", {"block": tile})


def nearest(entries: tuple[Entry, ...], problem: Problem, backward: bool, block: bool = False) -> Entry | None:
    """Return the measurement of the same kind, dtype, pass, channels and alignment, nearest in queries x keys, within 4x."""
    if problem.qk_dtype.itemsize != problem.value_dtype.itemsize:
        return None  # only equal dtypes were measured
    fitting = [
        (ratio, entry)
        for entry in entries
        if (entry.backward, entry.block) == (backward, block)
        and entry.dtype == str(problem.value_dtype).removeprefix("torch.")
        and (entry.qk_channels, entry.value_channels) == (problem.qk_channels, problem.value_channels)
        and (entry.queries % 16 == 0 and entry.keys % 16 == 0) == problem.aligned
        and (ratio := _ratio(entry, problem)) <= 4
    ]
    return min(fitting, key=lambda pair: pair[0])[1] if fitting else None


def _ratio(entry: Entry, problem: Problem) -> float:
    ratio = problem.batch * problem.heads * problem.queries * problem.keys / (entry.batch * entry.queries * entry.keys)
    return max(ratio, 1 / ratio)

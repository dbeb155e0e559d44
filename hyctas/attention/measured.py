"""Read and write the table of what was measured fastest on one GPU; `python -m benchmarks.gpu_suite` makes it.

Tables lie in `hyctas/attention/tables/<gpu>.json` of the package; `HYCTAS_ATTENTION_TABLES` names a folder whose tables win.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from export.codec import decode, encode
from export.errors import CorruptFile, InvalidInput
from hyctas.attention.triton.tiles import KERNELS, Tile

FORMAT_VERSION = 1
FOLDER = Path(__file__).parent / "tables"
VARIABLE = "HYCTAS_ATTENTION_TABLES"
DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The fastest way found for one shape."""

    backward: bool
    block: bool
    """Of `attention_block` (implementation `triton` or `steps`) instead of `self_attention` (`triton` or `sdpa`)."""
    dtype: str
    """Of q, k and v: float16, bfloat16 or float32."""
    qk_channels: int
    value_channels: int
    batch: int
    """Batch x heads."""
    queries: int
    keys: int
    implementation: str
    ms: float
    tiles: Mapping[str, Tile]
    """Tile by kernel, for `triton`; kernels that are not named take the shipped ones. Of a block: `block`."""

    def __post_init__(self) -> None:
        if self.block and self.backward:
            raise InvalidInput("backward and block are not both true")
        allowed = ("triton", "steps") if self.block else ("triton", "sdpa")
        if self.implementation not in allowed or self.dtype not in DTYPES:
            found = f"got {self.implementation!r} of {self.dtype!r}"
            raise InvalidInput(f"an implementation is {' or '.join(allowed)}, a dtype one of {', '.join(DTYPES)}; {found}")
        sizes = (self.qk_channels, self.value_channels, self.batch, self.queries, self.keys)
        if min(sizes) < 1:
            raise InvalidInput(f"sizes are whole numbers above 0; got {sizes}")
        if not 0 < self.ms < float("inf"):
            raise InvalidInput(f"a time is a number of milliseconds above 0; got {self.ms!r}")
        if unknown := sorted(set(self.tiles) - set(KERNELS)):
            raise InvalidInput(f"there are tiles for the unknown kernels {unknown}; kernels are {', '.join(KERNELS)}")
        if self.block and self.implementation == "triton" and "block" not in self.tiles:
            raise InvalidInput("a block computed by triton needs the tile of the kernel `block`")


@dataclass(frozen=True)
class _Content:
    gpu: str
    provenance: dict[str, Any]
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class TableFile:
    """A table's file as it lies on disk at one time; another write gives another one."""

    path: str
    modified_ns: int
    size_bytes: int
    inode: int


def slug(gpu: str) -> str:
    """Return the file stem of a GPU's name: `NVIDIA H200` -> `nvidia_h200`."""
    return re.sub(r"[^a-z0-9]+", "_", gpu.lower()).strip("_")


def write_table(path: Path, gpu: str, entries: Sequence[Entry], provenance: Mapping[str, Any]) -> None:
    """Write a table, safely; calls of `self_attention` from then on use it.

    Args:
        path: where to; found again if it is `<folder>/<slug(gpu)>.json`.
        gpu: its name, as `torch.cuda.get_device_name` gives it.
        entries: one per shape.
        provenance: versions and command, for readers.
    """
    encode(path, _Content(gpu, dict(provenance), tuple(entries)), FORMAT_VERSION)


def find_table(gpu: str) -> TableFile | None:
    """Return the file that holds a GPU's table now, or None where it was never measured.

    Cheap (a look at one or two files), as it is called whenever attention is.

    Raises:
        InvalidInput: `HYCTAS_ATTENTION_TABLES` is no folder.
    """
    chosen = os.environ.get(VARIABLE, "")
    if chosen and not os.path.isdir(chosen):
        raise InvalidInput(f"{VARIABLE}={chosen} is no folder; name the one with the tables <gpu>.json, or unset it")
    for path in _paths(gpu, chosen):
        try:
            found = os.stat(path)
        except OSError:
            continue
        return TableFile(path, found.st_mtime_ns, found.st_size, found.st_ino)
    return None


@lru_cache(maxsize=64)
def _paths(gpu: str, chosen: str) -> tuple[str, ...]:
    return tuple(str(Path(folder) / f"{slug(gpu)}.json") for folder in (chosen, FOLDER) if folder)


@lru_cache(maxsize=64)
def read_table(table: TableFile, gpu: str) -> tuple[Entry, ...]:
    """Return the entries of a GPU's table.

    Raises:
        CorruptFile: the file cannot be read, or is of another GPU.
    """
    path = Path(table.path)
    try:
        found = decode(_Content, path, FORMAT_VERSION)
    except CorruptFile as error:
        raise CorruptFile(path, f"{error.reason}; measure again or remove the file", error.line) from None
    if found.gpu != gpu:
        raise CorruptFile(path, f"is the table of {found.gpu!r}, not of {gpu!r}")
    return found.entries

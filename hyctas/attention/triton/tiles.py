"""Say which tiles the Triton kernels use on which GPU: data, with the rules that shipped ones were chosen by.

Every tile here was compiled offline for its architecture (fp32 on sm_86 and sm_87: for those whose tiles they share), spills no
registers, stays within the shared memory of a block and uses tensor cores; `python -m hyctas.attention.triton.gate` holds it to
that. Speed was not a criterion but by arithmetic: on a GPU, `python -m benchmarks.gpu_suite` measures and writes a table that wins
over these (see `hyctas.attention.dispatch`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from export.errors import InvalidInput

ARCHITECTURES = (80, 86, 87, 89, 90, 100, 120)
"""Compute capabilities (major * 10 + minor) that tiles are shipped for."""
SHARED_KIB = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 120: 99}
"""Shared memory that a block may ask for, KiB (CUDA C++ Programming Guide, technical specifications per compute capability)."""
TENSOR_CORE = {80: "HMMA", 86: "HMMA", 87: "HMMA", 89: "HMMA", 90: "HGMMA", 100: "UTCHMMA", 120: "HMMA"}
"""SASS instruction of each architecture's tensor cores, for 16-bit operands."""
VALUE_CHANNELS = (64, 128, 256, 512)
"""Channels of v that tiles are shipped for; others take the next larger one's."""
TWO_STEP = ("forward", "grad_v", "grad_qk", "grad_q")
KERNELS = (*TWO_STEP, "block")


@dataclass(frozen=True, order=True)
class Tile:
    """The compile-time shape of one launch."""

    rows: int
    """Queries per program."""
    columns: int
    """Keys per step."""
    channels: int
    """Channels of v per program; several programs share the queries where it is less than v has."""
    warps: int
    stages: int
    splits: int = 0
    """Parts that the keys are divided into (forward only); 0: as many as fill the GPU."""

    def __post_init__(self) -> None:
        for name in ("rows", "columns", "channels"):
            value = getattr(self, name)
            if value < 16 or value & (value - 1):
                raise InvalidInput(f"a tile's {name} is a power of two from 16 on, not {value!r}")
        if self.warps not in (1, 2, 4, 8, 16) or not 1 <= self.stages <= 8 or not 0 <= self.splits <= 64:
            raise InvalidInput(f"a tile has 1, 2, 4, 8 or 16 warps, 1-8 stages and 0-64 splits, not {self}")

    def to_json(self) -> dict[str, int]:
        return asdict(self)


COMBINE = Tile(64, 16, 16, 4, 3)
"""Of the kernel that merges the parts of a split forward pass (it has no columns)."""
DELTA = Tile(64, 16, 32, 4, 3)
"""Of the kernel that sums grad_o * o (it has no columns)."""


def block(size: int) -> int:
    """Return the power of two that holds `size`, at least 16 (what a tensor core's dot takes)."""
    return max(16, 1 << (size - 1).bit_length())


def _table(**by_channels: tuple[int, ...]) -> Mapping[int, Tile]:
    return {int(name[1:]): Tile(*numbers) for name, numbers in by_channels.items()}


_AMPERE = {  # rows, columns, channels, warps, stages
    "forward": _table(c64=(64, 128, 64, 4, 2), c128=(64, 64, 128, 4, 2), c256=(64, 64, 256, 8, 2), c512=(64, 64, 256, 8, 2)),
    "grad_v": _table(c64=(64, 128, 64, 4, 2), c128=(64, 128, 128, 8, 2), c256=(64, 64, 256, 8, 2), c512=(64, 64, 256, 8, 2)),
    "grad_qk": _table(c64=(64, 64, 64, 4, 2), c128=(64, 128, 64, 8, 2), c256=(64, 128, 64, 8, 2), c512=(64, 128, 64, 8, 2)),
    "grad_q": _table(c64=(64, 64, 64, 4, 2), c128=(128, 64, 64, 8, 2), c256=(128, 64, 64, 8, 2), c512=(128, 64, 64, 8, 2)),
    "block": _table(c64=(64, 64, 64, 4, 2), c128=(64, 64, 128, 4, 2)),
}
_HOPPER = {
    "forward": _table(c64=(128, 128, 64, 4, 2), c128=(128, 128, 128, 8, 2), c256=(128, 64, 256, 8, 2), c512=(128, 64, 256, 8, 2)),
    "grad_v": _table(c64=(64, 128, 64, 4, 2), c128=(64, 128, 128, 4, 2), c256=(64, 128, 256, 8, 2), c512=(64, 128, 256, 8, 2)),
    "grad_qk": _table(c64=(128, 128, 64, 8, 2), c128=(128, 128, 64, 8, 2), c256=(128, 128, 64, 8, 2), c512=(128, 128, 64, 8, 2)),
    "grad_q": _table(c64=(128, 128, 64, 8, 2), c128=(128, 128, 64, 8, 2), c256=(128, 128, 64, 8, 2), c512=(128, 128, 64, 8, 2)),
    "block": _table(c64=(128, 64, 64, 4, 2), c128=(128, 64, 128, 8, 2)),
}
_BLACKWELL = _HOPPER | {
    "forward": _table(c64=(128, 64, 64, 4, 2), c128=(128, 128, 128, 8, 2), c256=(128, 64, 256, 8, 2), c512=(128, 64, 256, 8, 2)),
    "grad_qk": _table(c64=(128, 128, 64, 8, 2), c128=(128, 128, 64, 8, 2), c256=(64, 128, 64, 8, 2), c512=(64, 128, 64, 8, 2)),
}
_BLACKWELL_RTX = _AMPERE | {"block": _table(c64=(64, 64, 64, 4, 2), c128=(64, 32, 128, 4, 2))}
SHIPPED: Mapping[int, Mapping[str, Mapping[int, Tile]]] = {
    80: _AMPERE, 86: _AMPERE, 87: _AMPERE, 89: _AMPERE, 90: _HOPPER, 100: _BLACKWELL, 120: _BLACKWELL_RTX,
}  # fmt: skip
"""Tiles for fp16 and bfloat16 by architecture, kernel and channels of v, where the numbers of queries and keys are multiples of 16.

`block` has none from 256 channels on. There at most 64 queries at a time fit (sm_100: 128), projecting k anew for each 64 costs
44 % more arithmetic, and where a block has 99 KiB the projection of v does not fit into shared memory at all.
"""

_RAGGED = {
    "forward": _table(c64=(128, 64, 64, 8, 1), c128=(128, 32, 128, 8, 1), c256=(64, 32, 256, 8, 1), c512=(64, 32, 256, 8, 1)),
    "grad_v": _table(c64=(64, 64, 64, 4, 1), c128=(64, 64, 128, 8, 1), c256=(64, 64, 128, 8, 1), c512=(64, 64, 128, 8, 1)),
    "grad_qk": _table(c64=(64, 64, 64, 8, 1), c128=(64, 64, 64, 8, 1), c256=(64, 64, 64, 8, 1), c512=(64, 64, 64, 8, 1)),
    "grad_q": _table(c64=(64, 64, 64, 8, 1), c128=(64, 64, 64, 8, 1), c256=(64, 64, 64, 8, 1), c512=(64, 64, 64, 8, 1)),
    "block": _table(c64=(64, 64, 64, 4, 1), c128=(64, 64, 128, 8, 1)),
}
_RAGGED_AMPERE = _RAGGED | {
    "grad_v": _table(c64=(64, 64, 64, 4, 1), c128=(64, 64, 128, 8, 1), c256=(32, 64, 128, 8, 1), c512=(32, 64, 128, 8, 1)),
    "grad_qk": _table(c64=(64, 64, 64, 8, 1), c128=(64, 64, 64, 8, 1), c256=(64, 64, 64, 8, 1), c512=(64, 32, 64, 8, 1)),
    "grad_q": _table(c64=(64, 64, 64, 8, 1), c128=(64, 64, 32, 8, 1), c256=(64, 64, 64, 8, 1), c512=(64, 64, 64, 8, 1)),
    "block": _table(c64=(64, 64, 64, 4, 1), c128=(64, 32, 128, 8, 1)),
}
_RAGGED_BLACKWELL_RTX = _RAGGED_AMPERE | {
    "forward": _table(c64=(128, 64, 64, 8, 1), c128=(128, 32, 128, 8, 1), c256=(64, 16, 256, 8, 1), c512=(64, 16, 256, 8, 1)),
}
RAGGED: Mapping[int, Mapping[str, Mapping[int, Tile]]] = {
    80: _RAGGED_AMPERE, 86: _RAGGED_AMPERE, 87: _RAGGED_AMPERE, 89: _RAGGED_AMPERE, 90: _RAGGED, 100: _RAGGED,
    120: _RAGGED_BLACKWELL_RTX,
}  # fmt: skip
"""As `SHIPPED`, where the number of queries or of keys is no multiple of 16: 16-bit elements are then loaded one by one, whose
addresses fill the registers, and nothing is loaded ahead, so that more stages gain nothing."""

_FP32_AMPERE = {
    "forward": _table(c64=(64, 32, 64, 4, 1), c128=(64, 32, 64, 4, 1), c256=(64, 32, 64, 4, 1), c512=(64, 32, 64, 8, 1)),
    "grad_v": _table(c64=(32, 64, 64, 8, 1), c128=(32, 64, 64, 8, 1), c256=(32, 64, 64, 8, 1), c512=(32, 64, 32, 4, 1)),
    "grad_qk": _table(c64=(32, 64, 32, 4, 1), c128=(32, 64, 32, 4, 1), c256=(16, 32, 32, 4, 1), c512=(16, 32, 32, 8, 1)),
    "grad_q": _table(c64=(64, 32, 32, 4, 1), c128=(32, 32, 32, 4, 1), c256=(32, 32, 32, 4, 1), c512=(16, 32, 32, 8, 1)),
    "block": {},
}
_FP32_HOPPER = _FP32_AMPERE | {
    "grad_v": _table(c64=(32, 64, 64, 4, 1), c128=(32, 64, 64, 4, 1), c256=(32, 64, 64, 4, 1), c512=(32, 64, 64, 4, 1)),
    "grad_qk": _table(c64=(64, 64, 32, 8, 1), c128=(64, 64, 32, 8, 1), c256=(32, 32, 32, 4, 1), c512=(16, 32, 32, 4, 1)),
    "grad_q": _table(c64=(64, 32, 32, 4, 1), c128=(64, 32, 32, 4, 1), c256=(64, 32, 32, 4, 1), c512=(64, 32, 32, 8, 1)),
}
FP32: Mapping[int, Mapping[str, Mapping[int, Tile]]] = {
    80: _FP32_AMPERE, 86: _FP32_AMPERE, 87: _FP32_AMPERE, 89: _FP32_AMPERE, 90: _FP32_HOPPER, 100: _FP32_HOPPER, 120: _FP32_AMPERE,
}  # fmt: skip
"""As `SHIPPED`, for fp32 (three TF32 passes per dot, whose operands take twice the registers) and any numbers of queries and keys.

`block` has none: on sm_80 nothing but 32 queries at a time fits.
"""


def architecture(capability: tuple[int, int]) -> int | None:
    """Return the shipped architecture whose tiles a GPU takes: its own, or the nearest older one; None before sm_80."""
    number = capability[0] * 10 + capability[1]
    older = [known for known in ARCHITECTURES if known <= number]
    return max(older) if older else None


def shipped(arch: int, kernel: str, channels: int, item_bytes: int = 2, aligned: bool = True) -> Tile | None:
    """Return the tile for a kernel.

    Args:
        arch: one of `ARCHITECTURES`.
        kernel: one of `KERNELS`.
        channels: of v. Others than those that tiles were made for take the next larger one's; above all, the largest one's.
        item_bytes: of an element: 2 or 4.
        aligned: the numbers of queries and keys are multiples of 16.

    Returns:
        None where there is none.
    """
    tiles = (FP32 if item_bytes == 4 else SHIPPED if aligned else RAGGED)[arch][kernel]
    fitting = [known for known in sorted(tiles) if known >= channels]
    if fitting:
        return tiles[fitting[0]]
    return tiles[max(tiles)] if tiles and max(tiles) == max(VALUE_CHANNELS) else None

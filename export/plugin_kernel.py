"""Hold a compiled attention kernel as data that TensorRT takes in as a plugin: PTX, launch, family of shapes. No torch here.

TensorRT calls a kernel with the pointers of its inputs, then int32 scalars, then the pointers of its outputs; it gives no
workspace and no attributes. So a kernel computes o = v softmax(q^T k)^T for one (d, e, dtype, architecture) and any B, h, N, M:
another scale than 1 belongs into q. The launch is made of expressions of dimensions, which a builder turns into TensorRT's, and
`PluginKernel.grid` into numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any

from export.errors import InvalidInput
from export.files import check_version

FORMAT_VERSION = 1
INPUTS, OUTPUTS = ("q", "k", "v"), ("o",)
AXES = {"B": ("q", 0), "h": ("q", 1), "d": ("q", 2), "N": ("q", 3), "M": ("k", 3), "e": ("v", 2)}
"""Dimensions by the input and axis that they are read from: q (B, h, d, N), k (B, h, d, M), v (B, h, e, M), o (B, h, e, N)."""
DTYPES = ("float16", "bfloat16", "float32")
GRID_LIMITS = (2**31 - 1, 65535, 65535)
"""Blocks per axis of a launch (CUDA C++ Programming Guide, technical specifications per compute capability)."""
PTX_OF_CUDA = {
    (11, 0): (7, 0), (11, 1): (7, 1), (11, 2): (7, 2), (11, 3): (7, 3), (11, 4): (7, 4), (11, 5): (7, 5), (11, 6): (7, 6),
    (11, 7): (7, 7), (11, 8): (7, 8), (12, 0): (8, 0), (12, 1): (8, 1), (12, 2): (8, 2), (12, 3): (8, 3), (12, 4): (8, 4),
    (12, 5): (8, 5), (12, 6): (8, 5), (12, 7): (8, 6), (12, 8): (8, 7), (12, 9): (8, 8), (13, 0): (9, 0), (13, 1): (9, 1),
    (13, 2): (9, 2), (13, 3): (9, 3), (13, 4): (9, 4),
}  # fmt: skip
"""The newest PTX that a driver reads, by the newest CUDA that it supports (PTX ISA 9.4, release notes, PTX release history)."""
_PARAMETER = {"pointer": "u64", "scalar": "u32"}


@dataclass(frozen=True)
class CeilDiv:
    """One factor of a launch: a dimension divided by a number, rounded up."""

    dim: str
    """One of `AXES`."""
    divisor: int = 1

    def __post_init__(self) -> None:
        if self.dim not in AXES or not isinstance(self.divisor, int) or self.divisor < 1:
            asked = f"got {self.dim!r} by {self.divisor!r}"
            raise InvalidInput(f"a launch divides one of {', '.join(AXES)} by a number from 1 on; {asked}")

    def value(self, sizes: Mapping[str, int]) -> int:
        """Return the factor for sizes by dimension."""
        return -(-sizes[self.dim] // self.divisor)


Grid = tuple[tuple[CeilDiv, ...], tuple[CeilDiv, ...], tuple[CeilDiv, ...]]
"""Blocks along x, y and z: each the product of its factors."""


def evaluate(grid: Grid, sizes: Mapping[str, int]) -> tuple[int, int, int]:
    """Return a launch's numbers of blocks for sizes by dimension."""
    x, y, z = (prod(factor.value(sizes) for factor in axis) for axis in grid)
    return x, y, z


@dataclass(frozen=True, kw_only=True)
class PluginKernel:
    """A kernel for one architecture, dtype and pair of channel counts.

    Tensors are contiguous (TensorRT's linear format) and start at multiples of 16 bytes.

    Raises:
        InvalidInput: the PTX is not what the other fields say: entry point, architecture, parameters.
    """

    name: str
    """The plugin's name; kernels of one family, of several dtypes and tiles, share it."""
    architecture: int
    """Compute capability, major * 10 + minor. PTX of a `.target` that ends in `a` runs on that one alone."""
    dtype: str
    """Of all tensors: one of `DTYPES`."""
    qk_channels: int
    """d, per head."""
    value_channels: int
    """e, per head."""
    query_multiple: int
    """What N must be a multiple of; 1: anything."""
    key_multiple: int
    """What M must be a multiple of."""
    scalars: tuple[str, ...]
    """The dimensions passed as int32 between inputs and outputs, in order."""
    hidden: int
    """Pointers after the outputs, which nothing sets or reads; 0: launched with inputs, scalars and outputs alone."""
    grid_rule: Grid
    threads: int
    """Per block."""
    shared_bytes: int
    """Dynamic shared memory per block."""
    rows: int
    """Queries per block."""
    columns: int
    """Keys per step."""
    channels: int
    """Channels of v per block."""
    registers: int
    """Per thread."""
    compiler: str
    """What made the PTX, with its version."""
    source: str
    """A hash of the source that it was made from."""
    symbol: str
    """The entry point in the PTX."""
    ptx: str = field(repr=False)

    def __post_init__(self) -> None:
        self._check_fields()
        found = target(self.ptx)
        if found.rstrip("af") != f"sm_{self.architecture}":
            raise InvalidInput(f"kernel {self.name} is said to be for sm_{self.architecture}; its PTX is for {found}")
        kinds = ("pointer",) * len(INPUTS) + ("scalar",) * len(self.scalars) + ("pointer",) * (len(OUTPUTS) + self.hidden)
        wanted, given = tuple(_PARAMETER[kind] for kind in kinds), parameters(self.ptx, self.symbol)
        if given != wanted:
            raise InvalidInput(f"kernel {self.name} takes {', '.join(wanted)}; its PTX has the parameters {', '.join(given)}")

    def _check_fields(self) -> None:
        least = dict.fromkeys(("architecture", "qk_channels", "value_channels", "query_multiple", "key_multiple", "threads"), 1)
        least |= dict.fromkeys(("rows", "columns", "channels", "registers"), 1) | {"hidden": 0, "shared_bytes": 0}
        numbers = {name: getattr(self, name) for name in least}
        wrong = [name for name, number in numbers.items() if not isinstance(number, int) or number < least[name]]
        wrong += [name for name in ("name", "symbol") if not str(getattr(self, name)).isidentifier()]
        wrong += ["dtype"] if self.dtype not in DTYPES else []
        wrong += ["scalars"] if any(dim not in AXES for dim in self.scalars) else []
        wrong += ["grid_rule"] if len(self.grid_rule) != 3 or not all(self.grid_rule) else []
        if wrong:
            values = ", ".join(f"{name}={getattr(self, name)!r}" for name in wrong)
            raise InvalidInput(f"a plugin kernel has no such fields: {values}")

    @property
    def ptx_version(self) -> tuple[int, int]:
        """The version of the PTX language, which the device's driver must know."""
        return ptx_version(self.ptx)

    def refusal(self, batch: int, heads: int, queries: int, keys: int) -> str:
        """Say why the kernel cannot run on such tensors; empty where it can."""
        sizes = self._sizes(batch, heads, queries, keys)
        if min(sizes.values()) < 1:
            return f"all sizes are above 0; got {sizes}"
        for what, number, multiple in (("queries", queries, self.query_multiple), ("keys", keys, self.key_multiple)):
            if number % multiple:
                return f"it is compiled for multiples of {multiple} {what}; there are {number}"
        # offsets within the tensors of one head are 32 bits wide
        if (elements := max(sizes["d"], sizes["e"]) * max(queries, keys)) >= 2**31:
            return f"one head has {elements} elements; its offsets hold less than 2^31"
        blocks = evaluate(self.grid_rule, sizes)
        if any(count > limit for count, limit in zip(blocks, GRID_LIMITS, strict=True)):
            return f"it would take {blocks} blocks; a launch has at most {GRID_LIMITS}"
        return ""

    def grid(self, batch: int, heads: int, queries: int, keys: int) -> tuple[int, int, int]:
        """Return the blocks of a launch along x, y and z.

        Raises:
            InvalidInput: the kernel cannot run on such tensors.
        """
        if why := self.refusal(batch, heads, queries, keys):
            raise InvalidInput(f"kernel {self.name} of sm_{self.architecture} does not fit: {why}")
        return evaluate(self.grid_rule, self._sizes(batch, heads, queries, keys))

    def _sizes(self, batch: int, heads: int, queries: int, keys: int) -> dict[str, int]:
        return {"B": batch, "h": heads, "d": self.qk_channels, "N": queries, "M": keys, "e": self.value_channels}

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"format_version": FORMAT_VERSION, **asdict(self)}

    @classmethod
    def before_decoding(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Take the version off."""
        check_version(value, (FORMAT_VERSION,))
        return {name: item for name, item in value.items() if name != "format_version"}


def newest_ptx(driver_cuda: tuple[int, int]) -> tuple[int, int]:
    """Return the newest PTX that a driver is known to read; (0, 0) if none is.

    Drivers read all older PTX too, so those newer than `PTX_OF_CUDA` read at least its last.

    Args:
        driver_cuda: the newest CUDA version that the driver supports (major, minor).
    """
    return max((ptx for cuda, ptx in PTX_OF_CUDA.items() if cuda <= driver_cuda), default=(0, 0))


def ptx_version(ptx: str) -> tuple[int, int]:
    """Return the version of the PTX language that PTX is written in.

    Raises:
        InvalidInput: it does not say.
    """
    found = re.search(r"^\.version\s+(\d+)\.(\d+)", ptx, re.MULTILINE)
    if found is None:
        raise InvalidInput("the kernel's text is not PTX: it has no .version")
    return int(found[1]), int(found[2])


def target(ptx: str) -> str:
    """Return what PTX is compiled for, such as `sm_90a`.

    Raises:
        InvalidInput: it does not say.
    """
    found = re.search(r"^\.target\s+(sm_\w+)", ptx, re.MULTILINE)
    if found is None:
        raise InvalidInput("the kernel's text is not PTX: it has no .target")
    return found[1]


def parameters(ptx: str, symbol: str) -> tuple[str, ...]:
    """Return the types of an entry point's parameters in order, such as `u64`.

    Raises:
        InvalidInput: the PTX has no such entry point.
    """
    return tuple(re.findall(r"\.param\s+\.(\w+)", ptx[slice(*parameter_list(ptx, symbol))]))


def parameter_list(ptx: str, symbol: str) -> tuple[int, int]:
    """Return where an entry point's list of parameters starts and ends in PTX, its parentheses left out.

    Raises:
        InvalidInput: the PTX has no such entry point.
    """
    found = re.search(rf"\.entry\s+{re.escape(symbol)}\s*\(([^)]*)\)", ptx)
    if found is None:
        raise InvalidInput(f"the PTX has no entry point {symbol!r}")
    return found.span(1)

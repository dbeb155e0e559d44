"""Compile self-attention into kernels that TensorRT takes in as plugins (`export.plugin_kernel`). No GPU is needed.

The PTX that Triton writes has two more parameters than the kernel: pointers to scratch memory. TensorRT passes inputs, scalars and
outputs alone, so they are removed from the PTX's list, after a look that nothing reads them.

Engines have static shapes, so a kernel is compiled for what divides its numbers of queries and keys: rows of 2700 fp16 elements are
read 8 bytes at a time and rows of 2704 16, past the registers; rows of 2701 pass through them an element at a time, which takes
more registers, and therefore other tiles.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from math import gcd

from export.errors import CheckFailed, InvalidInput, Unavailable
from export.plugin_kernel import DTYPES, INPUTS, OUTPUTS, PTX_OF_CUDA, CeilDiv, Grid, PluginKernel, newest_ptx, parameter_list
from hyctas.attention.onnx.nodes import NAME
from hyctas.attention.triton.cases import Case, source
from hyctas.attention.triton.compiled import Compiled, compile_case
from hyctas.attention.triton.resources import judge
from hyctas.attention.triton.tiles import ARCHITECTURES, Tile, block, shipped

ALIGNED = 16
"""Rows of a multiple of so many elements start where a 16-byte load may, whatever the dtype."""
SCALARS = ("N", "M")
SMALLEST = (64, 16)
"""Rows and columns that tiles are halved down to; tensor cores of sm_90 and sm_100 take 64 rows at a time."""
LEAST_PTX = {80: (7, 0), 86: (7, 1), 87: (7, 4), 89: (7, 8), 90: (8, 0), 100: (8, 6), 120: (8, 7)}
"""The oldest PTX that has an architecture as Triton names it, with `a` from sm_90 on (see `PTX_OF_CUDA`); it holds the kernels."""


def plugin_kernel(
    arch: int,
    qk_channels: int,
    value_channels: int,
    dtype: str,
    tile: Tile | None = None,
    *,
    queries: int = 1,
    keys: int = 1,
    driver_cuda: tuple[int, int] | None = None,
    most_shared_bytes: int | None = None,
) -> PluginKernel:
    """Compile the kernel of one family.

    Args:
        arch: compute capability of the GPU, major * 10 + minor: one of `tiles.ARCHITECTURES`.
        qk_channels: d, per head.
        value_channels: e, per head.
        dtype: of all tensors: float16, bfloat16 or float32.
        tile: None: the forward pass's shipped one, halved until it holds (`smaller`). `splits` has no meaning here.
        queries: N, or any number that it is a multiple of. Powers of two up to 16 in it make the kernel faster, and limit it to
            multiples of them.
        keys: M, likewise; multiples of the tile's columns are not masked either.
        driver_cuda: the newest CUDA version that the driver supports which is to read the PTX; None: the newest there is.
        most_shared_bytes: shared memory that a block may take; the kernel is of a plugin of its own then. None: what the GPU has.

    Raises:
        InvalidInput: an unknown architecture or dtype, or a number below 1.
        CheckFailed: the kernel spills registers, takes more shared memory than a block may, or leaves tensor cores unused.
        hyctas.attention.triton.compiled.DoesNotCompile: the compiler refuses it.
        Unavailable: no compiler, or a driver that is older than the architecture's PTX.
    """
    if arch not in ARCHITECTURES:
        raise InvalidInput(f"plugin kernels are compiled for sm_{', sm_'.join(map(str, ARCHITECTURES))}; not for sm_{arch}")
    if dtype not in DTYPES or min(qk_channels, value_channels, queries, keys) < 1:
        asked = f"got {dtype}, {qk_channels} and {value_channels} channels, {queries} queries, {keys} keys"
        raise InvalidInput(f"plugin kernels take {', '.join(DTYPES)}, and sizes from 1 on; {asked}")
    newest = _newest_ptx(arch, driver_cuda)
    multiples = {"N": gcd(queries, ALIGNED), "M": gcd(keys, ALIGNED)}
    # pairs of 16-bit elements are enough for loads past the registers, which the tiles for multiples of 16 count on
    first = tile or shipped(arch, "forward", value_channels, 4 if dtype == "float32" else 2, min(multiples.values()) > 1)
    if first is None:
        raise InvalidInput(f"no tile is shipped for {value_channels} channels of {dtype} on sm_{arch}; give one")
    wrong = dict[str, list[str]]()
    for candidate in (tile,) if tile else (first, *smaller(first)):
        case = Case(
            kernel="plugin", arch=arch, tile=candidate, channels=value_channels, qk_channels=qk_channels, dtype=dtype,
            queries_divisible=multiples["N"] == ALIGNED, keys_divisible=multiples["M"] == ALIGNED,
            even_keys=keys % candidate.columns == 0,
        )  # fmt: skip
        compiled = compile_case(case, multiples, newest_ptx=newest)
        wrong[case.key] = unfit(case, compiled, most_shared_bytes)
        if not wrong[case.key]:
            kernel = _as_data(case, compiled, multiples)
            return kernel if most_shared_bytes is None else replace(kernel, name=f"{kernel.name}_{most_shared_bytes >> 10}KiB")
    reasons = "; ".join(f"{key} {', '.join(found)}" for key, found in wrong.items())
    raise CheckFailed(f"no plugin kernel for {queries} queries and {keys} keys holds: {reasons}. Give another tile, a smaller one")


def _newest_ptx(arch: int, driver_cuda: tuple[int, int] | None) -> tuple[int, int] | None:
    """Return the newest PTX that a kernel may be written in; None: any."""
    if driver_cuda is None:
        return None
    found, least = newest_ptx(driver_cuda), LEAST_PTX[arch]
    if found < least:
        needed = min(cuda for cuda, ptx in PTX_OF_CUDA.items() if ptx >= least)
        reads, needs, here, from_cuda = (".".join(map(str, version)) for version in (found, least, driver_cuda, needed))
        reason = f"kernels for sm_{arch} need PTX {needs}, and this driver (CUDA {here}) reads {reads} at most"
        raise Unavailable("attention plugins", reason, f"a driver for CUDA {from_cuda} or newer")
    return found


def smaller(tile: Tile) -> Iterator[Tile]:
    """Yield tiles to try where one does not hold, largest first: fewer keys per step, fewer queries, both."""
    for parts in (2, 4, 8):
        for rows, columns in ((1, parts), (2, parts // 2)):
            if tile.rows // rows >= SMALLEST[0] and tile.columns // columns >= SMALLEST[1]:
                yield replace(tile, rows=tile.rows // rows, columns=tile.columns // columns)


def unfit(case: Case, compiled: Compiled, most_shared_bytes: int | None = None) -> list[str]:
    """Say why a compiled kernel must not be used as a plugin; nothing where it may."""
    asked = {name: compiled.metadata.get(f"{name}_size", 0) for name in ("global_scratch", "profile_scratch")}
    more = [f"asks for {size} B of {name}, which TensorRT does not give" for name, size in asked.items() if size]
    if compiled.metadata.get("num_ctas", 1) != 1:
        more.append("asks for clusters of blocks, which TensorRT does not launch")
    if most_shared_bytes is not None and compiled.metadata["shared"] > most_shared_bytes:
        more.append(f"asks for {compiled.metadata['shared']} B of shared memory; it may take {most_shared_bytes}")
    return [*judge(case, compiled), *more]


def grid_rule(rows: int, channels: int) -> Grid:
    """Return the launch of `kernel_plugin.plugin_kernel` for a tile."""
    return (CeilDiv("N", rows),), (CeilDiv("e", channels),), (CeilDiv("B"), CeilDiv("h"))


def without_hidden(ptx: str, symbol: str, keep: int) -> str:
    """Remove the parameters of an entry point beyond the first `keep` from PTX.

    Raises:
        CheckFailed: the code reads one of them.
        InvalidInput: there is no such entry point.
    """
    start, end = parameter_list(ptx, symbol)
    declared = [text.strip() for text in ptx[start:end].split(",")]
    for text in declared[keep:]:
        name = text.split()[-1]
        if re.search(rf"\b{re.escape(name)}\b", ptx[end:]):
            raise CheckFailed(f"{symbol} reads its parameter {name}, which TensorRT does not pass; it cannot be removed")
    return ptx[:start] + "\n\t" + ",\n\t".join(declared[:keep]) + "\n" + ptx[end:]


def _as_data(case: Case, compiled: Compiled, multiples: dict[str, int]) -> PluginKernel:
    import triton

    tile, channels = case.tile, min(case.tile.channels, block(case.channels))
    return PluginKernel(
        name=f"{NAME}_d{case.qk_channels}_e{case.channels}",
        architecture=case.arch,
        dtype=case.dtype,
        qk_channels=case.qk_channels,
        value_channels=case.channels,
        query_multiple=multiples["N"],
        key_multiple=tile.columns if case.even_keys else multiples["M"],
        scalars=SCALARS,
        hidden=0,
        grid_rule=grid_rule(tile.rows, channels),
        threads=32 * compiled.warps,
        shared_bytes=compiled.metadata["shared"],
        rows=tile.rows,
        columns=tile.columns,
        channels=channels,
        registers=compiled.registers,
        compiler=f"triton {triton.__version__}",
        source=source(case),
        symbol=compiled.name,
        ptx=without_hidden(compiled.ptx, compiled.name, len(INPUTS) + len(SCALARS) + len(OUTPUTS)),
    )

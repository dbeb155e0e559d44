"""Draw what is checked against float64: shapes that nobody chose, and the corners that someone did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.gpu_suite.launches import Launch, shipped_tiles
from hyctas.attention.tiles import VALUE_CHANNELS

DTYPES = ("float16", "bfloat16", "float32")
LIMITS = {"float16": 1e-3, "bfloat16": 1e-2, "float32": 1e-5}
"""Largest relative Frobenius error, by dtype of v."""
BEYOND_FP16 = 65_536
"""Keys from which a running sum of ones leaves fp16's range, which other fused kernels have been seen to do."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One check."""

    name: str
    launch: Launch
    kind: str = "random"
    """`random`; `nan`: some queries are NaN or infinite; `constant`: all logits nearly equal; `channels_last`: through the
    operator, on such views; `operator`: through the operator's dispatch."""
    spread: float = 1.5
    """Standard deviation of the logits."""
    seed: int


def draw_cases(seed: int, arch: int, *, tiny: bool = False) -> list[Case]:
    """Draw all checks of a run, the most telling first.

    Args:
        seed: of shapes and numbers.
        arch: whose shipped tiles are checked.
        tiny: shapes that Triton's interpreter computes in reasonable time.
    """
    rng = np.random.default_rng([seed, 0x6E756D])
    drawn = _tiny(rng, arch) if tiny else _all(rng, arch)
    return [replace(case, seed=int(rng.integers(2**31))) for case in drawn]


def _all(rng: np.random.Generator, arch: int) -> Iterator[Case]:
    for dtype in DTYPES:
        yield from _tiers(rng, arch, dtype, "even")
    yield from _corners(rng, arch)
    for how in ("ragged", "masked"):
        for dtype in DTYPES:
            yield from _tiers(rng, arch, dtype, how)
    for dtype in DTYPES:
        yield from _blocks(rng, arch, dtype)
    yield from _splits(rng, arch)


def _tiers(rng: np.random.Generator, arch: int, dtype: str, how: str) -> Iterator[Case]:
    """Yield forward and backward passes for every shipped tile.

    `even`: of the very channels it is for, and whole tiles; `masked`: odd channels, and positions in multiples of 16 that end
    inside a tile; `ragged`: odd everything.
    """
    for e in VALUE_CHANNELS:
        unit = {"even": 128, "masked": 16, "ragged": 1}[how]
        n, m = (unit * _odd(rng, 200 // unit, 1400 // unit) for _ in range(2))
        channels = e if how == "even" else _odd(rng, e // 2 + 1, e)
        d = e // 8 if how == "even" else _odd(rng, 3, 40)
        batch, heads = (1, 1) if how == "even" else (int(rng.integers(1, 3)), int(rng.integers(1, 4)))
        sizes = {"d": d, "e": channels, "queries": n, "keys": m, "batch": batch, "heads": heads, "dtype": dtype}
        for step in ("forward", "backward") if how == "masked" else ("forward", "backward", "fixed"):
            yield from _case(f"{step} {dtype} e<={e} {how}", arch, step, sizes, scale=_scale(rng, d))


def _corners(rng: np.random.Generator, arch: int) -> Iterator[Case]:
    for dtype in DTYPES:
        small = {"d": 8, "e": 64, "dtype": dtype, "queries": _odd(rng, 300, 700), "keys": _odd(rng, 300, 700)}
        yield from _case(f"forward {dtype} large logits", arch, "forward", small, spread=30.0)
        yield from _case(f"forward {dtype} NaN", arch, "forward", small, kind="nan")
        many = {**small, "keys": BEYOND_FP16 + _odd(rng, 1, 4000), "queries": _odd(rng, 300, 700)}
        yield from _case(f"forward {dtype} near-constant, many keys", arch, "forward", many, kind="constant", spread=1e-4)
        if dtype == "float16":
            yield from _case(f"forward {dtype} near-constant, many queries and keys", arch, "forward",
                             {**many, "queries": many["keys"]}, kind="constant", spread=1e-4)  # fmt: skip
        side = _odd(rng, 17, 33)
        last = {**small, "queries": side * (side + 2), "keys": side * (side + 2)}
        yield from _case(f"backward {dtype} channels-last through the operator", arch, "backward", last, kind="channels_last")
    mixed = {"d": 16, "e": 128, "dtype": "bfloat16", "qk_dtype": "float16", "queries": 777, "keys": 555}
    yield from _case("forward bfloat16 with fp16 logits through the operator", arch, "forward", mixed, kind="operator")


def _splits(rng: np.random.Generator, arch: int) -> Iterator[Case]:
    for splits in range(1, 9):
        keys = 256 * splits - _odd(rng, 1, 99)  # 256: a multiple of all tiles' columns, which parts are
        sizes = {"d": 8, "e": 64, "dtype": "float16", "queries": 200 + _odd(rng, 1, 99), "keys": keys}
        for case in _case(f"forward float16 {splits} splits", arch, "forward", sizes):
            tile = replace(case.launch.tiles["forward"], splits=splits)
            yield replace(case, launch=replace(case.launch, tiles={"forward": tile}))


def _blocks(rng: np.random.Generator, arch: int, dtype: str) -> Iterator[Case]:
    for e in VALUE_CHANNELS:
        positions = int(rng.integers(17, 31)) * int(rng.integers(31, 45))
        for step, channels in (("block", e), ("block", _odd(rng, e // 2 + 1, e)), ("block_given_k", e)):
            sizes = {"d": max(3, channels // 8), "e": channels, "queries": positions, "keys": positions, "dtype": dtype, "batch": 2}
            yield from _case(f"{step} {dtype} e={channels}", arch, step, sizes)


def _tiny(rng: np.random.Generator, arch: int) -> Iterator[Case]:
    for dtype in DTYPES:
        sizes = {"d": 5, "e": 19, "queries": 33, "keys": 41, "dtype": dtype}
        for step in ("forward", "backward", "fixed"):
            yield from _case(f"{step} {dtype} e<=64 ragged", arch, step, sizes, scale=0.7)
        yield from _case(f"block {dtype} e=19", arch, "block", {**sizes, "keys": 33})
    sizes = {"d": 8, "e": 16, "queries": 35, "keys": 35, "dtype": "float32"}
    yield from _case("forward float32 large logits", arch, "forward", sizes, spread=30.0)
    yield from _case("forward float32 NaN", arch, "forward", sizes, kind="nan")
    yield from _case("forward float32 near-constant, many keys", arch, "forward", sizes, kind="constant", spread=1e-4)
    yield from _case("backward float32 channels-last through the operator", arch, "backward", sizes, kind="channels_last")
    yield from _case("forward bfloat16 through the operator", arch, "forward", {**sizes, "dtype": "bfloat16"}, kind="operator")
    for case in _case("forward float32 2 splits", arch, "forward", {**sizes, "keys": 140}):
        yield replace(case, launch=replace(case.launch, tiles={"forward": replace(case.launch.tiles["forward"], splits=2)}))


def _case(
    name: str, arch: int, step: str, sizes: Mapping[str, Any], *, kind: str = "random", spread: float = 1.5, scale: float = 1.0
) -> Iterator[Case]:
    """Yield a case, unless no tile is shipped for it."""
    tiles = shipped_tiles(arch, step, sizes["e"], sizes["dtype"], sizes["queries"], sizes["keys"])
    if tiles is not None:
        launch = Launch(step=step, scale=scale, tiles=tiles, **sizes)
        yield Case(name=name, launch=launch, kind=kind, spread=spread, seed=0)


def _odd(rng: np.random.Generator, low: int, high: int) -> int:
    """Draw an odd number from low..high."""
    return int(rng.integers(low // 2, (high - 1) // 2 + 1)) * 2 + 1


def _scale(rng: np.random.Generator, d: int) -> float:
    """Draw the published scale (none) or the usual one."""
    return 1.0 if rng.integers(2) else round(d**-0.5, 6)

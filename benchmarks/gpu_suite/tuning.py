"""Find the fastest tile of every kernel for a shape: list candidates, compile them, drop those that spill, time the rest."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.gpu_suite.launches import Launch
from benchmarks.gpu_suite.place import Place
from benchmarks.gpu_suite.pool import Pool
from benchmarks.gpu_suite.records import Broken, Records, describe
from benchmarks.gpu_suite.timing import Burst, interleave, quick_ms
from benchmarks.gpu_suite.warm import job
from hyctas.attention.tiles import Tile

ROWS, COLUMNS, WARPS, STAGES = (64, 128), (32, 64, 128), (4, 8), (1, 2, 3)
CHANNELS: dict[str, dict[int, tuple[int, ...]]] = {
    "forward": {64: (64,), 128: (128,), 256: (256, 128), 512: (256, 128)},
    "block": {64: (64,), 128: (128,), 256: (256,)},
    "grad_v": {64: (64,), 128: (128, 64), 256: (256, 128), 512: (256, 128)},
    "grad_qk": {64: (64, 32), 128: (128, 64), 256: (128, 64), 512: (128, 64)},
}
"""Channels per program, or per step in `grad_qk`, by kernel and channels of v."""
MOST_SUMS = 230
"""Of 255 registers that a thread has; what keeps more sums surely spills, where no tensor memory (sm_100) holds them."""
SPLITS = (1, 2, 3, 4, 6, 8)
FINALISTS, FINAL_SECONDS = 4, 0.1
"""Tiles that are timed once more, and for how long."""
BEST = 3
"""Tiles of which different numbers of splits are tried."""


def candidates(kernel: str, e: int, shipped: Tile, place: Place) -> list[Tile]:
    """List tiles to try, those nearest to the shipped one first."""
    if place.rehearsal:
        return [shipped, replace(shipped, columns=shipped.columns // 2)] if kernel == "forward" else [shipped]
    tiles = {Tile(*numbers) for numbers in itertools.product(ROWS, COLUMNS, CHANNELS[kernel][e], WARPS, STAGES)}
    tiles = {tile for tile in tiles if place.architecture >= 100 or sums_per_thread(kernel, tile) <= MOST_SUMS}
    names = ("rows", "columns", "channels", "warps", "stages")

    def distance(tile: Tile) -> float:
        return sum(abs(math.log2(getattr(tile, name) / getattr(shipped, name))) for name in names)

    return sorted({*tiles, shipped}, key=lambda tile: (distance(tile), tile))


def sums_per_thread(kernel: str, tile: Tile) -> float:
    """Return how many fp32 sums a thread keeps: those of the result, and the logits."""
    wide, long = (tile.columns, tile.rows) if kernel == "grad_v" else (tile.rows, tile.columns)
    kept = 0 if kernel == "grad_qk" else tile.channels  # there the channels are gone through
    return wide * (kept + long) / (32 * tile.warps)


def name_of(launch: Launch, kernel: str, place: Place) -> str:
    """Name a compilation: what makes a difference to the compiler."""
    tile = launch.tile(kernel)
    split = " split" if kernel == "forward" and launch.splits(place.processors) > 1 else ""
    numbers = f"{tile.rows}x{tile.columns}x{tile.channels} w{tile.warps} s{tile.stages}"
    return f"{launch.step} {kernel}{split} {launch.dtype} C{launch.e} {numbers}"


class Candidates:
    """What is compiled beforehand, and what its machine code needs.

    Args:
        pool: compiles.
        records: hold what is known already, and get what is found.
        place: whose architecture.
    """

    def __init__(self, pool: Pool, records: Records, place: Place) -> None:
        self.pool, self.records, self.place = pool, records, place
        self._asked: set[str] = set()

    def submit(self, wanted: Iterable[tuple[Launch, str]], priority: float) -> set[str]:
        """Have kernels of launches compiled, in this order; returns their names. Lower priorities overtake."""
        names = set()
        for launch, kernel in wanted:
            name = name_of(launch, kernel, self.place)
            names.add(name)
            if name not in self._asked and not self.records.done(name):
                self._asked.add(name)
                self.pool.submit(name, job(launch, kernel, self.place.architecture, self.place.processors), priority)
        return names

    def collect(self, names: Iterable[str] = (), seconds: float = 0.0) -> None:
        """Take in what is compiled; wait some seconds at most for what has one of these names."""
        waiting, end = {name for name in names if not self.records.done(name)}, time.monotonic() + seconds
        while True:
            for name, answer in self.pool.answers(0):
                self.records.keep(name, {"state": "error" if "error" in answer else "ok", **answer}, later=True)
                waiting.discard(name)
            if not waiting or time.monotonic() >= end:
                break
            self.records.check_suite()
            time.sleep(0.1)
        self.records.write()


def refusal(launch: Launch, kernel: str, records: Records, place: Place) -> str:
    """Say why a tile is not tried: not compiled, refused by the compiler, or its code spills; empty where it is good."""
    record = records.records.get(name_of(launch, kernel, place))
    if record is None:
        return "not compiled in time"
    if record["state"] != "ok":
        return str(record.get("error", record["state"]))
    return "; ".join(record["wrong"])


def variants(launch: Launch, kernel: str, tiles: Sequence[Tile]) -> Iterator[tuple[Launch, str]]:
    """Yield a launch with each of some tiles for one of its kernels."""
    for tile in tiles:
        yield replace(launch, tiles={**launch.tiles, kernel: tile}), kernel


def tune(
    launch: Launch, kernel: str, tiles: Sequence[Tile], compiled: Records, place: Place,
    call: Callable[[Launch], Callable[[], object]], seconds: float,
) -> dict[str, Any]:  # fmt: skip
    """Time tiles for one kernel of a launch, the rest of the launch unchanged.

    Args:
        launch: whose tile for the kernel is replaced.
        kernel: which one.
        tiles: candidates, the likeliest first.
        compiled: what their machine code needs.
        place: where.
        call: makes what is timed from a launch.
        seconds: after these, the rest is left untried.

    Returns:
        `tried`, pairs of milliseconds and tile, fastest first; `refused`, counts by reason; `errors` of launches; `untried`.

    Raises:
        Broken: a tile killed the GPU's context; `compiled` says so, and the tile will be refused.
    """
    tried, refused, errors, untried = list[tuple[float, Tile]](), Counter[str](), list[str](), 0
    end = time.monotonic() + seconds
    for tile in tiles:
        one = replace(launch, tiles={**launch.tiles, kernel: tile})
        if why := refusal(one, kernel, compiled, place):
            refused[why.partition(":")[0]] += 1
        elif tried and time.monotonic() > end:
            untried += 1
        else:
            try:
                tried.append((quick_ms(call(one), place), tile))
            except Exception as error:  # what the driver refuses (resources, mostly) is a result
                errors.append(f"{tile.to_json()}: {describe(error)[:300]}")
                if not place.healthy():
                    text = f"broke the GPU's context: {errors[-1]}"
                    compiled.keep(name_of(one, kernel, place), {"state": "failed", "error": text})
                    raise Broken(errors[-1]) from error
    tried = finals(launch, kernel, sorted(tried), place, call)
    return {"tried": tried, "refused": dict(refused), "errors": errors, "untried": untried}


def finals(
    launch: Launch, kernel: str, tried: list[tuple[float, Tile]], place: Place, call: Callable[[Launch], Callable[[], object]]
) -> list[tuple[float, Tile]]:
    """Time the fastest of some tiles again, in turn: a first look is too short to tell close ones apart."""
    bursts = {str(number): Burst(call(replace(launch, tiles={**launch.tiles, kernel: tile})), place, 1.0)
              for number, (_, tile) in enumerate(tried[:FINALISTS])}  # fmt: skip
    if len(bursts) < 2:
        return tried
    times = [(timing.median_ms, tried[int(name)][1]) for name, timing in interleave(bursts, FINAL_SECONDS).items()]
    return sorted(times) + tried[len(times) :]


def tuned(found: dict[str, Any], launch: Launch, kernel: str) -> dict[str, Any]:
    """Return what `tune` found as plain values, with the `best` tile, or the launch's own where none could be timed."""
    best = found["tried"][0][1] if found["tried"] else launch.tiles[kernel]
    tried = [{"ms": ms, **tile.to_json()} for ms, tile in found["tried"]]
    return {**found, "tried": tried, "best": best.to_json(), "kernel": kernel}

"""Part 2: how fast self-attention is, beside every other way to compute it and beside arithmetic; the table for the dispatch."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.gpu_suite import contest
from benchmarks.gpu_suite.launches import Launch, shipped_tiles
from benchmarks.gpu_suite.place import Place
from benchmarks.gpu_suite.pool import Pool
from benchmarks.gpu_suite.records import Records
from benchmarks.gpu_suite.session import Session
from benchmarks.gpu_suite.table import write
from benchmarks.gpu_suite.tuning import BEST, SPLITS, Candidates, candidates, tune, tuned, variants
from hyctas.attention.measured import VARIABLE
from hyctas.attention.tiles import Tile
from latency.lock import measuring

CHANNELS, POSITIONS = (64, 128, 256, 512), (8192, 32768, 2048)
"""Shapes of the table: C, with d = C / 8, and N = M; one image. The most telling first, in case the time is over."""
STEPS = ("forward", "block", "backward")
DTYPES = ("float16", "bfloat16")
TUNED = "float16"
"""Tiles are chosen in this dtype and hold for the other, which costs the same."""
KERNELS = {"forward": ("forward",), "block": ("block",), "block_given_k": ("block",), "backward": ("grad_v", "grad_qk")}
"""What is tuned of each step."""
WAIT_SHARE = {"forward": 0.15, "block": 0.06, "backward": 0.08}
"""Of the part's time, at most, to wait for candidates of a step before it is tuned; what comes later is not tried at its first
shapes. Compiling goes on while the GPU is timed: bursts are queued before they are timed, so that a busy CPU does not count."""
START = Tile(64, 64, 256, 8, 1)
"""Where the search begins for blocks that no tile is shipped for, since steps are faster; here they are timed all the same."""
TUNE_SECONDS = 1.5
"""For one kernel at one shape."""


def run(session: Session) -> None:
    """Measure; after every comparison the dispatch's table is written anew."""
    if why := session.place.no_kernels:
        session.records.keep("kernels", {"state": "left_out", "reason": why})
        return
    tables = session.folder / "tables"
    tables.mkdir(exist_ok=True)
    os.environ[VARIABLE] = str(tables)  # so that what calls the dispatch here finds what was measured before
    with ExitStack() as stack:
        if not session.place.rehearsal:
            stack.enter_context(measuring())
        part = Part(session, _candidates(session, stack.enter_context(Pool(session.workers))))
        names = part.submit_candidates()
        for dtype in DTYPES:
            for step in STEPS:
                part.step(step, dtype, names[step])
        for step in ("forward", "backward"):
            part.compiled_formula(step)


def precompile(session: Session) -> None:
    """Compile candidates until all are or somebody ends it, beside a part that is not timed; `run` finds them compiled."""
    if not session.place.no_kernels:
        with Pool(session.workers) as pool:
            part = Part(session, _candidates(session, pool))
            for names in part.submit_candidates().values():
                part.candidates.collect(names, math.inf)


def _candidates(session: Session, pool: Pool) -> Candidates:
    records = session.records
    own = Records(session.folder, "candidates", records.identity, records.run, suite=records.suite)
    return Candidates(pool, own, session.place)


@dataclass(frozen=True)
class Part:
    """The part at work."""

    session: Session
    candidates: Candidates

    @property
    def place(self) -> Place:
        return self.session.place

    def shapes(self) -> Iterator[tuple[int, int]]:
        """Yield C and N."""
        rehearsal = self.place.rehearsal
        yield from ((c, n) for n in ((48,) if rehearsal else POSITIONS) for c in ((16,) if rehearsal else CHANNELS))

    def launch(self, step: str, dtype: str, c: int, n: int) -> Launch | None:
        """Return a launch with the best tiles known, or None where no kernel holds so many channels."""
        tiles = shipped_tiles(self.place.architecture, step, c, dtype, n)
        if tiles is None:
            tiles = {"block": START} if step.startswith("block") and c <= START.channels else None
        if tiles is None:
            return None
        found = {kernel: self.session.records.found(_tune_name(step, kernel, c, n)) for kernel in KERNELS[step]}
        tiles |= {kernel: Tile.from_json(record["best"]) for kernel, record in found.items() if record is not None}
        if step == "backward":
            forward = self.launch("forward", dtype, c, n)
            tiles |= {} if forward is None else forward.tiles
        return Launch(step=step, dtype=dtype, d=max(1, c // 8), e=c, queries=n, keys=n, tiles=tiles)

    def launches(self, step: str, dtype: str) -> Iterator[tuple[Launch, int, int]]:
        """Yield the launches of all shapes that have tiles."""
        for c, n in self.shapes():
            if (launch := self.launch(step, dtype, c, n)) is not None:
                yield launch, c, n

    def submit_candidates(self) -> dict[str, set[str]]:
        """Have the candidates of all steps compiled, in TUNED, the likeliest of all shapes first; returns their names by step."""
        names = {}
        for priority, step in enumerate(STEPS):
            wanted: list[tuple[int, tuple[Launch, str]]] = []
            for one in (step, "block_given_k") if step == "block" else (step,):
                for launch, c, _ in self.launches(one, TUNED):
                    for kernel in KERNELS[one]:
                        tiles = candidates(kernel, c, launch.tiles[kernel], self.place)
                        wanted += enumerate(variants(launch, kernel, tiles), start=1)
                    wanted += [(0, (launch, kernel)) for kernel in launch.kernels(self.place.processors)]
            wanted.sort(key=lambda pair: pair[0])
            names[step] = self.candidates.submit([pair for _, pair in wanted], priority)
        return names

    def step(self, step: str, dtype: str, names: set[str]) -> None:
        """Tune (in TUNED) and compare one step at all shapes."""
        steps = (step, "block_given_k") if step == "block" else (step,)
        if all(self.session.records.done(_name(step, dtype, c, n)) for c, n in self.shapes()):
            return
        if dtype != TUNED:
            names = self.candidates.submit(
                [(launch, kernel) for one in steps for launch, _, _ in self.launches(one, dtype)
                 for kernel in launch.kernels(self.place.processors)], priority=-1,
            )  # fmt: skip
        self.candidates.collect(names, min(self.session.records.seconds_left, WAIT_SHARE[step] * self.session.seconds))
        for c, n in self.shapes():
            if dtype == TUNED:
                for one in steps:
                    self.tune(one, c, n)
            self.compare(step, dtype, c, n)
            self.place.release()
            write(self.session)

    def tune(self, step: str, c: int, n: int) -> None:
        """Choose the tiles of one step at one shape, kernel by kernel."""
        for kernel in KERNELS[step]:
            launch = self.launch(step, TUNED, c, n)
            if launch is None:
                return
            self.session.records.attempt(
                _tune_name(step, kernel, c, n), lambda launch=launch, kernel=kernel: self.tune_kernel(launch, kernel)  # type: ignore[misc]
            )

    def tune_kernel(self, launch: Launch, kernel: str) -> dict[str, Any]:
        """Time a kernel's candidates; of the best tiles of a forward pass also numbers of splits."""
        tensors = contest.inputs_of(launch, self.place, self.session.seed)
        self.candidates.collect()
        tiles, known = candidates(kernel, launch.e, launch.tiles[kernel], self.place), self.candidates.records

        def timed(tiles: list[Tile]) -> dict[str, Any]:
            return tune(launch, kernel, tiles, known, self.place, lambda one: lambda: one.run(tensors), TUNE_SECONDS)

        found = timed(tiles)
        if kernel == "forward" and found["tried"]:
            best = [tile for _, tile in found["tried"][:BEST]]
            if any(replace(launch, tiles={kernel: tile}).splits(self.place.processors) > 1 for tile in best):
                splits = timed([replace(tile, splits=number) for tile in best for number in SPLITS])
                found = {
                    "tried": sorted(found["tried"] + splits["tried"]), "refused": found["refused"],
                    "errors": found["errors"] + splits["errors"], "untried": found["untried"] + splits["untried"],
                }  # fmt: skip
        return {"C": launch.e, "N": launch.queries, "step": launch.step, **tuned(found, launch, kernel)}

    def compare(self, step: str, dtype: str, c: int, n: int) -> None:
        """Compare one step at one shape."""
        place, seed, records = self.place, self.session.seed, self.session.records
        launch = self.launch(step, dtype, c, n)
        if step == "block":
            ways = {contest.OURS: launch, "ours_given_k": self.launch("block_given_k", dtype, c, n)}
            known = {name: one for name, one in ways.items() if one is not None and self.tried(one, c, n)}
            shape = launch or Launch(step="block", dtype=dtype, d=max(1, c // 8), e=c, queries=n, keys=n, tiles={})
            records.attempt(_name(step, dtype, c, n), lambda: contest.block(known, shape, place, seed))
        elif launch is not None:
            compare = contest.forward if step == "forward" else contest.training
            records.attempt(_name(step, dtype, c, n), lambda: compare(launch, place, seed))

    def tried(self, launch: Launch, c: int, n: int) -> bool:
        """Return whether a block's tile is known to run: it was timed, or at least shipped."""
        record = self.session.records.found(_tune_name(launch.step, "block", c, n))
        shipped = shipped_tiles(self.place.architecture, launch.step, c, launch.dtype, n)
        return shipped is not None or bool(record is not None and record["tried"])

    def compiled_formula(self, step: str) -> None:
        """Compare with what torch.compile makes of the formula."""
        for launch, c, n in self.launches(step, TUNED):
            self.session.records.attempt(
                f"compiled {_name(step, TUNED, c, n)}",
                lambda launch=launch: contest.compiled(launch, self.place, self.session.seed), needs=4.0,  # type: ignore[misc]
            )  # fmt: skip


def _name(step: str, dtype: str, c: int, n: int) -> str:
    return f"{step} {dtype} C{c} N{n}"


def _tune_name(step: str, kernel: str, c: int, n: int) -> str:
    return f"tune {step} {kernel} C{c} N{n}"

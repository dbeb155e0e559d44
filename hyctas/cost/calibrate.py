"""Measure whole networks on a target, and calibrate a latency table's predictions with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TypeVar

import numpy as np

from export.codec import Positive, Size, cut_off, decode, plain, reading, whole_lines
from export.feeds import random_feeds
from export.files import write_text
from export.runtime import Runtime, Session
from hyctas.arch.genotype import Genotype
from hyctas.cost.workloads import calibration_name, calibration_networks, native_modules, units
from hyctas.plan import lower
from hyctas.spaces.members import member
from hyctas.spaces.search_space import SearchSpace
from latency import LatencyTable, Protocol
from latency.calibration import Calibration
from latency.identity import Identity
from latency.lock import measuring
from latency.measure import measure
from latency.predictor import fit, predict
from latency.witness import Witness, witness

BATCH = 8
NETWORK_PROTOCOL = Protocol(warmup_ms=50, min_samples=6, budget_ms=200)
"""How whole networks are timed in each round."""
Progress = Callable[[int, int], None]
Measure = Callable[[Sequence[Genotype], Progress], np.ndarray]
ROUNDS = 3
WITNESS = "two-branch-w50"
"""Small, so that what is slow about two threads shows most."""
APART = 1.1
"""Two measurements of one network whose ratio is above this were not made under the same conditions."""


def open_witness(
    runtime: Runtime, size: tuple[int, int], num_classes: int, known_ms: float | None = None
) -> AbstractContextManager[Witness]:  # fmt: skip
    """Open a small hand-made network as the witness of measurements on a CPU; a GPU, which is not shared so, has none."""
    if runtime.target.device != "cpu":
        return witness(None)
    (session,) = runtime.load_modules(native_modules([member(WITNESS)], size, num_classes))
    return witness(session, known_ms)


def measure_networks(
    genotypes: Sequence[Genotype], runtime: Runtime, size: tuple[int, int], num_classes: int, *, repeats: int = 1,
    rounds: int = ROUNDS, progress: Callable[[int, int], None] | None = None, beside: Witness | None = None,
) -> np.ndarray:  # fmt: skip
    """Measure whole networks with native output and random weights.

    Every result is the median of some rounds over a batch of networks, so that what slows the machine for a second or two
    touches one round only. Where a witness shows that the machine was slower, there are up to twice as many rounds, and those
    beside which the witness was fastest count.

    Args:
        genotypes: what is measured.
        runtime: where.
        size: height and width of the image.
        num_classes: number of classes.
        repeats: how many results per network.
        rounds: of each result.
        progress: told (measurements done, of how many); repeated ones are not counted.
        beside: the witness of several calls; without it, one is opened here.

    Returns:
        (repeats, networks) latencies in milliseconds; the rounds of different repeats alternate, so that their difference shows
        the noise of measuring and not of the hour.
    """
    results = np.empty((repeats, len(genotypes)))
    total = repeats * rounds
    with measuring(), nullcontext(beside) if beside else open_witness(runtime, size, num_classes) as present:
        for start in range(0, len(genotypes), BATCH):
            batch = genotypes[start : start + BATCH]
            sessions = runtime.load_modules(native_modules(batch, size, num_classes))
            try:
                for session in sessions:
                    session.bind(random_feeds(session.inputs))
                visits = Visits(sessions, repeats, rounds, present)
                for turn in range(total):
                    for offset in range(len(batch)):
                        visits.visit(turn % repeats, offset)
                        if progress is not None:
                            progress(start * total + turn * len(batch) + offset + 1, total * len(genotypes))
                visits.repeat_slow()
                results[:, start : start + len(batch)] = visits.medians()
            finally:
                for session in sessions:
                    session.close()
    return results


class Visits:
    """Times of the sessions of a batch, each with what a witness took beside it.

    Args:
        sessions: with their inputs bound.
        repeats: results per session.
        rounds: times that count for each result.
        present: the witness.
    """

    def __init__(self, sessions: Sequence[Session], repeats: int, rounds: int, present: Witness) -> None:
        self.sessions, self.rounds, self.present = sessions, rounds, present
        self.times: list[list[list[tuple[float, float]]]] = [[[] for _ in sessions] for _ in range(repeats)]

    def visit(self, repeat: int, offset: int) -> None:
        """Time a session."""
        found, beside_ms = self.present.beside(lambda: measure(self.sessions[offset], NETWORK_PROTOCOL))
        self.times[repeat][offset].append((beside_ms, found.median_ms))

    def repeat_slow(self) -> None:
        """Time again, once per round, what has fewer times than count beside a witness as usual."""
        for _ in range(self.rounds):
            left = [
                (repeat, offset) for repeat, row in enumerate(self.times) for offset, times in enumerate(row)
                if sum(not self.present.slow(beside_ms) for beside_ms, _ in times) < self.rounds
            ]  # fmt: skip
            if left:
                self.present.wait()
            for repeat, offset in left:
                self.visit(repeat, offset)

    def medians(self) -> np.ndarray:
        """Return the results, (repeats, sessions), in milliseconds: of the times beside which the witness was fastest.

        The witness notes what it took beside these: called once, at the end.
        """
        counting = [[sorted(times)[: self.rounds] for times in row] for row in self.times]
        self.present.counted += [beside_ms for row in counting for times in row for beside_ms, _ in times]
        return np.array([[np.median([ms for _, ms in times]) for times in row] for row in counting])


def measure_confirmed(
    genotypes: Sequence[Genotype], measure: Measure, expect: Callable[[np.ndarray], np.ndarray], progress: Progress | None = None
) -> np.ndarray:  # fmt: skip
    """Measure networks, and those that do not take what is expected once more, when all others are through.

    What slows a machine for minutes touches all rounds of a network. Where the second measurement differs by more than `APART`
    from the first, a third says which was disturbed: the two closest ones count. A network that takes as long again is slow.

    Args:
        genotypes: what is measured.
        measure: returns the milliseconds of some of them, (networks,), and tells its progress.
        expect: returns the milliseconds expected of all, (networks,), given what the first measurement found.
        progress: told (measurements done, of how many), which are more where some are repeated.

    Returns:
        (networks,) latencies in milliseconds.
    """
    before = counted = 0

    def show(done: int, total: int) -> None:
        nonlocal counted
        counted = total
        if progress is not None:
            progress(before + done, before + total)

    first = measure(genotypes, show)
    expected = expect(first)
    times = [[ms] for ms in first.tolist()]
    for count in (1, 2):
        doubtful = [
            index for index, found in enumerate(times)
            if len(found) == count and _ratio([*found, expected[index]][:2]) > APART
        ]  # fmt: skip
        if not doubtful:
            break
        before += counted
        again = measure([genotypes[index] for index in doubtful], show)
        for index, ms in zip(doubtful, again.tolist(), strict=True):
            times[index].append(ms)
    return np.array([found[0] if len(found) == 1 else np.mean(closest(found)) for found in times])


def closest(ms: Sequence[float]) -> tuple[float, float]:
    """Return the two of some measurements whose ratio is closest to 1, in the order they were made."""
    return min(combinations(ms, 2), key=_ratio)


def _ratio(ms: Sequence[float]) -> float:
    return max(ms) / min(ms)


@dataclass(frozen=True)
class Conditions:
    """The first line of a journal of networks: what their times hold for."""

    identity: Identity
    size: Size
    classes: int


@dataclass(frozen=True)
class NetworkTime:
    """A further line."""

    id: str
    ms: Positive


LineKind = TypeVar("LineKind", bound=NetworkTime)


def read_lines(path: Path, conditions: Conditions, kind: type[LineKind]) -> list[LineKind] | None:
    """Read the lines of a journal of networks, and cut off what a kill left; None where it is of other conditions.

    Raises:
        CorruptFile: it is damaged.
    """
    cut_off(path)
    found = []
    for number, line in whole_lines(path)[0]:
        with reading(path, number):
            if number > 1:
                found.append(decode(kind, line))
            elif decode(Conditions, line) != conditions:
                return None
    return found


def start_lines(path: Path, conditions: Conditions) -> None:
    """Begin a journal of networks."""
    write_text(path, json.dumps(plain(conditions)) + "\n")


def append_lines(path: Path, lines: Sequence[NetworkTime]) -> None:
    """Append to a journal of networks."""
    with path.open("a") as file:
        file.write("".join(json.dumps(plain(line)) + "\n" for line in lines))


class NetworkJournal:
    """Keep the times of networks in a file of lines, so that a killed calibration continues; times of other conditions are dropped.

    Args:
        path: of the file.
        conditions: of the calibration.

    Raises:
        CorruptFile: the file is damaged.
    """

    def __init__(self, path: Path, conditions: Conditions) -> None:
        self.path, self.times = path, dict[str, list[float]]()
        lines = read_lines(path, conditions, NetworkTime) if path.exists() else None
        if lines is None:
            start_lines(path, conditions)
        for line in lines or ():
            self.times.setdefault(line.id, []).append(line.ms)

    def measure(self, genotypes: Sequence[Genotype], measure: Measure, progress: Progress) -> np.ndarray:
        """Return the milliseconds of networks, (networks,): a time that was kept and not returned yet, else measured now."""
        kept = {genotype.id: self.times.get(genotype.id, []) for genotype in genotypes}
        missing = [genotype for genotype in genotypes if not kept[genotype.id]]
        for start in range(0, len(missing), BATCH):
            some = missing[start : start + BATCH]

            def show(done: int, total: int, before: int = start, count: int = len(some)) -> None:
                progress(before * total // count + done, len(missing) * total // count)

            times = measure(some, show).tolist()
            lines = [NetworkTime(genotype.id, ms) for genotype, ms in zip(some, times, strict=True)]
            append_lines(self.path, lines)
            for line in lines:
                kept[line.id] = [line.ms]
        found = np.array([kept[genotype.id][0] for genotype in genotypes])
        self.times |= {genotype.id: kept[genotype.id][1:] for genotype in genotypes}
        return found


def calibrate(
    space: SearchSpace, table: LatencyTable, runtime: Runtime, size: tuple[int, int], num_classes: int, count: int, purpose: int,
    progress: Callable[[int, int], None] | None = None, journal: Path | None = None,
) -> Calibration:  # fmt: skip
    """Measure `count` networks of a space (see `calibration_networks`), and fit the correction of a table's sums to them.

    Args:
        space: where the networks come from.
        table: holds all operators of the space at the size.
        runtime: the table's target.
        size: height and width of the image.
        num_classes: number of classes.
        count: networks to measure, at least 5.
        purpose: of the random draw.
        progress: told (measurements done, of how many).
        journal: keeps what was measured until the calibration is done; a killed one continues with it.

    Raises:
        InvalidInput: the space has fewer networks.
        CorruptFile: the journal is damaged.
    """
    genotypes = calibration_networks(space, table, size, num_classes, count, purpose)
    plans = [units(lower(genotype, size, num_classes)) for genotype in genotypes]
    sums = np.array([predict(plan, table) for plan in plans])

    kept = NetworkJournal(journal, Conditions(table.identity, size, num_classes)) if journal else None
    with open_witness(runtime, size, num_classes) as present:

        def measure_now(some: Sequence[Genotype], show: Progress) -> np.ndarray:
            return measure_networks(some, runtime, size, num_classes, progress=show, beside=present)[0]

        measured = measure_confirmed(
            genotypes, (lambda some, show: kept.measure(some, measure_now, show)) if kept else measure_now,
            lambda ms: sums * np.median(ms / sums), progress,
        )  # fmt: skip
    found = fit(plans, measured, table, space_hash=space.hash, name=calibration_name(space, size))
    return replace(found, witness_ms=present.usual_ms if present.session and present.readings else None)

"""Measure every workload of a list on one runtime, in an order and with checks that keep drift out of the table."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from export.errors import CheckFailed, HyctasError, InvalidInput
from export.machine import fingerprint, hardware, load_average
from export.runtime import LayerRuntime, OperatorRuntime, Runtime, Session
from latency.identity import Identity
from latency.in_situ import InSitu, Progress
from latency.journal import Journal, fold, journal_path, standing
from latency.lock import measuring
from latency.measure import Measurement, MeasurementFailed, Protocol, measure
from latency.table import LatencyTable, Row
from latency.workload import Workload, unique

log = logging.getLogger(__name__)
Measure = Callable[[Session, Protocol], Measurement]
BATCH = 40
"""Workloads exported and loaded at a time."""
DRIFT, STEADY = 0.10, 0.03
"""A block is measured again where the reference moved by more than DRIFT; where the machine stayed faster or slower than at the
start by more than STEADY before and behind a block, its rows are scaled to the speed of the start."""


class OperatorsFailed(CheckFailed):
    """Operators could not be loaded; all others are in the table.

    Attributes:
        failed: the error of each, by key.
    """

    def __init__(self, failed: Mapping[str, HyctasError], path: Path) -> None:
        self.failed = dict(failed)
        shown = [f"  {key}: {error}" for key, error in list(failed.items())[:SHOWN]]
        more = f"\n  ... and {len(failed) - SHOWN} more" if len(failed) > SHOWN else ""
        counted = "1 operator" if len(failed) == 1 else f"{len(failed)} operators"
        super().__init__(
            f"{counted} could not be loaded:\n" + "\n".join(shown) + f"{more}\n{path} holds all that was measured; the same "
            "command tries what is missing again"
        )


SHOWN = 5
"""Failed operators that a message describes."""


def profile(
    workloads: Sequence[Workload],
    runtime: Runtime,
    path: Path,
    protocol: Protocol | None = None,
    *,
    machine: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    batch: int = BATCH,
    reference: Workload | None = None,
    reference_every: int = 10,
    seed: int = 0,
    notice: Callable[[str], None] = log.warning,
    measure: Measure = measure,
    context: Sequence[Workload] = (),
) -> LatencyTable:
    """Bring the table at `path` to hold every workload; what it, or a stopped run's journal, holds is not repeated.

    Args:
        workloads: what to measure; a key that comes twice is measured once.
        runtime: where.
        path: the table's file; made where absent.
        protocol: how; default `Protocol()`.
        machine: the hardware, part of the table's identity; default `export.machine.hardware()`.
        progress: told after each key.
        batch: workloads exported and loaded at a time; a stopped run loses what was loaded and not yet measured.
        reference: measured again and again to notice drift; default the first workload.
        reference_every: keys between two measurements of the reference. Where it moved by more than 10 %, they are
            measured once more, and provenance says so.
        seed: of the order of measuring, which is shuffled so that slow drift does not favour one operator.
        notice: told what a person should know: a wait for the machine, a torn journal, drift.
        measure: times a session; replaced in tests.
        context: where operators are measured inside graphs: what else may stand in these, such as the rest of the space.

    Raises:
        TableMismatch: the table, or its journal, was made under other conditions.
        CorruptFile: the table, or its journal, is damaged.
        MeasurementFailed: a session gives no usable times.
        OperatorsFailed: a runtime that loads operators one by one could not load some, or none of a whole batch.
    """
    protocol = in_effect(protocol or Protocol(), runtime)
    if batch < 1 or reference_every < 1:
        raise InvalidInput(f"batch ({batch}) and reference_every ({reference_every}) must be at least 1")
    wanted = unique(workloads)
    identity = Identity.of(runtime, protocol, hardware() if machine is None else machine)
    complete = _complete(wanted, path, identity)
    if complete is not None:
        return complete
    with measuring(notice):
        if isinstance(runtime, LayerRuntime) and protocol.passes:
            return _in_situ(wanted, context, runtime, path, identity, protocol, progress, seed, notice)
        table = fold(path, identity, notice)
        todo = in_order([workload for key, workload in wanted.items() if key not in table], seed)
        failed: dict[str, HyctasError] = {}
        if todo:
            with Journal(journal_path(path), identity, _provenance(seed)) as journal:
                pace = _Pace(len(wanted), len(wanted) - len(todo), progress)
                run = _Run(runtime, protocol, journal, measure, pace, notice, failed)
                run.measure_all(todo, reference or workloads[0], batch, reference_every, table.rows)
        table = fold(path, identity, notice)
        if failed:
            raise OperatorsFailed(failed, path)
        return table


def in_effect(protocol: Protocol, runtime: Runtime) -> Protocol:
    """Return how operators are measured on a runtime: alone where it does not time layers.

    Raises:
        InvalidInput: caches are to be emptied between layers.
    """
    if not (isinstance(runtime, LayerRuntime) and runtime.times_layers):
        return replace(protocol, passes=0)
    if protocol.passes and protocol.flush_mib:
        raise InvalidInput("flush_mib empties caches before operators that are timed alone: it needs passes = 0")
    return protocol


def _in_situ(
    wanted: Mapping[str, Workload], context: Sequence[Workload], runtime: LayerRuntime, path: Path, identity: Identity,
    protocol: Protocol, progress: Progress | None, seed: int, notice: Callable[[str], None],
) -> LatencyTable:  # fmt: skip
    """Measure operators inside graphs (see `latency.in_situ`); a stopped run's journal is continued."""
    table, known = standing(path, identity, notice)
    todo = [workload for key, workload in wanted.items() if key not in table]
    if todo:
        folder = path.with_name(f"{path.name}.operators")
        with Journal(journal_path(path), identity, _provenance(seed), resume=True) as journal:
            InSitu(runtime, protocol, context, journal, known, folder, progress).measure_all(todo, seed)
        shutil.rmtree(folder, ignore_errors=True)
    return fold(path, identity, notice)


def in_order(workloads: Sequence[Workload], seed: int = 0) -> list[Workload]:
    """Return workloads in the order of measuring: shuffled, so that slow drift does not favour one operator."""
    by_key = sorted(workloads, key=lambda workload: workload.key)  # so that the order depends on the seed alone
    return [by_key[place] for place in np.random.default_rng([seed, 0x6C6174]).permutation(len(by_key))]


def _complete(wanted: Mapping[str, Workload], path: Path, identity: Identity) -> LatencyTable | None:
    """Return the table where nothing is left to measure, without waiting for a turn on the machine."""
    if not path.exists() or journal_path(path).exists():
        return None
    table = LatencyTable.load(path)
    table.identity.check(identity, str(path))
    return None if table.missing(wanted) else table


def _provenance(seed: int) -> dict[str, Any]:
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(),
        "load": load_average(),
        "machine": fingerprint(),
        "process": os.getpid(),
        "seed": seed,
    }


class _Pace:
    """Counts keys, and foretells the rest of the time.

    Loading (with all builds) and measuring are counted apart: a batch is loaded whole before its first key is measured.
    """

    def __init__(self, total: int, done: int, progress: Progress | None) -> None:
        self.total, self.done, self.progress = total, done, progress
        self.before = self.loaded = done
        self.loading_s = self.measuring_s = 0.0
        self.start()

    def start(self) -> None:
        """Leave out what happened so far."""
        self.mark = time.monotonic()

    def load(self, count: int) -> None:
        """Take the time since the last call or tick as that of loading so many keys."""
        self.loading_s += self._passed()
        self.loaded += count

    def tick(self, key: str) -> None:
        self.measuring_s += self._passed()
        self.done += 1
        left = self.loading_s / max(1, self.loaded - self.before) * (self.total - self.loaded)
        left += self.measuring_s / (self.done - self.before) * (self.total - self.done)
        if self.progress is not None:
            self.progress(self.done, self.total, left, key)

    def _passed(self) -> float:
        before, self.mark = self.mark, time.monotonic()
        return self.mark - before


@dataclass
class _Run:
    runtime: Runtime
    protocol: Protocol
    journal: Journal
    measure: Measure
    pace: _Pace
    notice: Callable[[str], None]
    failed: dict[str, HyctasError]
    """Why operators could not be loaded, by key."""
    moved: float = 0.0
    """Where the reference stood last, against the start."""

    def measure_all(self, todo: Sequence[Workload], reference: Workload, batch: int, every: int, known: Mapping[str, Row]) -> None:
        """Measure in batches of workloads loaded together, in blocks of `every` between two looks at the reference."""
        with self.loaded([reference], replace(self.protocol, builds=1)) as (builds,):
            if not builds:  # without it nothing can be told from drift; most likely nothing can be loaded
                return
            (session,) = builds
            self.measure(session, self.protocol)  # the first look is not yet at speed
            start_ms = self.measure(session, self.protocol).median_ms
            shared = isinstance(self.runtime, OperatorRuntime)  # then its row is a share, and here it is alone
            moved = start_ms / known[reference.key].median_ms - 1 if reference.key in known and not shared else 0.0
            if abs(moved) > DRIFT:
                self.note(f"the reference {reference.key} starts at {moved:+.0%} of its row in the table")
            self.pace.start()
            for at in range(0, len(todo), batch):
                chunk = todo[at : at + batch]
                with self.loaded(chunk, self.protocol) as loaded:
                    self.pace.load(len(chunk))
                    pairs = [(workload, builds) for workload, builds in zip(chunk, loaded, strict=True) if builds]
                    for workload, builds in zip(chunk, loaded, strict=True):
                        if not builds:
                            self.pace.tick(workload.key)
                    for first in range(0, len(pairs), every):
                        self.measure_block(pairs[first : first + every], session, start_ms)
                self.journal.sync()
                if not pairs:
                    return

    def measure_block(self, block: Sequence[tuple[Workload, list[Session]]], reference: Session, start_ms: float) -> None:
        """Measure a block, then the reference; where that moved, measure the block once more, and scale it if it stays so."""
        rows, busy = dict[str, Row](), []
        for workload, builds in block:
            rows[workload.key] = self.measure_one(workload, builds)
            if rows[workload.key].busy:
                busy.append((workload, builds))
            self.pace.tick(workload.key)
        for workload, builds in busy:  # the disturbance may have passed
            rows[workload.key] = self.measure_one(workload, builds)
        before, after = self.moved, self.measure(reference, self.protocol).median_ms / start_ms - 1
        if abs(after) > DRIFT:
            for workload, builds in block:
                rows[workload.key] = self.measure_one(workload, builds)
            before, after = after, self.measure(reference, self.protocol).median_ms / start_ms - 1
            again = f"{len(block)} operators were measured again"
            said = f"the reference moved by {before:+.0%}; {again}, then it stood at {after:+.0%}"
            self.journal.note(f"{said}: {', '.join(rows)}")
            self.notice(said)
        self.moved = after
        self.scale(rows, before, after)

    def scale(self, rows: Mapping[str, Row], before: float, after: float) -> None:
        """Bring rows to the speed of the start, where the reference stood apart from it on the same side before and after."""
        if min(before, after) <= STEADY and max(before, after) >= -STEADY:
            return
        factor = 1 / (1 + (before + after) / 2)
        for key, row in rows.items():
            self.journal.row(key, row.scaled(factor))
        where = f"the reference stood at {before:+.1%} before and {after:+.1%} behind"
        self.journal.note(f"{len(rows)} operators were scaled by {factor:.3f}, because {where} them: {', '.join(rows)}")

    def measure_one(self, workload: Workload, builds: Sequence[Session]) -> Row:
        """Measure every build of a workload and keep the row; a later row of the same key replaces it."""
        try:
            row = Row.of(workload.op, [self.measure(session, self.protocol) for session in builds])
        except MeasurementFailed as error:
            raise MeasurementFailed(f"{workload.key}: {error}") from error
        self.journal.row(workload.key, row)
        return row

    def note(self, text: str) -> None:
        self.journal.note(text)
        self.notice(text)

    @contextlib.contextmanager
    def loaded(self, workloads: Sequence[Workload], protocol: Protocol) -> Iterator[list[list[Session]]]:
        """Load each workload `protocol.builds` times with its inputs bound; close everything at the end.

        A workload that cannot be loaded has no builds, and its reason stands in `failed`.
        """
        timed = [example for workload in workloads for example in [workload.example()] * protocol.builds]
        load = self.runtime.load_operators if isinstance(self.runtime, OperatorRuntime) else self.runtime.load_modules
        try:
            sessions = load(timed)
        except Exception as error:
            error.add_note("while loading for profiling: " + ", ".join(workload.key for workload in workloads))
            raise
        with contextlib.ExitStack() as stack:
            opened = [(s, inputs) for s, (_, inputs) in zip(sessions, timed, strict=True) if not isinstance(s, HyctasError)]
            for session, _ in opened:
                stack.callback(session.close)
            for session, inputs in opened:
                specs = zip(session.inputs, inputs, strict=True)
                session.bind({spec.name: np.asarray(tensor).astype(spec.dtype, copy=False) for spec, tensor in specs})
            rest = iter(sessions)
            yield [self.builds_of(workload, [next(rest) for _ in range(protocol.builds)]) for workload in workloads]

    def builds_of(self, workload: Workload, found: Sequence[Session | HyctasError]) -> list[Session]:
        """Return a workload's sessions; none where one of them is an error, which is noted."""
        errors = [session for session in found if isinstance(session, HyctasError)]
        if errors:
            self.failed[workload.key] = errors[0]
            self.note(f"{workload.key} could not be loaded: {' '.join(str(errors[0]).split())}")
        return [] if errors else [session for session in found if not isinstance(session, HyctasError)]

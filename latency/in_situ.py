"""Measure operators where they will run: inside graphs of other operators, by the runtime's own profile of its layers.

Every pass puts each operator into another graph (`latency.assemble`), so that a row is a median over neighbours as well as over
time, and its spread says how far passes differ. An operator is timed alone between all graphs, as a witness
(`latency.witness`): a graph beside which it took longer than usual is measured again. So is, when all passes are through, a graph
whose operators took longer than in the other passes.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from export.files import write_bytes
from export.load import LoadReader, others_share, read_load
from export.runtime import LayerRuntime
from latency.assemble import Assembly, assemble
from latency.journal import Journal, JournalContent
from latency.measure import MeasurementFailed, summarize
from latency.protocol import Protocol
from latency.table import Row
from latency.witness import Witness, witness
from latency.workload import Workload

if TYPE_CHECKING:
    import onnx

Progress = Callable[[int, int, float, str], None]
"""Told (keys done, keys in all, seconds left, key just measured)."""
LEAST_MS = 5e-4
"""Half of the microsecond that runtimes' profiles count in."""
TRIES, SLOWED = 3, 1.05
"""How often a graph is measured that other processes disturb, or whose operators take so many times as long as in other passes."""


@dataclass
class InSitu:
    """Measures operators in passes, and journals each graph as soon as it is measured.

    Args:
        runtime: where.
        protocol: how.
        context: operators that may stand between those that are measured.
        journal: takes the rows.
        known: what a stopped run has measured.
        folder: where operators' ONNX files are kept until the table is whole.
        progress: told after each graph.
        load: reads the machine's load.
    """

    runtime: LayerRuntime
    protocol: Protocol
    context: Sequence[Workload]
    journal: Journal
    known: JournalContent | None
    folder: Path
    progress: Progress | None
    load: LoadReader = read_load
    started: float = field(default_factory=time.monotonic)
    done: int = 0

    def measure_all(self, todo: Sequence[Workload], seed: int) -> None:
        """Measure what is missing in every pass.

        Raises:
            MeasurementFailed: the runtime's profile lacks an operator.
        """
        turns = [[w for w in todo if not self._measured(w.key, turn)] for turn in range(self.protocol.passes)]
        total = len(todo) * self.protocol.passes
        before = total - sum(len(left) for left in turns)
        visits = {w.key: dict(self.known.visits.get(w.key, {}) if self.known else {}) for w in todo}
        graphs: list[tuple[int, Assembly]] = []

        def keep(turn: int, rows: Mapping[str, Row]) -> None:
            for key, row in rows.items():
                self.journal.row(key, row, turn)
                visits[key][turn] = row
            self.journal.sync()

        with self.open_witness(todo) as present:
            for turn, left in enumerate(turns):
                queue = deque((graph, 1) for graph in assemble(left, self.context, np.random.default_rng([seed, turn, len(left)])))
                while queue:
                    graph, tries = queue.popleft()
                    rows, disturbed = self.measure(graph, present)
                    if disturbed and tries < TRIES:  # the disturbance may have passed when its turn comes again
                        queue.append((graph, tries + 1))
                        continue
                    keep(turn, rows)
                    graphs.append((turn, graph))
                    self.done += len(rows)
                    self._tell(before, total, graph.wanted[-1].workload.key)
            for _ in range(TRIES - 1):
                for turn, graph in [each for each in graphs if slowed(visits, *each) > SLOWED]:
                    present.wait()
                    keep(turn, self.measure(graph, present)[0])
                    self._tell(before, total, graph.wanted[-1].workload.key)

    def open_witness(self, workloads: Sequence[Workload]) -> AbstractContextManager[Witness]:
        """Load the operator with the largest inputs as the witness."""
        largest = max(workloads, key=lambda workload: sum(map(math.prod, workload.inputs)))
        (session,) = self.runtime.load_modules([largest.example()])
        return witness(session)

    def _measured(self, key: str, turn: int) -> bool:
        return self.known is not None and turn in self.known.visits.get(key, {})

    def _tell(self, before: int, total: int, key: str) -> None:
        if self.progress is not None:
            left = (total - before - self.done) * (time.monotonic() - self.started) / self.done
            self.progress(before + self.done, total, left, key)

    def measure(self, graph: Assembly, present: Witness) -> tuple[dict[str, Row], bool]:
        """Measure the operators that a graph was made for; say whether something disturbed that."""
        protocol = self.protocol
        runs = -(-protocol.min_samples // protocol.passes)
        with tempfile.TemporaryDirectory(prefix="hyctas-") as folder:
            path = Path(folder) / "graph.onnx"
            write_bytes(path, self.wired(graph).SerializeToString())
            before = self.load()
            times, beside_ms = present.beside(
                lambda: self.runtime.time_parts(path, warmup_ms=protocol.warmup_ms, runs=runs)
            )  # fmt: skip
            share = others_share(before, self.load())
        busy = share is not None and share > protocol.retake_load
        flags = ["busy"] * busy + ["load-unknown"] * (share is None)
        rows = {each.workload.key: self._row(each.workload, times.get(each.name, []), flags) for each in graph.wanted}
        return rows, busy or present.slow(beside_ms)

    def _row(self, workload: Workload, samples: Sequence[float], flags: Sequence[str]) -> Row:
        if not samples:
            raise MeasurementFailed(
                f"{workload.key}: the profile of {self.runtime.target} has no layer of it; set passes = 0 to time operators alone"
            )
        return Row.of(workload.op, [summarize(np.maximum(samples, LEAST_MS).tolist(), self.protocol, flags)])

    def wired(self, graph: Assembly) -> onnx.ModelProto:
        """Return a graph as a model, from the operators' own files."""
        import onnx

        from export.onnx.exporter import export_modules
        from export.onnx.join import Part, wire

        used = {each.workload.key: each.workload for each in graph.placed}
        names = {key: hashlib.sha256(key.encode()).hexdigest()[:24] for key in used}
        missing = [workload for key, workload in used.items() if not (self.folder / f"{names[key]}.onnx").exists()]
        export_modules([workload.example() for workload in missing], self.folder, [names[workload.key] for workload in missing])
        models = {key: onnx.load(self.folder / f"{name}.onnx") for key, name in names.items()}
        return wire([Part(each.name, models[each.workload.key], each.inputs) for each in graph.placed], graph.inputs)


def slowed(visits: Mapping[str, Mapping[int, Row]], turn: int, graph: Assembly) -> float:
    """Return how many times as long a graph's operators took in a pass as in the others, in the median; 1 where there are none."""
    ratios = []
    for each in graph.wanted:
        rows = visits[each.workload.key]
        others = [row.median_ms for number, row in rows.items() if number != turn]
        if others:
            ratios.append(rows[turn].median_ms / np.median(others))
    return float(np.median(ratios)) if ratios else 1.0

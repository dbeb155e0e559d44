"""Operators in graphs of other operators: how these are put together, and what is kept of measuring them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from torch import nn

from export.errors import InvalidInput, TableMismatch
from export.load import LoadReading
from export.runtimes import open_runtime
from export.target import Target
from latency import LatencyTable, Protocol, Workload, profile
from latency.assemble import READERS, assemble
from latency.in_situ import TRIES, InSitu
from latency.journal import Journal, journal_path, read_journal
from latency.measure import MeasurementFailed

PROTOCOL = Protocol(warmup_ms=0, min_samples=6, passes=2, retake_load=1)  # whatever else the machine does
TARGET = Target.parse("onnxruntime-cpu:fp32")


def conv(name: str, source: int, out: int, size: int = 8, stride: int = 1) -> Workload:
    build = partial(nn.Conv2d, source, out, 3, stride, 1)
    return Workload(name, "conv", build, ((1, source, size, size),), (1, out, size // stride, size // stride))


OPERATORS = [
    conv("stem", 3, 4), conv("narrow", 4, 4), conv("wide", 4, 8), conv("down", 8, 8, stride=2), conv("low", 8, 8, size=4),
    conv("elsewhere", 5, 5),
]  # fmt: skip


class Steady:
    """A witness that takes 10 ms, and 12 while a runtime is slow."""

    inputs = ()

    def __init__(self, runtime: LayerRuntime) -> None:
        self.runtime = runtime

    def bind(self, feeds: Any) -> None:
        assert feeds == {}

    def step(self) -> float:
        return 12.0 if len(self.runtime.graphs) in self.runtime.slow_at else 10.0

    def close(self) -> None:
        self.runtime.closed = True


class LayerRuntime:
    """Takes 1 ms for every operator, 2 ms for those with 8 channels."""

    target, threads, times_layers = TARGET, 1, True

    def __init__(self, most: int = 1000, slow_at: tuple[int, ...] = ()) -> None:
        self.graphs, self.most, self.slow_at, self.closed = list[list[str]](), most, slow_at, False

    def versions(self) -> dict[str, str]:
        return {"fake": "1"}

    def load_file(self, path: Path) -> Any:
        raise NotImplementedError

    def load_modules(self, modules: Any) -> list[Steady]:
        assert len(modules) == 1, "operators are not timed alone, but for the witness"
        return [Steady(self)]

    def time_parts(self, path: Path, *, warmup_ms: float, runs: int) -> dict[str, list[float]]:
        if len(self.graphs) == self.most:
            raise KeyboardInterrupt
        graph = onnx.load(path).graph
        shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
        self.graphs.append([node.name.partition("/")[0] for node in graph.node])
        wide = {node.name.partition("/")[0]: shapes[node.input[1]][0] == 8 for node in graph.node}
        return {part: [2.0 if each else 1.0] * runs for part, each in wide.items()}


def profiled(path: Path, runtime: Any, operators: list[Workload] = OPERATORS, **options: Any) -> LatencyTable:
    return profile(operators, runtime, path, options.pop("protocol", PROTOCOL), machine={}, context=OPERATORS, **options)


def test_every_operator_stands_in_one_graph_behind_what_makes_its_input() -> None:
    graphs = assemble(OPERATORS, (), np.random.default_rng(0), most=3)
    assert sorted(placed.workload.key for graph in graphs for placed in graph.wanted) == sorted(w.key for w in OPERATORS)
    for graph in graphs:
        made: dict[str, tuple[int, ...]] = dict(graph.inputs)
        reads = [name for placed in graph.placed for name in placed.inputs]
        for placed in graph.placed:
            assert tuple(made[name] for name in placed.inputs) == placed.workload.inputs
            assert placed.workload.output is not None
            made[placed.name] = placed.workload.output
        assert max(map(reads.count, reads)) <= READERS
        assert {*graph.inputs.values()} <= {(1, 3, 8, 8), (1, 5, 8, 8)}, "no other shape has to come from outside"
        assert len(graph.wanted) <= 3
    (one,) = assemble([OPERATORS[3]], OPERATORS, np.random.default_rng(0))
    assert [placed.workload.key for placed in one.placed] == ["stem", "wide", "down"] and len(one.wanted) == 1
    (alone,) = assemble([OPERATORS[3]], (), np.random.default_rng(0))
    assert alone.inputs == {"x0": (1, 8, 8, 8)}


def test_another_draw_gives_other_neighbours() -> None:
    def orders(seed: int) -> list[list[str]]:
        drawn = assemble(OPERATORS, (), np.random.default_rng(seed), most=3)
        return [[placed.workload.key for placed in graph.placed] for graph in drawn]

    assert orders(0) == orders(0) and len({str(orders(seed)) for seed in range(5)}) > 2


def test_a_table_measured_by_onnx_runtime(tmp_path: Path) -> None:
    ticks: list[tuple[int, int]] = []
    path = tmp_path / "t.json"
    table = profiled(path, open_runtime(TARGET, 1), progress=lambda done, total, left, key: ticks.append((done, total)))
    assert sorted(table.rows) == sorted(w.key for w in OPERATORS) and ticks[-1] == (12, 12)
    for row in table.rows.values():
        assert (row.builds, row.n) == (2, 6) and row.median_ms < 50 and row.spread is not None
    assert table.identity.protocol["passes"] == 2
    assert sorted(each.name for each in tmp_path.iterdir()) == ["t.json"], "neither a journal nor operators are left"
    with pytest.raises(TableMismatch, match=r"protocol\.passes differs: 2 in the table, 3"):
        profiled(path, open_runtime(TARGET, 1), protocol=replace(PROTOCOL, passes=3))


def test_a_stopped_run_measures_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    with pytest.raises(KeyboardInterrupt):
        profiled(path, LayerRuntime(most=1))
    first = read_journal(journal_path(path))
    assert first is not None and len(first.visits) == 6 and all(list(rows) == [0] for rows in first.visits.values())
    with journal_path(path).open("a") as file:
        file.write('{"key": "k')  # as a kill inside a write leaves it
    told: list[str] = []
    second = LayerRuntime()
    table = profiled(path, second, notice=told.append)
    assert len(second.graphs) == 1 and len(told) == 1 and "torn" in told[0]
    assert {key: row.median_ms for key, row in table.rows.items()} == {
        "stem": 1.0, "narrow": 1.0, "wide": 2.0, "down": 2.0, "low": 2.0, "elsewhere": 1.0
    }  # fmt: skip
    assert all(row.spread == 0 for row in table.rows.values())
    (entry,) = table.provenance
    assert entry["rows"] == 6 and entry["notes"][0].startswith("continued: ")
    assert profiled(path, LayerRuntime(most=0)) == table


def test_shards_meet_in_one_table(tmp_path: Path) -> None:
    parts = [profiled(tmp_path / f"{n}.json", LayerRuntime(), OPERATORS[n::2]) for n in (0, 1)]
    whole = parts[0].merge(parts[1])
    assert sorted(whole.rows) == sorted(w.key for w in OPERATORS)


def busy_then_quiet(pattern: str) -> Iterator[LoadReading]:
    """Two readings for each measurement: "b" with all cores used by others, "q" with none."""
    for kind in pattern:
        yield LoadReading(total_s=0.0, busy_s=0.0, own_s=0.0)
        yield LoadReading(total_s=1.0, busy_s=1.0 if kind == "b" else 0.0, own_s=0.0)


@pytest.mark.parametrize(("pattern", "busy", "measured"), [("qq", False, 2), ("bqq", False, 3), ("b" * 2 * TRIES, True, 2 * TRIES)])
def test_a_disturbed_graph_is_measured_again(tmp_path: Path, pattern: str, busy: bool, measured: int) -> None:
    runtime, readings, protocol = LayerRuntime(), busy_then_quiet(pattern), replace(PROTOCOL, retake_load=0.1)
    path = tmp_path / "journal"
    with Journal(path, LatencyTable.load(_empty(tmp_path, runtime)).identity, {}) as journal:
        measuring = InSitu(runtime, protocol, (), journal, None, tmp_path / "operators", None, load=lambda: next(readings))
        measuring.measure_all(OPERATORS, 0)
    content = read_journal(path)
    assert content is not None and len(runtime.graphs) == measured
    assert {row.busy for row in content.rows.values()} == {busy}


def test_a_graph_is_measured_again_where_all_of_it_took_longer_than_in_other_passes(tmp_path: Path) -> None:
    class SlowAtFirst(LayerRuntime):
        def time_parts(self, path: Path, *, warmup_ms: float, runs: int) -> dict[str, list[float]]:
            found = super().time_parts(path, warmup_ms=warmup_ms, runs=runs)
            return {part: [1.3 * ms for ms in times] for part, times in found.items()} if len(self.graphs) == 1 else found

    runtime = SlowAtFirst()
    table = profiled(tmp_path / "t", runtime)
    assert len(runtime.graphs) == 3 and runtime.graphs[0] == runtime.graphs[2]
    assert {row.median_ms for row in table.rows.values()} == {1.0, 2.0} and all(row.spread == 0 for row in table.rows.values())


def test_a_graph_is_measured_again_where_the_witness_was_slow(tmp_path: Path) -> None:
    """The machine stays slow until another graph was measured, so that two of three times are slow."""
    for slow_at in ((), (1,), (2,)):
        runtime = LayerRuntime(slow_at=slow_at)
        profiled(tmp_path / f"t{slow_at}", runtime)
        assert len(runtime.graphs) == 2 + 2 * len(slow_at) and runtime.closed


def _empty(folder: Path, runtime: Any) -> Path:
    profile([], runtime, folder / "empty.json", PROTOCOL, machine={}).save(folder / "empty.json")
    return folder / "empty.json"


def test_what_cannot_be_measured_inside_a_graph(tmp_path: Path) -> None:
    class Silent(LayerRuntime):
        def time_parts(self, path: Path, *, warmup_ms: float, runs: int) -> dict[str, list[float]]:
            return {}

    with pytest.raises(MeasurementFailed, match="has no layer of it; set passes = 0"):
        profiled(tmp_path / "t", Silent())
    with pytest.raises(InvalidInput, match=r"flush_mib .* needs passes = 0"):
        profiled(tmp_path / "u", LayerRuntime(), protocol=Protocol(flush_mib=1))
    alone = profile(OPERATORS[:1], open_runtime(TARGET, 1), tmp_path / "v", Protocol(passes=0, budget_ms=0), machine={})
    assert alone.identity.protocol["passes"] == 0 and json.loads((tmp_path / "v").read_text())["format_version"] == 2

"""Profile invented workloads: resumed after a kill, batched, shuffled, watched for drift."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from export.errors import InvalidInput, TableMismatch
from latency import LatencyTable, Protocol, Workload, profile
from latency.journal import journal_path
from latency.measure import Measurement, MeasurementFailed
from latency.profiling import OperatorsFailed

FAST = Protocol(warmup_ms=0, min_samples=6, max_samples=6, budget_ms=0)


def one_step(session: Any, protocol: Protocol) -> Measurement:
    """Measure a fake by a single step; 0.5 ms more than a whole number means that others were busy."""
    ms = session.step()
    return Measurement(ms, ms, ms, ms, ms, n=1, cv=0, ci=0, flags=("busy",) if ms % 1 == 0.5 else ())


def test_latency_profile_measures_for_real(fakes: Any, tmp_path: Path) -> None:
    runtime = fakes["Runtime"]()
    workloads = [fakes["workload"](f"k{i}", 1.0 + i, op="conv" if i % 2 else "pool") for i in range(5)]
    calls: list[tuple[int, int, float, str]] = []
    path = tmp_path / "t.json"
    table = profile(workloads + workloads[:2], runtime, path, FAST, machine={"cpu": "x"}, progress=lambda *c: calls.append(c))
    assert {key: row.median_ms for key, row in table.rows.items()} == {f"k{i}": 1.0 + i for i in range(5)}
    assert {row.op for row in table.rows.values()} == {"conv", "pool"}
    assert LatencyTable.load(path) == table and not journal_path(path).exists()
    assert all(session.closed for session in runtime.sessions)
    assert [call[:2] for call in calls] == [(i, 5) for i in range(1, 6)]
    assert all(call[2] >= 0 for call in calls) and calls[-1][2] == 0
    assert table.identity.device == {"cpu": "x"} and table.identity.versions == {"fake": "1"}
    assert table.provenance[0]["rows"] == 5 and "started" in table.provenance[0]


def test_latency_profile_skips_what_is_there_and_refuses_other_conditions(fakes: Any, tmp_path: Path) -> None:
    path, runtime = tmp_path / "t.json", fakes["Runtime"]()
    workloads = [fakes["workload"](f"k{i}", 1.0) for i in range(4)]
    options: dict[str, Any] = {"machine": {}, "measure": one_step}
    first = profile(workloads[:2], runtime, path, FAST, **options)
    assert profile(workloads[:2], fakes["Runtime"](), path, FAST, **options) == first
    runtime = fakes["Runtime"]()
    assert len(profile(workloads, runtime, path, FAST, **options)) == 4
    assert sorted(runtime.batches) == [1, 2]
    runtime = fakes["Runtime"](version="2")
    with pytest.raises(TableMismatch, match=r"versions\.fake differs: '1' in the table, '2' asked for"):
        profile(workloads, runtime, path, FAST, **options)
    with pytest.raises(TableMismatch, match=r"protocol\.warmup_ms differs: 0 in the table, 50"):
        profile(workloads, fakes["Runtime"](), path, Protocol(), **options)
    assert runtime.batches == []
    assert len(profile([], fakes["Runtime"](), tmp_path / "none.json", FAST, **options)) == 0


def tick(times: Iterator[int]) -> float:
    return float(next(times))


def test_latency_profile_batches_builds_and_shuffles_by_seed(fakes: Any, tmp_path: Path) -> None:
    orders = []
    for name, seed in [("a", 0), ("b", 0), ("c", 1)]:
        runtime = fakes["Runtime"]()
        times = count(1)  # the builds of one key differ
        workloads = [fakes["workload"](f"k{i}", partial(tick, times)) for i in range(10)]
        order: list[str] = []
        reference = fakes["workload"]("ref", 1.0)
        table = profile(
            workloads,
            runtime,
            tmp_path / name,
            Protocol(builds=3),
            machine={},
            measure=one_step,
            batch=4,
            seed=seed,
            reference=reference,
            progress=lambda *call, order=order: order.append(call[3]),
        )
        assert runtime.batches == [1, 12, 12, 6]
        assert sorted(row.median_ms for row in table.rows.values()) == [2.0 + 3 * i for i in range(10)]
        assert all(row.builds == row.n == 3 for row in table.rows.values())
        assert "ref" not in table
        orders.append(order)
    assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == sorted(orders[2])


def test_latency_profile_measures_a_block_again_after_drift(fakes: Any, tmp_path: Path) -> None:
    seen: dict[str, int] = {}

    def timed(key: str) -> Any:
        def ms() -> float:
            seen[key] = seen.get(key, 0) + 1
            return float(seen[key])

        return ms

    # The reference is read twice at the start (the first is a warm-up) and after each block of 2: 10, [10], [12 -> 10], [10]
    readings = iter([30.0, 10.0, 10.0, 12.0, 10.0, 10.0])
    told: list[str] = []
    table = profile(
        [fakes["workload"](f"k{i}", timed(f"k{i}")) for i in range(6)],
        fakes["Runtime"](),
        tmp_path / "t",
        FAST,
        machine={},
        measure=one_step,
        reference=fakes["workload"]("ref", lambda: next(readings)),
        reference_every=2,
        notice=told.append,
    )
    assert sorted(seen.values()) == [1, 1, 1, 1, 2, 2]
    assert {key: row.median_ms for key, row in table.rows.items()} == {key: float(n) for key, n in seen.items()}
    again = [key for key, n in seen.items() if n == 2]
    (note,) = table.provenance[0]["notes"]
    assert "moved by +20%; 2 operators were measured again" in note and "at +0%" in note and all(k in note for k in again)
    assert len(told) == 1 and note.startswith(told[0])


def test_latency_profile_scales_rows_of_a_machine_that_stays_slower(fakes: Any, tmp_path: Path) -> None:
    """The machine slows down by a quarter for good after the first block of 2; every true row is 4 ms."""
    speed = {"now": 1.0}
    readings = iter([10.0, 10.0, 10.0, 12.5, 12.5, 12.5, 12.5])

    def reference() -> float:
        value = next(readings)
        speed["now"] = 1.25  # from the first look behind a block on
        return value

    table = profile(
        [fakes["workload"](f"k{i}", lambda: 4.0 * speed["now"]) for i in range(6)], fakes["Runtime"](), tmp_path / "t", FAST,
        machine={}, measure=one_step, reference=fakes["workload"]("ref", reference), reference_every=2,
        notice=lambda text: None,
    )  # fmt: skip
    values = sorted(row.median_ms for row in table.rows.values())
    assert values == pytest.approx([4.0, 4.0, 4.0, 4.0, 5.0, 5.0]), "the first block began before the change was seen"
    assert sum("scaled by 0.800" in note for note in table.provenance[0]["notes"]) == 2
    assert all(row.p10_ms == row.median_ms == row.p90_ms for row in table.rows.values())


def test_latency_profile_notes_a_reference_that_left_its_row(fakes: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"machine": {}, "measure": one_step, "notice": lambda text: None}
    path, runtime = tmp_path / "t", fakes["Runtime"]()
    profile([fakes["workload"]("ref", 10.0)], runtime, path, FAST, **options)
    table = profile([fakes["workload"]("ref", 13.0), fakes["workload"]("k", 1.0)], runtime, path, FAST, **options)
    assert table.rows["ref"].median_ms == 10
    assert table.provenance[1]["notes"] == ["the reference ref starts at +30% of its row in the table"]


def test_latency_profile_tries_busy_keys_once_more(fakes: Any, tmp_path: Path) -> None:
    path = tmp_path / "t"
    passing, lasting = iter([1.5, 1.0]), iter([2.5, 3.5])
    workloads = [fakes["workload"]("a", lambda: next(passing)), fakes["workload"]("b", lambda: next(lasting))]
    options: dict[str, Any] = {"machine": {}, "measure": one_step, "reference": fakes["workload"]("ref", 1.0)}
    table = profile(workloads, fakes["Runtime"](), path, FAST, **options)
    assert [(table.rows[k].median_ms, table.rows[k].busy) for k in "ab"] == [(1.0, False), (3.5, True)]


def test_latency_profile_stores_nothing_unusable_and_closes_everything(fakes: Any, tmp_path: Path) -> None:
    path, runtime = tmp_path / "t", fakes["Runtime"]()
    workloads = [fakes["workload"]("good", 1.0), fakes["workload"]("bad", float("nan"))]
    with pytest.raises(MeasurementFailed, match=r"^bad: 7 samples are unusable"):
        profile(workloads, runtime, path, FAST, machine={})
    assert all(session.closed for session in runtime.sessions)
    table = profile(workloads[:1], fakes["Runtime"](), path, FAST, machine={})
    assert list(table.rows) == ["good"] and "NaN" not in path.read_text()


def test_latency_profile_names_what_cannot_be_loaded(fakes: Any, tmp_path: Path) -> None:
    def fail() -> Any:
        raise RuntimeError("no such operator")

    runtime = fakes["Runtime"]()
    runtime.load_modules = lambda modules: fail()
    with pytest.raises(RuntimeError, match="no such operator") as caught:
        profile([fakes["workload"]("k", 1.0)], runtime, tmp_path / "t", FAST, machine={})
    assert caught.value.__notes__ == ["while loading for profiling: k"]


class OperatorsRuntime:
    """A runtime that loads operators one by one; those that take -1 ms cannot be loaded."""

    threads = 1

    def __init__(self, fakes: Any, sleep_s: float = 0) -> None:
        self.fakes, self.sleep_s, self.target = fakes, sleep_s, fakes["Runtime"].target
        self.asked: list[list[Any]] = []
        self.sessions: list[Any] = []

    def versions(self) -> dict[str, str]:
        return {"fake": "1"}

    def operator_versions(self) -> dict[str, str]:
        return {"operators": "one by one"}

    def load_file(self, path: Path) -> Any:
        raise NotImplementedError

    def load_modules(self, modules: Any) -> Any:
        raise AssertionError("operators are loaded as operators")

    def load_operators(self, modules: Any) -> list[Any]:
        time.sleep(self.sleep_s * len(modules))
        self.asked.append([module for module, _ in modules])
        made = [
            InvalidInput("no kernel") if module.ms == -1 else self.fakes["Session"](module, [x.shape for x in inputs])
            for module, inputs in modules
        ]
        self.sessions += [session for session in made if not isinstance(session, InvalidInput)]
        return made


def test_latency_profile_keeps_what_others_failed_at(fakes: Any, tmp_path: Path) -> None:
    runtime, told = OperatorsRuntime(fakes), list[str]()
    workloads = [fakes["workload"](f"k{i}", -1 if i in (3, 5) else 1.0 + i) for i in range(8)]
    options: dict[str, Any] = {"machine": {}, "measure": one_step, "notice": told.append, "batch": 4}
    ticks: list[int] = []
    with pytest.raises(OperatorsFailed, match=r"2 operators could not be loaded:\n  k[35]: no kernel\n") as caught:
        profile(workloads, runtime, tmp_path / "t", Protocol(builds=2), progress=lambda *c: ticks.append(c[0]), **options)
    assert set(caught.value.failed) == {"k3", "k5"} and caught.value.exit_code == 1
    table = LatencyTable.load(tmp_path / "t")
    assert sorted(table.rows) == ["k0", "k1", "k2", "k4", "k6", "k7"] and sorted(ticks) == list(range(1, 9))
    assert table.identity.versions == {"fake": "1", "operators": "one by one"}
    assert [len({id(module) for module in asked}) * 2 for asked in runtime.asked[1:]] == [8, 8], "a build repeats the module"
    assert sum("could not be loaded: no kernel" in text for text in told) == 2
    assert all(session.closed for session in runtime.sessions)
    again = OperatorsRuntime(fakes)
    with pytest.raises(OperatorsFailed):
        profile(workloads, again, tmp_path / "t", Protocol(builds=2), **options)
    assert [len(asked) for asked in again.asked] == [1, 4], "only what is missing is tried again"


def test_latency_profile_stops_where_nothing_can_be_loaded(fakes: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"machine": {}, "measure": one_step, "notice": lambda text: None, "batch": 2}
    broken = [fakes["workload"](f"k{i}", -1) for i in range(9)]
    runtime = OperatorsRuntime(fakes)
    with pytest.raises(OperatorsFailed, match=r"1 operator could not be loaded:\n  k0: no kernel"):
        profile(broken, runtime, tmp_path / "t", FAST, **options)
    assert len(runtime.asked) == 1, "the reference already fails"
    runtime = OperatorsRuntime(fakes)
    with pytest.raises(OperatorsFailed, match="2 operators"):
        profile(broken, runtime, tmp_path / "t", FAST, reference=fakes["workload"]("ref", 1.0), **options)
    assert len(runtime.asked) == 2, "a whole batch fails"
    many = OperatorsFailed({f"k{i}": InvalidInput("no") for i in range(7)}, tmp_path / "t")
    assert "7 operators" in str(many) and "... and 2 more" in str(many)


def test_latency_profile_counts_builds_in_the_time_left(fakes: Any, tmp_path: Path) -> None:
    """Loading takes 10 ms a build and measuring nothing; after the first batch of 4 with 3 builds, 4 keys are left."""
    left: list[float] = []
    profile(
        [fakes["workload"](f"k{i}", 1.0) for i in range(8)], OperatorsRuntime(fakes, sleep_s=0.01), tmp_path / "t",
        Protocol(builds=3), machine={}, measure=one_step, batch=4, progress=lambda done, total, s, key: left.append(s),
    )  # fmt: skip
    assert all(0.1 < seconds < 0.5 for seconds in left[:4]), left
    assert all(seconds < 0.1 for seconds in left[4:]) and left[-1] == 0


def test_latency_profile_refuses_one_key_for_two_workloads(fakes: Any, tmp_path: Path) -> None:
    pair = [fakes["workload"]("k", 1.0, op="conv"), fakes["workload"]("k", 1.0, op="pool")]
    with pytest.raises(InvalidInput, match="stands for two workloads"):
        profile(pair, fakes["Runtime"](), tmp_path / "t", FAST, machine={})


def test_latency_profile_workload_inputs_follow_the_key() -> None:
    def build() -> Any:
        raise NotImplementedError

    a, b = Workload("a", "conv", build, ((1, 2, 3, 4),)), Workload("b", "conv", build, ((1, 2, 3, 4),))
    assert (a.example_inputs()[0] == a.example_inputs()[0]).all()
    assert (a.example_inputs()[0] != b.example_inputs()[0]).any()
    assert a.example_inputs()[0].dtype == "float32"
    for shapes in [(), ((2, 3),), ((1, 0),), ((),)]:
        with pytest.raises(InvalidInput):
            Workload("a", "conv", build, shapes)


VICTIM = """
import runpy, sys, types
from pathlib import Path
sys.modules["torch"] = types.SimpleNamespace(from_numpy=lambda array: array)  # the fakes do not need the real one
fakes = runpy.run_path(sys.argv[1])
from latency import Protocol, profile
protocol = Protocol(warmup_ms=0, min_samples=6, max_samples=6, budget_ms=0)
workloads = [fakes["fake_workload"](f"k{i}", 1.0 + i) for i in range(40)]
profile(workloads, fakes["FakeRuntime"](sleep_s=0.001), Path(sys.argv[2]), protocol, machine={}, batch=8,
        progress=lambda done, total, left, key: print(key, flush=True))
"""


def test_latency_profile_killed_and_resumed_loses_no_row(fakes: Any, tmp_path: Path) -> None:
    """Kill -9 several times at different moments; a key reported as done is never measured again."""
    path = tmp_path / "t.json"
    command = [sys.executable, "-c", VICTIM, str(Path(__file__).with_name("conftest.py")), str(path), str(tmp_path)]
    finished: list[str] = []
    for stop_after in (1, 13):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as victim:
            assert victim.stdout is not None
            try:
                for _ in range(stop_after):
                    finished.append(victim.stdout.readline().strip())
                time.sleep(0.003)
            finally:
                os.kill(victim.pid, signal.SIGKILL)
            finished += victim.stdout.read().split()
    assert 14 <= len(finished) == len(set(finished)) < 40
    journal = journal_path(path)
    with open(journal, "a") as handle:
        handle.write('{"key": "k')  # as a kill inside a write leaves it
    kept = json.loads(path.read_text())["rows"]
    told: list[str] = []
    again: list[str] = []
    workloads = [fakes["workload"](f"k{i}", 1.0 + i) for i in range(40)]
    table = profile(
        workloads, fakes["Runtime"](), path, FAST, machine={}, notice=told.append, progress=lambda *call: again.append(call[3])
    )
    assert {key: row.median_ms for key, row in table.rows.items()} == {f"k{i}": 1.0 + i for i in range(40)}
    assert not set(again) & set(finished) and set(kept) <= set(table.rows)
    assert any("torn" in text for text in told)
    assert len(table.provenance) == 3 and not journal.exists()

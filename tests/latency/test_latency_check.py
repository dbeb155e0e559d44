"""--check: a table against the machine as it is now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from export.errors import MissingKeys, TableMismatch
from latency.check import Check, check_table, sample_keys
from latency.measure import Protocol
from latency.profiling import profile

MACHINE = {"cpu": "here"}
QUICK = Protocol(warmup_ms=0, min_samples=6, budget_ms=1)


def table_of(fakes: Any, path: Path, times: dict[str, float]) -> Any:
    workloads = [fakes["workload"](name, ms) for name, ms in times.items()]
    return profile(workloads, fakes["Runtime"](), path, QUICK, machine=MACHINE)


TIMES = {f"k{i:02}": 0.1 * 1.2**i for i in range(30)}


def check(fakes: Any, table: Any, now: dict[str, float], **options: Any) -> Check:
    workloads = [fakes["workload"](name, now[name]) for name in sample_keys(table, 12)]
    return check_table(table, workloads, options.pop("runtime", fakes["Runtime"]()), machine=options.pop("machine", MACHINE))


def test_sample_spreads_over_the_latencies(fakes: Any, tmp_path: Path) -> None:
    table = table_of(fakes, tmp_path / "t.json", TIMES)
    assert sample_keys(table, 4) == ["k00", "k10", "k19", "k29"]
    assert sample_keys(table, 99) == sorted(TIMES)


def test_an_unchanged_machine(fakes: Any, tmp_path: Path) -> None:
    found = check(fakes, table_of(fakes, tmp_path / "t.json", TIMES), TIMES)
    assert found.holds and found.median == pytest.approx(1) and "still describes" in found.summary()


def test_a_slower_machine(fakes: Any, tmp_path: Path) -> None:
    found = check(fakes, table_of(fakes, tmp_path / "t.json", TIMES), {name: 1.3 * ms for name, ms in TIMES.items()})
    assert not found.holds and found.median == pytest.approx(1.3) and "1.30 x" in found.summary()


def test_operators_that_changed_differently(fakes: Any, tmp_path: Path) -> None:
    now = {name: ms * (2.0 if index % 3 == 0 else 1.0) for index, (name, ms) in enumerate(TIMES.items())}
    found = check(fakes, table_of(fakes, tmp_path / "t.json", TIMES), now)
    assert not found.holds and abs(found.median - 1) < 0.1 and "changed differently" in found.summary()


def test_other_conditions_are_named_before_anything_is_measured(fakes: Any, tmp_path: Path) -> None:
    table = table_of(fakes, tmp_path / "t.json", TIMES)
    with pytest.raises(TableMismatch, match=r"does not describe this machine: device\.cpu differs"):
        check(fakes, table, TIMES, machine={"cpu": "there"})
    runtime = fakes["Runtime"](version="2")
    with pytest.raises(TableMismatch, match=r"versions\.fake differs"):
        check(fakes, table, TIMES, runtime=runtime)
    assert not runtime.sessions
    with pytest.raises(MissingKeys):
        check_table(table, [fakes["workload"]("other", 1.0)], fakes["Runtime"](), machine=MACHINE)

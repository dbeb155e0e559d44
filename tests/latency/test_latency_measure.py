"""Time sessions with an invented clock and an invented load."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.load import LoadReading, others_share, read_load
from latency.measure import MeasurementFailed, Protocol, measure, median_ci, summarize


class Bench:
    """A session whose steps move a clock, on a machine where others are busy at chosen times."""

    def __init__(self, times: Iterator[float], others: Callable[[float], float] = lambda now_s: 0.0) -> None:
        self.times, self.others = times, others
        self.now_s = self.busy_s = 0.0
        self.steps = 0

    def step(self) -> float:
        self.steps += 1
        ms = next(self.times)
        if math.isfinite(ms) and ms > 0:
            self.now_s += ms / 1e3
            self.busy_s += ms / 1e3 * (1 + self.others(self.now_s))
        return ms

    def load(self) -> LoadReading:
        return LoadReading(total_s=2 * self.now_s, busy_s=self.busy_s, own_s=self.now_s)

    def measure(self, protocol: Protocol) -> Any:
        return measure(self, protocol, clock=lambda: self.now_s, load=self.load)  # type: ignore[arg-type]


def test_latency_measure_stops_when_the_median_is_known() -> None:
    bench = Bench(cycle([2.0]))
    result = bench.measure(Protocol(warmup_ms=50))
    assert (result.median_ms, result.p10_ms, result.p99_ms, result.cv, result.ci) == (2, 2, 2, 0, 0)
    assert 20 <= result.n <= 60 and result.flags == ()
    assert bench.steps - result.n >= 25  # 50 ms of warm-up at 2 ms


def test_latency_measure_repeats_until_budget_when_noisy() -> None:
    rng = np.random.default_rng(0)
    bench = Bench(iter(lambda: float(rng.uniform(1, 3)), None))
    result = bench.measure(Protocol(budget_ms=400, ci=0.001, max_samples=10_000))
    assert result.flags == ("noisy", "wide")
    assert 180 <= result.n <= 220
    assert result.p10_ms < result.median_ms < result.p90_ms < result.p95_ms < result.p99_ms


def test_latency_measure_takes_min_samples_of_slow_sessions_and_max_of_fast_ones() -> None:
    assert Bench(cycle([300.0])).measure(Protocol()).n == 20
    rng = np.random.default_rng(0)
    fast = Bench(iter(lambda: float(rng.uniform(0.001, 0.003)), None))
    assert fast.measure(Protocol(ci=0, max_samples=50)).n == 50


def test_latency_measure_retakes_what_others_disturbed() -> None:
    bench = Bench(cycle([1.0]), others=lambda now_s: 1.0 if now_s < 0.14 else 0.0)
    result = bench.measure(Protocol())
    assert not result.busy and result.retaken >= 50 and result.n >= 20


def test_latency_measure_keeps_and_marks_when_others_never_stop() -> None:
    bench = Bench(cycle([1.0]), others=lambda now_s: 1.0)
    result = bench.measure(Protocol())
    assert result.busy and result.n >= 60 and bench.now_s < 0.5
    slow = Bench(cycle([100.0]), others=lambda now_s: 1.0).measure(Protocol())
    assert slow.busy and slow.n == 60


def test_latency_measure_accepts_a_machine_that_hides_its_load() -> None:
    bench = Bench(cycle([1.0]))
    result = measure(bench, Protocol(), clock=lambda: bench.now_s, load=lambda: None)  # type: ignore[arg-type]
    assert result.flags == ("load-unknown",)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, -math.inf])
def test_latency_measure_discards_some_bad_samples_and_refuses_many(bad: float) -> None:
    result = Bench(cycle([1.0] * 30 + [bad])).measure(Protocol())
    assert result.discarded > 0 and "discarded" in result.flags and result.median_ms == 1
    assert result.p10_ms == result.p99_ms == 1
    with pytest.raises(MeasurementFailed, match=r"21 samples are unusable \(the last sample was"):
        Bench(cycle([bad])).measure(Protocol())


def test_latency_measure_notices_a_clock_that_runs_backwards() -> None:
    bench = Bench(cycle([1.0]))
    once = cycle([0.0] * 40 + [10.0])  # now and then the reading is 10 s ahead, and the next one jumps back
    result = measure(bench, Protocol(), clock=lambda: bench.now_s + next(once), load=bench.load)  # type: ignore[arg-type]
    assert result.median_ms == 1
    always = iter(range(10**6, 0, -1))
    with pytest.raises(MeasurementFailed, match="the clock runs backwards"):
        measure(bench, Protocol(), clock=lambda: float(next(always)), load=bench.load)  # type: ignore[arg-type]


def test_latency_measure_ends_with_a_stuck_clock() -> None:
    result = measure(Bench(cycle([1.0])), Protocol(), clock=lambda: 0.0, load=lambda: None)  # type: ignore[arg-type]
    assert result.median_ms == 1


def test_latency_measure_median_ci_covers_the_median() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        samples = np.sort(rng.exponential(size=51))
        half = median_ci(samples.tolist()) * np.median(samples)
        covered += bool(abs(np.median(samples) - math.log(2)) <= 2 * half)
    assert covered >= 285
    assert median_ci([1.0] * 5) == math.inf and median_ci([1.0] * 6) == 0
    assert summarize([1.0] * 5, Protocol()).flags == ("wide",)


def test_latency_measure_load_counts_others_only(tmp_path: Path) -> None:
    before, after = LoadReading(100, 10, 5), LoadReading(102, 11.51, 6)
    assert others_share(before, after) == pytest.approx(0.25)  # 1.51 busy - 1 own - a tick of 0.01, of 2
    assert others_share(None, after) is None and others_share(after, before) is None
    assert others_share(before, LoadReading(102, 10.5, 6)) == 0
    assert read_load(tmp_path / "absent") is None
    (tmp_path / "zeros").write_text("cpu 0 0 0 0 0\ncpu0 0 0 0 0 0 0 0 0\n")
    assert read_load(tmp_path / "zeros") is None


def test_latency_measure_load_reads_the_kernel_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {1})
    stat = tmp_path / "stat"
    stat.write_text("cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 9 9 9 9 9 9 9 9 9 9\ncpu1 100 0 50 800 50 1 2 7 60 0\nintr 5\n")
    reading = read_load(stat)
    assert reading is not None
    assert (reading.total_s, reading.busy_s) == (pytest.approx(10.10), pytest.approx(1.60))

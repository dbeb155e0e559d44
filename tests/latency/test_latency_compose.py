"""Rows as differences: several copies of an operator, an operator behind its neighbours, cold caches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from export.backends.onnxruntime_session import OnnxRuntime
from export.errors import InvalidInput
from export.target import Target
from latency.compose import Composition, compose
from latency.measure import Measurement, MeasurementFailed, Protocol, flusher, measure
from latency.profiling import profile
from latency.workload import Workload

INPUTS = (torch.randn(1, 3, 8, 10), torch.randn(1, 5, 8, 10))


class Join(nn.Module):
    """Takes two inputs, so that copies must keep them apart."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 4, 1)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.conv(torch.cat([a, b], 1))  # type: ignore[no-any-return]


def measurement(median: float, spread: float = 0.1, n: int = 30) -> Measurement:
    return Measurement(median, median - spread, median + spread, median + spread, median + 2 * spread, n, 0.01, 0.02)


def test_alone_is_the_operator_itself() -> None:
    operator = Join().eval()
    made = compose(operator, INPUTS, Protocol())
    assert made.modules == (operator,) and (made.copies, made.divisor) == ((1,), 1)
    assert made.combine((measurement(3.0),)) == measurement(3.0)


def test_copies_compute_the_operator_on_inputs_of_their_own() -> None:
    operator = Join().eval()
    made = compose(operator, INPUTS, Protocol(copies=3))
    assert (made.copies, made.divisor) == ((6, 3), 3)
    inputs = [tuple(torch.randn_like(x) for x in INPUTS) for _ in range(6)]
    for module, count in zip(made.modules, made.copies, strict=True):
        outputs = module(*(x for pair in inputs[:count] for x in pair))
        assert len(outputs) == count
        for found, pair in zip(outputs, inputs, strict=False):
            assert torch.equal(found, operator(*pair))


def test_context_differs_by_the_operator_alone() -> None:
    operator = Join().eval()
    long, short = compose(operator, INPUTS, Protocol(in_context=True)).modules
    assert torch.equal(long(*INPUTS), operator(*short(*INPUTS)))
    assert [tuple(x.shape) for x in short(*INPUTS)] == [tuple(x.shape) for x in INPUTS]


def test_differences() -> None:
    pair = Composition((nn.Identity(), nn.Identity()), (2, 1), 4)
    row = pair.combine((measurement(11.0, n=20), replace(measurement(3.0), flags=("busy",))))
    assert row.median_ms == pytest.approx(2.0) and row.n == 20 and row.busy
    assert row.median_ms - row.p10_ms == pytest.approx(0.1 * 2**0.5 / 4) and row.p10_ms < row.median_ms < row.p90_ms <= row.p95_ms
    wide = pair.combine((measurement(3.1, spread=2.0), measurement(3.0, spread=2.0)))
    assert 0 < wide.p10_ms <= wide.median_ms <= wide.p90_ms, "percentiles stay positive and in order"
    with pytest.raises(MeasurementFailed, match="lost in the noise"):
        pair.combine((measurement(3.0), measurement(3.0)))


def test_profile_takes_differences(fakes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With invented times: 0.5 ms for every call and 0.2 ms per copy; the row must be 0.2."""
    runtime = OnnxRuntime(Target("onnxruntime-cpu", "fp32"))
    workload = Workload("k", "conv", lambda: nn.Conv2d(2, 2, 1), ((1, 2, 4, 4),))
    sizes = []

    def invented(session: Any, protocol: Protocol) -> Measurement:
        sizes.append(len(session.inputs))
        return measurement(0.5 + 0.2 * len(session.inputs), spread=0.01)

    table = profile([workload], runtime, tmp_path / "latency.json", Protocol(copies=4), measure=invented)
    assert table.rows["k"].median_ms == pytest.approx(0.2) and {1, 4, 8} == set(sizes), "the reference is timed plainly"
    assert table.identity.protocol["copies"] == 4


def test_in_context_on_a_real_runtime(tmp_path: Path) -> None:
    runtime = OnnxRuntime(Target("onnxruntime-cpu", "fp32"))
    workload = Workload("k", "conv", lambda: nn.Conv2d(32, 32, 3, padding=1), ((1, 32, 48, 48),))
    quick = Protocol(in_context=True, warmup_ms=5, budget_ms=60)
    row = profile([workload], runtime, tmp_path / "latency.json", quick).rows["k"]
    assert 0 < row.p10_ms <= row.median_ms <= row.p90_ms


def test_impossible_protocols() -> None:
    with pytest.raises(InvalidInput, match="exclude each other"):
        Protocol(copies=2, in_context=True)


def test_flushing_happens_before_every_sample_and_is_not_timed(fakes: Any) -> None:
    session = fakes["Session"](fakes["Module"](1.0), [(1, 3)])
    session.bind({"x0": torch.zeros(1, 3).numpy()})
    flushed: list[float] = []
    session.flush = flushed.append
    found = measure(session, Protocol(warmup_ms=0, min_samples=10, budget_ms=5, flush_mib=2.5))
    assert found.median_ms == 1.0 and len(flushed) == session.steps and set(flushed) == {2.5}
    del session.flush
    session.on_gpu = True
    with pytest.raises(InvalidInput, match="cannot overwrite the GPU's cache"):
        flusher(session, 1.0)
    session.on_gpu = False
    overwrite = flusher(session, 1.0)
    overwrite()
    overwrite()

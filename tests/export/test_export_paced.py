"""Frames that arrive by the clock: drop rates are arithmetic, checked on a clock of its own; reports hold what happened."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from export.bench_models import BenchModel, OpenModel
from export.bundle.imaging import Preprocessing
from export.errors import InvalidInput
from export.onnx.exporter import export_onnx
from export.paced import PacedResult, pace, play, summarise
from export.runtimes import open_runtime
from export.target import Target


class FakeClock:
    """Time passes where somebody sleeps, or works."""

    def __init__(self) -> None:
        self.time = 7.0

    def now(self) -> float:
        return self.time

    def sleep_until(self, moment: float) -> None:
        assert moment >= self.time
        self.time = moment


class Idle:
    """A session without inputs and outputs."""

    inputs = outputs = ()
    notes = ("nothing runs",)


def paced(times_ms: list[float], fps: float, seconds: float) -> PacedResult:
    """Run a model that takes the given times in turn."""
    clock, turn = FakeClock(), iter(range(10**9))

    def once() -> None:
        clock.time += times_ms[next(turn) % len(times_ms)] / 1000

    outputs = play(once, fps, seconds, clock, lambda share: None)
    model = OpenModel("m", Idle(), None, Preprocessing(), np.zeros((1, 3)))  # type: ignore[arg-type]
    return summarise(model, outputs, fps)


def test_a_model_of_40_ms_drops_every_sixth_frame_of_30_per_second() -> None:
    result = paced([40.0], 30, 60)
    assert result.frames == 1800
    assert result.dropped_share == pytest.approx(1 - 25 / 30, abs=1e-3)
    assert result.outputs_per_second == pytest.approx(25, abs=0.05)
    assert result.missed_share == 1.0, "an output of 40 ms or more is older than a period of 33 ms"
    assert result.run_p50_ms == pytest.approx(40) and result.age_p99_ms < 40 + 1000 / 30
    assert sum(second.frames for second in result.seconds) == 1800 and len(result.seconds) == 60
    assert sum(second.missed for second in result.seconds) == result.dropped + result.late


def test_a_fast_model_misses_nothing_and_its_outputs_are_as_old_as_it_takes() -> None:
    result = paced([20.0], 30, 10)
    assert (result.frames, result.dropped, result.late) == (300, 0, 0)
    assert result.age_p50_ms == pytest.approx(20) and result.jitter_ms == pytest.approx(0, abs=1e-6)


def test_one_slow_run_is_caught_up_and_counted() -> None:
    result = paced([10.0] * 99 + [90.0], 20, 5)
    assert (result.frames, result.dropped, result.late) == (100, 0, 1)
    result = paced([10.0] * 49 + [120.0] + [10.0] * 50, 20, 5)
    assert (result.dropped, result.late) == (1, 1), "a run of 120 ms at 50 ms: one is late, one of the two that arrive is dropped"
    assert [second.missed for second in result.seconds] == [0, 0, 2, 0, 0]


def test_seconds_in_which_all_is_dropped_have_no_age() -> None:
    result = paced([2500.0], 10, 5)
    assert None in [second.age_p50_ms for second in result.seconds]
    assert sum(second.missed for second in result.seconds) == 50 == result.dropped + result.late


def test_play_takes_the_newest_frame() -> None:
    clock = FakeClock()

    def once() -> None:
        clock.time += 0.25

    outputs = play(once, 10, 1, clock, lambda share: None)
    assert [output.frame for output in outputs] == [0, 2, 5, 7, 9]
    assert (outputs[1].started, outputs[1].ended) == pytest.approx((0.25, 0.5))


def test_reports_of_a_real_runtime(tmp_path: Path) -> None:
    from torch import nn

    export_onnx(nn.Conv2d(3, 5, 3, 1, 1), (16, 24), tmp_path / "m.onnx", "logits")
    runtime = open_runtime(Target("onnxruntime-cpu", "fp32"), 1)
    shown: list[tuple[int, int]] = []
    report = pace([BenchModel("a|b <i>", tmp_path / "m.onnx")], runtime, 50, 0.4, progress=lambda *state: shown.append(state))
    (result,) = report.models
    assert result.frames == 20 and result.size == "16x24" and shown[-1] == (100, 100)
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["pace"] == 50
    assert r"a\|b &lt;i>" in report.to_markdown()
    page = report.to_html()
    curve = ET.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])
    assert len(curve.findall("polyline")) == 2 and "a|b &lt;i&gt;" in page
    with pytest.raises(InvalidInput, match="less than 10 frames"):
        pace([BenchModel("m", tmp_path / "m.onnx")], runtime, 50, 0.1)

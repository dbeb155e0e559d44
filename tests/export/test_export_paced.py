"""Frames that arrive by the clock: drop rates are arithmetic, checked on a clock of its own; reports hold what happened."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from export.arrivals import Output, back_to_back, by_the_clock, of_pictures, play
from export.bench_models import BenchModel, OpenModel
from export.bundle.imaging import Preprocessing
from export.errors import InvalidInput
from export.onnx.exporter import export_onnx
from export.paced import notes_of, pace, summarise
from export.paced_report import PacedResult
from export.prediction.clocked_video import ClockedVideo
from export.prediction.frame_source import Video
from export.prediction.opencv import VideoFile
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

    def once(picture: object) -> None:
        clock.time += times_ms[next(turn) % len(times_ms)] / 1000

    outputs = list(play(once, by_the_clock(clock, fps, seconds), clock))
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

    def once(picture: object) -> None:
        clock.time += 0.25

    outputs = list(play(once, by_the_clock(clock, 10, 1), clock))
    assert [output.frame for output in outputs] == [0, 2, 5, 7, 9]
    assert (outputs[1].arrived, outputs[1].started, outputs[1].ended) == pytest.approx((0.2, 0.25, 0.5))
    outputs = list(play(once, back_to_back(clock, 1), clock))
    assert [output.frame for output in outputs] == [0, 1, 2, 3] and {output.age for output in outputs} == {0.25}


def video(path: Path, pictures: int) -> ClockedVideo:
    made = VideoFile(path, 20)
    for level in range(0, 250, 250 // pictures):
        made.write(np.full((16, 24, 3), level, np.uint8))
    made.close()
    return ClockedVideo(Video(path), 100)


def test_the_pictures_of_a_video_come_by_the_clock_and_begin_again(tmp_path: Path) -> None:
    arrived = list(of_pictures(video(tmp_path / "v.mp4", 5), 0.1))
    first = arrived[0]
    since = [round(100 * (a.moment - first.moment), 3) for a in arrived]
    assert since == [a.frame - first.frame for a in arrived], "when they are due, not when they are read"
    assert since[-1] >= 10 > since[-2], "it ends after a tenth of a second"
    levels = [float(np.asarray(a.picture).mean()) for a in arrived]
    assert all(abs(level - 50 * round(level / 50)) < 12 for level in levels) and len({round(level / 50) for level in levels}) > 1


def test_a_video_that_cannot_be_read_in_time_drops_pictures(tmp_path: Path) -> None:
    source = video(tmp_path / "v.mp4", 5)
    source.pace = 1e5
    arrived = list(of_pictures(source, 0.05))
    assert arrived[-1].frame > len(arrived) and source.skipped
    assert source.notes == [f"{tmp_path / 'v.mp4'}: reading alone does not keep up with 100000 frames per second"]
    (tmp_path / "v.mp4").write_bytes(b"another file")
    assert list(of_pictures(source, 0.05)) == [] and "cannot be read as a video" in source.notes[-1]
    with pytest.raises(InvalidInput, match=r"no picture came.*cannot be read as a video"):
        notes_of(source, [], 10)


def test_a_camera_has_a_rate_of_its_own(tmp_path: Path) -> None:
    source = video(tmp_path / "v.mp4", 5)
    outputs = [Output(frame, frame / 15, frame / 15, frame / 15 + 0.01) for frame in range(0, 30, 3)]
    assert notes_of(source, outputs, 30) == (f"{source.name} sent 15.0 frames per second; the deadline is that of 30",)
    assert notes_of(source, outputs, 15.1) == ()
    model = OpenModel("m", Idle(), None, Preprocessing(), np.zeros((1, 3)))  # type: ignore[arg-type]
    result = summarise(model, outputs, 30)
    assert (result.frames, result.dropped, result.late) == (28, 18, 0) and [second.frames for second in result.seconds] == [15, 13]


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
    assert len(curve.findall("circle")) == 2 and "a|b &lt;i&gt;" in page, "a second is a point, several are a line"
    assert "frames: one in memory" in page
    filmed = pace([BenchModel("m", tmp_path / "m.onnx")], runtime, 50, 0.3, "end-to-end",
                  pictures=video(tmp_path / "v.mp4", 5))  # fmt: skip
    assert filmed.source == str(tmp_path / "v.mp4") and filmed.models[0].frames >= 31
    assert "sent 100" in filmed.models[0].notes[-1]
    with pytest.raises(InvalidInput, match="less than 10 frames"):
        pace([BenchModel("m", tmp_path / "m.onnx")], runtime, 50, 0.1)

"""Long runs: intervals are what happened in them, a device that slows down is said to, and what was measured is never lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from export import sustained
from export.arrivals import Output
from export.bench_models import BenchModel
from export.bench_report import FORMAT_VERSION
from export.errors import InvalidInput
from export.files import read_json
from export.runtimes import open_runtime
from export.sensors import Reading, Sensors
from export.sustained import Plan, sustain
from export.sustained_report import Interval, SustainedReport, SustainedResult, duration
from export.target import Target
from tests.export import foreign_files as foreign

ROOT = Path(__file__).parents[2]


def interval(minute: int, ms: float, mhz: float, frames: int | None = None, missed: int = 0) -> Interval:
    outputs = frames or 100
    return Interval(60.0 * minute, 60.0 * (minute + 1), outputs, frames, missed, ms, 2 * ms, None, 0.02, Reading(cpu_mhz=mhz))


def report(*intervals: Interval, pace: float | None = None, state: str = "done") -> SustainedReport:
    result = SustainedResult("m|<b>", "m.onnx", "0" * 64, "16x24", tuple(intervals), ("a note",))
    machine = {"cpu": "x", "usable_cores": 1, "cores": 1, "os": "y", "python": "3"}
    missing = {"power_w": "no counter"}
    return SustainedReport(
        "onnxruntime-cpu:fp32", 1, "model", pace, 600, state, "one in memory", {}, machine, 0.0, missing, (result,)
    )


def test_throttling_is_the_last_minute_by_the_first() -> None:
    minutes = [(10, 2000), (10, 2000), (14, 1400), (15, 1300)]
    found = report(*(interval(minute, ms, mhz) for minute, (ms, mhz) in enumerate(minutes)))
    (model,) = found.models
    assert (model.first_ms, model.last_ms, model.ratio, model.median_ms) == (10, 15, 1.5, 12)
    slower = "m|<b>: a run takes 50% longer at the end than in the beginning (CPU clock 2000 to 1300 MHz, load by others 2% to 2%)"
    assert {slower, "power: not available, no counter"} <= set(found.remarks())
    head, row = found.rows()
    assert head[3] == "first 60 s" and dict(zip(head, row, strict=True))["CPU clock MHz"] == "1300"
    page = found.to_html()
    charts = [ET.fromstring(f"<svg{part.split('</svg>')[0]}</svg>") for part in page.split("<svg")[1:]]
    assert [chart.attrib["aria-label"].split(" over")[0] for chart in charts][1:] == ["CPU clock", "cores used by other processes"]
    assert "m|<b>" not in page and json.loads(json.dumps(found.to_json(), allow_nan=False))["models"][0]["ratio"] == 1.5
    assert "longer" not in "\n".join(report(interval(0, 10, 1), interval(1, 10.4, 1)).remarks())


def test_missed_frames_are_of_those_that_arrived() -> None:
    found = report(interval(0, 10, 1, frames=100, missed=0), interval(1, 10, 1, frames=100, missed=50), pace=30, state="stopped")
    assert found.models[0].missed_share == 0.25 and "25.0%" in found.rows()[1]
    assert any(remark.startswith("stopped: m|<b> 2 min so far") for remark in found.remarks())
    assert [duration(seconds) for seconds in (2.5, 59.7, 600, 125)] == ["2.5 s", "60 s", "10 min", "2 min 5 s"]


def test_an_interval_ends_where_the_next_frame_is_not_due_yet() -> None:
    recorder = sustained._Recorder(Plan(60, pace=10), Sensors(gpu=False))
    late, early = Output(10, 1.0, 1.0, 1.09), Output(11, 1.1, 1.1, 1.11)
    assert not recorder.is_over(Output(9, 0.9, 0.9, 0.91)) and not recorder.is_over(late) and recorder.is_over(early)
    assert recorder.is_over(Output(20, 2.0, 2.0, 2.09)), "it does not wait for ever"
    found = recorder.interval([Output(0, 0.0, 0.0, 0.05), Output(3, 0.3, 0.35, 0.45), early])
    assert (found.frames, found.outputs, found.missed) == (12, 3, 10), "nine were dropped, and one was late"
    assert found.run_p50_ms == pytest.approx(50) and found.age_p99_ms == pytest.approx(148, abs=2)
    assert recorder.interval([Output(12, 1.2, 1.2, 1.21)]).frames == 1
    assert Plan(600).interval_s == 10 and Plan(90).interval_s == 1


def test_a_real_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plan, "interval_s", 0.1)
    foreign.classes(tmp_path / "m.onnx")
    runtime, kept, shown = open_runtime(Target("onnxruntime-cpu", "fp32"), 1), list[SustainedReport](), list[int]()
    models = [BenchModel("a", tmp_path / "m.onnx"), BenchModel("b", tmp_path / "m.onnx")]
    found = sustain(models, runtime, Plan(0.5, mode="labels"), kept.append, lambda done, of: shown.append(done))
    assert found.state == "done" and [model.name for model in found.models] == ["a", "b"] and shown[-1] == 100
    for model in found.models:
        assert len(model.intervals) >= 2 and model.seconds >= 0.3
        assert [i.start_s for i in model.intervals[1:]] == [i.end_s for i in model.intervals[:-1]]
    assert [len(report.models) for report in kept] == sorted(len(report.models) for report in kept)
    assert len(kept[0].models[0].intervals) == 1 and kept[0].state == "running"
    with pytest.raises(InvalidInput, match="less than 10 frames"):
        sustain(models, runtime, Plan(2, pace=1), kept.append)


def test_ctrl_c_keeps_what_there_is(tmp_path: Path) -> None:
    foreign.classes(tmp_path / "m.onnx")

    def stop(done: int, of: int) -> None:
        if done >= 20:
            raise KeyboardInterrupt

    runtime = open_runtime(Target("onnxruntime-cpu", "fp32"), 1)
    models = [BenchModel(name, tmp_path / "m.onnx") for name in "ab"]
    found = sustain(models, runtime, Plan(0.4), lambda report: None, stop)
    assert found.state == "stopped" and [model.name for model in found.models] == ["a"]
    assert found.models[0].seconds == pytest.approx(0.16, abs=0.1), "not even the interval that was not over"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_command_leaves_a_report(tmp_path: Path, usual_signals: None, number: signal.Signals) -> None:
    foreign.classes(tmp_path / "m.onnx")
    command = [sys.executable, "-c", "from hyctas.cli.bench import main; main()", "m.onnx", "--sustained", "100s"]
    with subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:  # fmt: skip
        path, end = tmp_path / "sustained.json", time.monotonic() + 60
        while time.monotonic() < end and not (path.exists() and len(read_json(path)["models"][0]["intervals"]) > 1):
            time.sleep(0.05)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    found = read_json(path, FORMAT_VERSION)
    assert len(found["models"][0]["intervals"]) > 1 and path.with_suffix(".html").exists(), err
    if number == signal.SIGINT:
        assert (process.returncode, found["state"]) == (130, "stopped") and "last by first" in out and "Traceback" not in err
    else:
        assert found["state"] == "running"

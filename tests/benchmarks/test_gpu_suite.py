"""The GPU suite without a GPU: a rehearsal on the CPU, its bookkeeping, and what it compiles ahead of time.

1. A rehearsal of all parts that is killed goes on where it stopped, and ends with a whole summary.
2. Bad options, and a machine without CUDA, are one sentence.
3. Records: what failed is kept and tried again, what came out is not; pytest's outcomes are records.
4. A part that dies, hangs or breaks the GPU's context costs one measurement.
5. What is compiled ahead of time is what a launch asks for; a call is timed in a CUDA graph, or the method says why not.
6. Floors are the roofline's; goals are judged by them; the dispatch's table says what was fastest.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu_suite import __main__ as command
from benchmarks.gpu_suite.attention import entry_of
from benchmarks.gpu_suite.launches import Device, Launch, Session, floor_ms, shipped_tiles
from benchmarks.gpu_suite.numerics import Recorder
from benchmarks.gpu_suite.records import REST, BrokenContext, LeftOut, Records, open_suite, read_records
from benchmarks.gpu_suite.summary import PARTS, failures, goals, write_summary
from export.errors import InvalidInput

ROOT = Path(__file__).parents[2]


def environment() -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return {**own, "PYTHONPATH": str(ROOT)}


def rehearsal(out: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "benchmarks.gpu_suite", "--out", str(out), "--device", "cpu", "--seconds", "600"]
    return subprocess.Popen(words, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment())


def done(out: Path, part: str) -> dict[str, str]:
    """Return the run of every record that came out."""
    return {record["id"]: record["run"] for record in read_records(out, part) if record["state"] == "ok"}


@pytest.mark.slow
def test_1_a_killed_rehearsal_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    process, end = rehearsal(tmp_path), time.monotonic() + 200
    while not done(tmp_path, "numerics"):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    process.kill()
    process.communicate()
    before = done(tmp_path, "numerics")
    process = rehearsal(tmp_path)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    after = done(tmp_path, "numerics")
    assert before.items() <= after.items(), "what was measured before must not be measured again"
    assert len(set(after.values())) == 2 and len(after) == 6
    text = (tmp_path / "summary.md").read_text()
    assert text in output
    for part in PARTS:
        wrong = [record for record in read_records(tmp_path, part) if record["state"] not in ("ok", "left_out")]
        assert done(tmp_path, part) and not wrong, (part, wrong)
    for expected in ("A rehearsal on a CPU", "## Goals", "## Numerics", "## Forward pass", "## Whole block", "## Training step",
                     "## Tiles", "hyctas/attention/tables/", "## Predicted against measured", "published S, fused",
                     "edge, two-step", "tensorrt:fp16 is unavailable"):  # fmt: skip
        assert expected in text, expected
    table = json.loads((tmp_path / "tables/a_cpu_as_a_rehearsal.json").read_text())
    assert [(entry["block"], entry["backward"]) for entry in table["entries"]] == [(False, False), (True, False), (False, True)]


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (("--device", "cpu", "--parts", "numerics,speed"), 2, "speed; parts are numerics, attention, fidelity, end_to_end"),
        (("--device", "cpu", "--parts", ","), 2, "none; parts are"),
        (("--device", "cpu", "--seconds", "nan"), 2, "a number, above 0"),
        pytest.param((), 3, "finds no CUDA device", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")),
    ],
)
def test_2_bad_options(tmp_path: Path, options: tuple[str, ...], code: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["--out", str(tmp_path / "out"), *options])
    assert ended.value.code == code and not (tmp_path / "out").exists()
    assert text in capsys.readouterr().err


def test_2_out_is_a_file_or_holds_something_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="is a file; name a folder"):
        command.run(tmp_path / "file", "numerics", None, "cpu", "")
    open_suite(tmp_path, "cuda", "NVIDIA H200", "first")
    with pytest.raises(InvalidInput, match="gpu: 'NVIDIA H200' there, 'a CPU, as a rehearsal' now"):
        command.run(tmp_path, "numerics", None, "cpu", "")


def test_2_all_parts_take_less_than_eight_minutes() -> None:
    assert sum(command.PARTS.values()) + command.GRACE < 8 * 60 and tuple(command.PARTS) == PARTS


def broken() -> dict[str, Any]:
    raise RuntimeError("an illegal\nmemory access")


def refused() -> dict[str, Any]:
    raise LeftOut("the backend refuses")


def test_3_records_go_on(tmp_path: Path) -> None:
    first = Records(tmp_path, "numerics", "first")
    assert first.attempt("good", lambda: {"error": float("nan"), "n": 1})["state"] == "ok"
    assert first.attempt("check", lambda: {"state": "failed", "why": ["too far"]})["state"] == "failed"
    assert first.attempt("bad", broken)["error"].startswith("RuntimeError: an illegal memory access (at test_gpu_suite.py:")
    assert first.attempt("bad", dict)["state"] == "error", "not again in the same run"
    assert first.attempt("refused", refused)["reason"] == "the backend refuses"
    assert not first.marker.exists()
    second = Records(tmp_path, "numerics", "second", time.monotonic() + 1.0)
    assert second.records == first.records and second.records["good"]["error"] == "nan"
    assert [second.attempt(name, broken)["run"] for name in ("good", "check")] == ["first", "first"]
    assert second.attempt("bad", dict)["state"] == "ok"
    assert second.attempt("long", dict, needs=5.0)["state"] == "left_out"


def test_3_a_broken_context_stops_a_part(tmp_path: Path) -> None:
    records = Records(tmp_path, "attention", "run", healthy=lambda: False)
    with pytest.raises(BrokenContext):
        records.attempt("kills", broken)
    assert records.records["kills"]["state"] == "error"

    def again() -> dict[str, Any]:
        raise BrokenContext("a tile, which will not be tried again")

    with pytest.raises(BrokenContext):
        records.attempt("tune", again)
    assert "tune" not in records.records, "the next process tries it again, without that tile"


def test_3_outcomes_of_pytest_are_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_some.py").write_text(
        "import pytest\ndef test_good(record_property):\n record_property('errors', {'o': 1.0})\n"
        "def test_bad():\n assert 1 == 2, 'they differ'\n"
        "def test_skips():\n pytest.skip('no GPU')\ndef test_done():\n assert False\n"
    )
    (tmp_path / "test_other.py").write_text("import no_such_package\n")
    records = Records(tmp_path, "numerics", "run")
    records.keep("test_some.py::test_done", {"state": "ok"})
    records.marker.write_text("")
    session = Session(Device("cpu"), records, tmp_path, open_suite(tmp_path, "cpu", "a CPU", ""))
    options = ["-c", os.devnull, "--rootdir", str(tmp_path), "--noconftest", "--continue-on-collection-errors"]
    assert pytest.main([*options, str(tmp_path)], plugins=[Recorder(session)]) == pytest.ExitCode.TESTS_FAILED
    found = {name.partition("::test_")[2] or name: record for name, record in records.records.items()}
    assert (found["good"]["state"], found["good"]["errors"]) == ("ok", {"o": 1.0})
    assert found["bad"]["state"] == "failed" and "they differ" in found["bad"]["why"][0]
    assert (found["skips"]["state"], found["skips"]["reason"]) == ("left_out", "no GPU")
    assert found["test_other.py"]["state"] == "left_out" and "no_such_package" in found["test_other.py"]["reason"]
    assert found["done"]["state"] == "ok" and not records.marker.exists()
    monkeypatch.setattr(Device, "healthy", lambda device: False)
    records.run, recorder = "another", Recorder(session)
    del records.records["test_some.py::test_bad"], records.records["test_some.py::test_skips"]
    assert pytest.main([*options, str(tmp_path)], plugins=[recorder]) != pytest.ExitCode.OK and "they differ" in recorder.broken
    assert "test_some.py::test_skips" not in records.records, "nothing follows what broke the context"


def supervised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, seconds: float = 60.0) -> dict[str, Any]:
    """Run a script in place of a part's process; return its records."""

    def start(out: Path, name: str, device: str, run: str, deadline: float) -> subprocess.Popen[bytes]:
        head = (
            "import os, sys, time; from pathlib import Path; from benchmarks.gpu_suite.records import *; "
            f"out = Path({str(out)!r}); records = Records(out, {name!r}, {run!r}, {deadline})\n"
        )
        return subprocess.Popen([sys.executable, "-c", head + script], cwd=ROOT, env=environment())

    monkeypatch.setattr(command, "_start", start)
    open_suite(tmp_path, "cpu", "a CPU", "command")
    command.supervise(tmp_path, "numerics", "cpu", "run", time.monotonic() + seconds)
    return {record["id"]: record for record in read_records(tmp_path, "numerics")}


@pytest.mark.parametrize(("end", "why"), [("os.kill(os.getpid(), 9)", "process ended with code -9"), ("os._exit(75)", "75")])
def test_4_a_part_that_dies_goes_on_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, why: str) -> None:
    lines = ("records.attempt('one', dict)", f"records.attempt('two', lambda: {end})", "records.attempt('three', dict)")
    found = supervised(tmp_path, monkeypatch, "\n".join(lines))
    assert [found[name]["state"] for name in ("one", "two", "three")] == ["ok", "error", "ok"]
    assert why in found["two"]["error"]
    write_summary(tmp_path)
    assert failures(tmp_path) == ["two"] and why in (tmp_path / "summary.md").read_text()


def test_4_a_part_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "GRACE", 0.5)
    found = supervised(tmp_path, monkeypatch, "records.attempt('two', lambda: time.sleep(60))", 2.0)
    assert "was killed" in found["two"]["error"] and found[REST]["state"] == "left_out"


def test_4_a_part_with_a_defect_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert supervised(tmp_path, monkeypatch, "sys.exit(1)")[REST]["error"] == "its process ended with code 1"


def test_5_what_is_compiled_ahead_is_what_a_launch_asks_for() -> None:
    pytest.importorskip("triton")
    script = """
import json, torch, triton, types
from benchmarks.gpu_suite.launches import Device, Launch, compile_launches, shipped_tiles
from hyctas.attention.triton import launch as launcher
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction
launch = Launch(step="forward", dtype="float16", d=8, e=64, queries=100, keys=320,
                tiles=shipped_tiles(90, "forward", 64, "float16"))
Device.architecture, Device.processors = 90, 132
refusals = compile_launches([launch], Device("cuda"), 60)
hits, target = [], GPUTarget("cuda", 90, 32)
triton.knobs.compilation.listener = lambda **told: hits.append(told["cache_hit"])
triton.runtime.driver.set_active(types.SimpleNamespace(
    get_current_device=lambda: 0, get_current_stream=lambda device: 0, get_current_target=lambda: target))
launcher.multiprocessors, run = lambda tensor: 132, JITFunction.run
JITFunction.run = lambda self, *arguments, grid, warmup, **options: run(self, *arguments, grid=grid, warmup=True, **options)
launch.run(launch.inputs("cpu", 0))
print(json.dumps([sorted((key.split()[1], why) for key, why in refusals.items()), hits]))
"""
    words, more = [sys.executable, "-c", script], {"TRITON_DISABLE_LINE_INFO": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment() | more, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[["combine", ""], ["forward", ""]], [True, True]]


def test_5_cases_of_launches() -> None:
    def cases(step: str, **more: Any) -> list[str]:
        tiles = shipped_tiles(90, step, 64, "float16")
        launch = Launch(step=step, dtype="float16", d=8, e=64, queries=100, keys=320, tiles=tiles, **more)
        return [" ".join(word for word in case.key.split()[1:6] if word[0] not in "cd" or word in ("delta", "combine"))
                for case in launch.cases(90, 132)]  # fmt: skip

    assert cases("forward", batch=200) == ["forward float16 ragged-queries"]
    assert [key.split()[0] for key in cases("fixed")] == ["delta", "grad_v", "grad_qk", "grad_q"]
    assert "fixed" in cases("fixed")[2] and "fixed" not in cases("backward")[2]


@pytest.mark.parametrize("capture", [True, False])
def test_5_calls_are_timed_in_graphs_or_say_why_not(monkeypatch: pytest.MonkeyPatch, capture: bool) -> None:
    testing = pytest.importorskip("triton.testing")

    def by_graph(call: Any, **options: Any) -> list[float]:
        if not capture:
            raise RuntimeError("operation not permitted when stream is capturing")
        return [0.5, 0.6, 0.7]

    monkeypatch.setattr(testing, "do_bench_cudagraph", by_graph)
    monkeypatch.setattr(testing, "do_bench", lambda call, **options: [0.8])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    found = Device("cuda").time_in_turn({"a": lambda: None})["a"]
    assert (found["median_ms"], found["samples"]) == ((0.6, 6) if capture else (0.8, 2))
    assert found["method"] == "graph" if capture else "operation not permitted when stream" in found["method"]


def test_6_floors_are_those_of_the_roofline() -> None:
    assert floor_ms("NVIDIA H100 80GB HBM3", 8, 64, 2048) is None
    wanted = ((64, 2048, 1.1), (64, 8192, 18.1), (64, 32768, 290), (128, 8192, 25), (256, 32768, 785), (512, 8192, 98))
    for c, n, microseconds in wanted:
        found = floor_ms("NVIDIA H200", c // 8, c, n)
        assert found is not None and found * 1e3 == pytest.approx(microseconds, rel=0.03), (c, n)


def comparison(step: str, times: dict[str, float], **more: Any) -> dict[str, Any]:
    tile = {"rows": 64, "columns": 64, "channels": 64, "warps": 4, "stages": 2, "splits": 0}
    kernels = {"forward": ("forward",), "block": ("block",), "backward": ("grad_v", "grad_qk", "forward")}[step]
    shape = {"step": step, "dtype": "float16", "C": 64, "d": 8, "N": 8192, "tiles": dict.fromkeys(kernels, tile)}
    timed = {name: {"median_ms": ms} for name, ms in times.items()}
    return {"id": f"{step} float16 C64 N8192", "state": "ok", "times": timed, **shape, **more}


def test_6_goals() -> None:
    records = [
        comparison("forward", {"ours": 0.03, "naive": 0.14, "cudnn": 0.02}, floor_share=0.55, peak_over_io=1.3),
        comparison("block", {"ours": 0.09, "steps": 0.05, "flash": 0.06}),
        comparison("backward", {"ours": 0.1, "naive": 0.5}, backward_over_forward=2.2),
    ]
    found = {goal: (value, met) for record in records for goal, value, met in goals(record)}
    assert found == {
        "forward: faster than all of PyTorch": ("0.67x, cudnn", False),
        "forward: at least 50% of the floor": ("55%", True),
        "forward: peak memory over in- and output at most 1.2": ("1.30", False),
        "block: faster than all of PyTorch": ("1.20x, flash", True),
        "backward: faster than all of PyTorch": ("5.00x, naive", True),
        "backward: backward over forward pass at most 2.7": ("2.20", True),
    }


def test_6_table_for_the_dispatch() -> None:
    ours = entry_of(comparison("forward", {"ours": 0.03, "drop_in": 0.14, "naive": 0.01}))
    assert ours is not None and (ours.implementation, ours.ms, set(ours.tiles)) == ("triton", 0.03, {"forward"})
    backward = entry_of(comparison("backward", {"ours": 0.2, "ours_backward": 0.1, "drop_in_backward": 0.05}))
    assert backward is not None and (backward.implementation, backward.backward, backward.tiles) == ("sdpa", True, {})
    block = entry_of(comparison("block", {"ours": 0.2, "steps": 0.1}))
    assert block is not None and (block.implementation, block.block, block.tiles) == ("steps", True, {})
    assert entry_of({**comparison("forward", {"ours": 0.1}), "id": "compiled forward"}) is None
    assert entry_of(comparison("forward", {"naive": 0.01})) is None


def test_6_summary_of_nothing_and_of_failures(tmp_path: Path) -> None:
    open_suite(tmp_path, "cuda", "NVIDIA H200", "the command")
    write_summary(tmp_path)
    assert "not run" in (tmp_path / "summary.md").read_text() and failures(tmp_path) == []
    Records(tmp_path, "numerics", "run").keep("forward float16 64", {
        "state": "failed", "why": ["o: 2.0e-03 where 1e-03 is allowed"], "shape": "d=3 e=5 N=7 M=9", "step": "forward",
        "dtype": "float16", "errors": {"o": 2e-3, "lse": math.inf}, "limits": {"o": 1e-3, "lse": 1e-5},
    })  # fmt: skip
    write_summary(tmp_path)
    text = (tmp_path / "summary.md").read_text()
    assert failures(tmp_path) == ["forward float16 64"]
    for expected in ("# GPU suite: NVIDIA H200", "the command", "| o: 2.0e-03 where 1e-03 is allowed |", "inf"):
        assert expected in text, expected

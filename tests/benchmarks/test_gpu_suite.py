"""The GPU suite without a GPU: a rehearsal on the CPU, its bookkeeping, and what it compiles ahead of time.

1. A rehearsal that is killed goes on where it stopped, and ends with a whole summary.
2. Bad options, and a machine without CUDA, are one sentence.
3. Records: what failed is kept and tried again, what came out is not; other conditions are refused.
4. A compiling process that dies, and a part that dies or hangs, cost one job or measurement.
5. What is compiled ahead of time is what a launch asks for; bursts are CUDA graphs where they can be.
6. Floors are the roofline's; goals are judged by them; the dispatch's table says what was fastest.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.gpu_suite import __main__ as command
from benchmarks.gpu_suite import conduct
from benchmarks.gpu_suite.floor import CHIPS, chip, floor_ms
from benchmarks.gpu_suite.goals import goals
from benchmarks.gpu_suite.place import Place
from benchmarks.gpu_suite.pool import Pool
from benchmarks.gpu_suite.records import ITSELF, REST, Broken, LeftOut, Records
from benchmarks.gpu_suite.suite import Suite, open_suite
from benchmarks.gpu_suite.summary import failures, read_records, write_summary
from benchmarks.gpu_suite.table import entry_of
from benchmarks.gpu_suite.timing import Burst, interleave
from export.errors import InvalidInput

ROOT = Path(__file__).parents[2]
PARTS = ("numerics", "attention", "fidelity", "end_to_end", "tests")


def environment(**more: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return {**own, "PYTHONPATH": str(ROOT), **more}


def suite(out: Path, *options: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "benchmarks.gpu_suite", "--out", str(out), *options]
    return subprocess.Popen(words, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())


def done(out: Path, part: str) -> dict[str, str]:
    """Return the run of every record that came out."""
    return {record["id"]: record["run"] for record in read_records(out, part) if record["state"] == "ok"}


def wait_for(condition: Any, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


@pytest.mark.slow
def test_1_a_killed_rehearsal_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    options = ("--device", "cpu", "--seconds", "300")
    process = suite(tmp_path, *options)
    wait_for(lambda: len(done(tmp_path, "numerics")) > 4)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = done(tmp_path, "numerics")
    time.sleep(1.0)  # the part notices that the suite is gone
    process = suite(tmp_path, *options)
    output, errors = process.communicate(timeout=280)
    assert process.returncode == 0, output + errors
    after = done(tmp_path, "numerics")
    assert before.items() <= after.items(), "what was measured before must not be measured again"
    assert len(set(after.values())) == 2 and len(after) > len(before)
    text = (tmp_path / "summary.md").read_text()
    assert text in output
    for part in PARTS:
        assert f"| {part} |" in text, part
        assert done(tmp_path, part) or part == "tests", part
        wrong = [r for r in read_records(tmp_path, part) if r["state"] not in ("ok", "left_out")]
        assert not wrong, wrong
    for expected in ("A rehearsal on a CPU", "## Goals", "## Numerics", "### Forward pass", "### Whole block", "### Training step",
                     "## Tiles", "To install it: `cp", "## Predicted against measured", "published S, fused", "edge, two-step",
                     "tensorrt:fp16 is unavailable", "* tests, tests/export/test_export_sessions.py: all "):  # fmt: skip
        assert expected in text, expected
    table = json.loads((tmp_path / "tables/a_cpu_as_a_rehearsal.json").read_text())
    kinds = {(entry["block"], entry["backward"], entry["dtype"]) for entry in table["entries"]}
    wanted = {(False, False), (True, False), (False, True)}
    assert kinds == {(*kind, dtype) for kind in wanted for dtype in ("float16", "bfloat16")}

    process = suite(tmp_path, *options, "--parts", "end_to_end")
    measured = done(tmp_path, "end_to_end")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, output + errors
    assert done(tmp_path, "end_to_end") == measured, "nothing is left to measure"


def test_2_without_cuda_it_is_one_sentence(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    process = suite(tmp_path / "out")
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 3 and not output and not (tmp_path / "out").exists()
    assert len(errors.strip().splitlines()) == 2
    assert "finds no CUDA device" in errors and "NVIDIA GPU and its driver" in errors


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--parts", "numerics,speed"), "'speed' is unknown; parts are numerics, attention, fidelity, end_to_end, tests"),
        (("--parts", ","), "none is given; parts are"),
        (("--seconds", "20"), "--seconds 20 is too short for numerics, attention, fidelity, end_to_end, tests: give at least 95"),
        (("--seconds", "nan"), "--seconds nan is too short"),
    ],
)
def test_2_bad_options(tmp_path: Path, options: tuple[str, ...], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["--out", str(tmp_path), "--device", "cpu", *options])
    assert ended.value.code == 2
    assert text in capsys.readouterr().err


def test_2_out_is_a_file_or_holds_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as ended:
        command.main(["--out", str(tmp_path / "file"), "--device", "cpu"])
    assert ended.value.code == 2 and "is a file; name a folder" in capsys.readouterr().err
    open_suite(tmp_path, "cuda", "NVIDIA H200", "first")
    with pytest.raises(SystemExit) as ended:
        command.main(["--out", str(tmp_path), "--device", "cpu"])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "gpu: 'NVIDIA H200' there, 'a CPU, as a rehearsal' now" in error and "give another --out" in error


def test_2_budgets_keep_their_proportions() -> None:
    assert sum(command.budgets(list(PARTS), None).values()) < 9 * 60 - 15
    assert command.budgets(["numerics", "attention"], 33.0) == {"numerics": pytest.approx(9), "attention": pytest.approx(24)}


def broken() -> dict[str, Any]:
    raise RuntimeError("an illegal\nmemory access")


def unknown() -> dict[str, Any]:
    raise LeftOut("the backend refuses")


def test_3_records_go_on(tmp_path: Path) -> None:
    identity = {"gpu": "x"}
    first = Records(tmp_path, "numerics", identity, "first")
    assert first.attempt("good", lambda: {"error": float("nan"), "n": 1})["state"] == "ok"
    assert first.attempt("check", lambda: {"state": "failed", "why": ["too far"]})["state"] == "failed"
    record = first.attempt("bad", broken)
    assert record["state"] == "error"
    assert record["error"].startswith("RuntimeError: an illegal memory access (at test_gpu_suite.py:")
    assert first.attempt("bad", dict)["state"] == "error", "not again in the same run"
    assert first.attempt("refused", unknown)["reason"] == "the backend refuses"
    assert not first.marker.exists()

    second = Records(tmp_path, "numerics", identity, "second", seconds=1.0)
    assert second.records == first.records and second.found("good") == {**record_of(first, "good"), "error": "nan"}
    assert second.attempt("good", broken)["run"] == "first"
    assert second.attempt("check", broken)["state"] == "failed"
    assert second.attempt("bad", dict)["state"] == "ok"
    assert second.attempt("long", dict, needs=5.0) == {
        "id": "long", "run": "second", "state": "left_out", "reason": "the part's time is over"
    }  # fmt: skip
    with pytest.raises(InvalidInput, match="gpu: 'x' there, 'y' now"):
        Records(tmp_path, "numerics", {"gpu": "y"}, "third")


def record_of(records: Records, name: str) -> dict[str, Any]:
    return records.records[name]


def test_3_a_broken_context_stops_a_part(tmp_path: Path) -> None:
    records = Records(tmp_path, "attention", {}, "run", healthy=lambda: False)
    with pytest.raises(Broken):
        records.attempt("kills", broken)
    assert records.records["kills"]["state"] == "error"

    def again() -> dict[str, Any]:
        raise Broken("a tile, which will not be tried again")

    with pytest.raises(Broken):
        records.attempt("tune", again)
    assert "tune" not in records.records, "the next process tries it again, without that tile"


def test_4_a_compiler_that_dies_costs_one_job() -> None:
    worker = "import sys\nfor line in sys.stdin: print(line.strip(), flush=True) if 'die' not in line else sys.exit(9)"
    with Pool(1, (sys.executable, "-c", worker)) as pool:
        for name in ("a", "die", "b"):
            pool.submit(name, {"is": name})
        found = dict(pool.answers(30))
        assert found == {"a": {"is": "a"}, "die": {"error": "the compiling process ended with code 9"}, "b": {"is": "b"}}
        assert list(pool.answers(30)) == [], "no answer is missing"
        (last,) = pool._processes
    assert last.returncode is not None, "leaving ends them"


def fake_part(monkeypatch: pytest.MonkeyPatch, script: str) -> list[float]:
    """Replace the process of a part; returns the seconds that each start was given."""
    started: list[float] = []

    def start(out: Path, name: str, device: str, run: str, budget: float, left: float) -> subprocess.Popen[bytes]:
        started.append(left)
        head = (
            "import os, sys, time; from pathlib import Path; from benchmarks.gpu_suite.records import *; "
            f"from benchmarks.gpu_suite.suite import read_suite; out = Path({str(out)!r}); "
            f"records = Records(out, {name!r}, read_suite(out).identity, {run!r}, {left}); started = {len(started)}\n"
        )
        return subprocess.Popen([sys.executable, "-c", head + script], cwd=ROOT, env=environment())

    monkeypatch.setattr(conduct, "_start", start)
    return started


def conducted(out: Path, seconds: float) -> dict[str, dict[str, Any]]:
    made: Suite = open_suite(out, "cpu", "a CPU", "command")
    conduct.conduct(out, {"numerics": seconds}, "cpu", made, "run")
    return {record["id"]: record for record in read_records(out, "numerics")}


def test_4_a_part_that_dies_goes_on_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill = "records.attempt('two', lambda: os.kill(os.getpid(), 9))"
    lines = ("records.attempt('one', dict)", kill, "records.attempt('three', dict)")
    started = fake_part(monkeypatch, "\n".join(lines))
    found = conducted(tmp_path, 60.0)
    assert len(started) == 2 and started[1] < started[0]
    assert [found[name]["state"] for name in ("one", "two", "three")] == ["ok", "error", "ok"]
    assert found["two"]["error"] == "signal 9 ended the process"
    assert failures(tmp_path) == ["two"] and "signal 9 ended the process" in (tmp_path / "summary.md").read_text()


def test_4_a_part_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conduct, "GRACE", 0.5)
    fake_part(monkeypatch, "records.attempt('one', dict)\nrecords.attempt('two', lambda: time.sleep(60))")
    found = conducted(tmp_path, 1.5)
    assert found["one"]["state"] == "ok" and "was killed" in found["two"]["error"]
    assert found[REST]["state"] == "left_out"


def test_4_a_part_with_a_defect_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = fake_part(monkeypatch, "sys.exit(1)")
    assert conducted(tmp_path, 60.0)[ITSELF]["error"] == "the process ended with code 1"
    assert len(started) == 1


def test_5_what_is_compiled_ahead_is_what_a_launch_asks_for() -> None:
    pytest.importorskip("triton")
    script = """
import json, torch, triton
from benchmarks.gpu_suite.launches import Launch, shipped_tiles
from benchmarks.gpu_suite.warm import compile_kernel, job
from hyctas.attention.kernels import combine_kernel
from triton.runtime.jit import JITFunction
tiles = shipped_tiles(90, "forward", 64, "float16")
launch = Launch(step="forward", dtype="float16", d=8, e=64, queries=100, keys=320, tiles=tiles)
found = compile_kernel(job(launch, "combine", 90, 132))
hits = []
triton.knobs.compilation.listener = lambda **told: hits.append(told["cache_hit"])
run = JITFunction.run
combine_kernel.device_caches.clear()  # as in another process

def compile_only(self, *arguments, grid, warmup, **options):
    if self is combine_kernel:
        run(self, *arguments, grid=grid, warmup=True, **options)

JITFunction.run = compile_only
launch.run(launch.inputs(torch.device("cpu"), torch.Generator()))  # real memory now
try:
    compile_kernel(job(launch, "block", 90, 132))
except ValueError as error:
    print(json.dumps([found, hits, str(error)]))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found, hits, error = json.loads(done.stdout)
    assert found["registers"] > 0 and found["spill_instructions"] == 0 and found["wrong"] == []
    assert hits == [True], "the launcher must find in Triton's cache what was compiled ahead"
    assert error == "forward launches block 0 times"


class FakeCuda:
    """What `Burst` needs of `torch.cuda`, with a clock that each replay or call moves on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, capture: bool) -> None:
        import torch

        self.now_ms, self.capturing, fake = 0.0, False, self

        class Event:
            def __init__(self, enable_timing: bool = False) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = fake.now_ms

            def synchronize(self) -> None:
                pass

            def elapsed_time(self, other: Event) -> float:
                return other.at - self.at

        class Graph:
            def replay(self) -> None:
                fake.now_ms += 0.5 * fake.captured

        @contextlib.contextmanager
        def graph(_: Graph) -> Iterator[None]:
            if not capture:
                raise RuntimeError("operation not permitted when stream is capturing")
            fake.capturing, fake.captured = True, 0
            yield
            fake.capturing = False

        stream = SimpleNamespace(wait_stream=lambda other: None)
        for name, value in {
            "Event": Event, "CUDAGraph": Graph, "graph": graph, "Stream": lambda device: stream, "_sleep": lambda cycles: None,
            "current_stream": lambda device: stream, "stream": contextlib.nullcontext, "synchronize": lambda device: None,
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, value)

    def call(self) -> None:
        if self.capturing:
            self.captured += 1
        else:
            self.now_ms += 0.5


@pytest.mark.parametrize("capture", [True, False])
def test_5_bursts_are_graphs_or_say_why_not(monkeypatch: pytest.MonkeyPatch, capture: bool) -> None:
    cuda = FakeCuda(monkeypatch, capture=capture)
    burst = Burst(cuda.call, Place("cuda"), burst_ms=2.0)
    timing = interleave({"a": burst, "b": burst}, seconds=0.04)["a"]
    assert (timing.median_ms, timing.calls, timing.rounds) == (0.5, 4, 10)
    assert timing.method == "graph" if capture else "operation not permitted when stream" in timing.method


def test_6_floors_are_those_of_the_roofline() -> None:
    h200 = chip("NVIDIA H200")
    assert h200 is CHIPS[0] and chip("NVIDIA H100 80GB HBM3") is None
    wanted = ((64, 2048, 1.1), (64, 8192, 18.1), (64, 32768, 290), (128, 8192, 25), (256, 32768, 785), (512, 8192, 98))
    for c, n, microseconds in wanted:
        assert floor_ms(h200, c // 8, c, n, n) * 1e3 == pytest.approx(microseconds, rel=0.03), (c, n)


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
        {"id": "tune forward", "state": "ok"},
    ]
    found = {goal.aim: (goal.met, goal.found) for goal in goals(records)}
    assert found == {
        "forward: faster than all of PyTorch": (False, "0.67x, cudnn"),
        "forward: at least 50% of the floor": (True, "55%"),
        "forward: at most 1.2x inputs and outputs in memory": (False, "1.30x"),
        "block: faster than all of PyTorch": (True, "1.20x, flash"),
        "backward: faster than all of PyTorch": (True, "5.00x, naive"),
        "backward pass: at most 2.7x the forward pass": (True, "2.20x"),
    }


def test_6_table_for_the_dispatch() -> None:
    ours = entry_of(comparison("forward", {"ours": 0.03, "drop_in": 0.14, "naive": 0.01}))
    assert ours is not None and (ours.implementation, ours.ms, set(ours.tiles)) == ("triton", 0.03, {"forward"})
    backward = entry_of(comparison("backward", {"ours": 0.2, "ours_backward": 0.1, "drop_in_backward": 0.05}))
    assert backward is not None and (backward.implementation, backward.backward, backward.tiles) == ("sdpa", True, {})
    block = entry_of(comparison("block", {"ours": 0.2, "ours_given_k": 0.01, "steps": 0.1}))
    assert block is not None and (block.implementation, block.block, block.tiles) == ("steps", True, {})
    assert entry_of({"id": "compiled forward", "state": "ok", **{"step": "forward"}}) is None
    assert entry_of(comparison("forward", {"naive": 0.01})) is None


def test_6_summary_of_nothing_and_of_failures(tmp_path: Path) -> None:
    made = open_suite(tmp_path, "cuda", "NVIDIA H200", "the command")
    write_summary(tmp_path)
    assert "not run" in (tmp_path / "summary.md").read_text() and failures(tmp_path) == []
    records = Records(tmp_path, "numerics", made.identity, "run")
    records.attempt("forward float16 e<=64", lambda: {
        "state": "failed", "why": ["o: 2.0e-03 where 1e-03 is allowed"], "shape": "d=3 e=5 N=7 M=9", "step": "forward",
        "dtype": "float16", "errors": {"o": 2e-3, "lse": math.inf}, "limits": {"o": 1e-3, "lse": 1e-5}, "poisoned": True,
    })  # fmt: skip
    write_summary(tmp_path)
    text = (tmp_path / "summary.md").read_text()
    assert failures(tmp_path) == ["forward float16 e<=64"]
    for expected in ("# GPU suite: NVIDIA H200", "the command", "| d=3 e=5 N=7 M=9 | o: 2.0e-03 where 1e-03 is allowed |",
                     "before 1 of 1 launches", "inf"):  # fmt: skip
        assert expected in text, expected


def test_reports_of_marked_tests_are_judged(tmp_path: Path) -> None:
    from benchmarks.gpu_suite.records import LeftOut
    from benchmarks.gpu_suite.tests import judged

    report = tmp_path / "report.xml"
    passed, skipped = '<testcase name="a"/>', '<testcase name="b"><skipped message="no TensorRT"/></testcase>'
    wrong = '<testcase name="c"><failure message="1 != 2"/></testcase><testcase name="d"><error message="no file"/></testcase>'
    report.write_text(f"<testsuites><testsuite>{passed}{skipped}</testsuite></testsuites>")
    assert judged(report) == {"state": "ok", "why": [], "tests": 2, "skipped": 1}
    report.write_text(f"<testsuites><testsuite>{passed}{wrong}</testsuite></testsuites>")
    assert judged(report) == {"state": "failed", "why": ["c: 1 != 2", "d: no file"], "tests": 3, "skipped": 0}
    report.write_text(f"<testsuites><testsuite>{skipped}</testsuite></testsuites>")
    with pytest.raises(LeftOut, match="all 1 skip: no TensorRT"):
        judged(report)

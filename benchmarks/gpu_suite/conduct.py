"""Run the parts one after the other, each in a process of its own, and outlive what kills one of them. No torch here."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks.gpu_suite.part import PRECOMPILE
from benchmarks.gpu_suite.records import BROKEN, ITSELF, REST, Records
from benchmarks.gpu_suite.suite import Suite
from benchmarks.gpu_suite.summary import write_summary

GRACE = 25.0
"""Seconds after its time in which a part ends its last measurement; then it is taken to hang, and killed."""
MOST_STARTS = 8


def conduct(out: Path, times: Mapping[str, float], device: str, suite: Suite, run: str) -> None:
    """Run parts.

    Args:
        out: folder of the results.
        times: seconds by part, in order.
        device: `cuda` or `cpu`.
        suite: what the folder holds results of.
        run: names this invocation.
    """
    beside = "attention" in times and next(iter(times)) != "attention"
    write_summary(out)
    for number, (name, seconds) in enumerate(times.items()):
        print(f"{name}: {seconds:.0f} s", flush=True)
        with precompiling(out, device, run, times["attention"] if beside and not number else 0.0):
            run_part(out, name, seconds, device, suite, run)
        write_summary(out)


@contextmanager
def precompiling(out: Path, device: str, run: str, seconds: float) -> Iterator[None]:
    """Compile for the part `attention` beside another one, where `seconds` (its time) are given."""
    process = _start(out, PRECOMPILE, device, run, seconds, 1e9) if seconds else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()  # what it found is on disk, and its workers end with their input
            process.wait()


def run_part(out: Path, name: str, seconds: float, device: str, suite: Suite, run: str) -> None:
    """Run a part until it is through, its time is over, or it has died too often; keep what it died of as an error."""
    end = time.monotonic() + seconds
    for _ in range(MOST_STARTS):
        left = end - time.monotonic()
        if left <= 0:
            break
        process = _start(out, name, device, run, seconds, left)
        try:
            code = process.wait(left + GRACE)
            died = f"the process ended with code {code}" if code > 0 else f"signal {-code} ended the process"
        except subprocess.TimeoutExpired:
            code, died = -9, f"it was still at it {GRACE:.0f} s after the part's time, and was killed"
        finally:
            process.kill()
            process.wait()
        if code == 0:
            return
        records = Records(out, name, suite.identity, run)
        if records.marker.exists():
            records.keep(records.marker.read_text(), {"state": "error", "error": died})
            records.marker.unlink()
        elif code != BROKEN:
            if ITSELF not in records.records:
                records.keep(ITSELF, {"state": "error", "error": died})
            return
    Records(out, name, suite.identity, run).keep(
        REST, {"state": "left_out", "reason": "its process died, and the time is over; the same command goes on"}
    )  # fmt: skip


def _start(out: Path, name: str, device: str, run: str, budget: float, left: float) -> subprocess.Popen[bytes]:
    options = {"out": out, "device": device, "run": run, "suite": os.getpid(), "budget": budget, "seconds": left}
    words = [word for option, value in options.items() for word in (f"--{option}", str(value))]
    return subprocess.Popen([sys.executable, "-m", "benchmarks.gpu_suite.part", name, *words], env=_environment(device))


def _environment(device: str) -> dict[str, str]:
    """Return what a part's process sees; a rehearsal computes in Triton's interpreter."""
    rehearsal = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}  # numpy's, of the interpreter
    return {**os.environ, **(rehearsal if device == "cpu" else {})}

"""Run commands in forks of this process, which has torch imported already: processes of their own, without seconds of imports."""

from __future__ import annotations

import atexit
import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from latency.lock import VARIABLE

PRELOADED = (
    "torch", "torch.export", "onnx", "onnxscript", "onnxruntime", "pymoo.algorithms.moo.nsga2", "matplotlib.figure", "tyro",
    "rich.progress", "PIL.Image", "safetensors.torch", "hyctas.training.sandwich", "hyctas.training.single",
    "hyctas.artifacts.bundling",
    *(f"hyctas.cli.{name}" for name in ("profile", "train", "search", "export", "bench", "doctor")),
    *(f"hyctas.commands.{name}" for name in ("profile", "train", "search", "export", "bench", "doctor")),
    "hyctas.report.report_files", "hyctas.search.driver", "hyctas.pretrained.start", "hyctas.artifacts.inherit",
    "hyctas.cost.workloads",
    "export.bench_timing", "export.bench_models", "export.parity", "export.onnx.exporter", "latency.kit.ingest",
)  # fmt: skip
"""Modules without threads of their own; this process computes nothing with them, so that its forks are whole."""
KILLED = -int(signal.SIGKILL)


def preload() -> None:
    """Import what the commands need."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault(VARIABLE, f"hyctas-measuring-{os.getpid()}")  # whoever else measures here would look like a hang
    for name in PRELOADED:
        importlib.import_module(name)


def start(work: Callable[[], int], log: Path) -> int:
    """Fork; the child does the work, in a session of its own, and ends with its exit code. Returns the child's id."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.setsid()
        for number, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
            path = os.devnull if number == 0 else log
            os.dup2(os.open(path, flags | os.O_CREAT | os.O_APPEND, 0o644), number)
        for number in range(1, signal.NSIG):
            if number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
                signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        atexit._run_exitfuncs()  # a command that ends by itself gives back its locks
        os._exit(code)


def start_command(name: str, arguments: Sequence[object], log: Path, prepare: Callable[[], None] | None = None) -> int:
    """Start `hyctas-NAME ARGUMENTS`; everything it prints is appended to `log`. Returns the process's id."""

    def work() -> int:
        if prepare is not None:
            prepare()
        return perform(name, arguments)

    return start(work, log)


def perform(name: str, arguments: Sequence[object]) -> int:
    """Run `hyctas-NAME ARGUMENTS` in this process; return its exit code."""
    sys.argv = [f"hyctas-{name}", *map(str, arguments)]
    try:
        importlib.import_module(f"hyctas.cli.{name}").main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return 0


def wait(pid: int, timeout_s: float) -> int | None:
    """Return a child's exit code (minus the signal that ended it); None, with the child and its children killed, after the time."""
    end, pause = time.monotonic() + timeout_s, 0.002
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(pause)
        pause = min(0.05, pause * 1.5)
    kill(pid)
    return None


def kill(pid: int) -> int:
    """Kill a child and its children, and return its exit code."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:  # before its setsid
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_command(
    name: str, *arguments: object, log: Path, timeout_s: float = 600, prepare: Callable[[], None] | None = None
) -> int | None:
    """Run a command to its end; see `start_command` and `wait`."""
    return wait(start_command(name, arguments, log, prepare), timeout_s)

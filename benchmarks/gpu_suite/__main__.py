"""Check and measure everything that needs a GPU.

    python -m benchmarks.gpu_suite --out DIR [--parts numerics,attention,fidelity,end_to_end] [--seconds N]

Runs from a bare checkout with torch, triton, numpy, onnx, safetensors, pillow, msgspec and pytest, in under eight minutes.
Results are written after every measurement; the same command goes on where it stopped. Exit code 1: a check failed; 3: there is
no CUDA device; 70: a part ended with a bug in hyctas (the others ran).
"""

from __future__ import annotations

import argparse
import importlib
import os
import secrets
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Annotated

from benchmarks.failures import one_sentence
from benchmarks.gpu_suite.records import REST, BrokenContext, Records, describe, open_suite, read_suite
from benchmarks.gpu_suite.summary import defects, failures, write_summary
from export.errors import InvalidInput, Unavailable
from export.ranges import Range, argument

PARTS = {"numerics": 60.0, "attention": 210.0, "fidelity": 120.0, "end_to_end": 60.0}
"""Seconds by part, in the order in which they run; `--seconds` is divided in these proportions."""
FUNCTIONS = {"numerics": "numerics.run", "attention": "attention.run", "fidelity": "networks.fidelity",
             "end_to_end": "networks.end_to_end"}  # fmt: skip
GRACE = 20.0
"""Seconds after its time in which a part ends its last measurement; then it is taken to hang, and killed."""
MOST_STARTS = 8
BROKEN = 75
"""Exit code of a part whose GPU context broke: the next process goes on behind the measurement that broke it."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_suite", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder for the results; one that holds some is continued")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of: " + ", ".join(PARTS))
    seconds = argument(Annotated[float, Range(above=0, at_most=1e6)])
    parser.add_argument("--seconds", type=seconds, help=f"time in all; default: {sum(PARTS.values()):g}, or the parts' share")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal of the script: "
                        "tiny shapes, Triton's interpreter, wall clock; figures mean nothing")  # fmt: skip
    for name, kind in (("part", str), ("run", str), ("suite", int), ("deadline", float)):  # of a part's own process
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    try:
        with one_sentence():
            if given.part:
                return run_part(given)
            command = "python -m benchmarks.gpu_suite " + shlex.join(sys.argv[1:] if arguments is None else arguments)
            code = run(given.out, given.parts, given.seconds, given.device, command)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        code = 130
    sys.exit(code)


def run(out: Path, asked: str, seconds: float | None, device: str, command: str) -> int:
    """Run parts, write the summary, and return the exit code.

    Raises:
        InvalidInput: options that cannot be followed.
        Unavailable: there is no CUDA device.
    """
    names = {name.strip() for name in asked.split(",") if name.strip()}
    if not names or not names <= PARTS.keys():
        wrong = ", ".join(sorted(names - PARTS.keys())) or "none"
        raise InvalidInput(f"--parts {asked!r}: {wrong}; parts are {', '.join(PARTS)}")
    parts = {name: usual for name, usual in PARTS.items() if name in names}
    if out.exists() and not out.is_dir():
        raise InvalidInput(f"--out {out} is a file; name a folder")
    suite = open_suite(out, device, gpu_name(device), command)
    print(f"{suite.identity['gpu']}; seed {suite.seed}; results in {out}", flush=True)
    share, run_id = (seconds or sum(parts.values())) / sum(parts.values()), secrets.token_hex(6)
    end = time.monotonic()
    for name, usual in parts.items():
        end += share * usual  # what a part does not use, or uses in excess, is the next one's
        print(f"{name}: {end - time.monotonic():.0f} s", flush=True)
        supervise(out, name, device, run_id, end)
        write_summary(out)
    print((out / "summary.md").read_text())
    return 1 if failures(out) else 70 if defects(out) else 0


def gpu_name(device: str) -> str:
    """Return the name of what is measured, or raise `Unavailable` where that is to be a GPU, and there is none."""
    if device == "cpu":
        return "a CPU, as a rehearsal"
    import torch

    from export.platform import install_line, platform_kind

    if not torch.cuda.is_available():
        reason = f"PyTorch {torch.__version__} finds no CUDA device, and this suite measures one"
        raise Unavailable("benchmarks.gpu_suite", reason, install_line("torch-cuda", platform_kind()))
    return torch.cuda.get_device_name(0)


def supervise(out: Path, name: str, device: str, run_id: str, deadline: float) -> None:
    """Run a part until it is through, its time is over, or it has died too often; keep what it died of as an error."""
    died = "the time was over before it began"
    for _ in range(MOST_STARTS):
        if (left := deadline - time.monotonic()) <= 0:
            break
        process = _start(out, name, device, run_id, deadline)
        try:
            code = process.wait(left + GRACE)
            died = f"its process ended with code {code}"
        except subprocess.TimeoutExpired:
            code, died = -9, f"it was still at it {GRACE:.0f} s after the part's time, and was killed"
        finally:
            process.kill()
            process.wait()
        if code == 0:
            return
        records = Records(out, name, run_id)
        if records.marker.exists():
            records.keep(records.marker.read_text(), {"state": "error", "error": died})
        elif code != BROKEN:
            if REST not in records.records:
                records.keep(REST, {"state": "error", "error": died})
            return
    Records(out, name, run_id).keep(REST, {"state": "left_out", "reason": f"{died}; the same command goes on"})


def _start(out: Path, name: str, device: str, run_id: str, deadline: float) -> subprocess.Popen[bytes]:
    options = {"out": out, "device": device, "part": name, "run": run_id, "suite": os.getpid(), "deadline": deadline}
    words = [word for option, value in options.items() for word in (f"--{option}", str(value))]
    # without line numbers, what is compiled ahead is what a launch looks for; warnings are numpy's, of Triton's interpreter
    rehearsal = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"} if device == "cpu" else {}
    environment = {**os.environ, "TRITON_DISABLE_LINE_INFO": "1", **rehearsal}
    return subprocess.Popen([sys.executable, "-m", "benchmarks.gpu_suite", *words], env=environment)


def run_part(given: argparse.Namespace) -> None:
    """Run one part in this process, which ends with the suite that started it."""

    def end_with_suite() -> None:
        while os.getppid() == given.suite:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=end_with_suite, daemon=True).start()
    import torch

    from benchmarks.gpu_suite.launches import Device, Session

    suite, device = read_suite(given.out), Device(given.device)
    records = Records(given.out, given.part, given.run, given.deadline, device.healthy)
    records.records.pop(REST, None)
    records.write()
    torch.manual_seed(suite.seed)
    module, function = FUNCTIONS[given.part].split(".")
    try:
        getattr(importlib.import_module(f"benchmarks.gpu_suite.{module}"), function)(Session(device, records, given.out, suite))
    except BrokenContext as error:
        print(f"the GPU's context broke: {error}", file=sys.stderr, flush=True)
        os._exit(BROKEN)  # destructors would only report the broken context again
    except Exception as error:  # the other parts run all the same
        records.keep(REST, {"state": "error", "error": describe(error)})
        raise


if __name__ == "__main__":
    main()

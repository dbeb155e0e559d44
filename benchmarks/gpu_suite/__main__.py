"""Check and measure everything that needs a GPU.

    python -m benchmarks.gpu_suite --out DIR [--parts numerics,attention,fidelity,end_to_end,tests] [--seconds N]

Runs from a bare checkout with torch, triton, numpy, onnx, safetensors and pillow, in under nine minutes. Results are written after
every measurement; the same command goes on where it stopped. Exit code 1: a numeric check failed; 3: there is no CUDA device;
70: a part ended with a defect of ours (the others ran).
"""

from __future__ import annotations

import argparse
import secrets
import shlex
import sys
from pathlib import Path
from typing import Annotated

from benchmarks.ending import one_sentence
from export.errors import InvalidInput, Unavailable
from export.ranges import Range, argument

PARTS = {"numerics": 90.0, "attention": 240.0, "fidelity": 150.0, "end_to_end": 60.0, "tests": 30.0}
"""Seconds, in the proportion in which `--seconds` is divided."""
SECONDS = 515.0
"""In all, less than nine minutes by what the last measurement of each part may take over its time."""
SHORTEST = 5.0


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_suite", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder for the results; one that holds some is continued")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of: " + ", ".join(PARTS))
    seconds = argument(Annotated[float, Range(above=0, at_most=1e6)])
    parser.add_argument("--seconds", type=seconds, help=f"time for all the parts asked for; default: {SECONDS:g} if all are")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda",
        help="cpu: a rehearsal of the script: tiny shapes, our CPU implementation, wall clock; figures mean nothing",
    )  # fmt: skip
    given = parser.parse_args(arguments)
    command = "python -m benchmarks.gpu_suite " + shlex.join(sys.argv[1:] if arguments is None else arguments)
    try:
        with one_sentence():
            code = run(given.out, parse_parts(given.parts), given.seconds, given.device, command)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        code = 130
    sys.exit(code)


def parse_parts(text: str) -> list[str]:
    """Read `--parts`, in the order in which they run.

    Raises:
        InvalidInput: none, or an unknown one.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in PARTS]
    if unknown or not names:
        what = f"{unknown[0]!r} is unknown" if unknown else "none is given"
        raise InvalidInput(f"--parts {text!r}: {what}; parts are {', '.join(PARTS)}")
    return [name for name in PARTS if name in names]


def budgets(parts: list[str], seconds: float | None) -> dict[str, float]:
    """Divide the time among parts.

    Raises:
        InvalidInput: less than `SHORTEST` seconds for one of them.
    """
    weight = sum(PARTS[name] for name in parts)
    total = SECONDS * weight / sum(PARTS.values()) if seconds is None else seconds
    found = {name: total * PARTS[name] / weight for name in parts}
    if not min(found.values()) >= SHORTEST:
        least = SHORTEST * weight / min(PARTS[name] for name in parts)
        raise InvalidInput(f"--seconds {seconds:g} is too short for {', '.join(parts)}: give at least {least:.0f}")
    return found


def run(out: Path, parts: list[str], seconds: float | None, device: str, command: str) -> int:
    """Run parts, write the summary, and return the exit code.

    Raises:
        InvalidInput: options that cannot be followed.
        Unavailable: there is no CUDA device.
    """
    from benchmarks.gpu_suite.conduct import conduct
    from benchmarks.gpu_suite.suite import open_suite
    from benchmarks.gpu_suite.summary import defects, failures

    times = budgets(parts, seconds)
    if out.exists() and not out.is_dir():
        raise InvalidInput(f"--out {out} is a file; name a folder")
    gpu = device_name(device)
    suite = open_suite(out, device, gpu, command)
    print(f"{gpu}; seed {suite.seed}; results in {out}", flush=True)
    conduct(out, times, device, suite, secrets.token_hex(6))
    print((out / "summary.md").read_text())
    return 1 if failures(out) else 70 if defects(out) else 0


def device_name(device: str) -> str:
    """Return the name of what is measured.

    Raises:
        Unavailable: a GPU was asked for, and there is none.
    """
    import torch

    from benchmarks.gpu_suite.place import Place
    from export.platform import install_line, platform_kind

    if device == "cuda" and not torch.cuda.is_available():
        reason = f"PyTorch {torch.__version__} finds no CUDA device, and this suite measures one"
        raise Unavailable("benchmarks.gpu_suite", reason, install_line("torch-cuda", platform_kind()))
    return Place(device).name


if __name__ == "__main__":
    main()

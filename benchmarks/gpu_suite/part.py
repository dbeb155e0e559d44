"""Run one part in a process of its own: `python -m benchmarks.gpu_suite.part`, started by the suite.

What kills the process or the GPU's context costs one measurement; the suite starts the part again, which goes on behind it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

from benchmarks.errors import one_sentence
from benchmarks.gpu_suite.records import BROKEN, ITSELF, REST, Broken, describe

PRECOMPILE = "precompile"
"""The compiling that `attention` needs, beside another part."""


def main() -> None:
    """Run a part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--suite", type=int, required=True, help="process id of the suite")
    parser.add_argument("--budget", type=float, required=True, help="seconds of the part in all")
    parser.add_argument("--seconds", type=float, required=True, help="seconds that are left of them")
    arguments = parser.parse_args()
    with one_sentence():
        try:
            run(arguments)
        except Broken as error:
            print(f"the GPU's context broke: {error}", file=sys.stderr)
            sys.stderr.flush()
            os._exit(BROKEN)  # destructors would only report the broken context again


def run(arguments: argparse.Namespace) -> None:
    """Make the session and run the part."""
    if arguments.part == PRECOMPILE:
        os.nice(10)
    import torch

    from benchmarks.gpu_suite.place import Place
    from benchmarks.gpu_suite.records import Records
    from benchmarks.gpu_suite.session import Session
    from benchmarks.gpu_suite.suite import read_suite

    suite, place = read_suite(arguments.out), Place(arguments.device)
    torch.manual_seed(suite.seed)
    name = arguments.part
    records = Records(arguments.out, name, suite.identity, arguments.run, arguments.seconds, place.healthy, arguments.suite)
    session = Session(
        place=place, records=records, folder=arguments.out, seed=suite.seed, seconds=arguments.budget, command=suite.command
    )
    if name == PRECOMPILE:
        importlib.import_module("benchmarks.gpu_suite.attention").precompile(session)
        return
    for ending in (ITSELF, REST):
        records.forget(ending)
    try:
        importlib.import_module(f"benchmarks.gpu_suite.{name}").run(session)
    except Broken:
        raise
    except Exception as error:  # the other parts run all the same
        records.keep(ITSELF, {"state": "error", "error": describe(error)})
        raise


if __name__ == "__main__":
    main()

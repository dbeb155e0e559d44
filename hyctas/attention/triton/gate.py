"""Hold the Triton kernels to what can be known without a GPU: `python -m hyctas.attention.triton.gate`.

Every kernel is compiled with its tile of every shipped architecture. Nothing may spill registers, ask for more shared memory than
a block gets, or multiply matrices outside the tensor cores. `resources.json` beside this file keeps the numbers: only what changed
since is compiled (`source` in `cases.py`). `--update` writes it, again and again as it goes; a run that is stopped may be repeated.

Exit code: 0: all holds; 1: something does not, or was not compiled within the budget; 3: there is no compiler.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from typing import Annotated, Any

from export.ranges import Range, argument
from hyctas.attention.triton.cases import KERNELS, Case, shipped_cases, source
from hyctas.attention.triton.compiled import DoesNotCompile, Resources, compile_case, missing
from hyctas.attention.triton.resources import TABLE, Row, Table, blocks_per_multiprocessor, judge, read_table, write_table
from hyctas.attention.triton.tiles import ARCHITECTURES

FLUSH_S = 10
"""The table is written that often while cases are compiled."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write resources.json")
    parser.add_argument("--all", action="store_true", help="compile everything, not only what changed")
    parser.add_argument("--arch", type=int, nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES, help="of these GPUs alone")
    parser.add_argument("--kernel", nargs="+", choices=KERNELS, default=KERNELS, help="these alone")
    parser.add_argument("--jobs", type=argument(Annotated[int, Range(1, 1024)]), default=2, help="compilations at a time")
    seconds = argument(Annotated[float, Range(0)])
    parser.add_argument("--budget", type=seconds, default=math.inf, metavar="SECONDS", help="then begin no more compilations")
    options = parser.parse_args(arguments)
    cases = [case for case in shipped_cases() if case.arch in options.arch and case.kernel in options.kernel]
    table = _starting_table(options.update)
    stale = [case for case in cases if options.all or table.current(case) is None]
    if stale and (why := missing()):
        print(f"{len(stale)} of {len(cases)} cases need the compiler: {why}", file=sys.stderr)
        return 3
    table, failed = _compile_stale(stale, table, options)
    return _report(cases, table, failed)


def compile_all(cases: Sequence[Case], jobs: int, seconds: float = math.inf) -> Iterator[tuple[Case, Resources | DoesNotCompile]]:
    """Compile cases, each in a process of its own (compilers may abort), and yield them as they are done.

    None is begun after `seconds`; those that remain are left out.
    """
    import triton  # noqa: F401  # here once, so that the processes, which are forks, need not

    context, deadline, waiting = multiprocessing.get_context("fork"), time.monotonic() + seconds, list(reversed(cases))
    running = dict[Connection, tuple[Case, Any]]()
    try:
        while running or (waiting and time.monotonic() < deadline):
            while waiting and len(running) < jobs and time.monotonic() < deadline:
                case = waiting.pop()
                here, there = context.Pipe(duplex=False)
                process = context.Process(target=_compile, args=(case, there), daemon=True)
                process.start()
                there.close()
                running[here] = case, process
            for ready in wait_for(list(running)):
                assert isinstance(ready, Connection)
                case, process = running.pop(ready)
                yield case, _outcome(case, ready, process)
    finally:
        for _, process in running.values():
            process.terminate()


def _compile(case: Case, answer: Connection) -> None:
    try:
        answer.send(compile_case(case).resources)
    except DoesNotCompile as error:
        answer.send(error)


def _outcome(case: Case, answer: Connection, process: Any) -> Resources | DoesNotCompile:
    try:
        outcome: Resources | DoesNotCompile = answer.recv()
    except EOFError:
        process.join()
        outcome = DoesNotCompile(case, f"the compiler ended with exit code {process.exitcode}")
    process.join()
    return outcome


def _installed() -> str:
    try:
        return version("triton")
    except PackageNotFoundError:
        return ""


def _starting_table(update: bool) -> Table:
    """Return what is known already: nothing where it is about to be written by another compiler."""
    installed = _installed()
    if not TABLE.exists():
        return Table(installed, {})
    table = read_table()
    if not installed or installed == table.triton:
        return table
    if update:
        print(f"the table is of triton {table.triton}, installed is {installed}: everything is compiled again")
        return Table(installed, {})
    print(f"numbers are of triton {table.triton}, installed is {installed}; --update compiles everything again")
    return table


def _compile_stale(stale: Sequence[Case], table: Table, options: argparse.Namespace) -> tuple[Table, dict[Case, str]]:
    """Return the table with what was compiled, and why some cases were not; write it as it grows."""
    keys = {case.key for case in shipped_cases()}
    rows = {key: row for key, row in table.rows.items() if key in keys}
    failed, begun, written = dict[Case, str](), time.monotonic(), time.monotonic()
    for case in stale:
        rows.pop(case.key, None)
    for done, (case, outcome) in enumerate(compile_all(stale, options.jobs, options.budget) if stale else (), start=1):
        if isinstance(outcome, DoesNotCompile):
            failed[case] = outcome.reason
        else:
            rows[case.key] = Row(source(case), outcome)
        problems = [failed[case]] if case in failed else judge(case, rows[case.key].resources)
        print(f"[{done}/{len(stale)} {time.monotonic() - begun:.0f} s] {case.key}: {'; '.join(problems) or 'ok'}", flush=True)
        if options.update and time.monotonic() - written > FLUSH_S:
            write_table(Table(table.triton, rows))
            written = time.monotonic()
    if options.update:
        write_table(Table(table.triton, rows))
    return Table(table.triton, rows), failed


def _report(cases: Sequence[Case], table: Table, failed: dict[Case, str]) -> int:
    """Print a line per case; return the exit code."""
    wrong = dict[str, list[str]]()
    width = max((len(case.key) for case in cases), default=0)
    print(f"{'case':{width}} registers shared KiB blocks/SM  tensor cores")
    for case in cases:
        row = table.current(case)
        if row is None:
            wrong[case.key] = [failed.get(case, "was not compiled; run without --budget")]
            continue
        r, reasons = row.resources, judge(case, row.resources)
        cores = " ".join(f"{name} {count}" for name, count in r.tensor_core.items())
        blocks = blocks_per_multiprocessor(case.arch, r)
        print(f"{case.key:{width}} {r.registers:9} {r.shared_bytes / 1024:10.1f} {blocks:9}  {cores}{'  FAILS' if reasons else ''}")
        if reasons:
            wrong[case.key] = reasons
    for key, reasons in wrong.items():
        print(f"{key}: {'; '.join(reasons)}", file=sys.stderr)
    print(f"{len(cases) - len(wrong)} of {len(cases)} cases hold (triton {table.triton})")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

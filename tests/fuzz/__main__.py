"""make fuzz: mutate every file that a command reads, and fail on a traceback, exit 70, a hang, or a number that is silently wrong.

Every draw depends on the seed, the kind and the number of the case alone, so that any case can be repeated:
    python -m tests.fuzz --seed 7 --kind history --way read --case 12
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated

from export.ranges import Range, Seed, argument
from tests.fuzz.fuzz_launch import preload, start
from tests.fuzz.fuzzer import COMMAND, READ, Fault, Tally, fuzz_kind
from tests.fuzz.kinds import Kind, kinds
from tests.fuzz.reliability import facts, record
from tests.fuzz.samples import make_samples

SHOWN = 12
COUNT = Annotated[int, Range(0, 10**6)]
SECONDS = Annotated[float, Range(above=0, at_most=1e6)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 1 where a fault was found."""
    asked = _arguments(argv)
    chosen = [kind for kind in kinds() if not asked.kind or kind.name in asked.kind]
    if not chosen:
        print(f"unknown kind; the kinds are: {', '.join(kind.name for kind in kinds())}")
        return 2
    begun, now = time.monotonic(), facts()
    print(f"seed {asked.seed}: {len(chosen)} kinds, {asked.mutations} mutations each in one process, {asked.commands} each by "
          + ("command" if not asked.seconds else f"command, within {asked.seconds:g} s"), flush=True)  # fmt: skip
    preload()
    work = asked.work.resolve()
    samples = work / "samples"
    if not (asked.keep_samples and (samples / "done").exists()):
        make_samples(samples)
        (samples / "done").touch()
    print(f"samples made with the product itself in {time.monotonic() - begun:.0f} s: {samples}", flush=True)
    shutil.rmtree(work / "faults", ignore_errors=True)
    tallies = _spread(chosen, asked, work)
    faults = [fault for tally in tallies for fault in tally.faults]
    spent_s = time.monotonic() - begun
    fresh = _conclude(tallies, faults, asked, spent_s)
    if asked.record:
        done = [tally.to_json() for tally in tallies]
        record("fuzz", {"seed": asked.seed, "minutes": round(spent_s / 60, 1), "kinds": done}, now)
    return fresh


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seed", type=argument(Seed), default=0)
    parser.add_argument("--kind", action="append", help="one kind of file (may be repeated); default: all")
    parser.add_argument("--case", type=argument(COUNT), help="one case")
    parser.add_argument("--way", choices=(READ, COMMAND), help="in one process, or by command; default: both")
    parser.add_argument("--mutations", type=argument(COUNT), default=1000, help="per kind, in one process")
    parser.add_argument("--commands", type=argument(COUNT), default=20, help="per kind, through the command itself")
    parser.add_argument("--seconds", type=argument(SECONDS), help="time for all mutations together; each kind gets its share")
    parser.add_argument("--timeout", type=argument(SECONDS), default=120.0, help="seconds after which a case hangs")
    parser.add_argument("--jobs", type=argument(Annotated[int, Range(1, 1024)]), default=len(os.sched_getaffinity(0)))
    parser.add_argument("--work", type=Path, default=Path("runs/fuzz"), help="folder of samples and faults")
    parser.add_argument("--keep-samples", action="store_true", help="use the samples of the last time")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/cpu/reliability.md")
    return parser.parse_args(argv)


def _spread(chosen: Sequence[Kind], asked: argparse.Namespace, work: Path) -> list[Tally]:
    """Share the kinds among processes; print a line per kind that is done."""
    end = time.monotonic() + asked.seconds if asked.seconds else None
    jobs, pipes = max(1, min(asked.jobs, len(chosen))), dict[Connection, int]()
    for job in range(jobs):
        here, there = multiprocessing.Pipe(duplex=False)
        home = work / f"job-{job}"
        pipes[here] = start(partial(_lane, chosen[job::jobs], asked, home, end, there), home.with_suffix(".txt"))
        there.close()
    tallies, begun = list[Tally](), time.monotonic()
    while pipes:
        for pipe in [*pipes]:
            if not pipe.poll(1 / len(pipes)):
                if os.waitpid(pipes[pipe], os.WNOHANG)[0]:  # its end of the pipe may live on in a process that it left
                    del pipes[pipe]
                continue
            try:
                tallies.append(pipe.recv())
            except EOFError:
                os.waitpid(pipes.pop(pipe), 0)
                continue
            spent, done = time.monotonic() - begun, len(tallies)
            left = _minutes(spent / done * (len(chosen) - done))
            print(f"{done:3d}/{len(chosen)}  {_line(tallies[-1])}; {left} left", flush=True)
    if len(tallies) < len(chosen):
        lacking = {kind.name for kind in chosen} - {tally.kind for tally in tallies}
        logs = "".join((work / f"job-{job}.txt").read_text()[-2000:] for job in range(jobs))
        raise RuntimeError(f"the fuzzer itself failed at: {', '.join(sorted(lacking))}\n{logs}")
    return tallies


def _lane(chosen: Sequence[Kind], asked: argparse.Namespace, work: Path, end: float | None, pipe: Connection) -> int:
    reads = () if asked.way == COMMAND else [asked.case] if asked.case is not None else range(asked.mutations)
    commands = () if asked.way == READ else [asked.case] if asked.case is not None else range(asked.commands)
    for done, kind in enumerate(chosen):
        now = time.monotonic()
        deadline = None if end is None else now + max(0.0, end - now) / (len(chosen) - done)
        limits = {"timeout_s": asked.timeout, "deadline": deadline}
        pipe.send(fuzz_kind(kind, work.parent / "samples", work, asked.seed, reads, commands, **limits))
    shutil.rmtree(work, ignore_errors=True)
    return 0


def _line(tally: Tally) -> str:
    read, command = tally.counts[READ], tally.counts[COMMAND]
    faults = f", {len(tally.faults)} FAULTS" if tally.faults else ""
    return (f"{tally.kind}: {read.total()} read ({read['refused']} refused, {read['same']} the same, {read['other']} another valid "
            f"value), {command.total()} commands{faults}")  # fmt: skip


def _conclude(tallies: Sequence[Tally], faults: Sequence[Fault], asked: argparse.Namespace, spent_s: float) -> int:
    """Print faults by what they have in common, and how to repeat them."""
    groups: dict[tuple[str, str], list[Fault]] = {}
    for fault in faults:
        groups.setdefault((fault.kind, fault.signature), []).append(fault)
    for (kind, _), group in groups.items():
        first = group[0]
        print(f"\nFAULT, {len(group)} times: {kind} ({first.way}): {first.mutation}\n  {first.what}")
        cases = ", ".join(str(fault.case) for fault in group[:SHOWN])
        again = f"--seed {asked.seed} --kind '{kind}' --way {first.way} --case {first.case}"
        print(f"  cases {cases}; repeat: python -m tests.fuzz {again}")
    total = sum((count for tally in tallies for count in tally.counts.values()), Counter())
    kept = f"; the files are in {asked.work / 'faults'}" if faults else ""
    accepted = total["same"] + total["other"] + total["accepted"]
    print(f"\nseed {asked.seed}: {total.total()} mutations of {len(tallies)} kinds in {_minutes(spent_s)}: {total['refused']} "
          f"refused, {accepted} accepted, {len(faults)} faults of {len(groups)} kinds{kept}")  # fmt: skip
    return bool(faults)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


if __name__ == "__main__":
    sys.exit(main())

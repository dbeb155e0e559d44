"""Whether a ladder keeps a pace under load that its most accurate network alone does not.

    python -m benchmarks.ladder LADDER --out benchmarks/results/cpu/ladder.json

LADDER is a bundle of several networks (`hyctas-export LADDER/ --network A B C`), which use all cores. While another process keeps
one core busy, the median time of the most accurate network is measured; then frames arrive every 1.1 x that. The most accurate
network alone and the ladder take turns of SECONDS each. Goal: the ladder misses at most 1 % where the network alone misses more
than 20 %. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from benchmarks.failures import one_sentence
from export.bench_models import BenchModel
from export.bench_report import circumstances, markdown_table, page
from export.bench_timing import bench
from export.bundle.bundle_ladder import has_members
from export.errors import InvalidInput
from export.files import write_json, write_text
from export.machine import usable_cores
from export.paced import pace
from export.paced_report import PacedReport
from export.ranges import Range, Threads, argument
from export.runtimes import open_runtime
from export.target import Target
from hyctas.cli.show import say
from latency.lock import measuring

FORMAT_VERSION = 1
MARGIN = 1.1
"""Period of the frames by the median time of the most accurate network."""
MOST_MISSED, ALONE_MISSES = 0.01, 0.20
Seconds = Annotated[float, Range(above=0, at_most=3600)]


@contextmanager
def busy_core(core: int | None) -> Iterator[None]:
    """Keep one core busy with another process.

    Args:
        core: which; None: the system's choice.
    """
    process = multiprocessing.get_context("spawn").Process(target=spin, args=(core,), daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def spin(core: int | None) -> None:
    """Compute for ever."""
    if core is not None:
        os.sched_setaffinity(0, {core})
    while True:
        sum(range(100_000))


def compare(ladder: Path, target: Target, threads: int, seconds: float, rounds: int) -> tuple[list[PacedReport], float]:
    """Run the most accurate network and the ladder in turn; return the reports and the median in milliseconds."""
    runtime = open_runtime(target, threads)
    alone, whole = BenchModel("alone", ladder / "model.onnx"), BenchModel("ladder", ladder)
    core = max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") and usable_cores() > threads else None
    with measuring(say), busy_core(core):
        median_ms = bench([alone], target, threads, seconds=min(10.0, seconds), runtime=runtime).models[0].median_ms
        frames_per_second = 1000 / (MARGIN * median_ms)
        say(f"median of the most accurate network under load: {median_ms:.2f} ms; {frames_per_second:.2f} frames per second")
        return [pace([alone, whole], runtime, frames_per_second, seconds) for _ in range(rounds)], median_ms


def judged(reports: Sequence[PacedReport]) -> dict[str, float]:
    """Return the share of missed frames over all rounds, by name."""
    found = {}
    for index, result in enumerate(reports[0].models):
        results = [report.models[index] for report in reports]
        found[result.name] = sum(r.dropped + r.late for r in results) / sum(r.frames for r in results)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Compare a ladder under load with its most accurate network.")
    parser.add_argument("ladder", type=Path, help="bundle of several networks")
    parser.add_argument("--target", default="onnxruntime-cpu:fp32", help="where they run")
    parser.add_argument("--threads", type=argument(Threads), default=usable_cores(), help="of the networks; default: all cores")
    parser.add_argument("--seconds", type=argument(Seconds), default=30.0, help="of each turn")
    parser.add_argument("--rounds", type=int, choices=range(1, 11), default=2, help="turns of each")
    parser.add_argument("--out", type=Path, required=True, help="result, FILE.json; FILE.md and FILE.html appear beside it")
    arguments = parser.parse_args(argv)
    if not has_members(arguments.ladder):
        raise InvalidInput(f"{arguments.ladder} holds one network; write a ladder: hyctas-export LADDER/ --network A B C")
    target = Target.parse(arguments.target)
    reports, median_ms = compare(arguments.ladder, target, arguments.threads, arguments.seconds, arguments.rounds)
    missed = judged(reports)
    reached = missed["ladder"] <= MOST_MISSED and missed["alone"] > ALONE_MISSES
    verdict = (
        f"missed: ladder {missed['ladder']:.2%} (goal: at most {MOST_MISSED:.0%}), most accurate network alone "
        f"{missed['alone']:.1%} (above {ALONE_MISSES:.0%}): goal {'reached' if reached else 'missed'}"
    )
    write(arguments.out, reports, median_ms, verdict, {"missed": missed, "reached": reached})
    say(verdict)


def write(out: Path, reports: Sequence[PacedReport], median_ms: float, verdict: str, facts: dict[str, Any]) -> None:
    """Write FILE.json, FILE.md and FILE.html."""
    first = reports[0]
    rows = [["round", *first.rows()[0]]]
    rows += [[str(number), *row] for number, report in enumerate(reports, 1) for row in report.rows()[1:]]
    remarks = [
        f"the period is {MARGIN} x {median_ms:.2f} ms, the median of the most accurate network with one core kept busy by another "
        "process",
        *dict.fromkeys(remark for report in reports for remark in report.remarks()),
    ]
    title, place = f"{first.title}: {verdict}", circumstances(first.machine, first.versions, first.others_share)
    write_json(out, {"format_version": FORMAT_VERSION, "median_ms": median_ms, **facts, "rounds": [r.to_json() for r in reports]})
    write_text(out.with_suffix(".md"), markdown_table(title, place, rows, remarks))
    curves = "".join(report.curves() for report in reports)
    write_text(out.with_suffix(".html"), page(title, place, rows, remarks, curves))
    say(f"wrote {out}, {out.with_suffix('.md')} and {out.with_suffix('.html')}")


if __name__ == "__main__":
    with one_sentence():
        main()

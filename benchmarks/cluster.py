"""Time the scoring of candidates by one worker and by two on this machine, and compute what more devices would take.

    hyctas-train supernet --data DATA --space edge --run RUN
    python -m benchmarks.cluster --run RUN --out benchmarks/results/cpu/cluster.md

A round is one generation as a search scores it: all candidates on a few images, then half of them on all. Rounds with one worker
and with two alternate, each with workers of its own, which remember nothing; starting them is timed apart. Workers have one thread
each. The goal is 1.7 times as many candidates per second with two. What is said of 8, 64 and 512 devices is arithmetic from the
measured figures; `--figures` prints it for figures of your own.
"""

from __future__ import annotations

import argparse
import math
import pickle
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np

from benchmarks.failures import one_sentence
from export.bench_report import markdown_rows
from export.codec import decode
from export.errors import InvalidInput
from export.files import write_json, write_text
from export.machine import hardware
from export.ranges import Range, argument
from hyctas.arch.genotype import Genotype
from hyctas.artifacts.inherit import SupernetRecord
from hyctas.cli.search import SearchJob
from hyctas.cli.show import bar
from hyctas.commands.datasets import open_dataset
from hyctas.commands.search_workers import SUPERNET_FILES, SearchWorker, search_facts
from hyctas.ray_cluster import Cluster, open_cluster
from hyctas.search.history import SCREEN, SEARCH
from hyctas.search.search_settings import SearchSettings
from hyctas.workers import Pool
from latency.profiling import BATCH

GOAL = 1.7
DEVICES = (1, 8, 64, 512)
EVALUATIONS, FINALISTS, ROUNDS = 200, 12, 3
"""Of a search as it is by default."""
MEASURED_KEYS, MEASURED_S, KEYS = 1580, 390, 1600
"""docs/latency.md: so many operators took so long on a thread; `edge` has at most so many at 360x480."""
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured of one worker."""

    screen_s: float
    """Of a candidate on the few images, its norms estimated."""
    whole_s: float
    """Of a candidate on the other images, screened before."""
    start_s: float
    """From a worker's start until it is ready."""
    supernet_bytes: int
    task_bytes: int
    """What is sent with a candidate."""
    line_bytes: int
    """What an evaluation takes in the history."""


@dataclass(frozen=True)
class Scaled:
    """What a search takes with so many devices, by arithmetic."""

    devices: int
    population: int
    generations: int
    scoring_s: float
    sent_bytes: int
    """Supernet to every device, and tasks."""
    table_s: float


def scaled(figures: Figures, devices: int, population: int = SearchSettings().population) -> Scaled:
    """Return what a search takes, each step of a generation as long as its busiest device is at work."""
    batch = round(max(2, population // 3) / 0.5)  # as in hyctas.search.driver
    first, kept = min(population, EVALUATIONS), math.ceil(batch / 2)
    later = math.ceil((EVALUATIONS - first) / kept)
    seconds = math.ceil(first / devices) * (figures.screen_s + figures.whole_s)
    seconds += later * (math.ceil(batch / devices) * figures.screen_s + math.ceil(kept / devices) * figures.whole_s)
    tasks = 2 * first + later * (batch + kept)
    parts = math.ceil(KEYS / BATCH / devices)
    sent = devices * figures.supernet_bytes + tasks * figures.task_bytes
    return Scaled(devices, population, 1 + later, figures.start_s + seconds, sent, parts * BATCH * MEASURED_S / MEASURED_KEYS)


def arithmetic(figures: Figures) -> str:
    """Return the arithmetic as Markdown: a search as it is by default, and one whose population suits the devices."""
    rows = [["devices", "population", "generations", "scoring", "sent to workers", "latency table"]]
    for devices in DEVICES:
        for population in dict.fromkeys((SearchSettings().population, min(EVALUATIONS, max(24, 3 * devices)))):
            found = scaled(figures, devices, population)
            rows.append([
                str(devices), str(population), str(found.generations), f"{found.scoring_s / 60:.1f} min",
                f"{found.sent_bytes / MIB:,.0f} MiB", f"{found.table_s / 60:.1f} min",
            ])  # fmt: skip
    files = (
        f"Files: the supernet {figures.supernet_bytes / MIB:.1f} MiB, a checkpoint of its training (weights, AdamW's two moments) "
        f"{3 * figures.supernet_bytes / MIB:.1f} MiB, the history of a search {EVALUATIONS * 3 * figures.line_bytes / MIB:.2f} MiB."
    )
    return f"{markdown_rows(rows)}\n\n{files}\n"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="run folder with a trained supernet")
    parser.add_argument("--out", type=Path, help="Markdown file to write, with the figures beside it as JSON")
    parser.add_argument("--figures", type=Path, help="only print the arithmetic for the figures of a JSON file")
    parser.add_argument("--candidates", type=argument(Annotated[int, Range(2, 10**4)]), default=16, help="of a round")
    parser.add_argument("--rounds", type=argument(Annotated[int, Range(1, 1000)]), default=5, help="of each kind")
    parser.add_argument("--images", type=argument(Annotated[int, Range(2, 10**6)]), default=60, help="to score on")
    arguments = parser.parse_args()
    with one_sentence():
        if arguments.figures is not None:
            print(arithmetic(decode(Figures, arguments.figures, 1)))
        elif arguments.run is None or arguments.out is None:
            raise InvalidInput("give --run RUN and --out FILE, or --figures FILE")
        else:
            measure(arguments)


def measure(arguments: argparse.Namespace) -> None:
    """Time the rounds, and write the account."""
    supernet = SupernetRecord.read(arguments.run)
    data = open_dataset(supernet.data, check=False)
    job = SearchJob(run=arguments.run, images=arguments.images, finalists=0, settings=SearchSettings(threads=1))
    space, rng = supernet.space(), np.random.default_rng(0)
    candidates = [space.sample(rng) for _ in range(arguments.candidates)]
    times: dict[int, list[Round]] = {1: [], 2: []}
    with open_cluster(None, 2, 1) as cluster, bar("rounds") as shown:
        files = cluster.put({name: (arguments.run / name).read_bytes() for name in SUPERNET_FILES})
        for number in range(2 * arguments.rounds):
            workers = 1 + (number + number // 2) % 2  # 1 2 2 1 1 2 2 1
            pool = _pool(cluster, workers, (job, files, ["benchmarks.cluster"]), search_facts(data))
            times[workers].append(time_round(pool, candidates))
            pool.close()
            shown.update((number + 1) / (2 * arguments.rounds))
    one = times[1]
    figures = Figures(
        screen_s=statistics.median(r.screen_s for r in one) / len(candidates),
        whole_s=statistics.median(r.whole_s for r in one) / -(-len(candidates) // 2),
        start_s=statistics.median(r.start_s for r in one), supernet_bytes=supernet.path.stat().st_size,
        task_bytes=len(pickle.dumps(candidates[0])), line_bytes=len(candidates[0].to_json()) + 200,
    )  # fmt: skip
    write_json(arguments.out.with_suffix(".json"), {"format_version": 1, **asdict(figures)})
    write_text(arguments.out, account(times, len(candidates), figures, arguments))
    print(f"wrote {arguments.out}")


@dataclass(frozen=True)
class Round:
    """The seconds of one round."""

    start_s: float
    screen_s: float
    whole_s: float

    @property
    def seconds(self) -> float:
        """Of the scoring."""
        return self.screen_s + self.whole_s


def _pool(cluster: Cluster, workers: int, arguments: tuple[object, ...], expected: dict[str, object]) -> Pool:
    return Pool(replace(cluster, devices=cluster.devices[:workers]), SearchWorker, arguments, expected, print)


def time_round(pool: Pool, candidates: Sequence[Genotype]) -> Round:
    """Time a generation: all candidates are screened, half of them scored on all images."""
    marks = [time.perf_counter()]
    pool.kinds()
    marks.append(time.perf_counter())
    for kind, part in ((SCREEN, candidates), (SEARCH, candidates[::2])):
        for genotype in part:
            pool.submit((kind, genotype.id), "score", kind, genotype, near=(SCREEN, genotype.id))
        for genotype in part:
            pool.result((kind, genotype.id))
        marks.append(time.perf_counter())
    return Round(*(after - before for before, after in pairwise(marks)))


def account(times: dict[int, list[Round]], count: int, figures: Figures, arguments: argparse.Namespace) -> str:
    """Return what was measured, and the arithmetic, as Markdown."""
    rates = {workers: [count / found.seconds for found in rounds] for workers, rounds in times.items()}
    gain = statistics.median(rates[2]) / statistics.median(rates[1])
    rows = [["workers", "candidates per second, median", "least", "most", "start of the workers"]]
    for workers, found in rates.items():
        values = (statistics.median(found), min(found), max(found))
        start = f"{statistics.median(r.start_s for r in times[workers]):.1f} s"
        rows.append([str(workers), *(f"{value:.2f}" for value in values), start])
    return (
        "# Workers of a cluster on one machine\n\nPrinted by `python -m benchmarks.cluster --run RUN --out FILE "
        f"--candidates {arguments.candidates} --rounds {arguments.rounds} --images {arguments.images}`, on "
        f"{hardware()['cpu']}, {hardware()['usable_cores']} cores, one thread per worker.\n\n## Measured\n\n"
        f"{markdown_rows(rows)}\n\n"
        f"Two workers score **{gain:.2f}** times as many candidates per second as one (goal: {GOAL}; "
        f"{'reached' if gain >= GOAL else 'missed'}). A candidate takes {figures.screen_s:.2f} s to screen and "
        f"{figures.whole_s:.2f} s more on all images; {figures.task_bytes:,} bytes are sent for it.\n\n"
        f"## Arithmetic\n\nFrom these figures, for a search of {EVALUATIONS} evaluations; not measured.\n\n{arithmetic(figures)}"
    )


if __name__ == "__main__":
    main()

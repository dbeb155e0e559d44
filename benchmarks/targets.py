"""Compare two searches of one supernet for two targets: what each found, measured on both.

    python -m benchmarks.targets --run RUN_A --run RUN_B --out FILE

Each run holds a finished search (hyctas-search) with a latency table of its own; supernet, data and evaluations must be equal, so
that only the target differs. All members of both fronts are measured on both targets. A front is good on a target when it
dominates much there: hypervolume from mIoU 0 and from the limit on latency (or the slowest measured member).
Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.failures import one_sentence
from export.bench_report import markdown_rows
from export.codec import convert
from export.errors import InvalidInput
from export.files import read_json, write_json, write_text
from export.machine import fingerprint
from export.target import Target, format_size
from hyctas.arch.genotype import Genotype
from hyctas.artifacts.choice import READ_VERSIONS
from hyctas.cost.calibrate import measure_networks
from hyctas.engine.table_attention import open_target
from hyctas.search.front import dominated
from latency.accuracy import spearman

SAME = ("space", "size", "num_classes", "images", "eval_size")
HISTORY = ("supernet_sha256", "data", "evaluations", "seed", "population", "limits")


@dataclass(frozen=True)
class Found:
    """One finished search."""

    target: Target
    threads: int
    outcome: dict[str, Any]
    genotypes: dict[str, Genotype]
    miou: dict[str, float]

    @property
    def name(self) -> str:
        return f"{self.target}, {self.threads} thread{'s' if self.threads > 1 else ''}"


def read_run(run: Path) -> Found:
    """Read what a search left.

    Raises:
        InvalidInput: no finished search there.
    """
    path = run / "pareto.json"
    if not path.exists():
        raise InvalidInput(f"there is no {path}; run hyctas-search --run {run} first")
    outcome: dict[str, Any] = read_json(path, *READ_VERSIONS)
    genotypes = {member["id"]: convert(Genotype, member["genotype"]) for member in outcome["front"]}
    miou = {member["id"]: float(member["miou"]) for member in outcome["front"]}
    return Found(Target.parse(outcome["target"]), int(outcome["threads"]), outcome, genotypes, miou)


def check_comparable(runs: Sequence[Path], found: Sequence[Found]) -> None:
    """Require that nothing but the target differs.

    Raises:
        InvalidInput: the first thing that does.
    """
    headers = [json.loads((run / "history.jsonl").read_text().splitlines()[0]) for run in runs]
    for name in SAME:
        values = [one.outcome[name] for one in found]
        if values[0] != values[1]:
            raise InvalidInput(f"the searches differ in {name}: {values[0]} and {values[1]}")
    for name in HISTORY:
        values = [header.get(name) for header in headers]
        if values[0] != values[1]:
            raise InvalidInput(f"the searches differ in {name}: {values[0]} and {values[1]}")
    if found[0].name == found[1].name:
        raise InvalidInput(f"both searches are for {found[0].name}")


def measure(found: Sequence[Found], size: tuple[int, int], classes: int) -> list[dict[str, float]]:
    """Measure every member of both fronts on both targets; returns milliseconds by id, per target."""
    members = {name: genotype for one in found for name, genotype in one.genotypes.items()}
    times = []
    for one in found:

        def show(done: int, total: int, target: str = one.name) -> None:
            if done % 20 == 0 or done == total:
                print(f"{target}: {done}/{total}", file=sys.stderr, flush=True)

        runtime = open_target(one.target, one.threads)
        results = measure_networks(list(members.values()), runtime, size, classes, progress=show)[0]
        times.append(dict(zip(members, results.tolist(), strict=True)))
    return times


def hypervolume(front: Found, times: Mapping[str, float], reference_ms: float) -> float:
    """Return the share of the rectangle mIoU 0..1, latency 0..reference that a front dominates, as measured."""
    return dominated([(miou, times[name]) for name, miou in front.miou.items()], reference_ms)


def report(found: Sequence[Found], times: Sequence[Mapping[str, float]], command: str) -> tuple[str, dict[str, Any]]:
    """Return the account as Markdown and as JSON."""
    limit_ms = found[0].outcome["limits"]["latency_ms"]
    references = [limit_ms or max(by_id.values()) for by_id in times]
    volumes = [[hypervolume(one, by_id, ref) for by_id, ref in zip(times, references, strict=True)] for one in found]
    shared = set(found[0].genotypes) & set(found[1].genotypes)
    own = volumes[0][0] > volumes[1][0] and volumes[1][1] > volumes[0][1]
    size = format_size((found[0].outcome["size"][0], found[0].outcome["size"][1]))
    lines = [
        "# One supernet, two targets", "",
        f"Space {found[0].outcome['space']} at {size}, {fingerprint()['cpu']}, {fingerprint()['cores']} cores. "
        f"Limit on both: {f'{limit_ms:.2f} ms' if limit_ms else 'none'}. The fronts have {len(found[0].genotypes)} and "
        f"{len(found[1].genotypes)} members, {len(shared)} of them in both. "
        "mIoU with shared weights; every member was measured on both targets.", "",
        markdown_rows([
            ["searched for", *(f"hypervolume on {one.name}" for one in found)],
            *([one.name, *(f"{volume:.4f}" for volume in row)] for one, row in zip(found, volumes, strict=True)),
        ]), "",
        f"Each front dominates more on its own target: {'yes' if own else 'no'}.", "",
    ]  # fmt: skip
    for one in found:
        rows = [["network", "mIoU", *(f"ms on {other.name}" for other in found)]]
        rows += [[name, f"{miou:.3f}", *(f"{by_id[name]:.2f}" for by_id in times)] for name, miou in one.miou.items()]
        lines += [f"Front searched for {one.name}:", "", markdown_rows(rows), ""]
    first, second = (np.array([by_id[name] for name in times[0]]) for by_id in times)
    rank = spearman(first, second)
    lines += [f"Rank correlation of all members' latencies between the targets: {rank:.3f}.", "", "```", command, "```", ""]
    value = {
        "format_version": 1, "machine": fingerprint(), "targets": [one.name for one in found], "hypervolume": volumes,
        "reference_ms": references, "own_better": own, "rank_correlation": rank,
        "fronts": [{n: {"miou": one.miou[n], "ms": [t[n] for t in times]} for n in one.miou} for one in found],
    }  # fmt: skip
    return "\n".join(lines), value


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, action="append", required=True, help="run folder of a search; give two")
    parser.add_argument("--out", type=Path, required=True, help="FILE.md and FILE.json")
    given = parser.parse_args(arguments)
    with one_sentence():
        if len(given.run) != 2:
            raise InvalidInput(f"give --run twice, got {len(given.run)}")
        found = [read_run(run) for run in given.run]
        check_comparable(given.run, found)
        height, width = found[0].outcome["size"]
        times = measure(found, (height, width), found[0].outcome["num_classes"])
        command = "python -m benchmarks.targets " + " ".join(sys.argv[1:] if arguments is None else arguments)
        text, value = report(found, times, command)
        write_text(given.out.with_suffix(".md"), text)
        write_json(given.out.with_suffix(".json"), value)
        print(text)


if __name__ == "__main__":
    main()

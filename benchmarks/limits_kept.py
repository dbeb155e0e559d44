"""Do limits hold on a device, where a search would break them most: for its most accurate networks just below the limit?

    python -m benchmarks.limits_kept --run RUN --out FILE

RUN holds finished searches (`hyctas-search --several`) with limits on latency, with `--confidence` or without. Of each, the scored
networks nearest below the limit are measured, by the bound where there is one and else by the prediction. Nothing else should run
meanwhile.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.failures import one_sentence
from export.bench_report import markdown_rows
from export.errors import CheckFailed, InvalidInput
from export.files import sha256, write_json, write_text
from export.machine import fingerprint
from export.target import format_size
from hyctas.artifacts.choice import Outcome, read_outcome
from hyctas.artifacts.inherit import SupernetRecord
from hyctas.commands.measured_networks import measure_evaluations
from hyctas.commands.search_several import FOLDER
from hyctas.cost.workloads import CostModel
from hyctas.search.history import SEARCH, Evaluation, read_history
from latency import LatencyTable

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What the networks of one search took."""

    search: str
    limit_ms: float
    confidence: float | None
    bound_factor: float
    chosen_ms: float
    """What the search measured of the network that it chose."""
    predicted_ms: list[float]
    measured_ms: list[float]

    @property
    def kept(self) -> int:
        """How many networks meet the limit."""
        return sum(ms <= self.limit_ms for ms in self.measured_ms)


def nearest(evaluations: Sequence[Evaluation], limit_ms: float, factor: float, count: int) -> list[Evaluation]:
    """Return the scored networks whose bound, factor times prediction, is nearest below the limit.

    Raises:
        InvalidInput: there are not so many.
    """
    below = sorted((e for e in evaluations if factor * e.predicted_ms <= limit_ms), key=lambda e: -e.predicted_ms)
    if len(below) < count:
        raise InvalidInput(
            f"the search scored {len(below)} networks below {limit_ms:.4g} ms; give --networks {len(below)} or fewer"
        )
    return below[:count]


def judge(folder: Path, path: Path, count: int) -> Kept:
    """Measure a search's networks near the limit, given the latency table that it followed.

    Raises:
        InvalidInput: it had no limit on latency, followed another table, or scored too few networks.
        CheckFailed: the table is of another machine.
    """
    outcome, (header, evaluations, _) = read_outcome(folder), read_history(folder / "history.jsonl")
    if header["table_sha256"] != sha256(path):
        raise InvalidInput(f"the search in {folder} followed another latency table than {path}")
    limit_ms, classes = outcome.limits.latency_ms, outcome.num_classes
    if limit_ms is None or classes is None:
        raise InvalidInput(f"the search in {folder} had no limit on latency; search with --limit fps=...")
    model = CostModel(SupernetRecord.read(folder).space(), LatencyTable.load(path), outcome.size, classes, outcome.confidence)
    chosen = nearest([e for e in evaluations if e.kind == SEARCH], limit_ms, model.bound_factor, count)
    times = measure_evaluations(f"networks of {folder.name}", chosen, model)
    if not times:
        raise CheckFailed("nothing was measured; run this where the latency table was measured")
    return Kept(search=folder.name, limit_ms=limit_ms, confidence=outcome.confidence, bound_factor=model.bound_factor,
                chosen_ms=outcome.choice.latency_ms, predicted_ms=[e.predicted_ms for e in chosen],
                measured_ms=[times[e.id] for e in chosen])  # fmt: skip


def report(found: Sequence[Kept], first: Outcome, command: str) -> str:
    """Return the account as Markdown."""
    rows = [["search", "limit ms", "applied to", "networks", "kept by", "slowest / limit", "median predicted / measured",
             "chosen network's ms"]]  # fmt: skip
    for one in found:
        applied = f"bound of {one.confidence:.0%}: {one.bound_factor:.3f} x prediction" if one.confidence else "prediction"
        ratio = float(np.median(np.divide(one.predicted_ms, one.measured_ms)))
        count, slowest = len(one.measured_ms), max(one.measured_ms) / one.limit_ms
        rows.append([one.search, f"{one.limit_ms:.2f}", applied, str(count), f"{one.kept / count:.0%}", f"{slowest:.3f}",
                     f"{ratio:.3f}", f"{one.chosen_ms:.2f}"])  # fmt: skip
    bounded = [one for one in found if one.confidence]
    count = sum(len(one.measured_ms) for one in bounded)
    sums = f"Of {count} networks just below a limit on the bound, {sum(one.kept for one in bounded)} keep it.\n\n" if count else ""
    machine = fingerprint()
    return (
        f"# Limits, kept\n\n{first.target}, {first.threads} threads, {format_size(first.size)}; {machine['cpu']}, "
        f"{machine['cores']} cores. Of each search, the scored networks nearest below its limit, measured.\n\n"
        + markdown_rows(rows, 3) + f"\n\n{sums}```\n{command}\n```\n"
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="run folder with a latency table and several finished searches")
    parser.add_argument("--networks", type=int, default=40, help="networks that are measured per search")
    parser.add_argument("--out", type=Path, required=True, help="FILE.md and FILE.json")
    given = parser.parse_args(arguments)
    with one_sentence():
        folders = sorted(path.parent for path in (given.run / FOLDER).glob("*/pareto.json"))
        if not folders:
            raise InvalidInput(
                f"there is no finished search in {given.run / FOLDER}; run hyctas-search --run {given.run} --several"
            )
        found = [judge(folder, given.run / "latency.json", given.networks) for folder in folders]
        text = report(found, read_outcome(folders[0]),
                      "python -m benchmarks.limits_kept " + " ".join(sys.argv[1:] if arguments is None else arguments))  # fmt: skip
        write_text(given.out.with_suffix(".md"), text)
        write_json(given.out.with_suffix(".json"), {"format_version": FORMAT_VERSION, "machine": fingerprint(),
                                                   "searches": [asdict(one) for one in found]})  # fmt: skip
        print(text)


if __name__ == "__main__":
    main()

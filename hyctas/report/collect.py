"""Read everything that a run folder holds for its report, and check it. Nothing here writes or computes results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from export.bench_report import FORMAT_VERSION as BENCH_VERSION
from export.bench_report import BenchReport
from export.bundle.manifest import read_manifest
from export.codec import decode
from export.errors import CorruptFile, InvalidInput, Perform
from export.parity import ParityReport
from hyctas.arch.genotype import Genotype
from hyctas.artifacts.choice import READ_VERSIONS as PARETO_VERSIONS
from hyctas.artifacts.choice import Outcome
from hyctas.artifacts.runs import FORMAT_VERSION as RECORD_VERSION
from hyctas.artifacts.runs import Record
from hyctas.data.labels import Labels
from hyctas.data.metric import SCORES_VERSION, Scores
from hyctas.report.run_data import FILES, RunData
from hyctas.search.history import Evaluation, read_history
from latency.table import LatencyTable

T = TypeVar("T")
COMMANDS = ("profile", "train-supernet", "search", "train-network")
"""In the order in which they are run; each keeps `<command>.json`."""


def collect(run: Path, step_name: Callable[[str], str] = str) -> RunData:
    """Read a run folder; `step_name` says what its reader calls a step of the job.

    Raises:
        InvalidInput: no such folder, or nothing in it that a report could show.
        CorruptFile: a file is there but cannot be used; names the file and, for a history, the line.
    """
    run = Path(run)
    if not run.is_dir():
        raise InvalidInput(f"there is no run folder {run}", Perform("profile", {"run": run}))
    sizes = {name: (run / name).stat().st_size for name in FILES if (run / name).is_file()}
    records = tuple(record for command in COMMANDS if (record := _optional(Record, run / f"{command}.json", RECORD_VERSION)))
    if not sizes and not records:
        raise InvalidInput(f"{run} holds nothing to report", Perform("search", {"run": run}))
    history = run / "history.jsonl"
    _, recorded, torn = read_history(history) if history.is_file() else ({}, [], b"")
    points = tuple(recorded)
    labels = _optional(Labels, run / "labels.json")
    scores = _optional(Scores, run / "scores.json", SCORES_VERSION)
    by_split = scores.by_split if scores else {}
    timed = run / ("fps.json" if "fps.json" in sizes else "bench.json")
    for split, score in by_split.items():
        if labels is not None and len(score.iou) != labels.num_classes:
            raise CorruptFile(run / "scores.json", f"{split} has {len(score.iou)} classes; labels.json names {labels.num_classes}")
    outcome = _optional(Outcome, run / "pareto.json", *PARETO_VERSIONS)
    if points and outcome is not None:
        _check_recorded(run / "pareto.json", outcome, points)
    return RunData(
        folder=run,
        step_name=step_name,
        table=LatencyTable.load(run / "latency.json") if "latency.json" in sizes else None,
        records=records,
        points=points,
        outcome=outcome,
        trained=_optional(Genotype, run / "genotype.json"),
        scores=by_split,
        scored=scores.genotype if scores else None,
        labels=labels,
        bench=_optional(BenchReport, timed, BENCH_VERSION),
        parity=_optional(ParityReport, run / "bundle" / "parity.json"),
        manifest=read_manifest(run / "bundle") if (run / "bundle" / "manifest.json").is_file() else None,
        sizes=sizes,
        notices=(f"history.jsonl ends in a torn line ({len(torn)} bytes), which is left out here",) if torn else (),
    )


def _optional(kind: type[T], path: Path, *format_versions: int) -> T | None:
    """Read a JSON file; None where it is absent."""
    return decode(kind, path, *format_versions) if path.is_file() else None


def _check_recorded(path: Path, outcome: Outcome, points: Sequence[Evaluation]) -> None:
    """Refuse a front whose networks are not those of the history that it was drawn from."""
    recorded = {(point.kind, point.id): point for point in points}
    for found in (member.evaluation for member in outcome.members):
        if recorded.get((found.kind, found.id)) != found:
            reason = f"says of the network {found.id} other than history.jsonl beside it"
            raise CorruptFile(path, reason, None, Perform("search", {"run": path.parent}))

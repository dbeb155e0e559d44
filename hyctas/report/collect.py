"""Read everything that a run folder holds for its report, and check it. Nothing here writes or computes results. No torch here."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from export.bench_report import FORMAT_VERSION as BENCH_VERSION
from export.bench_report import BenchReport, BenchResult
from export.bundle.manifest import read_manifest
from export.errors import CorruptFile, InvalidInput, Perform
from export.files import parse_json, read_json
from export.parity import ParityReport
from export.ranges import check_types
from export.target import parse_size
from hyctas.arch.genotype import Genotype
from hyctas.artifacts.choice import READ_VERSIONS as PARETO_VERSIONS
from hyctas.artifacts.runs import FORMAT_VERSION as RECORD_VERSION
from hyctas.data.labels import Labels
from hyctas.data.metric import POLICY, Score
from hyctas.report.run_data import FILES, SPLITS, Ended, Member, Outcome, Record, RunData
from hyctas.search.history import READ_VERSIONS as HISTORY_VERSIONS
from hyctas.search.history import SCREEN, SEARCH, Evaluation
from hyctas.search.limits import Limits
from latency.table import LatencyTable

T = TypeVar("T")
SCORES_VERSION = 1
END = ("handmade", "trained_miou", "end", "failure")
"""What pareto.json says of a finalist besides."""
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
    records = tuple(record for command in COMMANDS if (record := _optional(run / f"{command}.json", _record, RECORD_VERSION)))
    if not sizes and not records:
        raise InvalidInput(f"{run} holds nothing to report", Perform("search", {"run": run}))
    points, notices = _history(run / "history.jsonl")
    labels = _optional(run / "labels.json", Labels.from_json)
    scores, scored = _optional(run / "scores.json", _scores, SCORES_VERSION) or ({}, None)
    timed = run / ("fps.json" if "fps.json" in sizes else "bench.json")
    bench, bench_command = _optional(timed, _bench, BENCH_VERSION) or (None, ())
    for split, score in scores.items():
        if labels is not None and len(score.iou) != labels.num_classes:
            raise CorruptFile(
                run / "scores.json", f"{split} has {len(score.iou)} classes; labels.json names {labels.num_classes}"
            )
    outcome = _optional(run / "pareto.json", _outcome, *PARETO_VERSIONS)
    if points and outcome is not None:
        _check_recorded(run / "pareto.json", outcome, points)
    return RunData(
        folder=run,
        step_name=step_name,
        table=LatencyTable.load(run / "latency.json") if "latency.json" in sizes else None,
        records=records,
        points=points,
        outcome=outcome,
        trained=_optional(run / "genotype.json", lambda value: Genotype.from_json(json.dumps(value))),
        scores=scores,
        scored=scored,
        labels=labels,
        bench=bench,
        bench_command=bench_command,
        parity=_optional(run / "bundle" / "parity.json", ParityReport.from_json),
        manifest=_optional(run / "bundle" / "manifest.json", lambda _: read_manifest(run / "bundle")),
        sizes=sizes,
        notices=notices,
    )


def _optional(path: Path, parse: Callable[[Any], T], *format_versions: int) -> T | None:
    """Read a JSON file; None where it is absent."""
    if not path.is_file():
        return None
    try:
        return parse(read_json(path, *format_versions))
    except KeyError as error:
        raise CorruptFile(path, f"lacks the field {error}") from None
    except (TypeError, ValueError, OverflowError, AttributeError, RecursionError, InvalidInput) as error:
        raise CorruptFile(path, f"a field has the wrong form ({error})") from None


def _history(path: Path) -> tuple[tuple[Evaluation, ...], tuple[str, ...]]:
    """Read a history without changing it; a torn last line is left out with a notice."""
    if not path.is_file():
        return (), ()
    *lines, torn = path.read_bytes().split(b"\n")  # what follows the last newline is empty in a whole file
    evaluations = []
    for number, line in enumerate(lines, 1):
        try:
            value = parse_json(line)
            if number > 1:
                evaluations.append(Evaluation.from_json(value))
            elif not isinstance(value, dict) or value.get("format_version") not in HISTORY_VERSIONS:
                raise ValueError(f"not the header of a history of format_version {' or '.join(map(str, HISTORY_VERSIONS))}")
        except (ValueError, RecursionError) as error:
            raise CorruptFile(path, f"bad line ({error})", number) from None
    notice = (f"history.jsonl ends in a torn line ({len(torn)} bytes), which is left out here",) if torn else ()
    return tuple(evaluations), notice


def _check_recorded(path: Path, outcome: Outcome, points: Sequence[Evaluation]) -> None:
    """Refuse a front whose networks are not those of the history that it was drawn from."""
    recorded = {(point.kind, point.id): point for point in points}
    for found in (member.evaluation for member in outcome.members):
        if recorded.get((found.kind, found.id)) != found:
            reason = f"says of the network {found.id} other than history.jsonl beside it"
            raise CorruptFile(path, reason, None, Perform("search", {"run": path.parent}))


def _number(value: Any, name: str, highest: float = math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or not 0 <= value <= highest:
        raise ValueError(f"{name} is {value!r}, not a number of 0 or more" + (f" up to {highest:g}" if highest < math.inf else ""))
    return value


def _positive(value: Any, name: str) -> float:
    if _number(value, name) == 0:
        raise ValueError(f"{name} is 0")
    return float(value)


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}, neither true nor false")
    return value


def _size(value: Any) -> tuple[int, int]:
    height, width = parse_size(value) if isinstance(value, str) else value
    return int(_positive(height, "size")), int(_positive(width, "size"))


def _record(value: Any) -> Record:
    return Record(
        command=str(value["command"]),
        state=str(value["state"]),
        started=str(value["started"]),
        finished=None if value.get("finished") is None else str(value["finished"]),
        command_line=tuple(str(part) for part in value["command_line"]),
        versions={str(name): str(version) for name, version in value["versions"].items()},
        machine=dict(value["machine"]),
        config=dict(value["config"]),
    )


def _member(value: Any) -> Member:
    known = {name: item for name, item in value.items() if name not in (*END, "measured_ms", "branches")}
    measured = value["measured_ms"]
    end = None
    if "end" in value:
        trained = tuple(_number(miou, "trained_miou", 1) for miou in value["trained_miou"])
        end = Ended(value["handmade"], trained, value["end"], value["failure"])
        check_types(end)
    return Member(Evaluation.from_json(known), None if measured is None else _positive(measured, "measured_ms"), end)


def _outcome(value: Any) -> Outcome:
    front, finalists = (tuple(map(_member, members)) for members in (value["front"], value.get("finalists", ())))
    chosen = [member for member in (*finalists, *front) if member.id == value["chosen"]]
    if not chosen:
        raise ValueError(f"the chosen network {value['chosen']!r} is neither a finalist nor on the front")
    calibration = value.get("calibration")
    if isinstance(calibration, Mapping):
        calibration = calibration["name"]
    limits = {name: None if limit is None else _positive(limit, name) for name, limit in value["limits"].items()}
    return Outcome(
        target=str(value["target"]),
        size=_size(value["size"]),
        classes=None if value.get("num_classes") is None else int(_positive(value["num_classes"], "num_classes")),
        limits=Limits(**limits),
        reference_ms=_positive(value["reference_ms"], "reference_ms"),
        scored=int(_number(value["evaluations"][SEARCH], "evaluations")),
        screened=int(_number(value["evaluations"].get(SCREEN, 0), "evaluations")),
        hypervolume=_number(value["hypervolume"][SEARCH], "hypervolume", 1),
        front=front,
        finalists=finalists,
        chosen=chosen[0],
        calibration=None if calibration is None else str(calibration),
    )


def _scores(value: Any) -> tuple[dict[str, Score], str | None]:
    scored = value.get("genotype")
    return {split: _score(value[split]) for split in SPLITS if value.get(split) is not None}, scored and str(scored)


def _score(value: Any) -> Score:
    iou = tuple(None if share is None else _number(share, "iou", 1) for share in value["iou"])
    present = value.get("present", [share is not None for share in iou])
    if len(present) != len(iou):
        raise ValueError(f"present has {len(present)} classes, iou {len(iou)}")
    return Score(
        miou=_number(value["miou"], "miou", 1),
        iou=iou,
        pixel_accuracy=_number(value["pixel_accuracy"], "pixel_accuracy", 1),
        present=tuple(_flag(p, "present") for p in present),
        policy=str(value.get("policy", POLICY)),
    )


def _bench(value: Any) -> tuple[BenchReport, tuple[str, ...]]:
    fields = {name: item for name, item in value.items() if name not in ("format_version", "command_line")}
    command = tuple(str(part) for part in value.get("command_line", ()))
    models = tuple(BenchResult(**{**model, "notes": tuple(map(str, model.get("notes", ())))}) for model in fields["models"])
    if not models:
        raise ValueError("it lists no models")
    for model in models:
        for name in ("median_ms", "p90_ms", "p95_ms", "p99_ms", "min_ms", "fps", "n"):
            _positive(getattr(model, name), name)
        _number(model.cv, "cv")
        if model.size is not None:
            parse_size(model.size)
        check_types(model)
        if not model.min_ms <= model.median_ms <= model.p90_ms <= model.p95_ms <= model.p99_ms:
            raise ValueError(f"the times of {model.name!r} are not in ascending order")
        if abs(model.fps * model.median_ms / 1000 - 1) > 0.01:
            raise ValueError(f"{model.name!r} has {model.fps} FPS at a median of {model.median_ms} ms")
    report = BenchReport(**{**fields, "models": models, "warnings": tuple(map(str, fields.get("warnings", ())))})
    check_types(report)
    if report.others_share is not None:
        _number(report.others_share, "others_share", 1)
    return report, command

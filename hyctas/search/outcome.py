"""Write what a search found: pareto.json. No torch here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from export.files import write_json
from hyctas.choice import FORMAT_VERSION
from hyctas.search.front import hypervolume, pareto
from hyctas.search.history import Evaluation, History
from hyctas.search.limits import Limits


def choose(front: Sequence[Evaluation], measured_ms: dict[str, float], limits: Limits) -> Evaluation:
    """Return the most accurate member of a front whose measured latency keeps the limit.

    Where nothing was measured the prediction counts; where every measured member breaks the limit, the fastest is taken (the
    report says so).
    """
    candidates = [e for e in front if e.id in measured_ms] or list(front)

    def latency(evaluation: Evaluation) -> float:
        return measured_ms.get(evaluation.id, evaluation.predicted_ms)

    limit = limits.latency_ms or float("inf")
    return max((e for e in candidates if latency(e) <= limit), key=lambda e: e.miou, default=min(candidates, key=latency))


def write_outcome(
    path: Path, history: History, limits: Limits, reference_ms: float, measured_ms: dict[str, float], facts: dict[str, Any]
) -> dict[str, Any]:
    """Write pareto.json and return its content.

    Args:
        path: the file.
        history: finished.
        limits: asked for.
        reference_ms: latency of the hypervolume's reference point.
        measured_ms: measured latency by genotype id, for members of the front.
        facts: further facts of the search (target, size, calibration, ...).
    """
    search, random = history.of("search"), history.of("random")
    front = pareto(search)
    outcome = {
        "format_version": FORMAT_VERSION,
        **facts,
        "limits": asdict(limits),
        "reference_ms": reference_ms,
        "evaluations": {"search": len(search), "random": len(random)},
        "hypervolume": {"search": hypervolume(search, reference_ms), "random": hypervolume(random, reference_ms)},
        "chosen": choose(front, measured_ms, limits).id,
        "front": [_member(e, measured_ms) for e in front],
        "random_front": [_member(e, measured_ms) for e in pareto(random)],
    }
    write_json(path, json.loads(json.dumps(outcome)))
    return outcome


def _member(evaluation: Evaluation, measured_ms: dict[str, float]) -> dict[str, Any]:
    return {
        **evaluation.to_json(), "measured_ms": measured_ms.get(evaluation.id), "branches": len(evaluation.genotype.branches),
    }  # fmt: skip

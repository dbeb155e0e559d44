"""Write what a search found, and what its finalists came to: pareto.json. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from export.codec import plain
from export.files import read_json, write_json
from hyctas.artifacts.choice import FORMAT_VERSION
from hyctas.search.finalists import Finalist, Round, described
from hyctas.search.front import hypervolume, pareto
from hyctas.search.history import SCREEN, SEARCH, Evaluation, History
from hyctas.search.limits import Limits


def choose(front: Sequence[Evaluation], measured_ms: dict[str, float], limits: Limits) -> Evaluation:
    """Return the most accurate member of a front whose measured latency meets the limit.

    Where nothing was measured the prediction counts; where every measured member exceeds the limit, the fastest is taken (the
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
    scored = history.of(SEARCH)
    front = pareto(scored)
    outcome: dict[str, Any] = plain({
        "format_version": FORMAT_VERSION,
        **facts,
        "limits": limits,
        "reference_ms": reference_ms,
        "evaluations": {SEARCH: len(scored), SCREEN: len(history.of(SCREEN))},
        "hypervolume": {SEARCH: hypervolume(scored, reference_ms)},
        "chosen": choose(front, measured_ms, limits).id,
        "front": [_member(e, measured_ms) for e in front],
    })
    write_json(path, outcome)
    return outcome


def add_finalists(path: Path, finalists: Sequence[Finalist], rounds: Sequence[Round]) -> dict[str, Any]:
    """Write into pareto.json what became of the finalists: the winner is the chosen network, where there is one.

    Returns:
        The content of pareto.json.
    """
    outcome: dict[str, Any] = read_json(path, FORMAT_VERSION)
    outcome["finalists"] = [described(finalist, rounds) for finalist in finalists]
    if winner := rounds[-1].kept[:1]:
        outcome |= {"chosen": winner[0], "weights": weights_folder(winner[0], len(rounds))}
    write_json(path, outcome)
    return outcome


def weights_folder(id: str, number: int) -> str:
    """Name the folder of a finalist's training in round N, inside the run folder."""
    return f"finalists/{id}/round-{number}"


def _member(evaluation: Evaluation, measured_ms: dict[str, float]) -> dict[str, Any]:
    return {
        **evaluation.to_json(), "measured_ms": measured_ms.get(evaluation.id), "branches": len(evaluation.genotype.branches),
    }  # fmt: skip

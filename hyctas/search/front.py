"""Compare sets of evaluated networks: Pareto fronts, hypervolume, and the choice of one network. No torch here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hyctas.search.history import Evaluation


def pareto(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Return the networks that no other beats in mIoU without being slower, fastest first."""
    front: list[Evaluation] = []
    best = -1.0
    for evaluation in sorted(evaluations, key=lambda e: (e.predicted_ms, -e.miou, e.id)):
        if evaluation.miou > best:
            front.append(evaluation)
            best = evaluation.miou
    return front


def hypervolume(evaluations: Sequence[Evaluation], reference_ms: float) -> float:
    """Return the share of the rectangle mIoU 0..1, latency 0..reference that the networks dominate (Zitzler and Thiele, 1999).

    Args:
        evaluations: any networks; those slower than the reference count nothing.
        reference_ms: fixed before the search.
    """
    return dominated([(e.miou, e.predicted_ms) for e in evaluations], reference_ms)


def dominated(points: Sequence[tuple[float, float]], reference_ms: float) -> float:
    """Return the share of the rectangle mIoU 0..1, latency 0..reference that points (mIoU, ms) dominate."""
    from pymoo.indicators.hv import HV

    inside = np.array([[-miou, ms / reference_ms] for miou, ms in points if ms < reference_ms])
    return float(HV(ref_point=np.array([0.0, 1.0]))(inside)) if len(inside) else 0.0


def spread(front: Sequence[Evaluation], count: int) -> list[Evaluation]:
    """Return `count` members of a front, both ends among them, evenly spread over its order."""
    if len(front) <= count:
        return list(front)
    if count == 1:
        return [front[-1]]
    return [front[i] for i in sorted({round(i * (len(front) - 1) / (count - 1)) for i in range(count)})]

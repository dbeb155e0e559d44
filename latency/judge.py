"""Judge predictions by measured networks, with the error that measuring twice has beside it, and bound the next one."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from export.errors import InvalidInput
from latency.fidelity import Fidelity, Values, checked, fidelity


@dataclass(frozen=True)
class Judgement:
    """How good predictions are, and how good they could be."""

    fidelity: Fidelity
    bias: float
    """Median of predicted / measured - 1: positive where predictions are too slow."""
    worst: int
    """Index of the network with the largest relative error."""
    worst_error: float
    """Its predicted / measured - 1."""
    repeat: Fidelity | None = None
    """A second measurement of the same networks, judged as if it were the prediction; None where there is none."""

    def to_json(self) -> dict[str, Any]:
        """Give plain data for JSON."""
        return asdict(self)

    def to_markdown(self) -> str:
        """Give a table with a row for the prediction and one for the repeated measurement."""
        rows = [("predicted", self.fidelity)]
        if self.repeat is not None:
            rows.append(("measured again", self.repeat))
        lines = [
            "| | networks | MAPE | within 5 % | within 10 % | Spearman | Kendall |",
            "|---|---:|---:|---:|---:|---:|---:|",
            *(
                f"| {name} | {f.n} | {f.mape:.1%} | {f.within5:.0%} | {f.within10:.0%} "
                f"| {f.spearman:.3f} | {f.kendall:.3f} |"
                for name, f in rows
            ),
            "",
            f"Median bias {self.bias:+.1%}; worst {self.worst_error:+.1%} (network {self.worst}).",
        ]
        return "\n".join(lines) + "\n"


def judge(predicted: Values, measured: Values, repeat: Values | None = None) -> Judgement:
    """Judge predictions against measurements of the same networks, in the same order.

    Args:
        predicted: ms.
        measured: ms.
        repeat: a second measurement of the same networks, ms. Its error is the least that any prediction can reach.

    Raises:
        InvalidInput: lengths differ, nothing given, or a value is not positive and finite.
    """
    score = fidelity(predicted, measured)
    error = checked("predicted", predicted) / checked("measured", measured) - 1
    worst = int(np.argmax(np.abs(error)))
    again = None if repeat is None else fidelity(checked("repeated", repeat), measured)
    return Judgement(score, float(np.median(error)), worst, float(error[worst]), again)


def conformal_bound(ratios: Values, confidence: float) -> float:
    """Give the factor that turns a prediction into an upper bound of stated confidence (split conformal prediction).

    For a new network drawn like those behind `ratios`, measured <= factor * predicted with at least this probability,
    over the draw of all of them (Lei et al. 2018, theorem 2.2); no assumption on the error's distribution. With
    cross-validated ratios, as in `Calibration.ratios`, this holds closely but not exactly.

    Args:
        ratios: measured / predicted of networks that the prediction was not fitted on (`Calibration.ratios`).
        confidence: above 0, below 1.

    Raises:
        InvalidInput: too few ratios for this confidence, or a value out of range.
    """
    values = np.sort(checked("ratio of", ratios))
    if not 0 < confidence < 1:
        raise InvalidInput(f"confidence {confidence} must be above 0 and below 1")
    rank = math.ceil((values.size + 1) * confidence - 1e-9)
    if rank > values.size:
        needed = math.ceil(confidence / (1 - confidence) - 1e-9)
        raise InvalidInput(f"a bound of confidence {confidence} needs at least {needed} networks; got {values.size}")
    return float(values[max(rank, 1) - 1])

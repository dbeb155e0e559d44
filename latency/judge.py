"""Judge predictions by measured networks, with the error that measuring twice has beside it, and bound the next one."""

from __future__ import annotations

import bisect
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from export.bench_report import markdown_rows
from export.errors import InvalidInput
from latency.accuracy import HEAD, Fidelity, Values, checked, fidelity

ASSURANCE = 0.9
"""Probability, over calibrations, that a bound keeps its confidence."""


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
        table = markdown_rows([("", "networks", *HEAD), *((name, str(f.n), *f.cells()) for name, f in rows)])
        return f"{table}\n\nMedian bias {self.bias:+.1%}; worst {self.worst_error:+.1%} (network {self.worst}).\n"


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


def conformal_bound(ratios: Values, confidence: float, assurance: float = ASSURANCE) -> float:
    """Give the factor that turns a prediction into an upper bound that holds for the calibration at hand.

    Of networks drawn like those behind `ratios`, a share of at least `confidence` takes at most factor * predicted, with
    probability `assurance` over calibrations. The share below the r-th smallest of n ratios has the distribution
    Beta(r, n + 1 - r), whatever the ratios' own; the factor is the smallest order statistic that keeps the promise (Vovk,
    "Conditional validity of inductive conformal predictors", 2012, proposition 2a; Wilks 1941 for tolerance limits). A plain
    conformal bound keeps its confidence only on the average over calibrations. With cross-validated ratios, as in
    `Calibration.ratios`, this holds closely but not exactly.

    Args:
        ratios: measured / predicted of networks that the prediction was not fitted on (`Calibration.ratios`).
        confidence: share of networks, above 0, below 1.
        assurance: probability over calibrations, above 0, below 1.

    Raises:
        InvalidInput: too few ratios for this confidence, or a value out of range.
    """
    values = np.sort(checked("ratio of", ratios))
    for name, value in (("confidence", confidence), ("assurance", assurance)):
        if not 0 < value < 1:
            raise InvalidInput(f"{name} {value} must be above 0 and below 1")
    if _assured(values.size, values.size, confidence) < assurance:
        needed = math.ceil(math.log(1 - assurance) / math.log(confidence) - 1e-9)
        raise InvalidInput(
            f"a bound of confidence {confidence} that holds with probability {assurance} needs at least {needed} networks; got "
            f"{values.size}"
        )
    ranks = range(1, values.size + 1)
    return float(values[bisect.bisect_left(ranks, assurance, key=lambda rank: _assured(rank, values.size, confidence))])


def _assured(rank: int, count: int, confidence: float) -> float:
    """Return P(Beta(rank, count + 1 - rank) >= confidence) = P(Binomial(count, confidence) < rank)."""
    return math.fsum(math.comb(count, k) * confidence**k * (1 - confidence) ** (count - k) for k in range(rank))

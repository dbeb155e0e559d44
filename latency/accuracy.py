"""Score predicted against measured latencies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from export.codec import Count, NotNegative, Share
from export.errors import InvalidInput

Values = Sequence[float] | np.ndarray
HEAD = ("MAPE", "within 5 %", "within 10 %", "Spearman", "Kendall")


@dataclass(frozen=True)
class Fidelity:
    """How well predictions agree with measurements. Shares are 0 to 1, not per cent."""

    mape: NotNegative
    """Mean absolute error as a share of the measured value."""
    within5: Share
    """Share of the networks predicted within 5 % of the measured value."""
    within10: Share
    """Share of the networks predicted within 10 %."""
    spearman: float
    """Rank correlation; 0 where undefined (fewer than two networks, or all equal)."""
    kendall: float
    """Kendall's tau-b; 0 where undefined."""
    n: Count
    """Number of networks."""

    def cells(self) -> list[str]:
        """Return the figures as a row of a table below `HEAD`."""
        return [
            f"{self.mape:.1%}", f"{self.within5:.0%}", f"{self.within10:.0%}", f"{self.spearman:.3f}", f"{self.kendall:.3f}",
        ]  # fmt: skip


def checked(name: str, values: Values) -> np.ndarray:
    """Return latencies as a float array (n,).

    Raises:
        InvalidInput: not one-dimensional, or some value is not positive and finite.
    """
    array = np.asarray(values, dtype=float)
    if array.ndim != 1:
        raise InvalidInput(f"{name} latencies must be a flat sequence; got shape {array.shape}")
    bad = np.flatnonzero(~(np.isfinite(array) & (array > 0)))
    if bad.size:
        raise InvalidInput(f"{name} latency {bad[0]} is {array[bad[0]]}; latencies are positive and finite (ms)")
    return array


def fidelity(predicted: Values, measured: Values) -> Fidelity:
    """Compare predictions with measurements of the same networks, in the same order.

    Raises:
        InvalidInput: lengths differ, nothing given, or a value is not positive and finite.
    """
    p, m = checked("predicted", predicted), checked("measured", measured)
    if p.size != m.size or not p.size:
        raise InvalidInput(f"got {p.size} predicted and {m.size} measured latencies; give as many of both, at least one")
    error = np.abs(p - m) / m
    within5, within10 = (float(np.mean(error <= limit + 1e-12)) for limit in (0.05, 0.10))
    return Fidelity(float(error.mean()), within5, within10, spearman(p, m), kendall(p, m), int(p.size))


def ranks(values: np.ndarray) -> np.ndarray:
    """Rank from 1; equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + 1 + last) / 2)[inverse]


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation; 0 where undefined."""
    x, y = ranks(a), ranks(b)
    x, y = x - x.mean(), y - y.mean()
    norm = float(np.sqrt((x @ x) * (y @ y)))
    return float(np.clip(x @ y / norm, -1, 1)) if norm > 0 else 0.0


def kendall(a: np.ndarray, b: np.ndarray) -> float:
    """Kendall's tau-b; 0 where undefined. Row by row: O(n) memory, O(n^2) time."""
    concordance = pairs_a = pairs_b = 0.0
    for i in range(a.size - 1):
        da, db = np.sign(a[i + 1 :] - a[i]), np.sign(b[i + 1 :] - b[i])
        concordance += float(da @ db)
        pairs_a += float(da @ da)
        pairs_b += float(db @ db)
    norm = float(np.sqrt(pairs_a * pairs_b))
    return float(np.clip(concordance / norm, -1, 1)) if norm > 0 else 0.0

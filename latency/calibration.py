"""Correct a sum of unit latencies into a network's latency: constant + scale * sum, fitted on whole networks.

The constant is what a network pays once (the call into the runtime, the layout of its output); the scale takes up what differs
between a profile and a plain run. One slope is enough for rows that were measured inside graphs (`latency.in_situ`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from export.codec import Count, NotNegative, Positive
from latency.accuracy import Fidelity

FLOOR = 0.1  # no correction goes below this share of the plain sum: extrapolation must not give zero or negative times


@dataclass(frozen=True)
class Calibration:
    """A correction fitted on whole networks, with the error it had on networks it was not fitted on."""

    name: str
    """For instance `edge@360x480`."""
    constant: float
    """Milliseconds, perhaps below 0."""
    scale: Positive
    n: Count
    """Networks it was fitted on."""
    holdout: Fidelity
    """Error of out-of-fold predictions (cross-validation)."""
    space_hash: str
    """Space that the networks were drawn from."""
    residual_sd: NotNegative
    """Standard deviation of measured / predicted - 1, out of fold."""
    ratios: tuple[Positive, ...] = ()
    """measured / predicted of each network, out of fold; for `conformal_bound`."""
    witness_ms: Positive | None = None
    """What the witness (`latency.witness`) usually took beside the networks; none where there was none."""

    def estimate(self, ms: Sequence[float]) -> float:
        """Correct a network's unit latencies (ms)."""
        total = math.fsum(ms)
        return max(self.constant + self.scale * total, FLOOR * total)

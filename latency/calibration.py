"""Correct a sum of unit latencies into a network's latency: the data of a fitted correction and its formula.

All models share one formula,

    constant + per_unit * units + per_branch * (branches - 1) + per_gmac * GMACs + per_mib * MiB moved
    + sum over groups of weight(group) * ms(group),

and differ in which terms are free and in what a group is:

| model       | free                                              | groups                                                  |
|-------------|---------------------------------------------------|---------------------------------------------------------|
| `sum`       | nothing; every weight is 1                        | all units are one                                       |
| `affine`    | constant, one weight (`scale`)                    | all units are one                                       |
| `overhead`  | and per_unit                                      | all units are one                                       |
| `branches`  | and per_branch                                    | all units are one                                       |
| `families`  | constant, per_unit, weights                       | operator families                                       |
| `work`      | and per_gmac, per_mib                             | operator families                                       |
| `resources` | constant, per_unit, per_branch, weights           | families, split by what bounds them: arithmetic or memory |

`work` is for runtimes that convert precision or layout at the edges of a graph: an operator alone then takes longer by what
it reads and writes, which a weight on its time cannot take back.

A group that the fit never saw takes `scale`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from export.codec import Count, NotNegative, Positive
from latency.accuracy import Fidelity
from latency.workload import Unit

MODELS = ("sum", "affine", "overhead", "branches", "families", "work", "resources")
INTENSITY = 8.0
"""MACs per byte from which a unit counts as bound by arithmetic."""
FLOOR = 0.1  # no correction goes below this share of the plain sum: extrapolation must not give zero or negative times


@dataclass(frozen=True)
class Calibration:
    """A correction fitted on whole networks, with the error it had on networks it was not fitted on."""

    name: str
    """For instance `edge@360x480`."""
    model: str
    """One of `MODELS`."""
    coefficients: Mapping[str, float]
    """`constant`, `per_unit`, `per_branch`, `per_gmac`, `per_mib` (ms; the last three may be absent: 0), `scale`, `op.<group>`."""
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
    candidates: Mapping[str, float] | None = None
    """Cross-validated MAPE of each model tried."""

    def estimate(self, units: Sequence[Unit], ms: Sequence[float]) -> float:
        """Correct a network's unit latencies (ms), given in the order of its units."""
        by_group = grouped(self.model, units, ms)
        total = math.fsum(by_group.values())
        return max(linear(self.coefficients, by_group, extent(units)), FLOOR * total)

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise ValueError(f"model is {self.model!r}, not one of {', '.join(MODELS)}")
        if lacking := sorted({"constant", "per_unit", "scale"} - set(self.coefficients)):
            raise ValueError(f"its coefficients lack {', '.join(lacking)}")


def group(model: str, unit: Unit) -> str:
    """Name the group of a unit in a model."""
    if model in ("families", "work"):
        return unit.op
    if model == "resources":
        return f"{unit.op}/{'arithmetic' if unit.macs >= INTENSITY * unit.bytes else 'memory'}"
    return "all"


def grouped(model: str, units: Sequence[Unit], ms: Sequence[float]) -> dict[str, float]:
    """Sum unit latencies by the groups of a model."""
    found: dict[str, float] = {}
    for unit, value in zip(units, ms, strict=True):
        name = group(model, unit)
        found[name] = found.get(name, 0.0) + value
    return found


def extent(units: Sequence[Unit]) -> dict[str, float]:
    """Return what the constants of the formula are multiplied by: units, branches beyond the first, GMACs, MiB moved."""
    ends = {final for unit in units for final in unit.branches}
    return {
        "per_unit": float(len(units)),
        "per_branch": float(max(0, len(ends) - 1)),
        "per_gmac": sum(unit.macs for unit in units) / 1e9,
        "per_mib": sum(unit.bytes for unit in units) / 2**20,
    }


def linear(coefficients: Mapping[str, float], by_group: Mapping[str, Any], extent: Mapping[str, Any]) -> Any:
    """Evaluate the formula above on floats, or on arrays (n,) for many networks at once."""
    scale = coefficients["scale"]
    value = coefficients["constant"]
    for name, amount in extent.items():
        value = value + coefficients.get(name, 0.0) * amount
    for name, ms in by_group.items():
        value = value + coefficients.get(f"op.{name}", scale) * ms
    return value

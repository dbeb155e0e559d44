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
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from export.ranges import check_types
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
    n: int
    """Networks it was fitted on."""
    holdout: Fidelity
    """Error of out-of-fold predictions (cross-validation)."""
    space_hash: str
    """Space that the networks were drawn from."""
    residual_sd: float
    """Standard deviation of measured / predicted - 1, out of fold."""
    ratios: tuple[float, ...] = ()
    """measured / predicted of each network, out of fold; for `conformal_bound`."""
    candidates: Mapping[str, float] | None = None
    """Cross-validated MAPE of each model tried."""

    def estimate(self, units: Sequence[Unit], ms: Sequence[float]) -> float:
        """Correct a network's unit latencies (ms), given in the order of its units."""
        by_group = grouped(self.model, units, ms)
        total = math.fsum(by_group.values())
        return max(linear(self.coefficients, by_group, extent(units)), FLOOR * total)

    def to_json(self) -> dict[str, Any]:
        """Give plain data for JSON."""
        return asdict(self) | {"ratios": list(self.ratios)}

    @classmethod
    def from_json(cls, value: object) -> Calibration:
        """Read what `to_json` wrote.

        Raises:
            ValueError: a field is missing, unknown or impossible; the text says which.
        """
        if not isinstance(value, dict) or set(value) != {f.name for f in fields(cls)}:
            raise ValueError(f"must hold exactly {', '.join(f.name for f in fields(cls))}")
        for name in ("name", "space_hash"):
            if not isinstance(value[name], str):
                raise ValueError(f"{name} is {value[name]!r}, not text")
        if value["model"] not in MODELS:
            raise ValueError(f"model is {value['model']!r}, not one of {', '.join(MODELS)}")
        for name in ("coefficients", "candidates"):
            if not (isinstance(value[name], dict) and all(map(_number, value[name].values()))) and (
                name == "coefficients" or value[name] is not None
            ):
                raise ValueError(f"{name} must map names to finite numbers")
        if not {"constant", "per_unit", "scale"} <= set(value["coefficients"]):
            raise ValueError("coefficients must hold constant, per_unit and scale")
        if not isinstance(value["n"], int) or isinstance(value["n"], bool) or value["n"] < 1:
            raise ValueError(f"n is {value['n']!r}, not a positive integer")
        if not _number(value["residual_sd"]) or value["residual_sd"] < 0:
            raise ValueError(f"residual_sd is {value['residual_sd']!r}, not a number of at least 0")
        ratios = value["ratios"]
        if not isinstance(ratios, list) or not all(_number(ratio) and ratio > 0 for ratio in ratios):
            raise ValueError("ratios must be positive finite numbers")
        return cls(**value | {"holdout": _fidelity(value["holdout"]), "ratios": tuple(ratios)})


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


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _fidelity(value: object) -> Fidelity:
    names = [f.name for f in fields(Fidelity)]
    if not isinstance(value, dict) or set(value) != set(names):
        raise ValueError(f"holdout must hold exactly {', '.join(names)}")
    found = Fidelity(**value)
    check_types(found)
    return found

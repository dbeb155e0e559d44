"""Predict a network's latency from the table rows of its units, and fit the correction that this needs.

Plain sums are biased (fusion across units, launch gaps, caches). `fit` compares the corrections of `latency.calibration`
by cross-validation on measured networks and keeps the simplest that is not clearly beaten. Errors are relative throughout:
1 ms is much for a network of 5 ms and nothing for one of 500.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from export.errors import InvalidInput, Perform
from latency.accuracy import Fidelity, checked, fidelity
from latency.calibration import FLOOR, Calibration, extent, grouped, linear
from latency.workload import Unit

if TYPE_CHECKING:
    from latency.table import LatencyTable

__all__ = ["Calibration", "compare", "fit", "predict"]

PENALTIES = 10.0 ** np.arange(-4, 1.5, 0.5)
FOLDS = MIN_NETWORKS = 5
Coefficients = dict[str, float]


@dataclass(frozen=True)
class _Features:
    """What a model sees of n networks."""

    by_group: Mapping[str, np.ndarray]  # ms, each (n,)
    extent: Mapping[str, np.ndarray]  # see `latency.calibration.extent`, each (n,)

    @property
    def total(self) -> np.ndarray:
        return np.sum(list(self.by_group.values()), axis=0)

    def at(self, index: np.ndarray) -> _Features:
        by_group = {name: ms[index] for name, ms in self.by_group.items()}
        return _Features(by_group, {name: amount[index] for name, amount in self.extent.items()})

    def estimate(self, coefficients: Coefficients) -> np.ndarray:
        return np.maximum(linear(coefficients, self.by_group, self.extent), FLOOR * self.total)


def predict(units: Sequence[Unit], table: LatencyTable, calibration: Calibration | None = None) -> float:
    """Predict a network's latency in milliseconds; the plain sum of its rows where no calibration is given.

    Args:
        units: the network's units, shared ones once.
        table: holds their latencies.
        calibration: corrects the sum.

    Raises:
        MissingKeys: with all the keys that have no row.
    """
    ms = _unit_ms(units, table)
    return sum(ms) if calibration is None else calibration.estimate(units, ms)


def _unit_ms(units: Sequence[Unit], table: LatencyTable) -> list[float]:
    if not units:
        raise InvalidInput("a network without units has no latency to predict")
    _require(units, table)
    return [table.rows[unit.key].median_ms for unit in units]


def _require(units: Sequence[Unit], table: LatencyTable) -> None:
    table.require((unit.key for unit in units), Perform("profile", {"target": table.identity.target}))


def fit(
    units_list: Sequence[Sequence[Unit]],
    measured_ms: Sequence[float] | np.ndarray,
    table: LatencyTable,
    *,
    space_hash: str,
    name: str,
) -> Calibration:
    """Fit the correction from unit sums to measured networks.

    Args:
        units_list: the units of each network.
        measured_ms: its measured latency.
        table: holds the units' latencies.
        space_hash: hash of the space that the networks come from.
        name: of the calibration, for instance `edge@360x480`.

    Raises:
        InvalidInput: fewer than 5 networks, lengths that differ, or a latency that is not positive and finite.
        MissingKeys: with all the keys, of all networks, that have no row.
    """
    measured = checked("measured", measured_ms)
    if len(units_list) != measured.size or measured.size < MIN_NETWORKS:
        found = f"got {len(units_list)} networks and {measured.size} measured latencies"
        raise InvalidInput(f"{found}; give as many latencies as networks, at least {MIN_NETWORKS}")
    _require([unit for units in units_list for unit in units], table)  # names the missing keys of all networks
    features = {model: _features(model, units_list, table) for model in FITTERS}
    predicted = {model: _out_of_fold(fitter, features[model], measured) for model, fitter in FITTERS.items()}
    model = _simplest(predicted, measured)
    ratios = measured / predicted[model]
    return Calibration(
        name=name,
        model=model,
        coefficients=FITTERS[model](features[model], measured),
        n=int(measured.size),
        holdout=fidelity(predicted[model], measured),
        space_hash=space_hash,
        residual_sd=float(np.std(ratios - 1, ddof=1)),
        ratios=tuple(ratios.tolist()),
        candidates={name: fidelity(values, measured).mape for name, values in predicted.items()},
    )


def compare(
    units_list: Sequence[Sequence[Unit]], measured_ms: Sequence[float] | np.ndarray, table: LatencyTable
) -> dict[str, Fidelity]:
    """Judge every model by cross-validation on measured networks: each is predicted by a fit that has not seen it.

    Besides the models of `latency.calibration` there is `macs`: a constant and a factor on the network's MACs, without a table.
    Arguments as in `fit`.
    """
    measured = checked("measured", measured_ms)
    found = {}
    for model, fitter in FITTERS.items():
        found[model] = fidelity(_out_of_fold(fitter, _features(model, units_list, table), measured), measured)
    macs = np.array([sum(unit.macs for unit in units) for units in units_list], dtype=float)
    by_macs = _Features({"all": macs / max(macs.max(), 1.0)}, {})
    found["macs"] = fidelity(_out_of_fold(_fit_affine, by_macs, measured), measured)
    return found


def _features(model: str, units_list: Sequence[Sequence[Unit]], table: LatencyTable) -> _Features:
    sums = [grouped(model, units, _unit_ms(units, table)) for units in units_list]
    groups = sorted({name for found in sums for name in found})
    by_group = {name: np.array([found.get(name, 0.0) for found in sums]) for name in groups}
    extents = [extent(units) for units in units_list]
    return _Features(by_group, {name: np.array([found[name] for found in extents]) for name in extents[0]})


def _out_of_fold(fitter: Callable[[_Features, np.ndarray], Coefficients], features: _Features, measured: np.ndarray) -> np.ndarray:
    order = np.random.default_rng([0, 0x666974]).permutation(measured.size)
    predicted = np.empty_like(measured)
    for held_out in np.array_split(order, FOLDS):
        train = np.setdiff1d(order, held_out)
        predicted[held_out] = features.at(held_out).estimate(fitter(features.at(train), measured[train]))
    return predicted


def _simplest(predicted: Mapping[str, np.ndarray], measured: np.ndarray) -> str:
    """Choose the first model that no later one beats by more than one standard error of the paired difference."""
    error = {model: np.abs(values - measured) / measured for model, values in predicted.items()}
    best, *others = error
    for model in others:
        gain = error[best] - error[model]
        if gain.mean() > max(gain.std(ddof=1) / np.sqrt(gain.size), 1e-9):
            best = model
    return best


def _fit_sum(features: _Features, measured: np.ndarray) -> Coefficients:
    return {"constant": 0.0, "per_unit": 0.0, "scale": 1.0}


def _fit_affine(features: _Features, measured: np.ndarray) -> Coefficients:
    columns = np.stack([1 / measured, features.total / measured], axis=1)  # (n, 2), to relative errors
    constant, scale = np.linalg.lstsq(columns, np.ones(measured.size), rcond=None)[0]
    if scale <= 0:  # more work cannot take less time: the data do not determine a slope
        square = float(columns[:, 1] @ columns[:, 1])
        constant, scale = (0.0, float(columns[:, 1].sum()) / square) if square else (float(1 / np.mean(1 / measured)), 1.0)
    return {"constant": float(constant), "per_unit": 0.0, "scale": float(scale)}


def _ridge(features: _Features, measured: np.ndarray, extras: Sequence[str]) -> Coefficients:
    """Fit non-negative weights per group, pulled towards their mean, and the constants, pulled towards zero.

    Minimises sum (1 - prediction / measured)^2 + penalty * (sum (w - mean w)^2 + sum of squared constants), every constant in
    units of the mean time of a network. The penalty comes from the closed-form leave-one-out error.
    """
    groups, n = list(features.by_group), measured.size
    network_ms = float(features.total.mean())
    amounts = {"constant": np.ones(n), **{name: features.extent[name] for name in extras}}
    per_network = {name: network_ms / max(float(amount.mean()), 1e-12) for name, amount in amounts.items()}
    columns = [*features.by_group.values(), *(per_network[name] * amount for name, amount in amounts.items())]
    a = np.stack(columns, axis=1) / measured[:, None]  # (n, groups + constants)
    pull = np.eye(len(columns))
    pull[: len(groups), : len(groups)] -= 1 / len(groups)
    gram, target = a.T @ a, a.sum(axis=0)
    best, best_error = pull, np.inf
    for penalty in PENALTIES:
        hessian = gram + penalty * pull
        solved = np.linalg.solve(hessian, a.T)  # (columns, n)
        leverage = np.einsum("nf,fn->n", a, solved)
        left_out = (1 - a @ solved.sum(axis=1)) / np.maximum(1 - leverage, 1e-9)
        if (error := float(left_out @ left_out)) < best_error:
            best, best_error = hessian, error
    lower = np.array([0.0] * len(groups) + [-np.inf] * len(amounts))
    solution = _bounded(best, target, lower).tolist()
    weights = dict(zip(groups, solution, strict=False))
    constants = {name: value * per_network[name] for name, value in zip(amounts, solution[len(groups) :], strict=True)}
    coefficients = {"per_unit": 0.0, **constants, "scale": float(np.mean(list(weights.values())))}
    return coefficients | {f"op.{name}": weight for name, weight in weights.items()}


def _bounded(hessian: np.ndarray, target: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Minimise x'Hx/2 - t'x for x >= lower: directly where no bound is active, else by coordinate descent."""
    x = np.linalg.solve(hessian, target)
    if np.all(x >= lower):
        return x
    x = np.maximum(x, lower)
    for _ in range(500):
        before = x.copy()
        for i in range(x.size):
            x[i] = max(lower[i], x[i] - (hessian[i] @ x - target[i]) / hessian[i, i])
        if np.max(np.abs(x - before)) < 1e-10:
            break
    return x


FITTERS: dict[str, Callable[[_Features, np.ndarray], Coefficients]] = {
    "sum": _fit_sum,
    "affine": _fit_affine,
    "overhead": partial(_ridge, extras=("per_unit",)),
    "branches": partial(_ridge, extras=("per_unit", "per_branch")),
    "families": partial(_ridge, extras=("per_unit",)),
    "work": partial(_ridge, extras=("per_unit", "per_gmac", "per_mib")),
    "resources": partial(_ridge, extras=("per_unit", "per_branch")),
}  # simplest first; what a group is, `latency.calibration.group` knows

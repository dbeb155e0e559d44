"""Predict a network's latency from the table rows of its units, and fit the correction that this needs.

Plain sums are biased (fusion across units, launch gaps, caches). `fit` compares three corrections by cross-validation
on measured networks and keeps the simplest that is not clearly beaten. Errors are relative throughout: 1 ms is much for
a network of 5 ms and nothing for one of 500.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from export.errors import InvalidInput
from latency.calibration import FLOOR, Calibration, linear
from latency.fidelity import checked, fidelity
from latency.workload import Unit

if TYPE_CHECKING:
    from latency.table import LatencyTable

__all__ = ["Calibration", "fit", "predict"]

PENALTIES = 10.0 ** np.arange(-4, 1.5, 0.5)
MIN_NETWORKS = 5
Coefficients = dict[str, float]


@dataclass(frozen=True)
class _Features:
    """What the corrections see of n networks."""

    ms_by_op: Mapping[str, np.ndarray]  # each (n,)
    units: np.ndarray  # (n,)

    @property
    def total(self) -> np.ndarray:
        return np.sum(list(self.ms_by_op.values()), axis=0)

    def at(self, index: np.ndarray) -> _Features:
        return _Features({op: ms[index] for op, ms in self.ms_by_op.items()}, self.units[index])

    def estimate(self, coefficients: Coefficients) -> np.ndarray:
        return np.maximum(linear(coefficients, self.ms_by_op, self.units), FLOOR * self.total)


def predict(
    units: Sequence[Unit], table: LatencyTable, calibration: Calibration | None = None, *, command: str | None = None
) -> float:
    """Predict a network's latency in milliseconds; the plain sum of its rows where no calibration is given.

    Args:
        units: the network's units, shared ones once.
        table: holds their latencies.
        calibration: corrects the sum.
        command: what measures missing keys, for the error.

    Raises:
        MissingKeys: with all the keys that have no row.
    """
    ms_by_op = _ms_by_op(units, table, command)
    return sum(ms_by_op.values()) if calibration is None else calibration.estimate(ms_by_op, len(units))


def _ms_by_op(units: Sequence[Unit], table: LatencyTable, command: str | None) -> dict[str, float]:
    if not units:
        raise InvalidInput("a network without units has no latency to predict")
    rows, found = table.rows, dict[str, float]()
    try:
        for unit in units:
            found[unit.op] = found.get(unit.op, 0.0) + rows[unit.key].median_ms
    except KeyError:
        table.require([unit.key for unit in units], command or f"hyctas-profile --target {table.identity.target}")
        raise
    return found


def fit(
    units_list: Sequence[Sequence[Unit]],
    measured_ms: Sequence[float] | np.ndarray,
    table: LatencyTable,
    *,
    space_hash: str,
    name: str,
    folds: int = 5,
    seed: int = 0,
    command: str | None = None,
) -> Calibration:
    """Fit the correction from unit sums to measured networks.

    Args:
        units_list: the units of each network.
        measured_ms: its measured latency.
        table: holds the units' latencies.
        space_hash: hash of the space that the networks come from.
        name: of the calibration, for instance `edge@360x480`.
        folds: of the cross-validation.
        seed: of the split into folds.
        command: what measures missing keys, for the error.

    Raises:
        InvalidInput: fewer than 5 networks, lengths that differ, or a latency that is not positive and finite.
        MissingKeys: with all the keys, of all networks, that have no row.
    """
    measured = checked("measured", measured_ms)
    if len(units_list) != measured.size or measured.size < MIN_NETWORKS or folds < 2:
        raise InvalidInput(
            f"got {len(units_list)} networks, {measured.size} measured latencies and {folds} folds; "
            f"give as many latencies as networks, at least {MIN_NETWORKS}, and at least 2 folds"
        )
    every_key = [unit.key for units in units_list for unit in units]
    table.require(every_key, command or f"hyctas-profile --target {table.identity.target}")
    features = _features(units_list, table, command)
    predicted = {model: _out_of_fold(fitter, features, measured, folds, seed) for model, fitter in FITTERS.items()}
    model = _simplest(predicted, measured)
    ratios = measured / predicted[model]
    return Calibration(
        name=name,
        model=model,
        coefficients=FITTERS[model](features, measured),
        n=int(measured.size),
        holdout=fidelity(predicted[model], measured),
        space_hash=space_hash,
        residual_sd=float(np.std(ratios - 1, ddof=1)),
        ratios=tuple(ratios.tolist()),
        candidates={name: fidelity(values, measured).mape for name, values in predicted.items()},
    )


def _features(units_list: Sequence[Sequence[Unit]], table: LatencyTable, command: str | None) -> _Features:
    sums = [_ms_by_op(units, table, command) for units in units_list]
    ops = sorted({op for found in sums for op in found})
    by_op = {op: np.array([found.get(op, 0.0) for found in sums]) for op in ops}
    return _Features(by_op, np.array([float(len(units)) for units in units_list]))


def _out_of_fold(
    fitter: Callable[[_Features, np.ndarray], Coefficients],
    features: _Features,
    measured: np.ndarray,
    folds: int,
    seed: int,
) -> np.ndarray:
    order = np.random.default_rng([seed, 0x666974]).permutation(measured.size)
    predicted = np.empty_like(measured)
    for held_out in np.array_split(order, min(folds, measured.size)):
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
        constant, scale = 0.0, float(columns[:, 1].sum() / (columns[:, 1] @ columns[:, 1]))
    return {"constant": float(constant), "per_unit": 0.0, "scale": float(scale)}


def _fit_families(features: _Features, measured: np.ndarray) -> Coefficients:
    """Fit non-negative weights per family, pulled towards their mean, and two constants, pulled towards zero.

    Minimises sum (1 - prediction / measured)^2 + penalty * (sum (w - mean w)^2 + c^2 + a^2), the constants in units of
    the mean time of a unit and of a network. The penalty comes from the closed-form leave-one-out error.
    """
    ops, n = list(features.ms_by_op), measured.size
    network_ms = float(features.total.mean())
    unit_ms = float(features.total.sum() / features.units.sum())
    columns = [*features.ms_by_op.values(), unit_ms * features.units, np.full(n, network_ms)]
    a = np.stack(columns, axis=1) / measured[:, None]  # (n, families + 2)
    pull = np.eye(len(columns))
    pull[: len(ops), : len(ops)] -= 1 / len(ops)
    gram, target = a.T @ a, a.sum(axis=0)
    best, best_error = pull, np.inf
    for penalty in PENALTIES:
        hessian = gram + penalty * pull
        solved = np.linalg.solve(hessian, a.T)  # (families + 2, n)
        leverage = np.einsum("nf,fn->n", a, solved)
        left_out = (1 - a @ solved.sum(axis=1)) / np.maximum(1 - leverage, 1e-9)
        if (error := float(left_out @ left_out)) < best_error:
            best, best_error = hessian, error
    lower = np.array([0.0] * len(ops) + [-np.inf] * 2)
    *weights, per_unit, constant = _bounded(best, target, lower).tolist()
    coefficients = {"constant": constant * network_ms, "per_unit": per_unit * unit_ms, "scale": float(np.mean(weights))}
    return coefficients | {f"op.{op}": weight for op, weight in zip(ops, weights, strict=True)}


def _bounded(hessian: np.ndarray, target: np.ndarray, lower: np.ndarray, sweeps: int = 500) -> np.ndarray:
    """Minimise x'Hx/2 - t'x for x >= lower: directly where no bound is active, else by coordinate descent."""
    x = np.linalg.solve(hessian, target)
    if np.all(x >= lower):
        return x
    x = np.maximum(x, lower)
    for _ in range(sweeps):
        before = x.copy()
        for i in range(x.size):
            x[i] = max(lower[i], x[i] - (hessian[i] @ x - target[i]) / hessian[i, i])
        if np.max(np.abs(x - before)) < 1e-10:
            break
    return x


FITTERS: dict[str, Callable[[_Features, np.ndarray], Coefficients]] = {
    "sum": _fit_sum,
    "affine": _fit_affine,
    "families": _fit_families,
}  # simplest first

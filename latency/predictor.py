"""Predict a network's latency from the table rows of its units, and fit the correction that this needs.

Errors are relative throughout: 1 ms is much for a network of 5 ms and nothing for one of 500.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from export.errors import InvalidInput, Perform
from latency.accuracy import Fidelity, checked, fidelity
from latency.calibration import FLOOR, Calibration
from latency.workload import Unit

if TYPE_CHECKING:
    from latency.table import LatencyTable

__all__ = ["Calibration", "by_macs", "fit", "predict"]

FOLDS = MIN_NETWORKS = 5


def predict(units: Sequence[Unit], table: LatencyTable, calibration: Calibration | None = None) -> float:
    """Predict a network's latency in milliseconds; the plain sum of its rows where no calibration is given.

    Args:
        units: the network's units, shared ones once.
        table: holds their latencies.
        calibration: corrects the sum.

    Raises:
        MissingKeys: with all the keys that have no row.
    """
    if not units:
        raise InvalidInput("a network without units has no latency to predict")
    _require(units, table)
    ms = [table.rows[unit.key].median_ms for unit in units]
    return math.fsum(ms) if calibration is None else calibration.estimate(ms)


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
    """Fit the correction from unit sums to measured networks, by least squares of the relative errors.

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
    sums = np.array([predict(units, table) for units in units_list])
    predicted = _out_of_fold(sums, measured)
    ratios = measured / predicted
    constant, scale = _line(sums, measured)
    return Calibration(
        name=name,
        constant=constant,
        scale=scale,
        n=int(measured.size),
        holdout=fidelity(predicted, measured),
        space_hash=space_hash,
        residual_sd=float(np.std(ratios - 1, ddof=1)),
        ratios=tuple(ratios.tolist()),
    )


def by_macs(units_list: Sequence[Sequence[Unit]], measured_ms: Sequence[float] | np.ndarray) -> Fidelity:
    """Judge what predicts without a table: a constant and a factor on a network's MACs, by cross-validation."""
    macs = np.array([sum(unit.macs for unit in units) for units in units_list], dtype=float)
    measured = checked("measured", measured_ms)
    return fidelity(_out_of_fold(macs / max(macs.max(), 1.0), measured), measured)


def _out_of_fold(sums: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Predict every network by a fit that has not seen it."""
    order = np.random.default_rng([0, 0x666974]).permutation(measured.size)
    predicted = np.empty_like(measured)
    for held_out in np.array_split(order, FOLDS):
        train = np.setdiff1d(order, held_out)
        constant, scale = _line(sums[train], measured[train])
        predicted[held_out] = np.maximum(constant + scale * sums[held_out], FLOOR * sums[held_out])
    return np.maximum(predicted, np.finfo(float).tiny)


def _line(sums: np.ndarray, measured: np.ndarray) -> tuple[float, float]:
    """Return the constant and the scale, which is positive, with the least squares of the relative errors."""
    columns = np.stack([1 / measured, sums / measured], axis=1)  # (n, 2)
    constant, scale = np.linalg.lstsq(columns, np.ones(measured.size), rcond=None)[0].tolist()
    if scale > 0:
        return constant, scale
    square = float(columns[:, 1] @ columns[:, 1])  # more work cannot take less time: the data do not determine a slope
    return (0.0, float(columns[:, 1].sum()) / square) if square else (float(1 / np.mean(1 / measured)), 1.0)

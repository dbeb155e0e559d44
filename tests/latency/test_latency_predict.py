"""Fit corrections on invented networks with a known truth; score and bound predictions."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from export.codec import decode, plain
from export.errors import InvalidInput, MissingKeys, Perform
from latency import LatencyTable, Unit, fit, predict
from latency.accuracy import fidelity, kendall, ranks, spearman
from latency.calibration import Calibration
from latency.identity import Identity
from latency.judge import conformal_bound, judge
from latency.predictor import by_macs
from latency.table import Row

OPS = ("conv", "attention", "pool", "resize")


def make_table(keys_per_op: int = 30, seed: int = 0) -> LatencyTable:
    rng = np.random.default_rng(seed)
    rows = {}
    for op in OPS:
        for i, ms in enumerate(rng.lognormal(0, 0.7, keys_per_op)):
            rows[f"{op}{i}"] = Row(op, float(ms), float(ms), float(ms), 20, 1, False)
    return LatencyTable(Identity("torch-cpu:fp32", {}, {}, 1, {}), rows)


def draw_networks(table: LatencyTable, n: int, seed: int = 1) -> list[list[Unit]]:
    """Networks of 10-30 units that prefer different families."""
    rng = np.random.default_rng(seed)
    keys = {op: [key for key, row in table.rows.items() if row.op == op] for op in OPS}
    networks = []
    for _ in range(n):
        ops = rng.choice(OPS, size=rng.integers(10, 31), p=rng.dirichlet(np.ones(len(OPS))))
        networks.append([Unit(str(rng.choice(keys[op])), 0) for op in ops])
    return networks


def truth(
    networks: list[list[Unit]],
    table: LatencyTable,
    weights: dict[str, float],
    constant: float = 0.0,
    noise: float = 0.0,
) -> np.ndarray:
    rng = np.random.default_rng(2)
    rows = [[table.rows[unit.key] for unit in units] for units in networks]
    exact = [constant + sum(weights.get(row.op, 1.0) * row.median_ms for row in network) for network in rows]
    return np.array(exact) * (1 + noise * rng.standard_normal(len(networks)))


def fitted(measured: np.ndarray, networks: list[list[Unit]], table: LatencyTable) -> Calibration:
    return fit(networks, measured, table, space_hash="h", name="tiny@64x64")


def test_latency_predict_plain_sum_counts_each_unit() -> None:
    table = make_table()
    ms = table.rows["conv0"].median_ms
    assert predict([Unit("conv0", 0)] * 3, table) == pytest.approx(3 * ms)


def test_latency_predict_reports_all_missing_keys() -> None:
    units = [Unit(key, 0) for key in ("conv0", "x", "y", "x")]
    with pytest.raises(MissingKeys) as caught:
        predict(units, make_table())
    target = make_table().identity.target
    assert (caught.value.keys, caught.value.remedies) == (("x", "y"), (Perform("profile", {"target": target}),))
    with pytest.raises(MissingKeys) as caught:
        fit([units, [*units, Unit("z", 0)]] * 3, [1.0] * 6, make_table(), space_hash="", name="")
    assert caught.value.keys == ("x", "y", "z")
    with pytest.raises(InvalidInput, match="without units"):
        predict([], make_table())


def test_latency_predict_recovers_an_affine_truth() -> None:
    table = make_table()
    networks = draw_networks(table, 50)
    measured = truth(networks, table, dict.fromkeys(OPS, 0.9), constant=2.0, noise=0.002)
    calibration = fitted(measured, networks, table)
    assert calibration.holdout.mape < 0.004
    assert calibration.constant == pytest.approx(2.0, abs=0.1)
    assert calibration.scale == pytest.approx(0.9, abs=0.01)
    assert calibration.residual_sd == pytest.approx(0.002, rel=0.5)


def test_latency_predict_estimates_stay_positive() -> None:
    table = make_table()
    networks = draw_networks(table, 40)
    held = fitted(truth(networks, table, {"conv": 0.0, "pool": 2.0}), networks, table).holdout
    floor = Calibration("", -100.0, 1.0, 5, held, "", 0.0)
    assert predict(networks[0], table, floor) == pytest.approx(0.1 * predict(networks[0], table))


def test_latency_predict_degenerate_networks_still_fit() -> None:
    table = make_table()
    same = [draw_networks(table, 1)[0]] * 6
    calibration = fitted(np.full(6, 5.0), same, table)
    assert calibration.holdout.mape < 0.05 and calibration.holdout.spearman == 0
    assert predict(same[0], table, calibration) == pytest.approx(5.0, rel=0.05)
    assert fitted(truth(draw_networks(table, 5), table, {}), draw_networks(table, 5), table).n == 5


@pytest.mark.parametrize(
    ("n", "measured"), [(4, [1.0] * 4), (6, [1.0] * 5), (6, [1.0] * 5 + [0.0]), (6, [1.0] * 5 + [float("nan")])]
)
def test_latency_predict_fit_refuses_unusable_measurements(n: int, measured: list[float]) -> None:
    table = make_table()
    with pytest.raises(InvalidInput):
        fit(draw_networks(table, n), measured, table, space_hash="", name="")


def test_latency_predict_fit_is_reproducible_and_survives_json() -> None:
    table = make_table()
    networks = draw_networks(table, 30)
    measured = truth(networks, table, {"conv": 0.7}, noise=0.01)
    calibration = fitted(measured, networks, table)
    assert calibration == fitted(measured, networks, table)
    assert decode(Calibration, json.dumps(plain(calibration))) == calibration


def test_latency_predict_fidelity_metrics() -> None:
    score = fidelity([1.05, 2.2, 2.0, 4.0], [1.0, 2.0, 4.0, 4.0])
    assert (score.mape, score.within5, score.within10, score.n) == (pytest.approx(0.1625), 0.5, 0.75, 4)
    a, b = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 4.0])
    assert (spearman(a, b), kendall(a, b)) == (pytest.approx(0.8), pytest.approx(2 / 3))
    tied = np.array([1.0, 1.0, 2.0, 2.0])
    assert kendall(a, tied) == pytest.approx(4 / np.sqrt(24)) and list(ranks(tied)) == [1.5, 1.5, 3.5, 3.5]
    assert (spearman(a, np.ones(4)), kendall(a, np.ones(4)), kendall(a[:1], b[:1])) == (0, 0, 0)
    for wrong in [([], []), ([1.0], [1.0, 2.0]), ([0.0], [1.0]), ([1.0], [float("inf")])]:
        with pytest.raises(InvalidInput):
            fidelity(*wrong)


def test_latency_predict_judge_shows_the_repeat_beside_the_prediction() -> None:
    measured = np.array([1.0, 2.0, 3.0, 4.0])
    found = judge(measured * [1.02, 1.04, 1.2, 1.06], measured, repeat=measured * 1.01)
    assert found.bias == pytest.approx(0.05) and (found.worst, found.worst_error) == (2, pytest.approx(0.2))
    assert found.repeat is not None and found.repeat.mape == pytest.approx(0.01)
    text = found.to_markdown()
    assert "| predicted | 4 | 8.0% | 50% | 75% | 1.000 | 1.000 |" in text and "| measured again | 4 | 1.0% |" in text
    value: Any = json.loads(json.dumps(found.to_json()))
    assert value["fidelity"]["n"] == 4 and value["repeat"]["within5"] == 1
    assert judge(measured, measured).to_json()["repeat"] is None


@pytest.mark.parametrize(("count", "confidence"), [(60, 0.95), (120, 0.9)])
def test_latency_predict_bound_holds_for_nine_of_ten_calibrations(count: int, confidence: float) -> None:
    rng = np.random.default_rng(3)
    shares = []  # of networks below the bound, for each of many calibrations
    for _ in range(800):
        factor = conformal_bound(rng.lognormal(0, 0.1, count), confidence)
        shares.append(0.5 * (1 + math.erf(math.log(factor) / 0.1 / math.sqrt(2))))
    assert 0.885 < np.mean(np.array(shares) >= confidence) < 0.97


def test_latency_predict_bound_takes_the_right_order_statistic() -> None:
    assert conformal_bound(np.arange(1.0, 61.0), 0.95) == 60, "of 60, only the largest: 1 - 0.95^60 = 0.954, the next has 0.81"
    assert conformal_bound(np.arange(1.0, 101.0), 0.95) == 99
    with pytest.raises(InvalidInput, match="at least 45 networks; got 44"):
        conformal_bound([1.0] * 44, 0.95)
    for confidence in (0.0, 1.0):
        with pytest.raises(InvalidInput, match="confidence"):
            conformal_bound([1.0] * 50, confidence)
    with pytest.raises(InvalidInput, match="assurance"):
        conformal_bound([1.0] * 50, 0.9, 1.0)


def test_latency_predict_weighs_macs_in_the_place_of_a_table() -> None:
    table = make_table()
    networks = draw_networks(table, 60)
    networks = [[Unit(u.key, int(1e6 * table.rows[u.key].median_ms)) for u in units] for units in networks]
    measured = truth(networks, table, {"conv": 0.5, "pool": 2.0})
    assert by_macs(networks, measured).mape == pytest.approx(fitted(measured, networks, table).holdout.mape, rel=0.01)
    idle = [[Unit(u.key, 0) for u in units] for units in networks]
    assert by_macs(idle, truth(idle, table, {})).n == 60, "networks without MACs are no error"

"""Fit corrections on invented networks with a known truth; score and bound predictions."""

from __future__ import annotations

import json
import math
from dataclasses import replace
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
from latency.predictor import _bounded, compare
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
        networks.append([Unit(str(rng.choice(keys[op])), str(op), (8,), 0, 0) for op in ops])
    return networks


def truth(
    networks: list[list[Unit]],
    table: LatencyTable,
    weights: dict[str, float],
    constant: float = 0.0,
    per_unit: float = 0.0,
    noise: float = 0.0,
) -> np.ndarray:
    rng = np.random.default_rng(2)
    exact = [constant + sum(per_unit + weights.get(u.op, 1.0) * table.rows[u.key].median_ms for u in units) for units in networks]
    return np.array(exact) * (1 + noise * rng.standard_normal(len(networks)))


def fitted(measured: np.ndarray, networks: list[list[Unit]], table: LatencyTable) -> Calibration:
    return fit(networks, measured, table, space_hash="h", name="tiny@64x64")


def test_latency_predict_plain_sum_counts_each_unit() -> None:
    table = make_table()
    ms = table.rows["conv0"].median_ms
    assert predict([Unit("conv0", "conv", (8,), 0, 0)] * 3, table) == pytest.approx(3 * ms)


def test_latency_predict_reports_all_missing_keys() -> None:
    units = [Unit(key, "conv", (8,), 0, 0) for key in ("conv0", "x", "y", "x")]
    with pytest.raises(MissingKeys) as caught:
        predict(units, make_table())
    target = make_table().identity.target
    assert (caught.value.keys, caught.value.remedies) == (("x", "y"), (Perform("profile", {"target": target}),))
    with pytest.raises(MissingKeys) as caught:
        fit([units, [*units, Unit("z", "conv", (8,), 0, 0)]] * 3, [1.0] * 6, make_table(), space_hash="", name="")
    assert caught.value.keys == ("x", "y", "z")
    with pytest.raises(InvalidInput, match="without units"):
        predict([], make_table())


def test_latency_predict_keeps_the_plain_sum_where_nothing_beats_it() -> None:
    table = make_table()
    networks = draw_networks(table, 50)
    calibration = fitted(truth(networks, table, {}, noise=0.01), networks, table)
    assert calibration.model == "sum" and calibration.holdout.mape < 0.015
    assert predict(networks[0], table, calibration) == pytest.approx(predict(networks[0], table))


def test_latency_predict_recovers_an_affine_truth() -> None:
    table = make_table()
    networks = draw_networks(table, 50)
    measured = truth(networks, table, dict.fromkeys(OPS, 0.9), constant=2.0, noise=0.002)
    calibration = fitted(measured, networks, table)
    assert calibration.model == "affine" and calibration.holdout.mape < 0.004
    assert calibration.coefficients["constant"] == pytest.approx(2.0, abs=0.1)
    assert calibration.coefficients["scale"] == pytest.approx(0.9, abs=0.01)
    assert calibration.residual_sd == pytest.approx(0.002, rel=0.5)


def test_latency_predict_recovers_family_weights_and_beats_sum_and_affine() -> None:
    table = make_table()
    networks, fresh = draw_networks(table, 60), draw_networks(table, 40, seed=9)
    weights = {"conv": 0.8, "attention": 1.3, "pool": 0.5, "resize": 1.0}
    calibration = fitted(truth(networks, table, weights, per_unit=0.05, noise=0.005), networks, table)
    assert calibration.model == "families" and calibration.n == 60
    assert calibration.candidates is not None
    errors = [calibration.candidates[model] for model in ("families", "affine", "sum")]
    assert errors[0] < 0.01 < errors[1] < errors[2]
    for op, weight in weights.items():
        assert calibration.coefficients[f"op.{op}"] == pytest.approx(weight, abs=0.03)
    assert calibration.coefficients["per_unit"] == pytest.approx(0.05, abs=0.04)
    exact = truth(fresh, table, weights, per_unit=0.05)
    calibrated = fidelity([predict(units, table, calibration) for units in fresh], exact)
    plain = fidelity([predict(units, table) for units in fresh], exact)
    assert calibrated.mape < 0.01 < 0.1 < plain.mape and calibrated.kendall > plain.kendall
    assert calibrated.mape < 2 * calibration.holdout.mape


def test_latency_predict_pulls_families_that_are_rare_or_unseen_to_the_common_scale() -> None:
    table = make_table()
    networks = [[u for u in units if u.op != "resize"] for units in draw_networks(table, 60)]
    networks = [units for units in networks if units]
    weights = {"conv": 0.6, "attention": 0.9, "pool": 0.75}
    calibration = fitted(truth(networks, table, weights, noise=0.003), networks, table)
    assert calibration.model == "families"
    ms = table.rows["resize0"].median_ms
    found = predict([Unit("resize0", "resize", (8,), 0, 0)] * 10, table, calibration)
    assert found == pytest.approx(7.5 * ms, rel=0.1)


def test_latency_predict_weights_are_never_negative_and_estimates_stay_positive() -> None:
    hessian, target = np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([1.0, -1.0])
    assert _bounded(hessian, target, np.zeros(2)) == pytest.approx([0.5, 0.0])
    assert _bounded(hessian, target, np.full(2, -np.inf)) == pytest.approx([1.0, -1.0])
    table = make_table()
    networks = draw_networks(table, 40)
    calibration = fitted(truth(networks, table, {"conv": 0.0, "pool": 2.0}), networks, table)
    assert min(w for op, w in calibration.coefficients.items() if op.startswith("op.")) >= 0
    coefficients = {"constant": -100.0, "per_unit": 0.0, "scale": 1.0}
    floor = Calibration("", "affine", coefficients, 5, calibration.holdout, "", 0.0)
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


def branched(networks: list[list[Unit]]) -> list[list[Unit]]:
    """Give the networks one to three branches in turn."""
    ends = ((32,), (16, 32), (8, 16, 32))
    return [[Unit(u.key, u.op, ends[i % 3], u.macs, u.bytes) for u in units] for i, units in enumerate(networks)]


def test_latency_predict_finds_a_cost_per_unit_and_per_branch() -> None:
    table = make_table()
    networks = branched(draw_networks(table, 80))
    counts = np.array([len(units) for units in networks])
    number = np.array([1 + i % 3 for i in range(80)])
    base = truth(networks, table, dict.fromkeys(OPS, 0.8))
    noise = 1 + 0.002 * np.random.default_rng(0).standard_normal(80)
    per_unit = fitted((base + 0.2 * counts) * noise, networks, table)
    assert per_unit.model == "overhead" and per_unit.coefficients["per_unit"] == pytest.approx(0.2, abs=0.02)
    per_branch = fitted((base + 2.0 * (number - 1)) * noise, networks, table)
    assert per_branch.model == "branches" and per_branch.coefficients["per_branch"] == pytest.approx(2.0, abs=0.1)
    again = decode(Calibration, json.dumps(plain(per_branch)))
    assert predict(networks[2], table, again) == pytest.approx((base + 2.0 * (number - 1))[2], rel=0.02)


def test_latency_predict_takes_back_what_conversions_cost_alone() -> None:
    """Rows that hold the operator and a conversion of all it reads and writes, which a network pays at its ends only."""
    rng = np.random.default_rng(7)
    table = make_table()
    mib = {key: float(rng.lognormal(0, 0.7)) for key in table.rows}
    rows = {key: replace(row, median_ms=row.median_ms + 0.3 * mib[key], p90_ms=1e9) for key, row in table.rows.items()}
    alone = LatencyTable(table.identity, rows)
    networks = [[Unit(u.key, u.op, (8,), 1, round(mib[u.key] * 2**20)) for u in units] for units in draw_networks(table, 80)]
    measured = truth(networks, table, dict.fromkeys(OPS, 1.0), constant=0.5, noise=0.003)
    calibration = fitted(measured, networks, alone)
    assert calibration.model == "work" and calibration.holdout.mape < 0.01
    assert calibration.coefficients["per_mib"] == pytest.approx(-0.3, abs=0.03)
    assert calibration.candidates is not None and calibration.candidates["families"] > 3 * calibration.holdout.mape


def test_latency_predict_weighs_what_is_bound_by_memory_otherwise() -> None:
    table = make_table()
    rng = np.random.default_rng(5)
    networks = [
        [Unit(u.key, u.op, u.branches, *((100, 1) if rng.random() < 0.5 else (1, 1))) for u in units]
        for units in draw_networks(table, 90)
    ]
    measured = [sum((0.5 if u.macs == 1 else 1.2) * table.rows[u.key].median_ms for u in units) for units in networks]
    calibration = fitted(np.array(measured), networks, table)
    assert calibration.model == "resources" and calibration.holdout.mape < 0.02
    assert {name.partition("/")[2] for name in calibration.coefficients if "/" in name} == {"memory", "arithmetic"}


def test_latency_predict_compares_models_and_macs() -> None:
    table = make_table()
    networks = draw_networks(table, 60)
    networks = [[Unit(u.key, u.op, u.branches, int(1e3 * table.rows[u.key].median_ms), 1) for u in units] for units in networks]
    found = compare(networks, truth(networks, table, {"conv": 0.5, "pool": 2.0}), table)
    assert list(found) == ["sum", "affine", "overhead", "branches", "families", "work", "resources", "macs"]
    assert found["families"].mape < found["affine"].mape
    assert found["macs"].mape == pytest.approx(found["affine"].mape, rel=0.01), "here MACs are as good as times"
    idle = [[Unit(u.key, u.op, u.branches, 0, 0) for u in units] for units in networks]
    assert compare(idle, truth(idle, table, {}), table)["macs"].n == 60, "networks without MACs are no error"

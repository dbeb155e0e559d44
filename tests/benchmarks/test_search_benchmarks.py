"""Search against random, and the gate: what they compare, and what their tables say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import gate_camvid, search_against_random
from benchmarks.ablations.placement import attention_strides
from benchmarks.ablations.required_attention import with_attention
from benchmarks.gate_camvid import SEEDS, WINNER, GateCase, cases, opponents, table, widest
from benchmarks.search_against_random import Draws, best_in_band, paired
from export.errors import CheckFailed, InvalidInput
from hyctas.arch.genotype import Genotype
from hyctas.arch.operators import from_key
from hyctas.cost.workloads import CostModel
from hyctas.cost.workloads import family as operator_family
from hyctas.plan import lower
from hyctas.search.driver import search
from hyctas.search.front import hypervolume
from hyctas.search.history import Evaluation, History
from hyctas.search.limits import Limits
from hyctas.space import edge, tiny
from hyctas.spaces.members import family, member, members, members_of
from latency.identity import Identity
from latency.table import LatencyTable, Row

TINY, EDGE, SIZE = tiny(), edge(), (64, 64)


def macs(genotype: Genotype) -> float:
    return lower(genotype, SIZE, 11).macs / 1e6


def model() -> CostModel:
    """Costs in which latency follows MACs."""
    rows = {}
    for key in TINY.keys(SIZE, 4):
        operator, shapes = from_key(key)
        ms = 0.01 + operator.macs(shapes) / 1e7
        rows[key] = Row(op=operator_family(key), median_ms=ms, p10_ms=ms, p90_ms=ms, n=20, builds=1, busy=False)
    identity = Identity(target="torch-cpu:fp32", device={}, versions={}, threads=1, protocol={})
    return CostModel(TINY, LatencyTable(identity, rows), SIZE, 4)


def test_paired_intervals() -> None:
    mean, low, high = paired([1.0, 2.0, 3.0])
    assert mean == 2 and low == pytest.approx(2 - 2.484, abs=1e-3) and high == pytest.approx(2 + 2.484, abs=1e-3)
    assert paired([1.0, 2.0, 3.0], one_sided=True)[1] == pytest.approx(2 - 1.686, abs=1e-3)
    assert paired([1.0])[1:] == (float("-inf"), float("inf"))


def test_an_answer_lies_just_below_the_limit() -> None:
    smallest = TINY.smallest()
    found = [Evaluation("search", 0, smallest.id, smallest, ms / 10, ms, 1, 1, 1.0) for ms in (8.0, 8.6, 9.9, 10.1)]
    assert best_in_band(found, 10).predicted_ms == 9.9
    with pytest.raises(CheckFailed, match=r"none of 1 networks lies between 0.85 and 1 of 10 ms"):
        best_in_band(found[:1], 10)


@pytest.mark.slow
def test_search_beats_random_where_structure_matters(tmp_path: Path) -> None:
    costs, volumes = model(), {"search": 0.0, "random": 0.0}
    for seed in (99, 1):
        rng = np.random.default_rng(seed)
        tastes = [rng.normal(size=count) for _, count in TINY.genes]

        def hard(genotype: Genotype, tastes: list[np.ndarray] = tastes) -> float:
            taste = sum(values[gene] for values, gene in zip(tastes, TINY.encode(genotype), strict=True)) / len(tastes) ** 0.5
            return float(0.8 * (1 - np.exp(-lower(genotype, SIZE, 4).macs / 4e6)) / (1 + np.exp(-1.5 * taste)))

        for side, optimiser in (("search", None), ("random", lambda first: Draws(costs, Limits(), 0, 8))):
            history = History(tmp_path / f"{side}{seed}", {}, print)
            search(costs, Limits(), hard, history, evaluations=40, population=12, candidates=40, seed=0, reference_ms=2.5,
                   optimiser=optimiser)  # fmt: skip
            volumes[side] += hypervolume(history.of("search"), 2.5)
    assert volumes["search"] > 1.05 * volumes["random"]


def test_a_search_that_must_include_attention(tmp_path: Path) -> None:
    whole = model()
    costs, _ = with_attention(whole, Limits(), 0, 8)
    assert costs.space.hash == TINY.hash, "tables, and weights of the whole space, fit"
    history = History(tmp_path / "history.jsonl", {}, print)
    search(costs, Limits(), lambda genotype: lower(genotype, SIZE, 4).macs / 1e9, history, evaluations=30, population=12,
           candidates=60, seed=0, reference_ms=2.5, members=list(members_of(costs.space).values()))  # fmt: skip
    found = [evaluation.genotype for evaluation in history.of("search")]
    assert len(found) == 30 and all(attention_strides(genotype) - {0} for genotype in found)
    assert {len(genotype.branches) for genotype in found} == {1, 2, 3}
    assert attention_strides(costs.space.smallest()) and not attention_strides(whole.space.smallest())
    plain = replace(TINY, stages=tuple(replace(stage, attention=False) for stage in TINY.stages))
    with pytest.raises(InvalidInput, match="does not offer attention"):
        with_attention(CostModel(plain, whole.table, SIZE, 4), Limits(), 0, 8)


def test_account_of_search_against_random() -> None:
    def line(seed: int, gain: float) -> dict[str, Any]:
        sides = {side: {"id": side, "predicted_ms": 9.5, "seen_miou": 0.5, "unseen_miou": miou}
                 for side, miou in (("search", 0.5 + gain), ("random", 0.5))}  # fmt: skip
        return {"case": {"seed": seed, "evaluations": 200, "limit_ms": 10.0}, **sides}

    text = search_against_random.table([line(0, 0.01), line(1, 0.02), line(2, 0.03)])
    assert "+2.00 points, 95 % interval -0.48 to +4.48 (3 seeds)" in text and "| 1 | search: search | 9.50 | 50.0 | 52.0 |" in text


def test_opponents_meet_the_limit_and_come_near_it() -> None:
    limit = 1.2 * macs(member("lite0-16-w50"))
    asked: list[int] = []

    def measured(some: Mapping[str, Genotype]) -> dict[str, float]:
        asked.append(len(some))
        return {name: macs(genotype) * (1.1 if "two-branch" in name else 0.95) for name, genotype in some.items()}

    found, left_out = opponents(EDGE, macs, measured, limit)
    assert "lite0-16" in found and "resnet" in left_out and not {*found} & {*left_out}
    assert {*found, *left_out} == set(map(family, members())) and len(asked) >= 2
    kept_out = opponents(EDGE, macs, lambda some: {name: 2 * limit + macs(genotype) for name, genotype in some.items()}, limit)[1]
    assert f"its fastest takes {2 * limit + macs(member('lite0-16-w50')):.2f} ms" in kept_out["lite0-16"]
    times = measured(found)
    assert all(times[name] <= 1.02 * limit for name in found) and times["lite0-16"] > 0.9 * limit
    assert macs(found["lite0-16"]) > macs(member("lite0-16-w50")), "it is widened"
    assert all(EDGE.encode(genotype).shape == EDGE.cardinality.shape for genotype in found.values())
    own, _ = opponents(EDGE, macs, measured, 0.95 * macs(member("lite0-16")))
    assert own["lite0-16"] == member("lite0-16"), "a member that takes nearly all of the limit stays as it is"
    assert widest(member("plain"), EDGE, lambda genotype: False) == member("plain")


def contenders(*names: str) -> dict[str, Any]:
    known = {name: member("lite0-16-w50" if name == WINNER else name) for name in names}
    listed = {
        name: {"genotype": json.loads(g.to_json()), "id": g.id, "ms": 9.5 if name == WINNER else 7.0} for name, g in known.items()
    }
    return {"limit_ms": 10.0, "target": "t", "threads": 2, "size": [360, 480], "machine": {"cpu": "a CPU"}, "contenders": listed}


def test_all_contenders_train_alike() -> None:
    listed = cases(contenders(WINNER, "lite0", "plain"), "efficientnet-lite0", {"ema": 0.99})
    assert [case.network for case in listed[:4]] == [WINNER, "lite0", "plain", WINNER] and len(listed) == 3 * SEEDS
    assert {(case.steps, case.crop, case.all_of_train, case.settings["ema"]) for case in listed} == {(3000, "240x320", True, 0.99)}
    assert [case.init for case in listed[:3]] == ["efficientnet-lite0", "efficientnet-lite0", "none"]
    assert listed[1].genotype() == member("lite0") and GateCase(**json.loads(listed[1].key)) == listed[1]
    (taught, *_) = cases(contenders(WINNER, "lite0"), "none", {}, (("edge:lite0", 9),))
    assert [(teacher.name, teacher.all_of_train) for teacher in taught.teacher_cases()] == [
        ("lite0_efficientnet-lite0_recipe2_3000_240x320_all_seed9", True)
    ]
    assert listed[0].name.startswith("winner_efficientnet-lite0_ema=0.99_recipe2_3000_240x320_all")


def test_account_of_the_gate() -> None:
    found = contenders(WINNER, "lite0", "plain")

    def lines(gain: float) -> list[dict[str, Any]]:
        base = {WINNER: 0.6 + gain, "lite0": 0.6, "plain": 0.5}
        return [
            {
                "case": {"network": name, "seed": seed, "settings": {}, "init": "none"},
                "genotype": found["contenders"][name]["id"], "miou": miou + 0.001 * seed * (name != WINNER),
            }
            for name, miou in base.items() for seed in range(SEEDS)
        ]  # fmt: skip

    text = table(found, lines(0.02))
    assert "The best opponent is lite0: the winner's mean difference is +1.80 points" in text and "The gate holds." in text
    assert "| 0.70 (no wider form fits) |" in text and "60.0, 60.1, 60.2, 60.3, 60.4" in text
    other = {**lines(0.02)[0], "case": {**lines(0.02)[0]["case"], "settings": {"ema": 0.9}}}
    with pytest.raises(InvalidInput, match="several recipes"):
        table(found, [*lines(0.02), other])
    assert "The gate is missed." in table(found, lines(0.005)) and "Not all trainings are done." in table(found, lines(0.02)[:-1])


def test_what_is_asked_for_is_needed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for module, arguments, says in (
        (gate_camvid, ["--results", str(tmp_path / "g.jsonl")], "--prepare first"),
        (gate_camvid, ["--prepare"], "--prepare needs --winner, --latency and --limit"),
        (search_against_random, [], "give --run and --limit"),
    ):
        monkeypatch.setattr("sys.argv", ["x", *arguments])
        with pytest.raises(SystemExit) as end:
            module.main()
        assert end.value.code == InvalidInput.exit_code and says in capsys.readouterr().err

"""The driver of brief trainings: what stands in the results file is not trained again, and teachers are trained first."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import screening
from benchmarks.screening import PLANS, Case, noted, read_results, run, table
from export.errors import InvalidInput
from tests.hyctas.cli.conftest import run_command

DATA = "scenes:train=12,val=2,size=64x64"
LITE: dict[str, Any] = {"init": "none", "steps": 2, "crop": "64x64"}


def test_no_case_stands_in_two_places_of_a_plan_and_each_network_can_be_built() -> None:
    for name, plan in PLANS.items():
        keys = [case.key for case in plan()]
        assert keys and len(set(keys)) == len(keys), name
        for case in plan():
            assert case.genotype().id and len(case.name.encode()) < 200


def test_hand_made_networks_keep_the_ids_that_results_have() -> None:
    lines = read_results(screening.RESULTS)
    assert lines and all(Case.of(line).genotype().id == line["genotype"] for line in lines)


@pytest.mark.slow
def test_a_case_trains_its_teacher_first_and_each_is_noted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def here(command: list[str], check: bool) -> SimpleNamespace:
        return SimpleNamespace(returncode=run_command(command[0].rpartition("hyctas-")[2], *command[1:]))

    monkeypatch.setattr(screening, "subprocess", SimpleNamespace(run=here))  # the same command, without starting torch again
    results, runs = tmp_path / "screening.jsonl", tmp_path / "runs"
    teacher = Case(network="edge:plain-w75", seed=1, **LITE)
    case = Case(network="edge:lite0-16-w50", seed=0, teachers=(("edge:plain-w75", 1),), **LITE)
    run(case, DATA, runs, results)
    lines = read_results(results)
    assert [Case(**line["case"]).name for line in lines] == [teacher.name, case.name]
    assert noted(case, results) and noted(teacher, results)
    assert all(0 <= line["miou"] <= 1 and line["split"] == "choose" for line in lines)
    record = json.loads((runs / case.name / "train-network.json").read_text())
    assert len(record["config"]["teacher"]) == 1
    assert "follows edge:plain-w75 (seed 1)" in table(lines, {})
    run(case, DATA, runs, results)
    assert read_results(results) == lines


def test_cases_without_teachers_read_as_before() -> None:
    case = Case(network="edge:lite0-16", init="efficientnet-lite0", seed=0)
    assert "teachers" not in json.loads(case.key)


def test_cases_of_the_first_recipe_read_as_before_and_are_not_trained(tmp_path: Path) -> None:
    first = Case(network="edge:plain", init="none", seed=0, recipe=1)
    assert "recipe" not in first.to_json() and Case.of({"case": first.to_json()}) == first
    assert Case.of({"case": replace(first, recipe=2).to_json()}).recipe == 2
    with pytest.raises(InvalidInput, match="is of recipe 1, which earlier code trains: crops hardly ever"):
        run(first, DATA, tmp_path, tmp_path / "r.jsonl")

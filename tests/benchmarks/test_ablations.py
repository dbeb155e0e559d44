"""The ablations: which networks they compare, and what their accounts say."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.ablations.branch_ratios import COUNTS, ratios_account
from benchmarks.ablations.cost import cost
from benchmarks.ablations.moved_attention import ORIGINAL, attention_account, variants
from benchmarks.ablations.placement import attention_strides, best, figure, placement_table
from benchmarks.ablations.retrained import retrained_account
from benchmarks.ranking import draw
from export.errors import InvalidInput
from hyctas.arch.genotype import Genotype, shared_length
from hyctas.artifacts.runs import Run
from hyctas.network import build
from hyctas.plan import lower
from hyctas.published.spec import read_source
from hyctas.search.history import Evaluation
from hyctas.space import tiny
from hyctas.spaces.members import member


def macs(genotype: Genotype) -> float:
    return float(lower(genotype, (64, 64), 11).macs)


@pytest.mark.parametrize("name", ["edge:lite0-16-attention", "edge:hyctas-w50", "published:L"])
def test_variants_are_networks_that_differ_in_one_attention(name: str) -> None:
    genotype = member(name.removeprefix("edge:")) if name.startswith("edge:") else read_source(name)
    found = variants(genotype, macs)
    assert len({variant.id for variant in found.values()}) == len(found) and found.pop(ORIGINAL).id == genotype.id
    for what, variant in found.items():
        lost = sum(cell.op == "attention" for branch in genotype.branches for cell in branch)
        lost -= sum(cell.op == "attention" for branch in variant.branches for cell in branch)
        assert lost == (what.endswith(("removed", "time"))), what
        assert variant.final_strides == genotype.final_strides
        if macs(variant) < 3e7:
            assert build(variant, 3).eval()(torch.zeros(1, 3, 64, 64)).shape[1] == 3
    nearest = next(variant for what, variant in found.items() if what.endswith("time"))
    assert macs(nearest) == pytest.approx(macs(genotype), rel=0.1)


def test_what_branches_share_stays_shared() -> None:
    first, second = (branch for branch in member("hyctas-w50").branches[1:])
    genotype = member("hyctas-w50")
    attention = first[-1]
    both = replace(genotype, branches=(genotype.branches[0], (*first, first[2]), (*first[:3], attention, *second[3:])))
    assert shared_length(*both.branches[1:]) == 4
    found = variants(both, None)
    assert not any(what.startswith("attention 4 of the branch to 1/32") for what in found), "it is that of the branch to 1/16"
    without = found["attention 4 of the branch to 1/16: removed"]
    assert without.branches[1] == (*first[:3], first[2]) and without.branches[2] == second
    earlier = found["attention 4 of the branch to 1/16: one earlier"].branches
    assert earlier[1][:4] == earlier[2][:4] and [cell.op for cell in earlier[1][1:4]] == ["downup", "attention", "downup2x"]
    later = found["attention 4 of the branch to 1/16: one later"].branches
    assert later[2] == both.branches[2], "what stands behind it is not shared"


def test_a_network_without_attention_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"no branch of .* has attention"):
        variants(member("plain"), None)


def test_account_of_moved_attention() -> None:
    def line(variant: str, seed: int, miou: float) -> dict[str, Any]:
        case = {"network": "abc", "given": "edge:x", "variant": variant, "seed": seed, "steps": 9, "crop": "1x1", "init": "none"}
        return {"case": case, "genotype": variant[:3], "miou": miou, "predicted_ms": None}

    lines = [line(ORIGINAL, 0, 0.4), line(ORIGINAL, 1, 0.42), line("removed", 0, 0.41), line("removed", 1, 0.4)]
    text = attention_account(lines)
    assert "| removed | rem | not predicted | 41.0, 40.0 | 40.5 ± 0.7 | -0.5 ± 2.1 |" in text
    assert "## edge:x (abc), 9 steps of 1x1, started from none" in text


def test_account_of_retrained_answers() -> None:
    def line(side: str, search_seed: int, seed: int, miou: float) -> dict[str, Any]:
        case = {"side": side, "search_seed": search_seed, "limit_ms": 9.0, "predicted_ms": 8.0, "inherited": 0.3, "seed": seed}
        return {"case": case, "genotype": f"{side[0]}{search_seed}", "miou": miou}

    lines = [line("search", 0, 0, 0.5), line("search", 0, 1, 0.52), line("random", 0, 0, 0.5), line("search", 1, 0, 0.5)]
    text = retrained_account(lines)
    assert "Search minus random, retrained: +1.00 points (1 searches)." in text
    assert "| 0 | search: s0 | 8.00 | 30.0 | 50.0, 52.0 |" in text
    assert "Neither side" in retrained_account(lines[-1:])


def test_where_attention_stands() -> None:
    def evaluation(name: str, miou: float, ms: float) -> Evaluation:
        genotype = member(name)
        return Evaluation("search", 0, genotype.id, genotype, miou, ms, 1, 1, 1.0)

    found = [evaluation("hyctas", 0.5, 9.0), evaluation("hyctas-w50", 0.4, 5.0), evaluation("lite0-16", 0.45, 9.5)]
    assert attention_strides(found[0].genotype) == {16, 32} and attention_strides(found[2].genotype) == set()
    table = placement_table(found)
    assert "| 3 | 2 | 0% | 100% | 100% | 0% | 100% |" in table and "| 1 | 1 | 0% | 0% | 0% | 0% | 0% |" in table
    assert "| 2 | 0 | - |" in table
    assert figure(found, found[:2]).count("<svg") == 1
    assert best(found) == [found[0]] and len(best(found * 7)) == 3


def test_account_of_branch_ratios() -> None:
    def line(name: str, seed: int, miou: float) -> dict[str, Any]:
        networks = [{"branches": count, "id": "a", "inherited": miou + 0.01 * count} for count in COUNTS]
        case = {"setting": name, "seed": seed, "limit_ms": 9.0, "steps": 5, "crop": "1x1"}
        return {"case": case, "networks": networks, "ratios_at_end": [0.1, 0.2, 0.7]}

    text = ratios_account([line("equal", 0, 0.3), line("equal", 1, 0.32), line("adaptive", 0, 0.4)])
    assert "| equal | 2 | 32.0, 34.0 | 33.0 ± 1.4 | 0.10 : 0.20 : 0.70 |" in text and "| adaptive | 3 | 43.0 | 43.0 |" in text
    for count in COUNTS:
        ratios = tuple(float(c == count) for c in COUNTS)
        found = draw(tiny(), macs, 3e6, 3, ratios)  # type: ignore[arg-type]
        assert all(len(genotype.branches) == count and macs(genotype) == pytest.approx(3e6, rel=0.15) for genotype in found)


def test_what_a_search_cost(tmp_path: Path) -> None:
    asked = argparse.Namespace(run=str(tmp_path))
    with pytest.raises(InvalidInput, match="no step of"):
        cost(asked)
    run = Run(tmp_path, "search", {}, ())
    run.finish()
    record = json.loads(run.path.read_text())["cost"]
    assert 0 <= record["wall_s"] < 60 and 50 < record["peak_mib"] < 1e5 and not record["continued"]
    Run(tmp_path, "profile", {}, ())
    assert not run.path.with_name("profile.json").read_text().count('"cost"')
    again = Run(tmp_path, "profile", {}, ())
    again.finish()
    text = cost(asked)
    assert "of its last process" in text and "| search |" in text and "device hours" in text

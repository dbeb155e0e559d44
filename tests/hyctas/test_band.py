"""The band of networks that a supernet is trained for: what is drawn, how evenly, at what cost, and what if none fits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from export.codec import Misfit, convert
from export.errors import Infeasible
from hyctas.arch.genotype import Genotype
from hyctas.plan import lower
from hyctas.space import edge, tiny
from hyctas.spaces.members import member, members
from hyctas.training.band import Band, Drawer, TrainedBand, macs_band
from hyctas.training.config import SupernetRecipe

EDGE = edge()
EQUAL = (1.0, 1.0, 1.0)
RECIPE = SupernetRecipe(steps=1, crop=(64, 64))
LITE = {
    node.slot: {layer.name: layer for layer in node.operator.layers()}
    for node in lower(member("lite0"), (64, 64), 1).nodes if node.part in ("stem", "trunk")
}  # fmt: skip


def mmacs(genotype: Genotype) -> float:
    return lower(genotype, (64, 64), 5).macs / 1e6


class Counting:
    """A cost that counts how often it was computed."""

    def __init__(self) -> None:
        self.known: dict[str, float] = {}

    def __call__(self, genotype: Genotype) -> float:
        return self.known.setdefault(genotype.id, mmacs(genotype))


@pytest.fixture(scope="module")
def narrow() -> tuple[Counting, Band, Drawer]:
    """A band around the smallest hand-made networks, which hardly any random network of `edge` lies in."""
    cost = Counting()
    limit = mmacs(member("lite0-16-w50"))
    band = Band(cost, 0.5 * limit, 1.2 * limit, "MMAC")
    return cost, band, Drawer(EDGE, RECIPE, band, list(members().values()), LITE)


def test_draws_lie_in_a_narrow_band_evenly_and_cost_little(narrow: tuple[Counting, Band, Drawer]) -> None:
    cost, band, drawer = narrow
    rng = np.random.default_rng(0)
    share = np.mean([band.holds(EDGE.sample(rng)) for _ in range(100)])
    before = len(cost.known)
    drawn = [genotype for step in range(50) for genotype in drawer.draw(step, EQUAL)]
    assert share < 0.2 and (len(cost.known) - before) / len(drawn) < 5, "predictions per network"
    assert all(map(band.holds, (*drawn, drawer.smallest, drawer.largest)))
    thirds = np.histogram([cost(genotype) for genotype in drawn], np.geomspace(band.low, band.high, 4))[0]
    assert thirds.min() >= len(drawn) / 10
    assert len({genotype.id for genotype in drawn}) > len(drawn) / 2
    assert {len(genotype.branches) for genotype in drawn} == {1, 2, 3}


def test_a_draw_depends_on_seed_and_step_only(narrow: tuple[Counting, Band, Drawer]) -> None:
    _, band, drawer = narrow
    again = Drawer(EDGE, RECIPE, band, list(members().values()), LITE)
    assert again.draw(7, EQUAL) == drawer.draw(7, EQUAL) != drawer.draw(8, EQUAL)
    assert (again.largest, again.smallest) == (drawer.largest, drawer.smallest)


def test_hand_made_networks_of_the_space_and_the_band_are_drawn(narrow: tuple[Counting, Band, Drawer]) -> None:
    _, band, drawer = narrow
    assert {genotype.id for genotype in drawer.members} == {g.id for g in members().values() if band.holds(g)}
    drawn = {genotype.id for step in range(60) for genotype in drawer.draw(step, EQUAL)}
    assert len(drawn & {genotype.id for genotype in drawer.members}) > len(drawer.members) / 2
    assert Drawer(tiny(), RECIPE, macs_band(RECIPE, 5), list(members().values())).members == [member("plain")]


def test_the_largest_and_the_smallest_have_trained_operators(narrow: tuple[Counting, Band, Drawer]) -> None:
    cost, band, drawer = narrow
    assert drawer.smallest == member("lite0-16-w50") and cost(drawer.largest) >= cost(drawer.smallest)
    untrained = Drawer(EDGE, RECIPE, band, list(members().values()))
    assert cost(untrained.largest) > 0.95 * band.high and cost(untrained.smallest) < cost(drawer.smallest)
    whole = mmacs(member("lite0-16"))
    wide = Drawer(EDGE, RECIPE, Band(cost, 0.5 * whole, 1.2 * whole, "MMAC"), list(members().values()), LITE)
    assert (wide.largest, wide.smallest) == (member("lite0-16"), member("lite0-16-w75"))


@pytest.mark.parametrize("genes", [
    {"b16.16a.width": 128}, {"b16.16a.kernel": 5}, {"stem.kind": "resnet"}, {"b16.16a.attention": True}, {"stem.8.first": "conv"},
])  # fmt: skip
def test_weights_and_features_that_the_source_lacks_are_untrained(
    genes: dict[str, Any], narrow: tuple[Counting, Band, Drawer]
) -> None:  # fmt: skip
    _, _, drawer = narrow
    lite = EDGE.encode(member("lite0-16"))
    for name, value in genes.items():
        lite[EDGE.index[name]] = EDGE.choices[name].index(value)
    assert drawer._trained_share(EDGE.decode(lite)) < 0.99 and drawer._trained_share(member("lite0-16-w50")) == 1


def test_without_a_band_the_whole_space_is_drawn() -> None:
    band = macs_band(RECIPE, 5)
    drawer = Drawer(EDGE, RECIPE, band)
    assert drawer.largest == EDGE.largest() and drawer.smallest == EDGE.smallest()
    settings = replace(RECIPE, max_gmacs=0.03)
    capped = macs_band(settings, 5)
    drawer = Drawer(EDGE, settings, capped)
    assert 0.02 < capped.cost(drawer.largest) <= 0.03 and capped.cost(drawer.smallest) < 0.01
    assert all(capped.cost(genotype) <= 0.03 for step in range(5) for genotype in drawer.draw(step, EQUAL))


@pytest.mark.parametrize("limit", [0.1, 1e6])
def test_an_impossible_band(limit: float) -> None:
    with pytest.raises(Infeasible, match="its smallest has"):
        Drawer(EDGE, RECIPE, Band(mmacs, 0.5 * limit, 1.2 * limit, "MMAC"))


def test_a_search_outside_of_the_band_is_warned() -> None:
    band = TrainedBand(limit_ms=10, low_ms=5, high_ms=12, size=(64, 64), table_sha256="a")
    assert convert(TrainedBand, band.to_json()) == band
    assert band.warning(10, (64, 64), "a") is None
    for limit, size, table, says in (
        (13, (64, 64), "a", "lies outside"), (4, (64, 64), "a", "lies outside"), (None, (64, 64), "a", "limit the search to ms=10"),
        (10, (96, 64), "a", "another latency table or size"), (10, (64, 64), "b", "another latency table or size"),
    ):  # fmt: skip
        assert says in str(band.warning(limit, size, table))


def test_a_damaged_band() -> None:
    whole = TrainedBand(limit_ms=10, low_ms=5, high_ms=12, size=(64, 64), table_sha256="a").to_json()
    damaged = ({"size": 3}, {"size": [1]}, {"low_ms": None}, {"low_ms": 10**400})
    for bad in ("x", [1], {}, *({**whole, **fields} for fields in damaged)):
        with pytest.raises(Misfit):
            convert(TrainedBand, bad)

"""Genotype: JSON, normal form, ids, and errors that name the place."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.errors import InvalidInput
from hyctas.arch.genotype import LINEAR, Cell, Genotype, normal_form, shared_length
from hyctas.space import edge, tiny

EDGE, TINY = edge(), tiny()
seeds = st.integers(0, 2**32 - 1)


def draw(seed: int) -> Genotype:
    return EDGE.sample(np.random.default_rng(seed))


@given(seeds)
def test_json_round_trip(seed: int) -> None:
    genotype = draw(seed)
    assert Genotype.from_json(genotype.to_json()) == genotype
    assert Genotype.from_json(json.dumps(json.loads(genotype.to_json()), indent=3)).id == genotype.id


@given(seeds)
def test_normal_form_removes_what_does_not_matter(seed: int) -> None:
    genotype = draw(seed)
    # 1. a stride-1 skip anywhere changes nothing; 2. nor does the order of branches
    padded = tuple((*branch[:1], Cell("skip", 999, stage=branch[0].stage), *branch[1:]) for branch in genotype.branches)
    other = dataclasses.replace(genotype, branches=padded[::-1])
    assert other != genotype and normal_form(other) == genotype and other.id == genotype.id
    assert normal_form(normal_form(other)) == normal_form(other)


@given(seeds, seeds)
def test_equal_ids_only_for_equal_networks(first: int, second: int) -> None:
    a, b = draw(first), draw(second)
    assert (a.id == b.id) == (normal_form(a) == normal_form(b))


@given(seeds)
def test_every_change_of_a_cell_changes_the_id(seed: int) -> None:
    genotype = draw(seed)
    wider = tuple((*branch[:-1], dataclasses.replace(branch[-1], out=branch[-1].out + 8)) for branch in genotype.branches)
    assert dataclasses.replace(genotype, branches=wider).id != genotype.id


@given(seeds)
def test_genes_round_trip(seed: int) -> None:
    for space in (EDGE, TINY):
        rng = np.random.default_rng(seed)
        genes = space.sample_genes(rng)
        genotype = space.decode(genes)
        assert space.decode(space.encode(genotype)) == genotype
        assert np.array_equal(space.repair(space.repair(genes)), space.repair(genes))
        child, _ = space.crossover(genes, space.sample_genes(rng), rng)
        assert space.decode(space.mutate(child, rng)).branches


@given(seeds)
def test_behind_an_inverted_residual_cells_end_without_relu(seed: int) -> None:
    genotype = draw(seed)
    for branch in genotype.branches:
        firsts: dict[str, str] = {}
        for cell in (*genotype.stem, *branch):
            first = firsts.setdefault(cell.stage, cell.op)
            if cell.op in LINEAR:
                assert cell.linear == (first == "inverted" and cell.op in ("conv", "downup")), cell
                assert first != "inverted" or cell.op not in ("residual", "downup2x"), cell


def test_shared_length_never_includes_a_last_cell() -> None:
    conv, other = Cell("conv", 8), Cell("conv", 16)
    down = Cell("conv", 8, 2)
    assert shared_length((conv, conv), (conv, conv, down)) == 1
    assert shared_length((conv, other, conv), (conv, conv, down)) == 1
    assert shared_length((conv,), (conv, down)) == 0


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("format_version",), 9, "format_version 9"),
        (("stem", 0, "stride"), 3, "stem strides"),
        (("stem", 0, "out"), "8", "stem[0].out is '8'; expected `int`"),
        (("branches", 0, 0, "op"), "conv5", "unknown op 'conv5'"),
        (("branches", 0, 0, "stride"), 4, "stride 4"),
        (("branches", 0), [], "no cell besides"),
        (("head", "kind"), "heavy", "'heavy'"),
        (("head", "width"), 3, "$.head has unknown fields 'width'"),
        (("fusion", "out"), 0, "at least 1"),
        (("arithmetic", "linear_stem"), 1, "linear_stem is 1; expected `bool`"),
    ],
)
def test_bad_json_is_named(path: tuple[str | int, ...], value: object, says: str) -> None:
    document = json.loads(TINY.smallest().to_json())
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(InvalidInput) as caught:
        Genotype.from_json(json.dumps(document))
    assert says in str(caught.value)


def test_truncated_json_and_missing_fields() -> None:
    text = TINY.smallest().to_json()
    with pytest.raises(InvalidInput, match="genotype is not valid"):
        Genotype.from_json(text[:-5])
    for number in ("[" * 100_000, "9" * 5000):
        with pytest.raises(InvalidInput, match="genotype is not valid"):
            Genotype.from_json(text.replace('"format_version":1', f'"format_version":{number}'))
    document = json.loads(text)
    del document["head"]
    with pytest.raises(InvalidInput, match="lacks the field `head`"):
        Genotype.from_json(json.dumps(document))


def test_wrong_genes_are_named() -> None:
    genes = TINY.encode(TINY.smallest())
    genes[TINY.index["head.width"]] = 7
    with pytest.raises(InvalidInput, match=r"head\.width"):
        TINY.decode(genes)
    with pytest.raises(InvalidInput, match="genes"):
        TINY.decode(genes[:-1])
    with pytest.raises(InvalidInput, match="not of the space tiny"):
        TINY.encode(EDGE.largest())

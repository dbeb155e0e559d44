"""The released JSON format: read, written back, and every way of being wrong named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.errors import InvalidInput
from hyctas import published
from hyctas.arch.genotype import Arithmetic, Genotype
from hyctas.artifacts.choice import read_genotype
from hyctas.published import export_genotype, import_genotype, released_json
from hyctas.space import edge
from hyctas.space import published as published_space


@pytest.mark.parametrize("name", published.NAMES)
def test_released_files_come_back(name: str) -> None:
    text = released_json(name)
    for base, head in ((16, 1), (12, 0), (6, 2)):
        genotype = import_genotype(text, base, head)
        assert json.loads(export_genotype(genotype)) == json.loads(text)
        assert Genotype.from_json(genotype.to_json()) == genotype
    assert import_genotype(json.loads(text)) == published.genotype(name)


@given(st.integers(0, 2**32), st.sampled_from([3, 8, 12, 16, 20]), st.sampled_from([0, 1, 2]), st.booleans())
@settings(max_examples=60)
def test_any_network_comes_back(seed: int, base: int, head: int, panoptic: bool) -> None:
    space = published_space(base_channels=base, head=head)
    genotype = space.sample(np.random.default_rng(seed))
    text = export_genotype(genotype)
    assert import_genotype(text, base, head) == genotype
    assert json.loads(text)["lasts"] == sorted(json.loads(text)["lasts"])
    both = import_genotype(text, base, head, panoptic=panoptic)
    assert json.loads(export_genotype(both)) == json.loads(text) and (both.instance_head is not None) == panoptic


def test_branches_are_sorted_and_extra_fields_dropped() -> None:
    value = json.loads(released_json("L"))
    order = [2, 0, 1]
    shuffled = {field: [items[i] for i in order] for field, items in value.items()}
    assert import_genotype({**shuffled, "flops": 1.0, "params": 2.0}) == published.genotype("L")
    assert json.loads(export_genotype(import_genotype(shuffled))) == value


def test_corrected_arithmetic_is_exported_too() -> None:
    corrected = replace(published.genotype("M"), arithmetic=Arithmetic())
    assert json.loads(export_genotype(corrected)) == json.loads(released_json("M"))
    assert corrected.id != published.genotype("M").id


def changed(name: str, field: str, value: Any, *place: int) -> dict[str, Any]:
    """Return a released file with one value replaced."""
    file = json.loads(released_json(name))
    if not place:
        return {**file, field: value}
    target = file[field]
    for index in place[:-1]:
        target = target[index]
    target[place[-1]] = value
    return file  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ("{", "published genotype: Expecting"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", r"is \[\]; expected `object`"),
        ('{"ops": []}', "lacks the field `paths`"),
        (changed("S", "latency", [1]), "unknown fields 'latency'"),
        (changed("S", "lasts", 2), "lasts is 2; expected `array`"),
        (changed("S", "lasts", []), "1 branches and lasts 0"),
        (changed("L", "lasts", 2, 0), r"lasts is \[2, 1, 2\].*each once"),
        (changed("S", "ops", 5, 0, 3), r"ops\[0\]\[3\] is 5; known: 0 skip"),
        (changed("S", "ops", 0, 0, 2), r"ops\[0\]\[2\] is 0 \(skip\) without down-sampling"),
        (changed("S", "ops", "x", 0), r"ops\[0\] is 'x'; expected `array`"),
        (changed("S", "ops", True, 0, 0), r"ops\[0\]\[0\] is True; expected `int"),
        (changed("S", "paths", 1, 0, 0), r"paths\[0\]\[0\] is 1; a path starts at 0"),
        (changed("S", "paths", 2, 0, 3), r"paths\[0\]\[3\] is 2"),
        (changed("S", "downs", 0, 0, 1), r"paths\[0\]\[2\] is 1"),
        (changed("S", "downs", 1, 0, 10), r"downs\[0\]\[10\] is 1; .* 0 for the last"),
        (changed("S", "downs", 2, 0, 4), r"downs\[0\]\[4\] is 2"),
        (changed("S", "widths", 0.7, 0, 0), r"widths\[0\]\[0\] is 0.7; published widths are"),
        (changed("S", "widths", [1.0], 0), r"widths\[0\] has 1 entries; ops\[0\] has 11, so 10"),
        (changed("S", "lasts", 1, 0), r"lasts\[0\] is 1, but paths\[0\] ends at 2"),
        (changed("S", "ops", [], 0), r"paths\[0\] has 11 entries; ops\[0\] has 0"),
    ],
)
def test_errors_name_the_place(wrong: Any, text: str) -> None:
    with pytest.raises(InvalidInput, match=text):
        import_genotype(wrong)


def test_below_the_lowest_resolution() -> None:
    file = {"ops": [[1] * 5], "paths": [[0, 1, 2, 3, 3]], "downs": [[1, 1, 1, 0, 0]], "widths": [[1.0] * 4], "lasts": [3]}
    with pytest.raises(InvalidInput, match="below 1/32"):
        import_genotype(file)


@pytest.mark.parametrize(("base", "head", "text"), [(2, 1, "at least 3"), (1.5, 1, "whole number"), (16, 3, "head 3 is unknown")])
def test_wrong_base_and_head(base: Any, head: int, text: str) -> None:
    with pytest.raises(InvalidInput, match=text):
        published.genotype("S", base, head)


def test_names() -> None:
    assert published.genotype("S", head="light") == published.genotype("S", head=0)
    for call in (published.genotype, published.drawn):
        with pytest.raises(InvalidInput, match="there are"):
            call("XL")


def test_a_network_of_another_space_is_refused() -> None:
    with pytest.raises(InvalidInput, match="published"):
        export_genotype(edge().largest())


def test_sources_of_the_command_line(tmp_path: Path) -> None:
    assert read_genotype(Path("published:L,base=12,head=2")) == published.genotype("L", 12, 2)
    assert read_genotype(Path("published:S,panoptic")) == published.genotype("S", panoptic=True)
    assert read_genotype(Path("published:drawn2")) == published.drawn("drawn2")
    file = tmp_path / "my.json"
    file.write_text(released_json("M"))
    assert read_genotype(Path(f"published:{file},head=0")) == published.genotype("M", head=0)
    file.write_text("{}")
    for text, error in (
        ("published:XL", "neither one of S, M, L"), ("published:S,width=2", "option 'width=2' is unknown"),
        ("published:S,base=two", "option 'base=two'"), (f"published:{file}", "my.json: .*lacks the field"),
        ("published:drawn3,panoptic", "leave panoptic out"), ("published:S,head=7", "head '7' is unknown"),
    ):  # fmt: skip
        with pytest.raises(InvalidInput, match=error):
            read_genotype(Path(text))

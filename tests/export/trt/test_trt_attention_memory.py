"""What is kept of chosen attention: found again under equal conditions alone, and never worth the end of a command."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from export.trt.attention_case import AttentionCase
from export.trt.attention_memory import AttentionMemory

CASE = AttentionCase(batch=1, heads=1, qk_channels=8, value_channels=64, queries=60, keys=60, dtype="float16", scale=0.5)
OFFERED = ("fused", "decomposed")
CHOSEN = {"implementation": "fused", "reason": "faster", "times_ms": {"fused": 1.0}, "refused": {"plugin": "no Triton"}}


def memory(path: Path, told: list[str] | None = None, **conditions: Any) -> AttentionMemory:
    return AttentionMemory(path, conditions, (told if told is not None else []).append)


def test_it_is_found_under_equal_conditions_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep/kept.json"
    memory(path, level=2).put(CASE, OFFERED, {**CHOSEN, "parity": {"fused": {}}})
    assert memory(path, level=2).get(CASE, OFFERED) == {**CHOSEN, "parity": {}}
    assert memory(path, level=5).get(CASE, OFFERED) is None
    assert memory(path, level=2).get(CASE, ("plugin", *OFFERED)) is None, "for instance once Triton is installed"


def test_processes_add_to_one_file_and_each_keeps_to_its_own_choice(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    first, second = memory(path), memory(path)
    first.put(CASE, OFFERED, CHOSEN)
    second.put(CASE, ("fused",), CHOSEN)
    assert len(json.loads(path.read_text())["choices"]) == 2
    second.put(CASE, OFFERED, {**CHOSEN, "implementation": "decomposed"})
    chosen = [found.get(CASE, OFFERED) for found in (first, second, memory(path))]
    assert [found and found["implementation"] for found in chosen] == ["fused", "decomposed", "decomposed"]


def test_a_file_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    told: list[str] = []
    kept = memory(tmp_path / "file/kept.json", told)
    kept.put(CASE, OFFERED, CHOSEN)
    assert kept.get(CASE, OFFERED) == {**CHOSEN, "parity": {}}
    assert told == ["kept.json was not written (File exists): the next command chooses attention again"]


@pytest.mark.parametrize(
    "entry",
    [["implementation", "reason"], {"implementation": []}, {**CHOSEN, "odd": 1}, {**CHOSEN, "reason": 5}, {**CHOSEN, "refused": 0}],
)
def test_a_damaged_file_is_moved_aside(tmp_path: Path, entry: object, monkeypatch: pytest.MonkeyPatch) -> None:
    path, told = tmp_path / "kept.json", list[str]()
    memory(path).put(CASE, OFFERED, CHOSEN)
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, "choices": dict.fromkeys(value["choices"], entry)}))

    def refused(*_: object) -> None:
        raise PermissionError("read-only")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", refused)
        assert memory(path, told).get(CASE, OFFERED) is None and told.pop().startswith("kept.json cannot be read (")
    assert memory(path, told).get(CASE, OFFERED) is None
    assert "kept.json cannot be read and was moved to kept.json.unusable" in told[0] and not path.exists()

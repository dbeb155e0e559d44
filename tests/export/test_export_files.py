"""JSON from anywhere is parsed, or refused as a ValueError: nothing in it ends in an error of another kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from export.codec import convert, plain
from export.errors import CorruptFile
from export.files import parse_json, read_json
from latency.journal import read_journal
from latency.table import Row

WRONG = ("[" * 100_000, "9" * 400, "9" * 5000, "-" + "9" * 400, "1e999", "NaN", "-Infinity", "{", "", "nul", '"\\ud800"')


@pytest.mark.parametrize("text", WRONG, ids=lambda text: text[:6])
def test_what_is_no_json(tmp_path: Path, text: str) -> None:
    for content in (text, text.encode()):
        with pytest.raises(ValueError):
            parse_json(content)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(CorruptFile):
        read_json(tmp_path / "a.json")


def test_what_is(tmp_path: Path) -> None:
    assert parse_json(r'"\ud83d\ude00 \udc80"') == "\U0001f600 \udc80"
    assert parse_json('{"a": [1, -2.5, 1e300, "b", null, true]}') == {"a": [1, -2.5, 1e300, "b", None, True]}


def test_a_time_that_no_float_can_hold(tmp_path: Path) -> None:
    row = plain(Row(op="conv", median_ms=1.0, p10_ms=1.0, p90_ms=1.0, n=20, builds=1, busy=False))
    with pytest.raises(ValueError, match="median_ms"):
        convert(Row, {**row, "median_ms": 10**400})
    identity = {"target": "torch-cpu:fp32", "device": {}, "versions": {}, "threads": 1, "protocol": {}}
    lines = [{"format_version": 2, "identity": identity, "run": {}}, {"key": "a", "row": {**row, "p90_ms": 10**400}}, {"note": "b"}]
    (tmp_path / "j").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(CorruptFile, match="line 2"):
        read_journal(tmp_path / "j")

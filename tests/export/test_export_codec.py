"""The codec: what was encoded is decoded; every kind of damage is a `CorruptFile` that names the file, the line and the place."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from export.codec import Count, Misfit, Positive, Text, convert, decode, decode_toml, elided, encode, plain, reading, whole_lines
from export.errors import CorruptFile, InvalidInput


@dataclass(frozen=True)
class Row:
    op: Text
    ms: Positive
    n: Count = 1
    note: str | None = elided(None)

    def __post_init__(self) -> None:
        if self.op == "refused":
            raise InvalidInput("that one is refused")


@dataclass(frozen=True)
class Part:
    OPEN: ClassVar = True
    known: int


@dataclass(frozen=True, kw_only=True)
class Table:
    rows: dict[str, Row]
    listed: tuple[Row, ...] = ()
    size: tuple[int, int] = (1, 2)
    part: Part | None = None
    free: Any = None

    @classmethod
    def before_decoding(cls, value: dict[str, Any]) -> dict[str, Any]:
        if value.get("size") == "bad":
            raise ValueError("size is bad")
        return {**value, "size": [3, 4]} if value.get("size") == "3x4" else value


TABLE = Table(rows={"a": Row("conv", 1.5), "b": Row("pool", 2.0, 3, "x")}, listed=(Row("conv", 1.0),), part=Part(1))
GOOD: dict[str, Any] = plain(TABLE)


def changed(**fields: Any) -> dict[str, Any]:
    return {**GOOD, **fields}


def row(**fields: Any) -> dict[str, Any]:
    return changed(rows={"a": {"op": "conv", "ms": 1.5, **fields}})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    encode(path, TABLE, 2)
    assert json.loads(path.read_text()) == {"format_version": 2, **GOOD} and path.read_text().startswith('{\n "format_version": 2')
    assert decode(Table, path, 1, 2) == TABLE == convert(Table, GOOD) == decode(Table, json.dumps(GOOD))
    assert "note" not in GOOD["rows"]["a"] and GOOD["rows"]["b"]["note"] == "x" and GOOD["size"] == [1, 2]


def test_other_forms_and_parts() -> None:
    found = convert(Table, changed(size="3x4", part={"known": 2, "unknown": 3}, listed=[{"op": "conv", "ms": 1}]))
    assert (found.size, found.part, found.listed[0].ms) == ((3, 4), Part(2), 1.0)


WRONG = (
    ([], "$ is []; expected `object`, got `array`"),
    (row(ms=0), "$.rows['a'].ms is 0; expected `float` > 0.0"),
    (row(ms="1"), "$.rows['a'].ms is '1'; expected `float`, got `str`"),
    (row(ms=True), "$.rows['a'].ms is True; expected `float`, got `bool`"),
    (row(n=1.5), "$.rows['a'].n is 1.5; expected `int`, got `float`"),
    (row(op=""), "$.rows['a'].op is ''"),
    (row(more=1), "$.rows['a'] has unknown fields 'more'; known: op, ms, n, note"),
    (row(op="refused"), "$.rows['a'] is no Row: that one is refused"),
    (changed(rows={"a": 1}), "$.rows['a'] is 1; expected `object`, got `int`"),
    (changed(listed=[{"op": "conv", "ms": 1}, {"op": "conv"}]), "$.listed[1] lacks the field `ms`"),
    (changed(size=[1, None]), "$.size[1] is None; expected `int`, got `null`"),
    (changed(size=[1]), "$.size is [1]; expected `array` of length 2, got 1"),
    (changed(size="bad"), "$ is no Table: size is bad"),
    (changed(part={"known": 10.5}), "$.part.known is 10.5; expected `int`"),
    (changed(part=[]), "$.part is []; expected `object | null`"),
    ({"listed": []}, "$ lacks the field `rows`"),
)


@pytest.mark.parametrize(("value", "says"), WRONG, ids=[says for _, says in WRONG])
def test_what_does_not_fit_names_its_place(tmp_path: Path, value: Any, says: str) -> None:
    with pytest.raises(Misfit) as misfit:
        convert(Table, value)
    assert str(misfit.value).startswith(says) and says.startswith(misfit.value.place)
    (tmp_path / "t.json").write_text(json.dumps(value))
    with pytest.raises(CorruptFile) as caught:
        decode(Table, tmp_path / "t.json")
    assert (caught.value.path, caught.value.line) == (tmp_path / "t.json", None) and caught.value.reason.startswith(says)


def from_json(path: Path) -> Any:
    return decode(Table, path, 1)


def from_lines(path: Path) -> Any:
    lines, torn = whole_lines(path)
    found = []
    for number, line in lines:
        with reading(path, number):
            found.append(decode(Table, line, 1))
    return found, torn


DAMAGED = (
    b"", b"{", b"nul", b"\xff\xfe", b"[" * 100_000, b'{"format_version": 2, "rows": {}}', b'{"rows": {}}',
    b'{"format_version": true, "rows": {}}',
    *(b'{"format_version": 1, "rows": {}, "free": %s}' % value
      for value in (b"9" * 5000, b"NaN", b"-Infinity", b"1e999", b'"\\ud800"', b'"\xff"', b"[" * 100_000, b"{'a': 1}")),
    b'{"format_version": 1, "rows": {}} {}',
)  # fmt: skip


@pytest.mark.parametrize("read", [from_json, from_lines])
@pytest.mark.parametrize("data", DAMAGED, ids=lambda data: str(data[:60]))
def test_damage(tmp_path: Path, read: Callable[[Path], Any], data: bytes) -> None:
    path = tmp_path / "file"
    good = json.dumps({"format_version": 1, **GOOD}).encode()
    path.write_bytes(data if read is from_json else good + b"\n" + data + b"\n" + good + b"\n")
    with pytest.raises(CorruptFile) as caught:
        read(path)
    assert caught.value.path == path and (read is from_json or caught.value.line == 2)


def test_a_version_that_is_not_read_is_named_with_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "f").write_text('{"format_version": 3}')
    with pytest.raises(CorruptFile, match="has format_version 3; this release reads 1 and 2"):
        decode(Table, tmp_path / "f", 1, 2)


def test_a_torn_last_line_is_left_over(tmp_path: Path) -> None:
    path, good = tmp_path / "f", json.dumps({"format_version": 1, **GOOD}).encode()
    path.write_bytes(good + b"\n" + good[:20])
    assert from_lines(path) == ([TABLE], good[:20])


@pytest.mark.parametrize("text", [
    "a =", "a = 2020-01-01", "a = inf", "a = nan", "a = " + "[" * 100_000, "a = 1\na = 2", "a = \udcff", "a = " + "9" * 5000,
    'a = "x"', "b = 1", "",
], ids=lambda text: text[:20])  # fmt: skip
def test_damaged_toml(tmp_path: Path, text: str) -> None:
    @dataclass(frozen=True)
    class Settings:
        a: int

    path = tmp_path / "s.toml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CorruptFile) as caught:
        decode_toml(Settings, path)
    assert caught.value.path == path


def test_toml(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text('rows = {a = {op = "conv", ms = 1}}\nsize = [3, 4]\n')
    assert decode_toml(Table, path) == Table(rows={"a": Row("conv", 1.0)}, size=(3, 4))
    assert decode_toml(dict[str, Any], path) == tomllib.loads(path.read_text())


def test_missing_files_and_links_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for read in (lambda path: decode(Table, path), lambda path: decode_toml(Table, path)):
        with pytest.raises(CorruptFile, match="circle"):
            read(tmp_path / "a")
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "none")

"""Tables survive a round trip and refuse damage; journals give back every completed line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from export.codec import convert, plain
from export.errors import CorruptFile, InvalidInput, MissingKeys, TableMismatch
from latency.accuracy import Fidelity
from latency.calibration import Calibration
from latency.identity import Identity, IdentityMismatch
from latency.journal import Journal, fold, journal_path, read_journal
from latency.measure import Measurement
from latency.table import LatencyTable, Row

IDENTITY = Identity("torch-cpu:fp32", {"cpu": "x", "gpus": []}, {"torch": "2.11"}, 2, {"ci": 0.02})
ROW = Row("conv", 2.0, 1.0, 3.0, 20, 1, False)
HOLDOUT = Fidelity(0.01, 1.0, 1.0, 0.9, 0.8, 20)
CALIBRATION = Calibration("edge", 0.1, 0.9, 20, HOLDOUT, "ab", 0.01, (1.0, 1.1))


def table(**rows: Row) -> LatencyTable:
    return LatencyTable(IDENTITY, rows or {"a": ROW, "b": ROW}, {"edge": CALIBRATION}, [{"started": "now"}])


def test_latency_table_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    with pytest.raises(InvalidInput, match="no latency table"):
        LatencyTable.load(path)
    table().save(path)
    assert LatencyTable.load(path) == table()
    before = path.read_bytes()
    LatencyTable.load(path).save(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("format_version",), 3),
        (("rows", "a", "median_ms"), float("nan")),
        (("rows", "a", "median_ms"), 0),
        (("rows", "a", "median_ms"), "2"),
        (("rows", "a", "median_ms"), True),
        (("rows", "a", "p10_ms"), 2.5),
        (("rows", "a", "p90_ms"), 1.5),
        (("rows", "a", "n"), 1.5),
        (("rows", "a", "busy"), 0),
        (("rows", "a", "op"), ""),
        (("rows", "a", "extra"), 1),
        (("rows",), []),
        (("provenance",), [1]),
        (("extra",), 1),
        (("identity", "threads"), "2"),
        (("calibrations", "edge", "model"), "forest"),
        (("calibrations", "edge", "scale"), 0.0),
        (("calibrations", "edge", "holdout", "mape"), None),
        (("calibrations", "edge", "holdout", "within5"), 5),
        (("calibrations", "edge", "ratios"), [0]),
        (("calibrations", "edge", "n"), -1),
    ],
)
def test_latency_table_edited_by_hand(tmp_path: Path, place: tuple[str, ...], value: Any) -> None:
    path = tmp_path / "t.json"
    table().save(path)
    content = json.loads(path.read_text())
    inner = content
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    path.write_text(json.dumps(content))
    with pytest.raises(CorruptFile) as caught:
        LatencyTable.load(path)
    assert caught.value.path == path


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "1", "\0", '{"format_version": 1}', "9" * 5000, "[" * 100_000])
def test_latency_table_something_else_entirely(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(CorruptFile):
        LatencyTable.load(path)


def test_latency_table_spread_of_builds(tmp_path: Path) -> None:
    def built(ms: float) -> Measurement:
        return Measurement(ms, ms / 2, 2 * ms, ms, ms, n=10, cv=0, ci=0)

    row = Row.of("conv", [built(4.0), built(5.0), built(4.5)])
    assert (row.median_ms, row.builds, row.n) == (4.5, 3, 30) and row.spread == pytest.approx(1 / 4.5)
    assert row.scaled(2).spread == row.spread and convert(Row, plain(row)) == row
    single = Row.of("conv", [built(4.0)])
    assert single.spread is None and "spread" not in plain(single) and convert(Row, plain(single)) == single
    for value in (-0.1, float("nan"), True, "0"):
        with pytest.raises(ValueError, match="spread is"):
            convert(Row, plain(row) | {"spread": value})


def test_latency_table_merge_prefers_quiet_then_new() -> None:
    busy, new = Row("conv", 9.0, 9.0, 9.0, 20, 1, True), Row("conv", 4.0, 4.0, 4.0, 20, 1, False)
    ours, theirs = table(a=busy, b=ROW, c=ROW), table(a=new, b=busy, c=new, d=busy)
    theirs.provenance = [{"started": "now"}, {"started": "later"}]
    merged = ours.merge(theirs)
    assert merged.rows == {"a": new, "b": ROW, "c": new, "d": busy}
    assert merged.provenance == [{"started": "now"}, {"started": "later"}]
    assert len(ours) == 3  # merge changes neither


@pytest.mark.parametrize(
    ("other", "field", "theirs"),
    [
        (Identity("torch-cpu:bf16", IDENTITY.device, IDENTITY.versions, 2, IDENTITY.protocol), "target", "torch-cpu:bf16"),
        (Identity("torch-cpu:fp32", {"cpu": "y"}, IDENTITY.versions, 1, IDENTITY.protocol), "device.cpu", "y"),
        (Identity("torch-cpu:fp32", IDENTITY.device, {}, 1, IDENTITY.protocol), "versions.torch", "absent"),
        (Identity("torch-cpu:fp32", IDENTITY.device, IDENTITY.versions, 1, {"ci": 0.1}), "threads", 1),
        (Identity("torch-cpu:fp32", IDENTITY.device, IDENTITY.versions, 2, {"ci": 0.02, "x": 1}), "protocol.x", 1),
    ],
)
def test_latency_table_merge_refuses_a_foreign_identity(other: Identity, field: str, theirs: object) -> None:
    with pytest.raises(TableMismatch) as caught:
        table().merge(LatencyTable(other))
    assert isinstance(caught.value, IdentityMismatch)
    assert (caught.value.field, caught.value.theirs) == (field, theirs)
    assert repr(caught.value.ours) in str(caught.value) and repr(theirs) in str(caught.value)


def test_latency_table_requires_all_keys_at_once() -> None:
    table().require(["a", "b"], "run")
    with pytest.raises(MissingKeys) as caught:
        table().require(["x", "a", "y", "x"], "measure them")
    assert (caught.value.keys, caught.value.remedies) == (("x", "y"), ("measure them",))


def write_journal(path: Path, identity: Identity = IDENTITY) -> Path:
    with Journal(journal_path(path), identity, {"started": "then"}) as journal:
        journal.row("a", Row("conv", 5.0, 5.0, 5.0, 1, 1, False))
        journal.note("warm")
        journal.row("c", ROW)
        journal.row("c", Row("conv", 2.5, 2.0, 3.0, 20, 1, False))
    return journal_path(path)


def test_latency_table_journal_is_folded_once(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    table().save(path)
    journal = write_journal(path)
    kept = journal.read_bytes()
    folded = fold(path, IDENTITY)
    assert (folded.rows["a"].median_ms, folded.rows["c"].median_ms, len(folded)) == (5, 2.5, 3)
    assert folded.provenance[-1] == {"started": "then", "rows": 2, "notes": ["warm"]}
    assert not journal.exists() and LatencyTable.load(path) == folded
    journal.write_bytes(kept)  # as if killed between replacing the table and removing the journal
    assert fold(path, IDENTITY) == folded


def test_latency_table_journal_torn_anywhere_loses_at_most_the_last_line(tmp_path: Path) -> None:
    journal = write_journal(tmp_path / "t.json")
    data = journal.read_bytes()
    ends = [i for i, byte in enumerate(data) if byte == ord("\n")]
    for size in range(len(data)):
        journal.write_bytes(data[:size])
        told: list[str] = []
        content = read_journal(journal, told.append)
        whole = sum(end < size for end in ends)
        torn = size not in (0, *(end + 1 for end in ends))
        assert len(told) == torn
        assert (content is None) == (whole == 0)
        if content is not None:
            assert len(content.rows) == [0, 0, 1, 1, 2, 2][whole] and len(content.notes) == (whole >= 3)
        if torn:
            assert f"line {whole + 1}" in told[0]


def test_latency_table_journal_bad_line_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    journal = write_journal(path)
    lines = journal.read_text().splitlines(keepends=True)
    for bad, reason in [
        ("{torn\n", "not valid JSON"),
        ("[]\n", "is \\[\\]; expected `object`"),
        (lines[1].replace('"median_ms": 5.0', '"median_ms": -5.0'), r"\$.row.median_ms is -5.0"),
    ]:
        journal.write_text("".join([lines[0], bad, *lines[2:]]))
        with pytest.raises(CorruptFile, match=reason) as caught:
            fold(path, IDENTITY)
        assert (caught.value.line, caught.value.path) == (2, journal)
    assert journal.exists()
    journal.write_text("".join(lines).replace(": 2.5", ": -2.5"))  # the last line, but not torn
    with pytest.raises(CorruptFile, match="line 5"):
        fold(path, IDENTITY)


def test_latency_table_journal_of_other_conditions_or_version(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    journal = write_journal(path, Identity("torch-cpu:bf16", {}, {}, 1, {}))
    with pytest.raises(TableMismatch, match="target"):
        fold(path, IDENTITY)
    journal.write_text(journal.read_text().replace('"format_version": 2', '"format_version": 7'))
    with pytest.raises(CorruptFile, match="line 1: has format_version 7; this release reads 2"):
        fold(path, IDENTITY)
    assert journal.exists() and not path.exists()

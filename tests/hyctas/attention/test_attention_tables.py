"""Tables of what was measured fastest: written, found, read, and refused where they cannot be trusted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export.errors import CorruptFile, InvalidInput
from hyctas.attention import measured
from hyctas.attention.measured import Entry, find_table, read_table, slug, write_table
from hyctas.attention.triton.tiles import Tile

GPU = "NVIDIA Test-GPU 3000 (80GB)"
TILE = Tile(64, 32, 64, 4, 2, 3)
FORWARD = {
    "backward": False, "block": False, "dtype": "bfloat16", "qk_channels": 8, "value_channels": 64, "batch": 2, "queries": 128,
    "keys": 32, "implementation": "triton", "ms": 0.125, "tiles": {"forward": TILE},
}  # fmt: skip
ENTRIES = (
    Entry(**FORWARD),
    Entry(**FORWARD | {"backward": True, "implementation": "sdpa", "tiles": {}}),
    Entry(**FORWARD | {"block": True, "implementation": "steps", "tiles": {}, "ms": 3}),
    Entry(**FORWARD | {"block": True, "tiles": {"block": TILE}}),
)


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the folder that `HYCTAS_ATTENTION_TABLES` names; the package's own is an empty one."""
    monkeypatch.setattr(measured, "FOLDER", tmp_path / "package")
    measured._paths.cache_clear()
    (tmp_path / "own").mkdir()
    monkeypatch.setenv(measured.VARIABLE, str(tmp_path / "own"))
    yield tmp_path / "own"
    measured._paths.cache_clear()


def written(path: Path, change: Callable[[dict[str, Any]], None] = lambda data: None) -> Path:
    """Write a table and edit it."""
    write_table(path, GPU, ENTRIES, {"torch": "2.13", "command": ["python", "-m", "suite"]})
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    return path


def read(gpu: str = GPU) -> tuple[Entry, ...]:
    table = find_table(gpu)
    assert table is not None
    return read_table(table, gpu)


def test_slug() -> None:
    assert slug(GPU) == "nvidia_test_gpu_3000_80gb" and slug("NVIDIA H200") == "nvidia_h200"


def test_round_trip(folder: Path) -> None:
    assert find_table(GPU) is None
    path = folder / f"{slug(GPU)}.json"
    write_table(path, GPU, ENTRIES, {"torch": "2.13"})
    assert read() == ENTRIES
    assert json.loads(path.read_text())["provenance"] == {"torch": "2.13"}


def test_the_named_folder_wins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = measured.FOLDER / f"{slug(GPU)}.json"
    write_table(package, GPU, ENTRIES[:1], {})
    assert read() == ENTRIES[:1]
    write_table(folder / package.name, GPU, ENTRIES, {})
    assert read() == ENTRIES
    monkeypatch.delenv(measured.VARIABLE)
    assert read() == ENTRIES[:1]
    monkeypatch.setenv(measured.VARIABLE, str(folder / "missing"))
    with pytest.raises(InvalidInput, match=r"HYCTAS_ATTENTION_TABLES=.*missing is no folder"):
        find_table(GPU)


def test_a_file_that_changes_is_read_again(folder: Path) -> None:
    path = written(folder / f"{slug(GPU)}.json")
    before = find_table(GPU)
    assert read() is read(), "and only then"
    write_table(path, GPU, ENTRIES[1:], {})
    assert find_table(GPU) != before and read() == ENTRIES[1:]


def test_another_gpu_s_file_is_refused(folder: Path) -> None:
    path = written(folder / "nvidia_other.json")
    with pytest.raises(CorruptFile, match=r"is the table of 'NVIDIA Test-GPU 3000 \(80GB\)', not of 'NVIDIA Other'") as caught:
        read("NVIDIA Other")
    assert caught.value.path == path


def in_entry(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: data["entries"][0].__setitem__(name, value)


EDITS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another format": (lambda data: data.update(format_version=2), "has format_version 2; this release reads 1"),
    "no format": (lambda data: data.pop("format_version"), "has format_version None"),
    "no entries": (lambda data: data.pop("entries"), "lacks the field `entries`"),
    "an unknown field": (lambda data: data.update(note="x"), "unknown fields 'note'"),
    "entries are no list": (lambda data: data.update(entries={}), "expected `array`"),
    "no gpu": (lambda data: data.update(gpu=None), "gpu is None"),
    "an entry that is none": (lambda data: data["entries"].append(3), r"entries\[4\] is 3; expected `object`"),
    "an entry's unknown field": (in_entry("speed", 1), r"entries\[0\] has unknown fields 'speed'"),
    "an entry's missing field": (lambda data: data["entries"][1].pop("keys"), r"entries\[1\] lacks the field `keys`"),
    "NaN": (in_entry("ms", float("nan")), "NaN is no number"),
    "infinity": (in_entry("ms", float("inf")), "Infinity is no number"),
    "no time": (in_entry("ms", 0), r"above 0; got 0"),
    "time in words": (in_entry("ms", "fast"), "ms is 'fast'; expected `float`"),
    "no keys": (in_entry("keys", 0), "sizes are whole numbers above 0"),
    "half a query": (in_entry("queries", 0.5), "queries is 0.5; expected `int`"),
    "a true batch": (in_entry("batch", True), "batch is True; expected `int`"),
    "another dtype": (in_entry("dtype", "float64"), "a dtype one of float16, bfloat16, float32; got 'triton' of 'float64'"),
    "another implementation": (in_entry("implementation", "flash"), "an implementation is triton or sdpa"),
    "steps without a block": (in_entry("implementation", "steps"), "an implementation is triton or sdpa"),
    "sdpa of a block": (lambda data: data["entries"][2].update(implementation="sdpa"), r"entries\[2\] .* triton or steps"),
    "a block without its tile": (lambda data: data["entries"][3].update(tiles={}), "needs the tile of the kernel `block`"),
    "a block's gradient": (lambda data: data["entries"][3].update(backward=True), "not both true"),
    "a number for true": (in_entry("backward", 1), "backward is 1; expected `bool`"),
    "an unknown kernel": (in_entry("tiles", {"backward": TILE.to_json()}), r"unknown kernels \['backward'\]"),
    "tiles in a list": (in_entry("tiles", []), r"tiles is \[\]; expected `object`"),
    "a tile that is none": (in_entry("tiles", {"forward": 64}), "is 64; expected `object`"),
    "a tile of 48 rows": (in_entry("tiles", {"forward": TILE.to_json() | {"rows": 48}}), "power of two"),
    "a tile's unknown field": (in_entry("tiles", {"forward": TILE.to_json() | {"clusters": 2}}), "unknown fields 'clusters'"),
    "a tile in words": (in_entry("tiles", {"forward": TILE.to_json() | {"stages": "2"}}), "stages is '2'; expected `int`"),
}


@pytest.mark.parametrize("name", EDITS)
def test_edited_files_are_refused(folder: Path, name: str) -> None:
    change, text = EDITS[name]
    path = written(folder / f"{slug(GPU)}.json", change)
    with pytest.raises(CorruptFile, match=text) as caught:
        read()
    assert caught.value.path == path


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_files_are_refused(folder: Path, share: float) -> None:
    path = written(folder / f"{slug(GPU)}.json")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(CorruptFile, match="not valid JSON"):
        read()


def test_what_is_no_text_or_no_object_is_refused(folder: Path) -> None:
    path = folder / f"{slug(GPU)}.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CorruptFile, match="not a text file"):
        read()
    path.write_text("[1, 2, 3]")
    with pytest.raises(CorruptFile, match="format_version None"):
        read()


def test_a_table_that_cannot_be_read_is_not_written(folder: Path) -> None:
    path = folder / f"{slug(GPU)}.json"
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_table(path, GPU, ENTRIES, {"load": float("nan")})
    assert not path.exists()
    with pytest.raises(InvalidInput, match="a time is"):
        Entry(**FORWARD | {"ms": float("nan")})

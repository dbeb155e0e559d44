"""Some twenty seeded seconds of the fuzzer, and its own parts; `make fuzz` runs all of it."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.fuzz.kinds import kinds
from tests.fuzz.mutations import TOML_TOKENS, generator, misplace, mutate, restore
from tests.fuzz.oracles import Wrong, check, check_text

ROOT = Path(__file__).parents[2]
READ_S, EVERY = 1, 32
"""Seconds of mutations in one process, and the share of the kinds that also go through their command."""
ALL = "import json, sys; from tests.fuzz.__main__ import main; sys.exit(any(main(words) for words in json.loads(sys.argv[1])))"


@pytest.mark.slow
def test_some_seconds(tmp_path: Path) -> None:
    common = ("--seed", "0", "--jobs", "1", "--work", str(tmp_path))
    by_command = [word for kind in kinds()[::EVERY] for word in ("--kind", kind.name)]
    ways = (("--way", "read", "--seconds", str(READ_S)), ("--way", "command", "--commands", "1", "--keep-samples", *by_command))
    command = [sys.executable, "-c", ALL, json.dumps([(*common, *way) for way in ways])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]


def test_a_case_depends_on_seed_kind_and_number_alone() -> None:
    data = json.dumps({"format_version": 1, "a": [1, 2.5, {"b": "text"}], "c": None}).encode()

    def case(number: int) -> tuple[str, bytes]:
        return mutate(data, "json", generator(3, "kind/read", number))

    first = [case(number) for number in range(200)]
    assert first == [case(number) for number in range(200)]
    assert sum(changed != data for _, changed in first) > 180, "a mutation changes something"
    for form, sample in (("jsonl", data + b"\n" + data + b"\n"), ("toml", b"a = 1\nb = 2\n"), ("bytes", b""), ("bytes", data)):
        for number in range(100):
            mutate(sample, form, generator(0, form, number))


def test_something_else_in_a_files_place(tmp_path: Path) -> None:
    path, seen = tmp_path / "file", set()
    for number in range(40):
        restore(path, b"content")
        seen.add(misplace(path, generator(0, "place", number)))
    restore(path, b"content")
    assert len(seen) == 5 and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_oracles() -> None:
    from hyctas.data.metric import Score

    good = Score(miou=0.5, iou=(0.5, None), pixel_accuracy=0.5, present=(True, False), policy="")
    check(good)
    for wrong in ({"miou": 5}, {"miou": True}, {"iou": ("0.5", None)}, {"pixel_accuracy": float("nan")}):
        with pytest.raises(Wrong):
            check(Score(**{**good.__dict__, **wrong}))
    check_text("a sentence\n")
    for text in ("\x1b[31mred", "x" * 10_000, "\udc80"):
        with pytest.raises(Wrong):
            check_text(text)


def test_kinds_have_names_of_their_own() -> None:
    names = [kind.name for kind in kinds()]
    assert len(set(names)) == len(names) > 40
    assert all(token.isprintable() for token in TOML_TOKENS)
    assert tomllib.loads((ROOT / "tests" / "fuzz" / "found.toml").read_text())

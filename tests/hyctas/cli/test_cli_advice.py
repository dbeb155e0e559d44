"""What fixes an error is said with the commands and flags of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.errors import CorruptFile, Give, InvalidInput, LeaveOut, MissingKeys, Perform, Remedy, StartOver
from hyctas.cli.advice import command_line, explain


@pytest.mark.parametrize(
    ("remedies", "said"),
    [
        ((), "it is wrong"),
        ((StartOver(),), "it is wrong; start over with --restart"),
        ((Give("run"), StartOver()), "it is wrong; give another --run, or start over with --restart"),
        ((Give("size", "HEIGHTxWIDTH"),), "it is wrong; give --size HEIGHTxWIDTH"),
        ((Give("init", "none", "start without trained weights"),), "it is wrong; start without trained weights (--init none)"),
        ((Give("random_weights", purpose="time it"),), "it is wrong; time it (--random-weights)"),
        ((LeaveOut(("size", "output")),), "it is wrong; leave --size and --output out"),
        ((Perform("search", {"run": Path("my runs")}),), "it is wrong; run hyctas-search --run 'my runs'"),
        (("mend it", Perform("train network")), "it is wrong; mend it, or run hyctas-train network"),
    ],
)
def test_ways_on(remedies: tuple[Remedy, ...], said: str) -> None:
    assert explain(InvalidInput("it is wrong", *remedies)) == said


def test_ways_on_stand_in_a_line_of_their_own_below_several() -> None:
    assert explain(MissingKeys(["a"], Perform("profile", {"target": "t"}))).endswith("  a\nRun hyctas-profile --target t")


def test_a_file_and_its_line_stay_in_front() -> None:
    assert explain(CorruptFile("a.json", "is no JSON", 3, StartOver())) == "a.json, line 3: is no JSON; start over with --restart"


def test_command_lines_can_be_pasted() -> None:
    given = {"rebuild": True, "restart": False, "gpu": None, "run": Path("a b")}
    assert command_line("export", "m.engine", **given) == "hyctas-export m.engine --rebuild --run 'a b'"

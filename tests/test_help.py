"""Every command's --help works without torch, answers fast, fits on one screen, and ends with an example.

Goal: under 0.5 s on an idle machine. The tests allow 1.5 s of the CPU, which a busy machine does not change.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = ("profile", "train", "search", "export", "bench", "predict", "doctor", "demo")
HELP = [*((f"hyctas-{name}",) for name in COMMANDS), ("hyctas-train", "supernet"), ("hyctas-train", "network")]
MOST_SECONDS = 1.5
MOST_FLAGS = 18
"""A dozen, and a few more where they say what can be trusted (a latency table, code of a space file) and who shares the work."""

WITHOUT_TORCH = """
import importlib, importlib.abc, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "onnx", "onnxruntime") and (name == "torch" or "--help" in sys.argv):
            raise ModuleNotFoundError(f"{name} is blocked: --help must not need it", name=name)

sys.meta_path.insert(0, Blocked())
module, sys.argv = sys.argv[1], sys.argv[2:]
importlib.import_module(module).main()
"""


def ask(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a fresh process without torch."""
    module = f"hyctas.cli.{command.removeprefix('hyctas-')}"
    assert (ROOT / f"{module.replace('.', '/')}.py").exists(), f"{module} is missing"
    wide = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    started = [sys.executable, "-c", WITHOUT_TORCH, module, command, *arguments]
    return subprocess.run(started, cwd=ROOT, env=wide, capture_output=True, text=True, timeout=60)


def flags(text: str) -> list[str]:
    """List the flags that a help text describes, --help left out: one per line that begins with it."""
    found = re.findall(r"^\W*(?:-\w, )?(--[a-z][a-z0-9-]*)", text, re.MULTILINE)
    return [flag for flag in dict.fromkeys(found) if flag not in ("--help", "--config")]


def test_scripts_are_these_commands() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {f"hyctas-{name}": f"hyctas.cli.{name}:main" for name in COMMANDS}


@pytest.mark.parametrize("command", HELP, ids=" ".join)
def test_help(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    before = os.times()
    done = ask(*command, "--help")
    after = os.times()
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    assert done.returncode == 0, done.stderr
    found = flags(done.stdout)
    with capsys.disabled():
        print(f"\n{' '.join(command)} --help: {seconds:.2f} s, {len(found)} flags", end=" ")
    assert seconds < MOST_SECONDS
    assert len(found) <= MOST_FLAGS, found
    assert found or command == ("hyctas-train",), done.stdout
    if command != ("hyctas-train",):
        assert not re.search(r"None|default: (False|\))", done.stdout), "a type or a default that says nothing"
        example = done.stdout.rstrip().splitlines()[-1]
        assert example.startswith(f"example: {' '.join(command)} ")
        assert {word for word in example.split() if word.startswith("--")} <= set(found)


def test_a_wrong_flag_is_an_error() -> None:
    assert ask("hyctas-profile", "--no-such-flag").returncode == 2

"""Run commands in this process."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

import pytest

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command in this process; return its exit code and everything it printed."""

    def run(name: str, *arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [f"hyctas-{name}", *map(str, arguments)])
        code = 0
        try:
            importlib.import_module(f"hyctas.cli.{name}").main()
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run

"""One process at a time holds the lock whatever TMPDIR says, nothing planted there matters, and death releases it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from latency.lock import VARIABLE, lock_name, measuring

HOLD = """
import time
from latency.lock import measuring
with measuring():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"hyctas-lock-test-{os.getpid()}")


def test_latency_lock_waits_with_a_message_until_the_holder_is_killed(tmp_path: Path) -> None:
    """The holder has another temporary folder, where a link to somebody's file has the name that the lock once had."""
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "hyctas-measuring.lock").symlink_to(tmp_path / "victim")
    there = {**os.environ, "TMPDIR": str(tmp_path)}
    holder = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True, env=there)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        told: list[str] = []

        def message(text: str) -> None:
            told.append(text)
            os.kill(holder.pid, signal.SIGKILL)

        with measuring(message):
            pass
        assert len(told) == 1 and f"process {holder.pid} " in told[0]
        assert (tmp_path / "victim").read_text() == "precious"
    finally:
        holder.kill()
        holder.wait()
        if holder.stdout is not None:
            holder.stdout.close()


def test_latency_lock_is_reentrant_and_silent_when_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    told: list[str] = []
    with measuring(told.append):
        with measuring(told.append):
            pass
        with measuring(told.append):
            pass
    with measuring(told.append):
        pass
    assert told == [] and not list(tmp_path.iterdir())


def test_latency_lock_is_one_per_machine_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    assert lock_name() == "hyctas-measuring"

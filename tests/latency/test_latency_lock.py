"""One process at a time holds the lock, and death releases it."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from latency.lock import lock_path, measuring

HOLD = """
import sys, time
from pathlib import Path
from latency.lock import measuring
with measuring(path=Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_latency_lock_waits_with_a_message_until_the_holder_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        told: list[str] = []

        def message(text: str) -> None:
            told.append(text)
            os.kill(holder.pid, signal.SIGKILL)

        with measuring(message, path):
            assert path.read_text() == f"pid {os.getpid()}\n"
        assert len(told) == 1 and f"pid {holder.pid}" in told[0]
    finally:
        holder.kill()
        holder.wait()
        if holder.stdout is not None:
            holder.stdout.close()


def test_latency_lock_is_reentrant_and_silent_when_free(tmp_path: Path) -> None:
    told: list[str] = []
    with measuring(told.append):
        with measuring(told.append):
            pass
        with measuring(told.append):
            pass
    with measuring(told.append):
        pass
    assert told == [] and lock_path().parent == tmp_path


def test_latency_lock_works_on_a_file_that_may_only_be_read(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("")
    path.chmod(0o444)
    with measuring(path=path), open(path) as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)

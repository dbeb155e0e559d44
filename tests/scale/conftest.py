"""A real cluster of several Ray nodes on this machine, each in processes of its own; `make scale` runs what needs one."""

from __future__ import annotations

import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from hyctas.ray_cluster import LOCAL, QUIET
from tests.hyctas.cli.conftest import command as command

ROOT = Path(__file__).parents[2]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]


class Nodes:
    """Ray nodes that a test starts, and may kill."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.started = folder, list[subprocess.Popen[bytes]]()
        with socket.socket() as free:
            free.bind(("", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"

    def head(self, *options: str) -> str:
        """Start the head; return its address."""
        port, place = self.address.rpartition(":")[2], f"--temp-dir={self.folder}"
        head = self._start(["--head", f"--port={port}", "--include-dashboard=false", place, *options])
        until(lambda: self._answers() and (self.folder / "session_latest/sockets/raylet").exists(), 300, head)
        return self.address

    def join(self, **environment: str) -> subprocess.Popen[bytes]:
        """Start another node, with variables of its own."""
        sockets = self.folder / "session_latest/sockets"
        before = len(list(sockets.glob("raylet*")))
        node = self._start([f"--address={self.address}"], **environment)
        until(lambda: len(list(sockets.glob("raylet*"))) > before, 300, node)
        return node

    def kill(self, name: str) -> None:
        """Kill a process of the head, for instance gcs_server."""
        for process in processes():
            if process.name.endswith(name) and str(self.folder) in process.command:
                os.kill(process.id, signal.SIGKILL)

    def close(self) -> None:
        for node in self.started:
            node.terminate()
        for node in self.started:
            with suppress(subprocess.TimeoutExpired):
                node.wait(30)
            node.kill()
        for process in processes():  # of nodes whose own end was cut short
            if str(self.folder) in process.command:
                with suppress(ProcessLookupError):
                    os.kill(process.id, signal.SIGKILL)

    def _start(self, options: list[str], **environment: str) -> subprocess.Popen[bytes]:
        own = {**os.environ, **QUIET, **LOCAL, "RAY_AUTH_MODE": "token", "PYTHONPATH": str(ROOT), **environment}
        words = [*RAY, "start", "--block", "--num-cpus=1", "--disable-usage-stats", *options]
        node = subprocess.Popen(words, env=own, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.started.append(node)
        return node

    def _answers(self) -> bool:
        host, _, port = self.address.partition(":")
        with socket.socket() as client:
            return client.connect_ex((host, int(port))) == 0


class Process:
    """A process of this machine."""

    def __init__(self, id: int, command: str) -> None:
        self.id, self.command, self.name = id, command, command.partition("\0")[0]

    @property
    def parent(self) -> int:
        return int(Path(f"/proc/{self.id}/stat").read_text().rpartition(")")[2].split()[1])


def processes() -> list[Process]:
    """List all processes of this machine."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            found.append(Process(int(folder.name), (folder / "cmdline").read_bytes().decode(errors="replace")))
    return found


def until(holds: Callable[[], bool], seconds: float, process: subprocess.Popen[Any] | None = None) -> None:
    """Wait until something holds that a process brings about."""
    end = time.monotonic() + seconds
    while not holds():
        assert process is None or process.poll() is None, (process.stdout or io.StringIO("it ended")).read()
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.1)


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """Ray nodes of this test; their folder's name is short, as sockets have their names in it."""
    subprocess.run([*RAY, "get-auth-token", "--generate"], check=True, capture_output=True)
    folder = Path(tempfile.mkdtemp(prefix="hs-", dir="/tmp"))
    found = Nodes(folder)
    yield found
    found.close()
    shutil.rmtree(folder, ignore_errors=True)

"""Several processes under torchrun train as one does, continue each other's trainings, and end with a sentence where one is lost.

Cheaply: one launch for all that is computed (`two_processes.py`), one for a failure, one for what comes after it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from export.errors import Disconnected
from hyctas.training import processes

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
TWO = [*TORCHRUN, "--standalone", "--nproc-per-node=2"]
PATIENCE_S = 300
"""Of the test, on a machine that does other things, too."""

LOST = """
import os, signal, sys, threading, time
from pathlib import Path
from hyctas.cli.train import main

def kill():
    while not checkpoint.exists():
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGKILL)

checkpoint = Path(sys.argv.pop(1))
threading.Thread(target=kill, daemon=True).start()
main()
"""
"""The command, in a process that SIGKILL ends as soon as there is a checkpoint."""


def start(command: list[str]) -> subprocess.Popen[str]:
    """Start a command, which finds the project as this process does."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment)


def errors(text: str) -> list[str]:
    """List the lines in which hyctas reports an error."""
    return [line for line in text.splitlines() if line.startswith("error: ")]


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """The losses of every step differ by less than 1e-6 of them, and from 1 to 2 and back to 1 process a run stays the same."""
    from tests.hyctas.two_processes import CONTINUED, RECIPES, STEPS, trained

    alone = {case: trained(case, tmp_path / f"{case}.pt") for case in RECIPES}
    parts = trained("network", tmp_path / f"{CONTINUED}.pt", 2)[0]
    arguments = ["network", "--run", str(tmp_path / "run"), "--network", "edge:plain-w75", "--steps", "2", "--batch", "3"]
    job = start([*TWO, "tests/hyctas/two_processes.py", "--", str(tmp_path), *arguments])
    _, stderr = job.communicate(timeout=PATIENCE_S)
    assert errors(stderr) == [
        "error: batch is 3, which 2 processes cannot share equally; start 1 or 3 processes, give --batch 2, or give --batch 4"
    ], stderr
    assert job.returncode != 0 and not (tmp_path / "run").exists()
    for case, (losses, _) in alone.items():
        one, two = (json.loads((tmp_path / f"{case}.{rank}.json").read_text()) for rank in (0, 1))
        assert one == two == pytest.approx(losses, rel=1e-6), case
    parts += json.loads((tmp_path / f"{CONTINUED}.0.json").read_text())
    last, model = trained("network", tmp_path / f"{CONTINUED}.pt")
    losses, whole = alone["network"]
    assert len(last) == 1 and [*parts, *last] == pytest.approx(losses, rel=1e-6) and len(losses) == STEPS
    for one, two in zip(model.parameters(), whole.parameters(), strict=True):
        assert (one - two).abs().max() < 1e-6


@pytest.mark.slow
def test_two_nodes_of_which_one_is_lost(tmp_path: Path) -> None:
    """Two launches make a group on one address. A worker killed: all end with one sentence. Two processes continue and finish."""
    run, port = tmp_path / "run", free_port()
    run.mkdir()
    (run / "labels.json").write_text("of an older training")
    (tmp_path / "job.toml").write_text('crop = "32x32"\nbatch = 4\namp = false\nsave_seconds = 0\nthreads = 1\n')
    (tmp_path / "lost.py").write_text(LOST)
    job = ["network", "--run", str(run), "--network", "edge:plain-w75", "--init", "none"]
    job += ["--data", "scenes:train=40,val=4,size=32x48", "--steps", "60", "--config", str(tmp_path / "job.toml")]
    checkpoint = run / "network.checkpoint.pt"
    node = [*TORCHRUN, "--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}", "--node-rank"]
    nodes = [
        start([*node, "0", "-m", "hyctas.cli.train", "--", *job, "--restart"]),
        start([*node, "1", str(tmp_path / "lost.py"), "--", str(checkpoint), *job, "--restart"]),
    ]
    lost = wait_for(checkpoint, nodes)
    stderr = [process.communicate(timeout=PATIENCE_S)[1] for process in nodes]
    seconds = time.monotonic() - lost
    assert all(process.returncode != 0 for process in nodes) and len(errors("".join(stderr))) == 1, stderr
    assert "the same command continues from the last checkpoint" in errors(stderr[0])[0] and "exitcode  : 3 " in stderr[0]
    assert seconds < 60, "goal: 10 s; a busy machine may need longer"
    done = start([*TWO, "-m", "hyctas.cli.train", "--", *job])
    stdout, text = done.communicate(timeout=PATIENCE_S)
    assert done.returncode == 0, text
    assert "continuing at step " in stdout and stdout.count("wrote ") == 1 and "after 60 steps (240 crops)" in stdout
    assert text.count("train network: done") == 1
    assert (run / "old-1" / "labels.json").read_text() == "of an older training" and not (run / "old-2").exists()


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(path: Path, nodes: list[subprocess.Popen[str]]) -> float:
    """Wait until a file is there; return when that was."""
    end = time.monotonic() + PATIENCE_S
    while not path.exists():
        ended = [process.communicate()[1] for process in nodes if process.poll() is not None]
        assert not ended and time.monotonic() < end, ended
        time.sleep(0.02)
    return time.monotonic()


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_that_do_not_meet(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first waits in vain, another one where nobody listens."""
    place = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes, "JOIN_S", 1.0)
    with pytest.raises(Disconnected) as found:
        processes.start_processes()
    assert found.value.exit_code == 3 and f"process {rank} of 2 did not meet" in str(found.value)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "only those that met handle it"

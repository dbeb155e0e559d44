"""Several processes under torchrun train as one does, continue each other's trainings, and end with a sentence where one is lost.

Starting processes costs most: there is one launch on two nodes, one of which is lost, and one of two processes for all the rest.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from export.errors import Disconnected
from hyctas.space import tiny
from hyctas.training import processes
from tests.hyctas import two_processes

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
STEPS = 60
"""Of the training that is interrupted."""
PATIENCE_S = 300
"""Of the test, on a machine that does other things, too."""

LOST = """
import os, signal, sys, threading, time
from pathlib import Path
from hyctas.cli.train import main

def kill():
    while not checkpoint.exists():
        time.sleep(0.005)
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


@dataclass(frozen=True)
class Interrupted:
    """A training on two nodes of which one was lost."""

    job: list[str]
    """The command, without --restart."""
    run: Path
    stderr: tuple[str, str]
    codes: tuple[int, int]
    seconds: float
    """From the first checkpoint, when a worker killed itself, until both nodes had ended."""


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    """Start two nodes, which are two launches that meet at one address, as documented."""
    folder, port = tmp_path_factory.mktemp("nodes"), free_port()
    run = folder / "run"
    run.mkdir()
    (run / "labels.json").write_text("of an older training")
    (folder / "job.toml").write_text('crop = "32x32"\nbatch = 4\namp = false\nsave_seconds = 0\nthreads = 1\n')
    (folder / "lost.py").write_text(LOST)
    (folder / "network.json").write_text(tiny().smallest().to_json())
    job = ["network", "--run", str(run), "--network", str(folder / "network.json"), "--init", "none", "--steps", str(STEPS)]
    job += ["--data", "scenes:train=40,val=4,size=32x48", "--config", str(folder / "job.toml")]
    checkpoint = run / "network.checkpoint.pt"
    node = [*TORCHRUN, "--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}", "--node-rank"]
    nodes = [
        start([*node, "0", "-m", "hyctas.cli.train", "--", *job, "--restart"]),
        start([*node, "1", str(folder / "lost.py"), "--", str(checkpoint), *job, "--restart"]),
    ]
    lost = wait_for(checkpoint, nodes)
    one, two = (process.communicate(timeout=PATIENCE_S)[1] for process in nodes)
    return Interrupted(job, run, (one, two), (nodes[0].returncode, nodes[1].returncode), time.monotonic() - lost)


@dataclass(frozen=True)
class Launched:
    """What two processes on one machine made of `two_processes.py`."""

    folder: Path
    stdout: str
    stderr: str
    code: int
    alone: dict[str, tuple[list[float], torch.nn.Module]]
    """What one process makes of it."""
    begun: list[float]
    """Losses of the steps that one process computed before them, and left to be continued."""


@pytest.fixture(scope="module")
def launched(interrupted: Interrupted, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """Start two processes, which compute what one has computed, continue the interrupted training, and fail."""
    folder = tmp_path_factory.mktemp("two")
    alone = {case: two_processes.trained(case, folder / f"{case}.pt") for case in two_processes.RECIPES}
    begun, _ = two_processes.trained("network", folder / f"{two_processes.CONTINUED}.pt", 2)
    wrong = ["network", "--run", str(folder / "run"), "--network", "edge:plain-w75", "--steps", "2", "--batch", "3"]
    (folder / "jobs.json").write_text(json.dumps([interrupted.job, wrong]))
    job = start([*TORCHRUN, "--standalone", "--nproc-per-node=2", two_processes.__file__, "--", str(folder)])
    stdout, stderr = job.communicate(timeout=PATIENCE_S)
    return Launched(folder, stdout, stderr, job.returncode, alone, begun)


@pytest.mark.slow
def test_a_lost_process_ends_the_others(interrupted: Interrupted) -> None:
    """On both nodes, with one sentence, and exit code 3 of the process that is left, which torchrun reports."""
    one, two = interrupted.stderr
    assert 0 not in interrupted.codes and len(errors(one + two)) == 1, interrupted.stderr
    assert "the same command continues from the last checkpoint" in errors(one)[0] and "exitcode  : 3 " in one
    assert interrupted.seconds < 60, "goal: 10 s; a busy machine may need longer"


@pytest.mark.slow
@pytest.mark.parametrize("case", two_processes.RECIPES)
def test_two_processes_train_as_one(case: str, launched: Launched) -> None:
    """The losses of every step differ by less than 1e-6 of them."""
    one, two = (json.loads((launched.folder / f"{case}.{rank}.json").read_text()) for rank in (0, 1))
    losses, _ = launched.alone[case]
    assert len(losses) == two_processes.STEPS and one == two == pytest.approx(losses, rel=1e-6)


@pytest.mark.slow
def test_any_number_of_processes_continues(launched: Launched) -> None:
    """From one process to two and back to one a training stays the same."""
    middle = json.loads((launched.folder / f"{two_processes.CONTINUED}.0.json").read_text())
    last, model = two_processes.trained("network", launched.folder / f"{two_processes.CONTINUED}.pt")
    losses, whole = launched.alone["network"]
    assert (len(launched.begun), len(last)) == (2, 1) and [*launched.begun, *middle, *last] == pytest.approx(losses, rel=1e-6)
    for one, two in zip(model.parameters(), whole.parameters(), strict=True):
        assert (one - two).abs().max() < 1e-6


@pytest.mark.slow
def test_the_interrupted_training_is_finished(interrupted: Interrupted, launched: Launched) -> None:
    """Of two processes one claims the run (and moves the old one aside once), prints and writes."""
    stdout, run = launched.stdout, interrupted.run
    assert "continuing at step " in stdout and stdout.count("wrote ") == 1, launched.stderr
    assert f"after {STEPS} steps ({4 * STEPS} crops)" in stdout and launched.stderr.count("train network: done") == 1
    assert (run / "old-1" / "labels.json").read_text() == "of an older training" and not (run / "old-2").exists()


@pytest.mark.slow
def test_an_error_of_all_processes_is_printed_once(launched: Launched) -> None:
    assert errors(launched.stderr) == [
        "error: batch is 3, which 2 processes cannot share equally; start 1 or 3 processes, give --batch 2, or give --batch 4"
    ]
    assert launched.code != 0 and not (launched.folder / "run").exists()


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

"""Several processes under torchrun train as one does, continue each other's trainings, and end with a sentence where one is lost.

Starting processes costs most: one launch computes all, `two_processes.py`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from export.errors import Disconnected
from hyctas.cli import entry
from hyctas.cli.train import main
from hyctas.space import tiny
from hyctas.training import processes
from tests.hyctas import two_processes

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
STEPS = 60
"""Of the training in which a process is lost."""
PATIENCE_S = 300
"""Of the test, on a machine that does other things, too."""

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


@dataclass(frozen=True)
class Launched:
    """What two nodes of one process each made of `two_processes.py`."""

    folder: Path
    lost: list[str]
    """The command in which a process was lost."""
    stdout: str
    """Of the first node."""
    stderr: tuple[str, str]
    codes: tuple[int, int]
    alone: dict[str, tuple[list[float], torch.nn.Module]]
    """What one process makes of it."""
    begun: list[float]
    """Losses of the steps that one process computed before them, and left to be continued."""


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """Start two nodes, as documented: two launches that meet at one address."""
    folder, port = tmp_path_factory.mktemp("two"), free_port()
    alone = {case: two_processes.trained(case, folder / f"{case}.pt") for case in two_processes.RECIPES}
    begun, _ = two_processes.trained("network", folder / f"{two_processes.CONTINUED}.pt", 2)
    (folder / "done").mkdir()
    (folder / "done" / "labels.json").write_text("of an older training")
    (folder / "job.toml").write_text('crop = "32x32"\nbatch = 4\namp = false\nsave_seconds = 0\nthreads = 1\n')
    (folder / "network.json").write_text(tiny().smallest().to_json())
    job = ["network", "--network", str(folder / "network.json"), "--init", "none", "--config", str(folder / "job.toml")]
    job += ["--data", "scenes:train=40,val=4,size=32x48"]
    lost = [*job, "--run", str(folder / "lost"), "--steps", str(STEPS)]
    (folder / "jobs.json").write_text(json.dumps([[*job, "--run", str(folder / "done"), "--steps", "2", "--restart"], lost]))
    node = [*TORCHRUN, "--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}", "--node-rank"]
    nodes = [start([*node, rank, two_processes.__file__, "--", str(folder)]) for rank in ("0", "1")]
    (stdout, one), (_, two) = (process.communicate(timeout=PATIENCE_S) for process in nodes)
    return Launched(folder, lost, stdout, (one, two), (nodes[0].returncode, nodes[1].returncode), alone, begun)


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
def test_one_process_claims_prints_and_writes(launched: Launched) -> None:
    """And moves the older results aside once."""
    run = launched.folder / "done"
    assert launched.stdout.count("wrote ") == 1 and "after 2 steps (8 crops)" in launched.stdout, launched.stderr
    assert launched.stderr[0].count("train network: done") == 1 and "train network" not in launched.stderr[1]
    assert (run / "old-1" / "labels.json").read_text() == "of an older training" and not (run / "old-2").exists()


@pytest.mark.slow
def test_a_lost_process_ends_the_others(
    launched: Launched, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of both nodes, with one sentence, and exit code 3 where one is left, which torchrun reports; one process then continues."""
    one, two = launched.stderr
    (error,) = errors(one + two)
    assert "the same command continues from the last checkpoint" in error and "exitcode  : 3 " in one and 0 not in launched.codes
    monkeypatch.setattr("sys.argv", ["hyctas-train", *launched.lost])
    main()
    out = capsys.readouterr().out
    assert "continuing at step " in out and f"after {STEPS} steps ({4 * STEPS} crops)" in out


@pytest.mark.parametrize("rank", ["0", "1"])
def test_an_error_of_all_processes_is_printed_once(
    rank: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first process prints it at once; the others wait to be ended by torchrun before they do."""
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("sys.argv", ["hyctas-train", "network", "--network", "edge:plain-w75", "--batch", "3"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2 and waited == ([] if rank == "0" else [entry.FIRST_S])
    assert errors(capsys.readouterr().err) == [
        "error: batch is 3, which 2 processes cannot share equally; start 1 or 3 processes, give --batch 2, or give --batch 4"
    ]


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_that_do_not_meet(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first waits in vain, another one where nobody listens."""
    place = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes, "JOIN_S", 1.0)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Disconnected) as found:
        processes.start_processes()
    assert found.value.exit_code == 3 and f"process {rank} of 2 did not meet" in str(found.value)
    assert signal.getsignal(signal.SIGTERM) == before, "only those that met handle it"

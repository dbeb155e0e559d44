"""Searches on clusters that break: the head gone, a node gone, the command itself killed, other versions, a full object store."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hyctas.ray_cluster import INSTALL, ClusterFailed, open_cluster
from tests.hyctas.cli.conftest import SEARCH, run_command, trained_run
from tests.scale.conftest import ROOT, Nodes, processes, until

pytest.importorskip("ray", reason=f"needs Ray: {INSTALL}")
pytestmark = pytest.mark.scale


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments of a search of some generations, with a thread per worker."""
    path = tmp_path_factory.mktemp("settings") / "search.toml"
    path.write_text("population = 6\ncandidates = 6\nscreen_images = 2\nthreads = 1\n")
    return [*map(str, SEARCH[:4]), "--config", str(path), "--finalists", "2", "--finalist-steps", "1", "--evaluations", "24"]


@pytest.fixture(scope="module")
def supernet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a supernet and a table."""
    return trained_run(tmp_path_factory.mktemp("supernet"))


@pytest.fixture(scope="module")
def alone(supernet: Path, settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run after a search without workers."""
    run = Path(shutil.copytree(supernet, tmp_path_factory.mktemp("alone") / "run"))
    assert run_command("search", "--run", run, *settings) == 0
    return run


@pytest.fixture
def run(supernet: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(supernet, tmp_path / "run"))


def start(run: Path, settings: list[str], *more: str, prelude: str = "") -> subprocess.Popen[str]:
    """Start the command in a process of its own."""
    code = f"import sys; sys.argv[0] = 'hyctas-search'; {prelude}from hyctas.cli.search import main; main()"
    words = [sys.executable, "-c", code, "--run", str(run), *settings, *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(words, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def recorded(run: Path) -> int:
    path = run / "history.jsonl"
    return len(path.read_text().splitlines()) - 1 if path.exists() else 0


def ended(command: subprocess.Popen[str], code: int, *said: str) -> str:
    """Wait for a command; what it printed has no traceback, and at most one error."""
    text, _ = command.communicate(timeout=900)
    assert command.returncode == code and "Traceback" not in text, text
    assert [words for words in said if words not in text] == [] and text.count("error:") == (code != 0), text
    return text


def equal(run: Path, alone: Path) -> bool:
    names = ("history.jsonl", "pareto.json", "finalists/rounds.json")
    return all((run / name).read_bytes() == (alone / name).read_bytes() for name in names)


def test_the_head_goes(nodes: Nodes, run: Path, alone: Path, settings: list[str]) -> None:
    nodes.head()
    command = start(run, settings, "--ray", nodes.address)
    until(lambda: recorded(run) >= 3, 600, command)
    nodes.kill("gcs_server")
    ended(command, 3, "does not answer any more", "leave --ray out")
    found = (run / "history.jsonl").read_bytes()
    assert (alone / "history.jsonl").read_bytes().startswith(found) and recorded(run) >= 3
    ended(start(run, settings), 0, "continuing")
    assert equal(run, alone)


def test_a_node_goes(nodes: Nodes, run: Path, alone: Path, settings: list[str]) -> None:
    """Its tasks run on another."""
    nodes.head()
    other = nodes.join()
    command = start(run, settings, "--ray", nodes.address)
    until(lambda: sum("ray::_Actor.run" in process.name for process in processes()) == 2, 600, command)
    other.kill()
    for process in processes():
        if "raylet" in process.name and process.parent == 1 and str(nodes.folder) in process.command:
            os.kill(process.id, signal.SIGKILL)
    ended(command, 0)
    assert equal(run, alone)


def test_the_command_is_killed(run: Path, alone: Path, settings: list[str]) -> None:
    """Its cluster ends with it; the next one continues, with workers."""
    command = start(run, settings, "--workers", "2")
    until(lambda: recorded(run) >= 3, 600, command)
    own = [process.id for process in processes() if "hyctas-" in process.command and "raylet" in process.name
           and process.parent == command.pid]  # fmt: skip
    command.kill()
    command.communicate()
    assert own
    until(lambda: not any(Path(f"/proc/{id}").exists() for id in own), 120)
    ended(start(run, settings, "--workers", "2"), 0, "continuing")
    assert equal(run, alone)


def test_other_versions(nodes: Nodes, run: Path, settings: list[str]) -> None:
    nodes.head()
    old = start(run, settings, "--ray", nodes.address, prelude="import ray; ray.__version__ = '1.0.0'; ")
    ended(old, 3, "cannot be joined", "Version mismatch", "1.0.0")
    odd = start(run, settings, "--ray", nodes.address, prelude=(
        "import hyctas.commands.search_workers as w; real = w.package_versions; "
        "w.package_versions = lambda: {**real(), 'torch': '1.0'}; "
    ))  # fmt: skip
    ended(odd, 3, "is refused: versions.torch is", "there and 1.0 here", "no worker of the Ray cluster can be used")
    assert recorded(run) == 0


def test_a_full_object_store(nodes: Nodes) -> None:
    """Neither memory nor disk has room."""
    nodes.head("--object-store-memory=80000000", '--system-config={"local_fs_capacity_threshold": 0.0}')
    with open_cluster(nodes.address, None, 1) as cluster, pytest.raises(ClusterFailed, match="object store") as found:
        cluster.put(bytes(200_000_000))
    assert found.value.exit_code == 3

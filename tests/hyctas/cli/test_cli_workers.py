"""Searches with workers: equal to the last byte to one without, also when a worker is killed in the middle; bad input."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hyctas.commands.profile_workers import ALONE
from hyctas.ray_cluster import INSTALL
from tests.hyctas.cli.conftest import SEARCH, Command, expect, run_command

pytest.importorskip("ray", reason=f"needs Ray: {INSTALL}")
RESULTS = ("history.jsonl", "pareto.json", "pareto.svg", "finalists/rounds.json")
BUSY = b"ray::_Actor.run"
"""What Ray calls a process that does a task of ours."""


@pytest.fixture(scope="module")
def one_thread(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """Arguments of a search in which a network is scored by one thread."""
    path = tmp_path_factory.mktemp("settings") / "search.toml"
    path.write_text(Path(__file__).with_name("search.toml").read_text() + "threads = 1\n")
    return (*SEARCH[:4], "--config", path, "--finalists", 2, "--finalist-steps", 1, "--limit", "ms=5")


@pytest.fixture(scope="module")
def alone(trained: Path, one_thread: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run after a search without workers."""
    run = Path(shutil.copytree(trained, tmp_path_factory.mktemp("alone") / "run"))
    assert run_command("search", "--run", run, *one_thread) == 0
    return run


def workers_of(driver: int, title: bytes = BUSY) -> list[int]:
    """List the processes of a command's workers that have this title."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes().startswith(title) and parent(parent(int(folder.name))) == driver:
                found.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def killing(driver: int, done: threading.Event) -> Callable[[], None]:
    """Return what kills a busy worker of a command, once."""

    def kill() -> None:
        while not done.wait(0.1):
            for process in workers_of(driver):
                os.kill(process, signal.SIGKILL)
                return

    return kill


@pytest.mark.slow
def test_results_are_those_of_a_search_without_workers(
    command: Command, alone: Path, run: Path, one_thread: tuple[object, ...]
) -> None:  # fmt: skip
    done = threading.Event()
    killer = threading.Thread(target=killing(os.getpid(), done), daemon=True)
    killer.start()
    try:
        text = expect(command("search", "--run", run, *one_thread, "--workers", 2), 0, "starting the workers")
    finally:
        done.set()
        killer.join()
    assert text.count("died; what it was doing runs again") == 1 and "refused" not in text
    for name in RESULTS:
        assert (run / name).read_bytes() == (alone / name).read_bytes(), name
    for weights in alone.glob("finalists/*/round-*/network.safetensors"):
        assert (run / weights.relative_to(alone)).read_bytes() == weights.read_bytes()
    started = time.monotonic()
    text = expect(command("search", "--run", run, *one_thread, "--ray", "127.0.0.1:1"), 0, "already there")
    assert "Ray" not in text and time.monotonic() - started < 60, "nothing is started where nothing is left to do"


def test_a_search_goes_on_without_workers(command: Command, alone: Path, run: Path, one_thread: tuple[object, ...]) -> None:
    """Where no cluster answers, the history stays as it was."""
    history = (alone / "history.jsonl").read_bytes()
    shutil.copy(alone / "search.json", run)
    cut = b"".join(history.splitlines(keepends=True)[:5])
    (run / "history.jsonl").write_bytes(cut)
    search = ("search", "--run", run, *one_thread)
    expect(command(*search, "--ray", "127.0.0.1:1"), 3, "nothing answers at 127.0.0.1:1", "leave --ray out")
    assert (run / "history.jsonl").read_bytes() == cut
    expect(command(*search), 0, "continuing: 4 evaluations")
    assert (run / "history.jsonl").read_bytes() == history


def test_bad_input(command: Command, run: Path, one_thread: tuple[object, ...]) -> None:
    search = ("search", "--run", run, *one_thread)
    expect(command(*search, "--workers", 2, "--ray", "auto"), 2, "not both", "leave --workers out")
    expect(command(*search, "--workers", 0), 2, "workers is 0")
    expect(command(*search, "--workers", 1024), 2, "1024 workers are too many", "set fewer threads")
    expect(command(*search, "--ray", "nowhere"), 2, "HOST:PORT")
    assert not list(run.glob("finalists")) and len((run / "history.jsonl").read_text().splitlines()) == 1


def test_bad_input_of_a_profile(command: Command, tmp_path: Path) -> None:
    profile = ("profile", "--run", tmp_path / "run", "--space", "tiny", "--size", "64x64", "--ray", "127.0.0.1:1")
    for name, value in {**dict.fromkeys(ALONE, tmp_path / "x"), "shard": "1/2"}.items():
        expect(command(*profile, "--target", "torch-cpu:fp32", f"--{name}", value), 2, f"leave --{name} out", "leave --ray out")
    expect(command(*profile), 2, "give --target TARGET")
    expect(command(*profile, "--target", "torch-cpu:fp32"), 3, "nothing answers at 127.0.0.1:1", "leave --ray out")
    assert not (tmp_path / "run/latency.json").exists()

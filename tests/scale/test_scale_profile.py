"""Profiling by the machines of a cluster: a table per kind of machine, and a worker that is killed in the middle."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from hyctas.ray_cluster import INSTALL
from latency.table import LatencyTable
from tests.hyctas.cli.conftest import Command, expect
from tests.scale.conftest import Nodes, processes

pytest.importorskip("ray", reason=f"needs Ray: {INSTALL}")
pytestmark = pytest.mark.scale
QUICK = "warmup_ms = 0\nmin_samples = 6\nbudget_ms = 1\nci = 0.5\nretake_load = 1\n"
SPACE = "from tests.hyctas.cli.conftest import nano\n\n\ndef space():\n    return nano()\n"
GPU = '#!/bin/sh\necho "NVIDIA Test GPU, 1.0, 8192 MiB"\n'
"""Stands in for nvidia-smi, so that a second node on this machine is of another kind."""


@pytest.fixture
def profile(nodes: Nodes, tmp_path: Path) -> tuple[object, ...]:
    """Arguments of a quick profile on the cluster."""
    (tmp_path / "nano.py").write_text(SPACE)
    (tmp_path / "quick.toml").write_text(QUICK)
    return (
        "--run", tmp_path / "run", "--space", tmp_path / "nano.py", "--size", "64x64", "--classes", 10, "--networks", 8,
        "--target", "torch-cpu:fp32", "--config", tmp_path / "quick.toml", "--ray", nodes.address,
    )  # fmt: skip


def kill_one(done: threading.Event) -> None:
    """Kill a worker that measures."""
    while not done.wait(0.2):
        for process in processes():
            if process.name.startswith("ray::_Actor.run"):
                os.kill(process.id, signal.SIGKILL)
                return


def test_one_kind_and_a_killed_worker(command: Command, nodes: Nodes, profile: tuple[object, ...], tmp_path: Path) -> None:
    nodes.head()
    done = threading.Event()
    killer = threading.Thread(target=kill_one, args=(done,), daemon=True)
    killer.start()
    text = expect(command("profile", *profile), 0, "latency.json", "calibrated on 8 networks", "runs again")
    done.set()
    assert "refused" not in text
    table = LatencyTable.load(tmp_path / "run/latency.json")
    (calibration,) = table.calibrations.values()
    assert calibration.n == 8 and len(table) > 10
    before = (tmp_path / "run/latency.json").read_bytes()
    expect(command("profile", *profile), 0)
    assert (tmp_path / "run/latency.json").read_bytes() == before, "what is measured is not measured again"


def test_two_kinds_give_two_tables(command: Command, nodes: Nodes, profile: tuple[object, ...], tmp_path: Path) -> None:
    nodes.head()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/nvidia-smi").write_text(GPU)
    (tmp_path / "bin/nvidia-smi").chmod(0o755)
    nodes.join(PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}", HYCTAS_MEASURING_LOCK="another")
    expect(command("profile", *profile), 0, "latency-nvidia-test-gpu-")
    paths = sorted((tmp_path / "run").glob("latency-*.json"))
    tables = [LatencyTable.load(path) for path in paths]
    assert len(tables) == 2 and tables[0].rows.keys() == tables[1].rows.keys()
    assert sorted(len(table.identity.device["gpus"]) for table in tables) == [0, 1]
    assert all(len(table.calibrations) == 1 for table in tables)

"""Two processes under torchrun end with the same weights, and learn from both halves of every step's images."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys, torch
from pathlib import Path
from hyctas.data import PREPROCESSING, Frames, Scenes
from hyctas.space import tiny
from hyctas.nn.supernet import Supernet
from hyctas.training.config import SupernetRecipe
from hyctas.training.loop import Trainer
from hyctas.training.processes import is_first, start_processes
from hyctas.training.sandwich import Sandwich

rank, world = start_processes()
torch.manual_seed(0)
recipe = SupernetRecipe(steps=2, crop=(32, 32), batch=2, threads=1, amp=False)
scenes = Scenes(seed=0, train=8, val=4, size=(32, 48))
supernet = Supernet(tiny(), 10)
step = Sandwich(supernet, recipe, Frames(scenes, "train", scenes.samples("train")), PREPROCESSING)
folder = Path(sys.argv[1])
Trainer(supernet, recipe, folder / f"checkpoint{rank}", step.state).run(step)
step.feed.close()
torch.save({"sum": sum(p.double().sum() for p in supernet.parameters()), "first": is_first()}, folder / f"{rank}.pt")
torch.distributed.destroy_process_group()
"""

TRAIN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "hyctas.cli.train", "--"]


@pytest.mark.slow
def test_two_processes_agree(tmp_path: Path) -> None:
    import torch

    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(tmp_path / "script.py")]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert torch.equal(one["sum"], two["sum"]) and (one["first"], two["first"]) == (True, False)


@pytest.mark.slow
def test_as_it_is_typed(tmp_path: Path) -> None:
    """The documented command: one process claims the run (and moves the old one aside once), prints and writes."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "labels.json").write_text("of an older training")
    (tmp_path / "job.toml").write_text('crop = "32x32"\nbatch = 2\namp = false\n')
    job = ["network", "--run", str(run), "--network", "edge:plain-w75", "--init", "none", "--restart"]
    job += ["--data", "scenes:train=40,val=4,size=32x48", "--steps", "2", "--config", str(tmp_path / "job.toml")]
    done = subprocess.run([*TRAIN, *job], capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("wrote ") == 1 and "after 2 steps (8 crops)" in done.stdout
    assert done.stderr.count("train network: done") == 1
    assert (run / "old-1" / "labels.json").read_text() == "of an older training" and not (run / "old-2").exists()


@pytest.mark.slow
def test_an_error_of_all_processes_is_printed_once(tmp_path: Path) -> None:
    job = [*TRAIN, "network", "--run", str(tmp_path / "run"), "--network", "edge:plain-w75", "--data", "none"]
    done = subprocess.run(job, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2])
    assert done.returncode != 0 and f"\n{done.stderr}".count("\nerror: ") == 1, done.stderr

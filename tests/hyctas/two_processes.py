"""What `test_distributed.py` computes in one process and, started by torchrun with this file, in two.

Each writes the losses of rank R into FOLDER/<case>.R.json. Then both run the commands in FOLDER/jobs.json; in the last one the
second process is lost.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from export.errors import InvalidInput
from hyctas.cli.train import main
from hyctas.data import PREPROCESSING, Frames, Scenes
from hyctas.network import build
from hyctas.nn.supernet import Supernet
from hyctas.space import tiny
from hyctas.training.config import Recipe, SupernetRecipe
from hyctas.training.loop import Trainer
from hyctas.training.processes import group_closed, start_processes
from hyctas.training.sandwich import Sandwich
from hyctas.training.single import Single
from hyctas.training.synchronised_norms import moments, synchronised_norms
from tests.hyctas.stopping import run_until

STEPS = 4
SHARED = {"steps": STEPS, "crop": (32, 48), "batch": 4, "warmup_steps": 2, "threads": 1, "amp": False, "scale": (0.5, 2.0)}
"""At scale 0.5 a crop of these frames is padded all around: processes have different numbers of labelled pixels."""
RECIPES: dict[str, Recipe] = {
    "network": Recipe(**SHARED),  # type: ignore[arg-type]
    "ohem": Recipe(**SHARED, loss="ohem", class_weights=False, ema=0.9),  # type: ignore[arg-type]
    "supernet": SupernetRecipe(**SHARED, random_networks=1),  # type: ignore[arg-type]
}
CONTINUED = "continued"
"""The case that starts where another process stopped, and is stopped for a third."""


def trained(case: str, path: Path, until: int = STEPS, recipe: Recipe | None = None) -> tuple[list[float], nn.Module]:
    """Train a case from its checkpoint on until a number of steps is done; return the losses of its steps, and the model.

    In fp64: what is compared is the arithmetic, not rounding, which norms over few pixels and AdamW's first steps amplify.
    """
    torch.manual_seed(0)
    recipe = recipe or RECIPES[case]
    scenes = Scenes(seed=0, train=8, val=4, size=(32, 48))
    frames = Frames(scenes, "train", scenes.samples("train"))
    supernet = isinstance(recipe, SupernetRecipe)
    model = Supernet(tiny(), 10) if supernet else build(tiny().smallest(), 10, auxiliary=True)
    step = Sandwich(model, recipe, frames, PREPROCESSING) if supernet else Single(model, recipe, frames, PREPROCESSING, 0.4)
    step.feed.batch = _double(step.feed.batch)  # type: ignore[method-assign]
    trainer = Trainer(model.double(), recipe, path, step.state if supernet else None)
    losses: list[float] = []
    run_until(trainer, step, until, lambda progress: losses.append(progress.numbers["loss"]))
    step.feed.close()
    return losses, model


def _double(batch: Callable[[int], tuple[Tensor, ...]]) -> Callable[[int], tuple[Tensor, ...]]:
    def made(step: int) -> tuple[Tensor, ...]:
        images, labels = batch(step)
        return images.double(), labels

    return made


def check_norms(rank: int) -> None:
    """Compare a batch norm over two processes, one of which has one image and the other three, with one over all four."""
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        generator = torch.Generator().manual_seed(0)
        x, upstream = (torch.randn(4, 3, 5, 6, generator=generator).to(dtype) for _ in range(2))
        x = (x + torch.arange(4)[:, None, None, None]).to(dtype)
        norms = [nn.BatchNorm2d(3), nn.BatchNorm2d(3)]
        parts = [slice(None), slice(0, 1) if rank == 0 else slice(1, 4)]
        inputs = [x[part].clone().requires_grad_() for part in parts]
        whole = norms[0](inputs[0])
        with synchronised_norms():
            mine = norms[1](inputs[1])
        for y, part in zip((whole, mine), parts, strict=True):
            F.relu(y * upstream[part]).square().sum().backward()
        for name in ("weight", "bias"):
            gradient = norms[1].get_parameter(name).grad
            dist.all_reduce(gradient)
            torch.testing.assert_close(gradient, norms[0].get_parameter(name).grad, rtol=tolerance, atol=tolerance * 30)
        torch.testing.assert_close(mine, whole[parts[1]], rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(inputs[1].grad, inputs[0].grad[parts[1]], rtol=tolerance, atol=tolerance * 3)
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(norms[1].get_buffer(name), norms[0].get_buffer(name), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(moments(x[parts[1]], (0, 1, 2, 3))[1], x.float().var(correction=0).double())


def check_apart(rank: int, folder: Path) -> None:
    """Processes that do not see the same checkpoint stop, instead of training different weights."""
    path = folder / f"own.{rank}.pt"
    if rank == 0:
        shutil.copy(folder / f"{CONTINUED}.pt", path)
    try:
        trained("network", path)
    except InvalidInput as error:
        assert "1 of the processes have found another checkpoint" in str(error)
    else:
        raise AssertionError("they trained")


def run(folder: Path) -> None:
    """Do what both processes do."""
    rank, _ = start_processes()
    check_norms(rank)
    check_apart(rank, folder)
    for case in RECIPES:
        losses, _ = trained(case, folder / f"{case}.{rank}.pt")
        (folder / f"{case}.{rank}.json").write_text(json.dumps(losses))
    losses, _ = trained("network", folder / f"{CONTINUED}.pt", STEPS - 1)
    (folder / f"{CONTINUED}.{rank}.json").write_text(json.dumps(losses))


def kill_when(checkpoint: Path) -> None:
    """Kill this process as soon as a training has saved."""

    def watch() -> None:
        while not checkpoint.exists():
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    shared = Path(sys.argv[1])
    with group_closed():
        run(shared)
    *jobs, last = json.loads((shared / "jobs.json").read_text())
    for job in (*jobs, last):
        if job == last and os.environ["RANK"] == "1":
            kill_when(Path(job[job.index("--run") + 1]) / "network.checkpoint.pt")
        sys.argv = ["hyctas-train", *job]
        main()

"""Do the whole job in one command, on generated street scenes or on the user's own data."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from export.target import Target, format_size, parse_size
from hyctas.artifacts.bundling import bundle_network, load_trained
from hyctas.cli.bench import BenchJob
from hyctas.cli.profile import ProfileJob
from hyctas.cli.search import SearchJob
from hyctas.cli.show import bar, duration, say
from hyctas.cli.train import TrainNetworkJob, TrainSupernetJob
from hyctas.commands.bench import bench_models
from hyctas.commands.chosen_target import best_target
from hyctas.commands.datasets import DataSet, open_dataset
from hyctas.commands.demo_handmade import PRETRAINED, RANDOM, comparison, nearest_in_latency, steps_of, work_done
from hyctas.commands.front_table import show_front
from hyctas.commands.profile import profile_space
from hyctas.commands.search import run_search
from hyctas.commands.train import train_network, train_supernet
from hyctas.cost.workloads import CostModel
from hyctas.search.limits import Limits
from hyctas.search.search_settings import SearchSettings
from hyctas.spaces.space_file import load_space
from latency import LatencyTable
from latency.protocol import Protocol

if TYPE_CHECKING:
    from hyctas.cli.demo import DemoJob

MOST_PIXELS = 50_000
DEMO_SCENES = "scenes:seed=1,train=160,val=40,size=96x128"


@dataclass(frozen=True)
class Scale:
    """How much work the demo does: fixed by --minutes, so that equal commands do equal work."""

    space: str
    networks: int
    """Whole networks measured for the calibration."""
    supernet_minutes: float
    evaluations: int
    population: int
    candidates: int
    images: int
    finalists: int
    finalist_steps: int
    network_minutes: float
    handmade: tuple[str, ...]
    """Families that a network of equal latency is taken from: they start as the supernet does."""
    bench_seconds: float


def scale(minutes: float) -> Scale:
    """Share a time budget: short ones use the tiny space, from half an hour on it is edge."""
    if minutes < 30:
        return Scale("tiny", 10, 0.3 * minutes, round(15 * minutes), 12, 40, 40, 4, round(5 * minutes), 0.2 * minutes, RANDOM, 2.0)
    return Scale("edge", 30, 0.4 * minutes, round(2 * minutes), 24, 200, 60, 6, round(minutes / 2), 0.2 * minutes, PRETRAINED, 5.0)


def demo(job: DemoJob) -> None:
    """Run the whole job into one run folder."""
    limit = (f"fps={job.fps:g}",) if job.fps is not None else ()
    started, plan, spec = time.monotonic(), scale(job.minutes), job.data or DEMO_SCENES
    # TensorRT only where it is asked for: its builds take longer than all the rest of a demo
    target = str(Target.parse(job.target) if job.target else best_target(("onnxruntime-", "torch-")))
    data = open_dataset(spec)
    size = job.size or format_size(working_size(data))
    small = format_size(sharing_size(parse_size(size)))
    say(f"size {size}, space {plan.space}, target {target}, run folder {job.run}\n")
    profile_space(ProfileJob(
        run=job.run, space=plan.space, size=size, target=target, threads=job.threads, classes=data.num_classes,
        networks=plan.networks, restart=job.restart, protocol=Protocol(budget_ms=100.0),
    ))  # fmt: skip
    check_limit(job.run, plan.space, size, limit, data.num_classes)
    recipe = {"warmup_steps": 20, "learning_rate": 3e-3}
    train_supernet(TrainSupernetJob(
        run=job.run, data=spec, space=plan.space, minutes=plan.supernet_minutes, size=small, crop=small, batch=8,
        restart=job.restart, settings=recipe,
    ))  # fmt: skip
    run_search(SearchJob(
        run=job.run, data=spec, size=size, limit=limit, evaluations=plan.evaluations, images=plan.images,
        measure=6, max_error=100, finalists=plan.finalists, finalist_steps=plan.finalist_steps, restart=job.restart,
        settings=SearchSettings(population=plan.population, candidates=plan.candidates),
    ))  # fmt: skip
    train_network(TrainNetworkJob(
        run=job.run, data=spec, minutes=plan.network_minutes, size=size, crop=size, batch=8, init=str(job.run),
        restart=job.restart, settings=recipe,
    ))  # fmt: skip
    handmade = nearest_in_latency(job.run, plan.handmade, data.num_classes)
    say(f"beside it: {handmade}, the hand-made network of nearest latency, trained for as many steps")
    train_network(TrainNetworkJob(
        run=job.run / "handmade", network=Path(handmade), data=spec, steps=steps_of(job.run, "train-network"), size=size,
        crop=size, batch=8, restart=job.restart, settings=recipe,
    ))  # fmt: skip
    finish(job.run, data, size, target, job.threads, plan.bench_seconds)
    say("\n" + comparison(job.run, job.run / "handmade", handmade) + "\n" + work_done(job.run))
    say(f"\ndone in {duration(time.monotonic() - started)}. Look at {job.run / 'report.html'}")


def check_limit(run: Path, space: str, size: str, limit: tuple[str, ...], num_classes: int) -> None:
    """Stop before any training where no network of the space meets the limit.

    Raises:
        Infeasible: with the predicted latency of the smallest network.
    """
    table = LatencyTable.load(run / "latency.json")
    Limits.parse(limit).check_feasible(CostModel(load_space(space), table, parse_size(size), num_classes))


def sharing_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return the size at which the supernet is trained and networks are compared: halved until it has few enough pixels."""
    height, width = size
    while height * width > MOST_PIXELS and min(height, width) >= 64:
        height, width = height // 2, width // 2
    return height, width


def working_size(data: DataSet) -> tuple[int, int]:
    """Return the size of the first image, at most 640 pixels long, both sides multiples of 8."""
    image, _ = data.source.load("train", data.train[0])
    height, width = image.shape[:2]
    factor = min(1.0, 640 / max(height, width))
    return max(32, round(height * factor / 8) * 8), max(32, round(width * factor / 8) * 8)


def finish(run: Path, data: DataSet, size: str, target: str, threads: int, seconds: float) -> None:
    """Export the trained network as a bundle, time it, and write the report."""
    trained = load_trained(run, data.num_classes)
    image, _ = data.source.load("val", data.val[0])
    with bar("export bundle"):
        bundle = bundle_network(trained, run / "bundle", parse_size(size), "native", target, [image])
    say(bundle.parity.summary())
    bench_models(BenchJob(
        models=(run / "bundle", run / "handmade"), size=size, target=target, threads=threads, seconds=seconds, run=run,
    ))  # fmt: skip
    names = ("latency.json", "supernet.safetensors", "history.jsonl", "pareto.json", "pareto.svg", "bundle", "fps.json",
             "report.md", "report.html")  # fmt: skip
    say("\n" + show_front(run) + "\nwrote:\n" + "\n".join(f"  {run / name}" for name in names))

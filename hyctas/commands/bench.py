"""Time one or more models, interleaved, and write a report that another person can reproduce."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from export.bench_models import BenchModel
from export.bench_report import BenchReport
from export.bench_timing import bench
from export.errors import InvalidInput
from export.paced import pace
from export.paced_report import PacedReport
from export.runtime import Runtime
from export.sustained import Plan, sustain
from export.sustained_report import SustainedReport
from export.target import TENSORRT
from hyctas.cli.show import say, still_bar
from hyctas.cli.values import duration, image_size
from hyctas.commands.bench_kit import ingest_bench, write_bench_kit
from hyctas.commands.bench_memory import measure_memories, with_memories
from hyctas.commands.model_files import bench_model, choose_target, kind_of, named_models, names
from hyctas.commands.sample_images import load_images, open_pictures, painted_street
from hyctas.commands.timing_report import check_out, publish, write_report
from hyctas.engine.table_attention import open_target
from latency.lock import measuring

if TYPE_CHECKING:
    from hyctas.cli.bench import BenchJob


def bench_models(job: BenchJob) -> None:
    """Time the models and write the report."""
    if job.kit is not None or job.ingest is not None:
        for flag, given in (("--pace", job.pace), ("--sustained", job.sustained), ("--memory", job.memory or None)):
            if given is not None:
                where = "runs models on this machine; a kit times them back to back on a device"
                raise InvalidInput(f"{flag} {where}: leave {flag} out")
        (write_bench_kit if job.ingest is None else ingest_bench)(job)
        return
    sustained_s = None if job.sustained is None else duration(job.sustained)
    name = "sustained.json" if sustained_s else "paced.json" if job.pace else "fps.json" if job.run else "bench.json"
    out = job.out or (job.run or Path()) / name
    check_out(out)
    paths = named_models(*(job.models or (job.run,)))
    kinds = [kind_of(path) for path in paths]
    size = image_size(job.size) if job.size else None
    if size and ".pt2" in kinds:
        raise InvalidInput("--size: a .pt2 file has a fixed size; leave --size out")
    target = choose_target(job.target, list(zip(paths, kinds, strict=True)))
    check_trust(job.trust, paths)
    runtime = open_target(target, job.threads, **(job.loading().arguments() if target.runtime in TENSORRT else {}))
    models = [bench_model(path, kind, name, target, size) for path, kind, name in zip(paths, kinds, names(paths), strict=True)]
    pictures = open_pictures(job.data, job.pace) if job.data else None
    images = frames_in_memory(job, models[0], runtime) if pictures is None else []
    say(f"target: {target}, {job.threads} thread{'s' * (job.threads != 1)}; mode {job.mode}; {len(models)} "
        f"model{'s' * (len(models) != 1)} for {sustained_s or job.seconds:g} s each")  # fmt: skip
    try:
        with measuring(say), still_bar("time models") as show:
            memories = measure_memories(models, target, job.threads) if job.memory else {}
            report: BenchReport | PacedReport | SustainedReport
            if sustained_s is not None:
                plan = Plan(sustained_s, job.pace, job.mode, images, pictures)
                report = sustain(models, runtime, plan, lambda so_far: write_report(so_far, out), show)
            elif job.pace is not None:
                report = pace(models, runtime, job.pace, job.seconds, job.mode, images, show, pictures)
            else:
                report = bench(
                    models, target, job.threads, seconds=job.seconds, mode=job.mode, progress=show, images=images, runtime=runtime
                )
    finally:
        if pictures is not None:
            pictures.close()
    if isinstance(report, SustainedReport) and not report.models:
        raise KeyboardInterrupt
    publish(with_memories(report, memories), out, job.run)
    if isinstance(report, SustainedReport) and report.state == "stopped":
        raise KeyboardInterrupt


def frames_in_memory(job: BenchJob, first: BenchModel, runtime: Runtime) -> list[bytes]:
    """Return the images to time with, as JPEG files; none where the model alone is timed and none are named."""
    if not job.data and job.mode != "end-to-end":
        return []
    images = load_images(job.data) if job.data else painted_street(first, runtime)
    say(f"images: {len(images)} from {job.data or 'a generated street scene'}")
    return images


def check_trust(trust: bool, paths: Sequence[Path]) -> None:
    """Refuse files whose reading executes code, unless told otherwise.

    Raises:
        InvalidInput: there is one.
    """
    found = next((path for path in paths if path.suffix.lower() == ".pt2"), None)
    if found is not None and not trust:
        raise InvalidInput(
            f"{found}: reading a .pt2 file executes code that stands in it (pickled objects, libraries compiled by AOTInductor). "
            "Repeat the command with --trust where you know who made it; an .onnx file or a bundle's model.onnx is data alone"
        )

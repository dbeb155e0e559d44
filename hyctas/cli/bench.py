"""hyctas-bench: time one or more models, interleaved, and write a report that another person can reproduce."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from export.ranges import Range, Settings, Threads
from hyctas.cli.entry import command
from hyctas.engine.settings import LoadSettings


@dataclass(frozen=True, kw_only=True)
class BenchJob(Settings):
    """What hyctas-bench times."""

    models: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="[MODEL ...]")] = ()
    """ONNX files of any origin, .pt2 files, .engine files, bundles, run folders; the others are compared with the first.
    Default: the network of --run, else models/balanced, where the current folder has it."""
    target: str | None = None
    """Where to time, for instance onnxruntime-cpu:fp32; default: the best available one that runs the models, printed."""
    threads: Threads = 1
    """Threads on a CPU target."""
    seconds: Annotated[float, Range(above=0, at_most=86400)] = 3.0
    """Measured time per model."""
    pace: Annotated[float, Range(above=0, at_most=1e4)] | None = None
    """Let this many frames per second arrive, as from a camera, and report how many are missed and how old the outputs are."""
    sustained: str | None = None
    """Run each model this long, for instance 10m: times, clocks, temperature and power over time; --pace holds as well."""
    memory: bool = False
    """Measure the most memory that each model takes, in a process of its own."""
    mode: Literal["model", "labels", "end-to-end"] = "model"
    """model: the network alone; labels: tensor in memory to labels; end-to-end: JPEG bytes to overlay."""
    size: str | None = None
    """Image size, HEIGHTxWIDTH, for ONNX files with a dynamic one and for run folders."""
    out: Path | None = None
    """Report, FILE.json (FILE.md and FILE.html appear beside it); default RUN/fps.json, or bench.json without --run."""
    data: str | None = None
    """Images to time with: a folder, an image, a data set, with --pace a video or camera:0; default: a generated street scene."""
    run: Path | None = None
    """Run folder for the reports (RUN/report.html too); without models, its trained network is timed."""
    kit: Path | None = None
    """Write a folder that times the models with trtexec on a device without Python (target tensorrt:fp16 or :fp32)."""
    ingest: Path | None = None
    """Make the report from a kit's folder that came back from the device."""
    cuda_backend: Literal["torch", "cuda-bindings", "pycuda"] | None = None
    """Library that talks to CUDA for engines; default: the first that works."""
    trust: bool = False
    """Load .pt2 files, and engines that have no manifest or differ from it; this executes code in them."""

    GROUPS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "report": ("out", "run"),
        "device kit": ("kit", "ingest"),
        "loading": ("cuda_backend", "trust"),
    }

    def loading(self) -> LoadSettings:
        """Return how TensorRT engines are loaded."""
        return LoadSettings(cuda_backend=self.cuda_backend, trust=self.trust)


def main() -> None:
    """Run the command line."""
    command(
        _run, BenchJob, "Time models against each other on one target: FPS report as JSON, Markdown and HTML.",
        name="hyctas-bench", example="runs/mine/bundle other.onnx --threads 2", resumes=False,
    )  # fmt: skip


def _run(job: BenchJob) -> None:
    from hyctas.commands.bench import bench_models

    bench_models(job)


if __name__ == "__main__":
    main()

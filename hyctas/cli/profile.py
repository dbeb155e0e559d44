"""hyctas-profile: measure a space's operators on a target, and calibrate the prediction on whole networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from export.ranges import Classes, Range, Settings, Threads
from hyctas.cli.entry import command
from latency.protocol import Protocol


@dataclass(frozen=True, kw_only=True)
class ProfileJob(Settings):
    """What hyctas-profile measures."""

    run: Path = Path("runs/new")
    """Run folder; the table is RUN/latency.json."""
    space: str = "edge"
    """Search space: edge, tiny, published, or a Python file with a function `space()`."""
    size: str = "360x480"
    """Image size, HEIGHTxWIDTH."""
    target: str | None = None
    """Where to measure, for instance onnxruntime-cpu:fp32; default: the best available one, printed."""
    threads: Threads = 1
    """Threads on a CPU target."""
    classes: Classes | None = None
    """Number of classes; default: those of --data, or 19."""
    data: str | None = None
    """Data set, to take the number of classes from."""
    networks: Annotated[int, Range(0, 1000)] = 60
    """Whole networks that are measured to calibrate the prediction; 0: none."""
    shard: str | None = None
    """Measure one part of the operators, for instance 2/4, so that identical machines share the work; join them with --merge."""
    merge: tuple[Path, ...] = ()
    """Tables of identical machines, merged into RUN/latency.json first; only what none of them has is measured."""
    ray: str | None = None
    """Measure on all machines of a Ray cluster, each by itself; its head's HOST:PORT, or auto. A table per kind of machine."""
    check: Path | None = None
    """Only measure a sample of this table again, and say whether it still describes this machine."""
    kit: Path | None = None
    """Write a folder that measures all this with trtexec on a device without Python (target tensorrt:fp16 or :fp32)."""
    ingest: Path | None = None
    """Read the table from a kit's folder that came back from the device; space, size and target are the kit's."""
    restart: bool = False
    """Move the old table aside and start over."""
    builds: tyro.conf.Fixed[Annotated[int, Range(1, 1000)] | None] = None
    """Builds of each operator, of which the median is kept; default: 3 where TensorRT chooses kernels again in each, else 1."""
    protocol: tyro.conf.Fixed[Protocol] = field(default_factory=Protocol)
    """How operators are timed."""

    GROUPS: ClassVar[Mapping[str, tuple[str, ...]]] = {"sharing": ("shard", "merge", "ray"), "device kit": ("kit", "ingest")}


def main() -> None:
    """Run the command line."""
    command(
        _run, ProfileJob, "Measure every operator of a space on a target: RUN/latency.json.",
        name="hyctas-profile", example="--run runs/mine --size 360x480 --target onnxruntime-cpu:fp32 --threads 2",
    )  # fmt: skip


def _run(job: ProfileJob) -> None:
    from hyctas.commands.profile import profile_space

    profile_space(job)


if __name__ == "__main__":
    main()

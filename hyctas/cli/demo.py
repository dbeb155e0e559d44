"""hyctas-demo: the whole job in one command, on generated street scenes or on the user's own data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from export.ranges import Range, Settings, Threads
from hyctas.cli.entry import command


@dataclass(frozen=True, kw_only=True)
class DemoJob(Settings):
    """What hyctas-demo does."""

    run: Path = Path("runs/demo")
    """Run folder."""
    data: str | None = None
    """Your data set's folder (docs/own_data.md lists the layouts); default: generated street scenes."""
    fps: Annotated[float, Range(above=0, at_most=1e6)] | None = None
    """Frame rate to reach on the target; default: none, the whole front is searched."""
    target: str | None = None
    """Where the network will run, for instance onnxruntime-cpu:fp32; default: the best available here, TensorRT aside."""
    size: str | None = None
    """Image size, HEIGHTxWIDTH; default: that of the first image, at most 640 pixels long."""
    threads: Threads = 2
    """Threads on a CPU target."""
    minutes: Annotated[float, Range(1, 10_000)] = 4.0
    """How much work to do; from 30 on, the space is edge instead of tiny. Good results on real data take hours."""
    restart: bool = False
    """Move old results aside and start over."""


def main() -> None:
    """Run the command line."""
    command(
        _run, DemoJob, "Profile, train, search, train the chosen network, export it, time it, and report.",
        name="hyctas-demo", example="--data FOLDER --fps 30 --minutes 60",
    )  # fmt: skip


def _run(job: DemoJob) -> None:
    from hyctas.commands.demo import demo

    demo(job)


if __name__ == "__main__":
    main()

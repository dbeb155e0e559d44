"""hyctas-predict: segment images, videos or a camera's pictures, as files or on a live web page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from export.ranges import Settings, Threads
from hyctas.cli.entry import command


@dataclass(frozen=True, kw_only=True)
class PredictJob(Settings):
    """What hyctas-predict segments, and where the results go."""

    sources: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="SOURCE [SOURCE ...]")]
    """Images, folders of images, videos, or a camera: camera:0, /dev/video0, rtsp://..., http://..."""
    model: Path | None = None
    """ONNX file, bundle, engine or run folder; default: models/balanced, where the current folder has it."""
    target: str | None = None
    """Where to run it, for instance onnxruntime-cpu:fp32; default: the best available one that runs the model, printed."""
    threads: Threads = 2
    """Threads on a CPU target."""
    size: str | None = None
    """Image size of the model, HEIGHTxWIDTH, for an ONNX file with a dynamic one and for a run folder."""
    out: Path = Path("predictions")
    """Folder for the overlays: NAME.overlay.png; NAME.overlay.mp4 of a video or camera."""
    labels: bool = False
    """Write label maps too, PNG of 8 bits: NAME.labels.png; of a video or camera a folder of them, NAME.labels."""
    serve: str | None = None
    """Show a live web page at [HOST:]PORT instead of writing files; without HOST only this machine sees it."""


def main() -> None:
    """Run the command line."""
    command(
        _run, PredictJob, "Segment images, videos or a camera's pictures: overlays as files or on a live web page.",
        name="hyctas-predict", example="photographs/ --model runs/mine/bundle --serve 8000", resumes=False,
    )  # fmt: skip


def _run(job: PredictJob) -> None:
    from hyctas.commands.predict import predict_sources

    predict_sources(job)


if __name__ == "__main__":
    main()

"""Get images to run models on: a user's own, or painted street scenes."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from export.arrivals import Pictures
from export.bench_models import BenchModel, open_models
from export.bundle.imaging import photographs
from export.errors import Give, InvalidInput
from export.prediction.clocked_video import ClockedVideo
from export.prediction.frame_source import CAMERAS, VIDEO_SUFFIXES, Camera, Video, open_sources
from export.prediction.prediction import jpeg
from export.runtime import Runtime
from hyctas.data import Scenes, open_source
from hyctas.data.images import read_image
from hyctas.data.scenes import FRAMES_PER_CLIP

T = TypeVar("T")
MAX_IMAGES = 16
JPEG_MARK = b"\xff\xd8\xff"
EXAMPLES, QUALITY = 2, 90
"""Street scenes that parity is checked on besides random images; quality of JPEG files made here."""


def open_pictures(spec: str, pace: float | None) -> Pictures | None:
    """Open a video or camera whose pictures arrive by themselves; None for anything else.

    Raises:
        InvalidInput: no pace, which only such sources keep, or a damaged video.
        Unavailable: a camera that sends nothing, or no OpenCV.
    """
    if not spec.startswith(CAMERAS) and Path(spec).suffix.lower() not in VIDEO_SUFFIXES:
        return None
    (source,) = open_sources([spec])
    if pace is None:
        source.close()
        raise InvalidInput(
            f"data {spec!r}: pictures of a video or camera arrive by the clock, and back-to-back times are of pictures in memory",
            Give("pace", "30"), "give images",
        )  # fmt: skip
    if isinstance(source, Video):
        return ClockedVideo(source, pace)
    assert isinstance(source, Camera)
    return source


def load_images(spec: str) -> list[bytes]:
    """Read at most `MAX_IMAGES` images as JPEG files in memory: one file, or evenly spread over a folder of images or a data set.

    JPEG files are taken as they are (decoding turns them upright), others are encoded at quality `QUALITY`.

    Raises:
        InvalidInput: no images there, or a file that is none.
    """
    path = Path(spec).expanduser()
    if path.is_file():
        open_sources([str(path)])  # names a file of an unknown kind
        files = [path]
    else:
        files = photographs(path)
    if files:
        chosen = [(read_image(path), path.read_bytes()) for path in _spread(files)]  # names a file that is no image
        return [data if data.startswith(JPEG_MARK) else jpeg(array, QUALITY) for array, data in chosen]
    source = open_source(spec)
    split = "val" if "val" in source.splits else source.splits[0]
    samples = source.samples(split)
    if not samples:
        raise InvalidInput(f"data {spec!r}: split {split} has no images")
    return [jpeg(source.load(split, sample)[0], QUALITY) for sample in _spread(samples)]


def street_scenes(size: tuple[int, int], count: int) -> list[np.ndarray]:
    """Paint images (H, W, 3) uint8 that look like what a network sees."""
    scenes = Scenes(size=size, train=0, val=count)
    return [scenes.load("val", sample)[0] for sample in scenes.samples("val")]


def painted_street(model: BenchModel, runtime: Runtime) -> list[bytes]:
    """Paint one clip of a street at a model's size, as JPEG files."""
    size = model.size
    if size is None:
        with tempfile.TemporaryDirectory(prefix="hyctas-bench-") as folder:
            with open_models([replace(model, name="first")], runtime, Path(folder))[0] as opened:
                size = opened.usual_image().size
    scenes = Scenes(size=size, train=0, val=FRAMES_PER_CLIP)
    return [jpeg(scenes.load("val", sample)[0], QUALITY) for sample in scenes.samples("val")]


def _spread(items: Sequence[T]) -> list[T]:
    step = max(1.0, len(items) / MAX_IMAGES)
    return [items[int(i * step)] for i in range(min(len(items), MAX_IMAGES))]

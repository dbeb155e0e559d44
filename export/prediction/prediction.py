"""Segment the frames of a source one after another, and give each to whoever writes or shows it."""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from itertools import chain, count
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
from PIL import Image

from export.claims import building_folder
from export.errors import InvalidInput, LeaveOut
from export.prediction.frame_source import Camera, Frame, FrameSource, ImageFiles, Video
from export.prediction.ladder_segmenter import LadderSegmenter
from export.prediction.opencv import VideoFile
from export.prediction.segment import Segmenter
from export.prediction.stage_times import StageTimes
from export.swap import replaced_folder

CAMERA_RATE = 30.0
"""Frames per second of a video made of a camera's pictures; each stands in it for as long as it was the newest."""


class Sink(Protocol):
    """Where overlays go."""

    def write(self, frame: Frame, drawn: np.ndarray, labels: np.ndarray) -> None:
        """Take a frame's overlay (H, W, 3) uint8 and labels (H, W)."""
        ...


def predict(
    source: FrameSource, segmenter: Segmenter | LadderSegmenter, sink: Sink, times: StageTimes, progress: Callable[[], None],
    unreadable: Callable[[InvalidInput], None], rate: float | None = None,
) -> None:  # fmt: skip
    """Segment every frame of a source.

    Args:
        source: what to read.
        segmenter: how.
        sink: takes the results.
        times: where every frame's stages are noted.
        progress: called after each frame.
        unreadable: told of what cannot be read, in a frame's place.
        rate: frames per second that a ladder should keep, where the source is no camera.
    """
    for frame in source:
        if isinstance(frame, InvalidInput):
            unreadable(frame)
            continue
        start = time.monotonic()
        times.add("reading", frame.read_ms)
        with times.stage("pre-processing"):
            tensor = segmenter.prepare(frame.picture)
        with times.stage("running"):
            values = segmenter.run(tensor)
        with times.stage("labels"):
            labels = segmenter.fit(segmenter.labels(values), frame.picture)
        with times.stage("drawing"):
            drawn = segmenter.draw(frame.picture, labels)
        with times.stage("writing"):
            sink.write(frame, drawn, labels)
        times.end_frame()
        if isinstance(segmenter, LadderSegmenter):
            end = time.monotonic()
            segmenter.observe(frame, end - (start if frame.arrived is None else frame.arrived), end - start, rate)
        progress()


class OutputNames:
    """Names for what is written into a folder: a file is never written twice, nor over one that is read."""

    def __init__(self, folder: Path, sources: Collection[Path]) -> None:
        self.folder = folder
        self._sources = {path.resolve() for path in sources}
        self._taken: set[str] = set()

    def take(self, path: Path, *endings: str) -> list[Path]:
        """Return names that begin alike, one with each ending: `a` of `a.jpg`; `a.png`, `a.png.2` where that is taken."""
        for base in chain((path.stem, path.name), (f"{path.name}.{number}" for number in count(2))):
            names = [f"{base}{ending}" for ending in endings]
            free = self._taken.isdisjoint(name.casefold() for name in names)
            found = [self.folder / name for name in names]
            if free and self._sources.isdisjoint(place.resolve() for place in found):
                self._taken.update(name.casefold() for name in names)
                return found
        raise AssertionError("numbers do not end")


class ImageSink:
    """Writes each frame's overlay, and its label map where asked for, as PNG; a file has its name once it is whole."""

    def __init__(self, names: OutputNames, colours: np.ndarray, labels: bool) -> None:
        self._names, self._colours, self._endings = names, colours, (".overlay.png", *([".labels.png"] if labels else []))
        self._stack = ExitStack()
        names.folder.mkdir(parents=True, exist_ok=True)
        self._building = self._stack.enter_context(building_folder(names.folder / "overlays")) / "image.png"

    def write(self, frame: Frame, drawn: np.ndarray, labels: np.ndarray) -> None:
        contents = _png(Image.fromarray(drawn)), label_png(labels, self._colours) if len(self._endings) > 1 else b""
        for path, data in zip(self._names.take(frame.path, *self._endings), contents, strict=False):
            self._building.write_bytes(data)
            os.replace(self._building, path)

    def __enter__(self) -> ImageSink:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()


class VideoSink:
    """Writes overlays as one video, and label maps where asked for into a folder; both have their names once they are whole."""

    def __init__(self, source: Video | Camera, names: OutputNames, colours: np.ndarray, labels: bool) -> None:
        self.path, *folders = names.take(source.path, ".overlay.mp4", *([".labels"] if labels else []))
        self._stack, self._colours, self._count = ExitStack(), colours, 0
        self._started: float | None = None
        names.folder.mkdir(parents=True, exist_ok=True)
        self._labels = self._stack.enter_context(replaced_folder(folders[0], _not_numbered)) if folders else None
        self._video = VideoFile(self._stack.enter_context(building_folder(self.path)) / "overlay.mp4", source.rate or CAMERA_RATE)

    def write(self, frame: Frame, drawn: np.ndarray, labels: np.ndarray) -> None:
        self._count += 1
        if self._labels is not None:
            (self._labels / f"{self._count:06d}.png").write_bytes(label_png(labels, self._colours))
        self._video.write(drawn, self._times(frame))

    def __enter__(self) -> VideoSink:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._video.close()
        if kind is None and self._video.written:
            os.replace(self._video.path, self.path)
        self._stack.__exit__(kind, error, trace)

    def _times(self, frame: Frame) -> int:
        """Say how often a picture stands in the video: a camera's as often as keeps the time."""
        if frame.arrived is None:
            return 1
        if self._started is None:
            self._started = frame.arrived
        return max(0, int((frame.arrived - self._started) * self._video.rate) + 1 - self._video.written)


def sink_for(source: FrameSource, names: OutputNames, colours: np.ndarray, labels: bool) -> ImageSink | VideoSink:
    """Return what writes a source's overlays as files."""
    if isinstance(source, (Video, Camera)):
        return VideoSink(source, names, colours, labels)
    return ImageSink(names, colours, labels)


def read_paths(sources: Collection[FrameSource]) -> list[Path]:
    """Return the files that sources read."""
    images = [path for source in sources if isinstance(source, ImageFiles) for path in source.paths]
    return [*images, *(source.path for source in sources if isinstance(source, Video))]


def label_png(labels: np.ndarray, colours: np.ndarray) -> bytes:
    """Return labels (H, W) as a PNG of 8 bits whose values are the classes and whose palette is their colours.

    Raises:
        InvalidInput: a label that 8 bits do not hold.
    """
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) <= 255:
        raise InvalidInput(f"labels from {labels.min()} to {labels.max()} do not fit into 8 bits", LeaveOut(("labels",)))
    plane = Image.fromarray(labels.astype(np.uint8))
    plane.putpalette(colours[:256].astype(np.uint8).tobytes().ljust(768, b"\0"))  # a shorter one is written with fewer bits
    return _png(plane)


def jpeg(picture: np.ndarray, quality: int = 85) -> bytes:
    """Return a picture (H, W, 3) uint8 as a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _not_numbered(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if not re.fullmatch(r"\d{6,}\.png", entry.name)]

"""Give pictures one after another: of image files, of a video, or of a camera."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from export.bundle.imaging import IMAGE_SUFFIXES, opened, photographs, upright_rgb
from export.errors import InvalidInput, Unavailable
from export.prediction.newest import Newest
from export.prediction.opencv import open_camera, open_video, opencv, rgb

VIDEO_SUFFIXES = tuple(".mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .ts .wmv .flv .ogv .3gp .mjpeg .gif".split())
CAMERAS = ("camera:", "/dev/", "rtsp://", "rtsps://", "http://", "https://")
"""How the name of a camera begins."""
SLIDE_SECONDS = 1.0
"""How long a viewer sees an image file."""
UNSAID_RATE = 25.0
"""Frames per second of a video that does not say it."""
CLOSE_SECONDS = 2.0


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture."""

    picture: Image.Image
    """RGB, upright."""
    path: Path
    """The file that it comes from; of a camera, a name for files."""
    read_ms: float
    """Reading and decoding it, without the wait for a camera."""
    arrived: float | None = None
    """Of a camera, the moment in seconds of `time.monotonic`."""
    number: int = 0
    """Of a camera, how many it has sent before, dropped ones included."""


class FrameSource(Protocol):
    """Frames in order. What cannot be read comes as the error that names it, in the frame's place, and the next one follows."""

    name: str
    total: int | None
    """Frames, where known."""
    rate: float | None
    """Frames per second, for a viewer; None where they come when they come."""
    notes: list[str]
    """What a reader of the results should know."""

    @property
    def dropped(self) -> int:
        """Frames that nobody had time for; only a camera's are."""
        ...

    def __iter__(self) -> Iterator[Frame | InvalidInput]: ...

    def close(self) -> None: ...


class ImageFiles:
    """Image files, in the order given."""

    def __init__(self, paths: Sequence[Path], name: str) -> None:
        self.name = name
        self.paths, self.notes, self.dropped = tuple(paths), list[str](), 0
        self.total: int | None = len(self.paths)
        self.rate: float | None = 1 / SLIDE_SECONDS

    def __iter__(self) -> Iterator[Frame | InvalidInput]:
        for path in self.paths:
            start = time.perf_counter_ns()
            try:
                picture = opened(path, _pixels)
            except InvalidInput as error:
                yield error
                continue
            yield Frame(picture, path, _since(start))

    def close(self) -> None:
        pass


class Video:
    """A video file; nothing of it is dropped.

    Raises:
        InvalidInput: no picture can be read.
        Unavailable: no OpenCV.
    """

    def __init__(self, path: Path) -> None:
        self.name, self.path, self.notes, self.dropped = str(path), path, list[str](), 0
        cv2, capture = opencv(f"reading {path}"), open_video(path)
        rate, total = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
        if not capture.read()[0]:
            raise InvalidInput(f"{path}: has no picture that can be read; it is truncated, damaged or of sound alone")
        capture.release()
        if not 0 < rate <= 1000:
            self.notes.append(f"{path} does not say how many frames a second has; {UNSAID_RATE:g} are assumed")
        self.rate: float | None = rate if 0 < rate <= 1000 else UNSAID_RATE
        self.total: int | None = int(total) if 0 < total < 1e9 else None

    def __iter__(self) -> Iterator[Frame | InvalidInput]:
        capture, read = open_video(self.path), 0
        try:
            while True:
                start = time.perf_counter_ns()
                found, pixels = capture.read()
                if not found:
                    break
                picture = Image.fromarray(rgb(pixels))
                read += 1
                yield Frame(picture, self.path, _since(start))
        finally:
            capture.release()
        if self.total is not None and read < self.total:
            note = f"{self.path} announces {self.total} frames; {read} could be read"
            self.notes += [note] if note not in self.notes else []

    def close(self) -> None:
        pass


class Camera:
    """A camera, of which the newest frame is taken: a thread reads all of them, and one that comes too early is dropped.

    Raises:
        InvalidInput: an address that is none.
        Unavailable: nothing answers, or no OpenCV.
    """

    total: int | None = None
    rate: float | None = None

    def __init__(self, address: str) -> None:
        self.name = re.sub(r"//[^/@]*@", "//", address.partition("?")[0])  # what is printed holds no password
        self.path = Path(re.sub(r"[^A-Za-z0-9]+", "-", self.name).strip("-")[:100] or "camera")
        self.notes = list[str]()
        capture = open_camera(address)
        if capture is None or not capture.grab():
            answer = "nothing answers there" if capture is None else "it sends no picture"
            raise Unavailable(self.name, answer, "connect a camera, and name it camera:0, /dev/video0, rtsp://... or http://...")
        self._capture, self._newest = capture, Newest[tuple[np.ndarray, float, float, int]]()
        self._thread = threading.Thread(target=self._read, name="camera", daemon=True)

    @property
    def dropped(self) -> int:
        """Pictures that a newer one replaced."""
        return self._newest.replaced

    def __iter__(self) -> Generator[Frame | InvalidInput]:
        """Give the newest picture from now on; iterated again, it goes on with the camera's numbers."""
        self._newest.clear()
        if self._thread.ident is None:
            self._thread.start()
        while (newest := self._newest.take()) is not None:
            pixels, arrived, decode_ms, number = newest
            start = time.perf_counter_ns()
            picture = Image.fromarray(rgb(pixels))
            yield Frame(picture, self.path, decode_ms + _since(start), arrived, number)
        self.notes.append(f"{self.name} sends no more pictures")

    def close(self) -> None:
        """Stop reading; one that is stuck in waiting for its network is left to end by itself."""
        self._newest.end()
        if self._thread.ident is not None:
            self._thread.join(CLOSE_SECONDS)
        if not self._thread.is_alive():
            self._capture.release()

    def _read(self) -> None:
        for number in count():
            if self._newest.ended or not self._capture.grab():
                break
            arrived, start = time.monotonic(), time.perf_counter_ns()
            found, pixels = self._capture.retrieve()
            if not found:
                break
            self._newest.put((pixels, arrived, _since(start), number))
        self._newest.end()


def open_sources(names: Sequence[str]) -> list[FrameSource]:
    """Open images, folders of images, videos and cameras by name; images that follow each other are one source.

    Raises:
        InvalidInput: nothing there, a folder without images, a file of an unknown kind, a damaged video, or a camera among others.
        Unavailable: a camera that sends nothing, or no OpenCV, which videos and cameras need.
    """
    camera = next((name for name in names if name.startswith(CAMERAS)), None)
    if camera is not None and len(names) > 1:
        raise InvalidInput(f"{camera} does not end, so nothing can stand beside it: give it alone, the others in another command")
    if camera is not None:
        return [Camera(camera)]
    found: list[FrameSource] = []
    for name in names:
        source, last = _of_file(Path(name)), found[-1] if found else None
        if isinstance(source, ImageFiles) and isinstance(last, ImageFiles):
            paths = (*last.paths, *source.paths)
            found[-1] = ImageFiles(paths, f"{paths[0]} and {len(paths) - 1} more")
        else:
            found.append(source)
    return found


def _of_file(path: Path) -> ImageFiles | Video:
    if not path.exists():
        raise InvalidInput(f"no such file or folder: {path}")
    if path.is_dir():
        images = photographs(path)
        if not images:
            raise InvalidInput(f"{path} holds no images; their names end in {' '.join(IMAGE_SUFFIXES)}")
        return ImageFiles(images, str(path))
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return ImageFiles([path], str(path))
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return Video(path)
    raise InvalidInput(
        f"{path}: its suffix {path.suffix!r} is unknown; give images ({' '.join(IMAGE_SUFFIXES)}), folders of images, "
        f"videos ({' '.join(VIDEO_SUFFIXES)}), or a camera (camera:0, /dev/video0, rtsp://..., http://...)"
    )


def _pixels(picture: Image.Image) -> Image.Image:
    upright = upright_rgb(picture)
    upright.load()
    return upright


def _since(start_ns: int) -> float:
    return (time.perf_counter_ns() - start_ns) / 1e6

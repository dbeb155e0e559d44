"""Videos by way of OpenCV, which is an extra: open one to read, and write one."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np

from export.errors import InvalidInput, Unavailable, first_line
from export.files import utf8_path

INSTALL = "pip install 'opencv-python-headless>=4.9'"
OPEN_MS, READ_MS = 10_000, 10_000
"""How long a camera at a network address may take to answer, and to send the next picture."""


def opencv(purpose: str) -> ModuleType:
    """Import OpenCV, told to print nothing of its own: what fails is said by errors.

    Raises:
        Unavailable: it cannot be imported.
    """
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    try:
        import cv2
    except ImportError as error:
        raise Unavailable(purpose, f"OpenCV, which it needs, cannot be imported ({first_line(error)})", INSTALL) from None
    return cv2


def open_video(path: Path) -> Any:
    """Open a video file to read.

    Raises:
        InvalidInput: no such file, or none that OpenCV reads.
        Unavailable: no OpenCV.
    """
    cv2 = opencv(f"reading {path}")
    capture = cv2.VideoCapture(utf8_path(path.absolute()))  # whole, so that FFmpeg takes no part of it for a protocol
    if not capture.isOpened():
        raise InvalidInput(f"{path}: cannot be read as a video, it is truncated, damaged or of a kind that OpenCV does not read")
    return capture


def open_camera(address: str) -> Any:
    """Open a camera: `camera:N`, a device's path, or a network address; None where nothing answers.

    Raises:
        InvalidInput: `camera:` without a number.
        Unavailable: no OpenCV.
    """
    cv2 = opencv("a camera")
    if "://" in address:
        waits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, OPEN_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, READ_MS]
        capture = cv2.VideoCapture(address, cv2.CAP_FFMPEG, waits)
    elif address.startswith("camera:"):
        number = address.removeprefix("camera:")
        if not (number.isascii() and number.isdigit() and len(number) < 4):
            raise InvalidInput(f"camera {address!r} has no number: the first one is camera:0")
        capture = cv2.VideoCapture(int(number))
    else:
        capture = cv2.VideoCapture(address, cv2.CAP_V4L2)  # no other reader: FFmpeg would read any device as a file
    return capture if capture.isOpened() else None


def rgb(pixels: np.ndarray) -> np.ndarray:
    """Return OpenCV's pixels, BGR (H, W, 3), as RGB."""
    converted: np.ndarray = opencv("a video").cvtColor(pixels, 4)  # COLOR_BGR2RGB
    return converted


class VideoFile:
    """A new MP4 file (MPEG-4 part 2, no sound); its size in pixels is that of the first picture, less an odd row and column.

    Args:
        path: ends in `.mp4`.
        rate: frames per second.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self.path, self.rate, self.written = path, rate, 0
        self._cv2, self._writer, self._shape = opencv("writing a video"), cast(Any, None), (0, 0)

    def write(self, picture: np.ndarray, times: int = 1) -> None:
        """Append a picture (H, W, 3) uint8 RGB, so many times.

        Raises:
            InvalidInput: another size than the first one's, or OpenCV cannot write the file.
        """
        if self._writer is None:
            self._shape = picture.shape[:2]
            size = self._shape[1], self._shape[0]
            self._writer = self._cv2.VideoWriter(utf8_path(self.path), self._cv2.VideoWriter.fourcc(*"mp4v"), self.rate, size)
            if not self._writer.isOpened():
                raise InvalidInput(f"OpenCV cannot write a video of {self.rate:g} frames of {size[1]}x{size[0]} per second here")
        if picture.shape[:2] != self._shape:
            was, now = (f"{height}x{width}" for height, width in (self._shape, picture.shape[:2]))
            raise InvalidInput(f"the pictures changed their size from {was} to {now}, and a video has one; cut it there first")
        pixels = self._cv2.cvtColor(picture, self._cv2.COLOR_RGB2BGR)
        for _ in range(times):
            self._writer.write(pixels)
        self.written += times

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.release()

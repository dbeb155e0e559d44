"""Read image and label files strictly: whatever is wrong becomes one sentence that begins with the path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps

from export.bundle.imaging import DAMAGE, opened, upright_rgb
from export.errors import InvalidInput

T = TypeVar("T")

_SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that swap height and width."""


@dataclass(frozen=True, eq=False)
class LabelFile:
    """What a label file holds, as it is in the file."""

    values: np.ndarray
    """Numbers, uint8 or uint16 (H, W): of a palette file the indices. Or colours, uint8 (H, W, 3)."""
    palette: np.ndarray | None = None
    """Of a palette file, the colour of each index, uint8 (n, 3)."""

    @property
    def colours(self) -> np.ndarray:
        """The pixels as they look, uint8 (H, W, 3); only for a palette file and one of colours."""
        return self.values if self.palette is None else self.palette[self.values]


def read_image(path: Path) -> np.ndarray:
    """Read an image as uint8 (H, W, 3) RGB, upright; see `export.bundle.imaging.upright_rgb`.

    Raises:
        InvalidInput: missing, truncated, undecodable, too large to be opened, or of another kind of pixels.
    """
    return opened(path, lambda picture: np.array(upright_rgb(picture), dtype=np.uint8))


def is_turned_sideways(path: Path) -> bool:
    """Say whether reading an image swaps its height and width, as its EXIF orientation asks for."""
    return opened(path, lambda picture: picture.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS)


def read_label(path: Path) -> LabelFile:
    """Read a label file; no value of it is changed.

    Raises:
        InvalidInput: missing, truncated, undecodable, no PNG file whatever its name says, or other pixels than numbers of 8 or
            16 bits, a palette, or opaque colours.
    """
    return _opened_png(path, _label)


def read_palette(path: Path) -> dict[int, tuple[int, int, int]]:
    """Return the colours that a palette PNG gives to the values it holds; empty for other label files.

    Raises:
        InvalidInput: see `read_label`.
    """
    label = _opened_png(path, lambda picture: _label(picture) if picture.mode == "P" else None)
    if label is None or label.palette is None:
        return {}
    return {int(value): _rgb(label.palette[value]) for value in np.unique(label.values)}


def _label(picture: Image.Image) -> LabelFile:
    assert isinstance(picture, ImageFile.ImageFile)
    raw_mode = picture.tile[0][3] if picture.tile else ""
    picture.load()
    ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode == "L" and raw_mode in ("L;2", "L;4"):
        raise InvalidInput(f"label has {raw_mode[-1]} bits per pixel, which decoders stretch to 0..255; save it with 8 bits")
    if picture.mode == "P":
        palette = np.zeros((256, 3), np.uint8)
        given = np.array(picture.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
        palette[: len(given)] = given
        return LabelFile(np.array(picture, np.uint8), palette)
    if picture.mode in ("L", "1"):
        return LabelFile(np.array(picture, np.uint8))
    if picture.mode.startswith("I;16"):
        return LabelFile(np.array(picture).astype(np.uint16))
    if picture.mode in ("RGB", "RGBA", "LA"):
        pixels = np.array(picture.convert("RGBA"))
        if (pixels[..., 3] < 255).any():
            raise InvalidInput("label has transparent pixels; save it without an alpha channel")
        return LabelFile(np.ascontiguousarray(pixels[..., :3]))
    raise InvalidInput(f"label has mode {picture.mode}; wanted a PNG of class numbers (8 or 16 bits), a palette, or RGB colours")


def _opened_png(path: Path, use: Callable[[Image.Image], T]) -> T:
    try:
        return opened(path, use, formats=("PNG",))
    except InvalidInput as error:
        found = _format(path)
        if found is None or found == "PNG":
            raise
        raise InvalidInput(
            f"{path}: is a {found} file whatever its name says; labels are read from PNG, which keeps every value: "
            "save them again with the tool that made them, since a converted JPEG or GIF may have lost values"
        ) from error


def _format(path: Path) -> str | None:
    """Return the format that a file's content has, None where Pillow knows none."""
    try:
        with Image.open(path) as picture:
            return picture.format
    except (*DAMAGE, Image.DecompressionBombError):
        return None


def _rgb(colour: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in colour)
    return red, green, blue

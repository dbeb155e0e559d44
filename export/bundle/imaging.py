"""Images in, label maps and overlays out, in numpy and pillow alone."""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageOps

from export.errors import InvalidInput

T = TypeVar("T")

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
"""Names of photographs; the content decides which format a file has."""
_MODES = ("RGB", "RGBA", "L", "LA", "P")
"""Pillow's modes of 8 bits per channel; it reads colour photographs of 16 bits as RGB, by their upper bytes."""
_GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error, zlib.error)
"""What Pillow raises for damaged files, by format and by where the damage is; a fuzz test keeps this list honest."""
_ROWS = 32
"""Output rows that `upsample_argmax` computes at a time: few enough for the cache."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What a network expects of its image: RGB scaled to 0..1, then (value - mean) / std."""

    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Per channel, RGB."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Per channel, RGB."""
    layout: str = "NCHW"
    """The only one that exported networks have."""

    def __post_init__(self) -> None:
        numbers = [*self.mean, *self.std]
        if len(self.mean) != 3 or len(self.std) != 3 or not all(map(math.isfinite, numbers)) or min(self.std) <= 0:
            raise InvalidInput(f"mean and std must be three finite numbers each, std positive; got {self.mean}, {self.std}")
        if self.layout != "NCHW":
            raise InvalidInput(f"layout {self.layout!r} is unknown; exported networks take NCHW")

    @classmethod
    def before_decoding(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Refuse what leaves out mean or std: nobody means 0 and 1 by that."""
        if not {"mean", "std"} <= value.keys():
            raise InvalidInput(f"it needs three numbers each under mean and std; got {', '.join(value)}")
        return value

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"mean": list(self.mean), "std": list(self.std), "layout": self.layout}

    def apply(self, image: Image.Image, size: tuple[int, int]) -> np.ndarray:
        """Resize an image (bilinear) to `size` = (H, W) and return it as (1, 3, H, W) float32."""
        height, width = size
        pixels = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR), np.float32)
        scale = 1 / (255 * np.array(self.std, np.float32))
        offset = -np.array(self.mean, np.float32) / np.array(self.std, np.float32)
        return np.ascontiguousarray((pixels * scale + offset).transpose(2, 0, 1)[None])


def is_photograph(path: Path) -> bool:
    """Say whether a file's name is that of an image; hidden files (`._x.jpg`, which macOS leaves behind) are none."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def photographs(folder: Path) -> list[Path]:
    """List the images of a folder, by name; none where there is no such folder."""
    return sorted(filter(is_photograph, folder.iterdir())) if folder.is_dir() else []


def decode(data: bytes) -> Image.Image:
    """Decode an image file held in memory; see `upright_rgb`."""
    return upright_rgb(Image.open(io.BytesIO(data)))


def opened(path: Path, use: Callable[[Image.Image], T], formats: tuple[str, ...] | None = None) -> T:
    """Return what `use` makes of an image file, whose pixels it reads; Pillow's `formats` may be restricted.

    Raises:
        InvalidInput: missing, truncated, undecodable, or too large to be opened; whatever `use` raises then begins with the path.
    """
    try:
        with Image.open(path, formats=formats) as picture:
            return use(picture)
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from None
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise InvalidInput(f"{path}: is larger than the {most} megapixels that are opened; scale it down, or cut it up") from None
    except DAMAGE as error:
        text = str(error).replace(str(path), "the file") or type(error).__name__
        raise InvalidInput(f"{path}: cannot be read as an image, it is missing, truncated or damaged ({text})") from None


def upright_rgb(picture: Image.Image) -> Image.Image:
    """Turn a photograph the way its EXIF orientation asks for, and bring it to RGB of 8 bits.

    Every image that is trained on, timed or painted over goes through here, so that all see the same pixels. Grey of 16 bits
    keeps its upper byte, as colour of 16 bits does; transparency is dropped.

    Raises:
        InvalidInput: a colour space or a range of values that is not known to fit (CMYK, 32 bits, floating point).
    """
    ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode in _GREY_16:
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode not in _MODES:
        raise InvalidInput(
            f"the image has mode {picture.mode}; wanted RGB or grey with 8 or 16 bits per channel: convert it, and save it as PNG"
        )
    return picture if picture.mode == "RGB" else picture.convert("RGBA").convert("RGB")


def head_stride(native: tuple[int, int], size: tuple[int, int]) -> float:
    """Return the stride s with native = ceil(size / s); powers of two first, else the ratio of the heights."""
    stride = exact_stride(native, size)
    return size[0] / native[0] if stride is None else float(stride)


def exact_stride(native: tuple[int, int], size: tuple[int, int], largest: int = 64) -> int | None:
    """Return the smallest power of two s with native = ceil(size / s), at most `largest`; None where there is none."""
    stride = 1
    while stride <= largest:
        if native == (-(-size[0] // stride), -(-size[1] // stride)):
            return stride
        stride *= 2
    return None


def upsample_argmax(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize logits (C, h, w) bilinearly by the head's stride (half-pixel centres), crop to (H, W), return the argmax."""
    height, width = size
    stride = head_stride((logits.shape[1], logits.shape[2]), size)
    top, bottom, down = _taps(height, logits.shape[1], stride)
    left, right, across = _taps(width, logits.shape[2], stride)
    labels = np.empty(size, np.uint8 if logits.shape[0] <= 255 else np.int32)
    for start in range(0, height, _ROWS):
        rows = slice(start, start + _ROWS)
        above = logits[:, top[rows]]
        band = above + (logits[:, bottom[rows]] - above) * down[rows, None]
        west = band[:, :, left]
        labels[rows] = (west + (band[:, :, right] - west) * across).argmax(0)
    return labels


def _taps(length: int, source: int, stride: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    centre = np.clip((np.arange(length) + 0.5) / stride - 0.5, 0, source - 1)
    low = centre.astype(np.int64)
    return low, np.minimum(low + 1, source - 1), (centre - low).astype(np.float32)


def palette(classes: int) -> np.ndarray:
    """Return `classes` distinguishable colours (classes, 3) uint8, the same on every call."""
    index = np.arange(1, classes + 1)[:, None]
    return ((index * np.array([[67, 131, 197]])) % 256).astype(np.uint8)


def overlay(image: np.ndarray, labels: np.ndarray, colours: Sequence[Sequence[int]] | np.ndarray) -> np.ndarray:
    """Blend colours (C, 3) by labels (H, W) half and half over an image (H, W, 3) uint8; labels beyond C stay bare."""
    table = np.asarray(colours, np.uint8)
    known = labels < len(table)
    painted = table[np.where(known, labels, 0)]
    # halves of uint8: (a >> 1) + (b >> 1) needs no wider type
    return np.where(known[..., None], (image >> 1) + (painted >> 1), image)

"""Read image and label files strictly: whatever is wrong becomes one sentence that begins with the path."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from export.errors import InvalidInput

# What Pillow raises for damaged files, by format and by where the damage is; a fuzz test keeps this list honest.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def read_image(path: Path) -> np.ndarray:
    """Read an image as uint8 (H, W, 3) RGB; grey, palette and RGBA files are converted.

    Raises:
        InvalidInput: missing, truncated, undecodable, or not 8 bits per channel.
    """
    picture = _decode(path)
    if picture.mode not in ("RGB", "RGBA", "L", "LA", "P"):
        raise InvalidInput(f"{path}: has mode {picture.mode}; wanted an 8-bit RGB image")
    return np.array(picture if picture.mode == "RGB" else picture.convert("RGBA").convert("RGB"), dtype=np.uint8)


def read_label(path: Path) -> np.ndarray:
    """Read a label file as uint8 (H, W), the values as they are in the file (palette files: the indices).

    Raises:
        InvalidInput: missing, truncated, undecodable, or not one channel of 8 bits.
    """
    picture = _decode(path)
    if picture.mode in ("RGB", "RGBA", "LA"):
        values = np.asarray(picture)
        grey = picture.mode == "LA" or bool((values[..., :3] == values[..., :1]).all())
        how = (
            "its colour channels are equal, so PIL's getchannel(0) yields the label"
            if grey
            else "replace each colour by its class number (0, 1, 2, ...) and save that as a uint8 array: "
            "Image.fromarray(ids).save(...)"
        )
        raise InvalidInput(f"{path}: label has mode {picture.mode}; wanted a PNG with one 8-bit channel: {how}")
    if picture.mode not in ("L", "P", "1"):
        raise InvalidInput(f"{path}: label has mode {picture.mode}; wanted a PNG with one 8-bit channel")
    bits = picture.info.get("hyctas_raw_mode", "")
    if picture.mode == "L" and bits in ("L;2", "L;4"):
        raise InvalidInput(
            f"{path}: label has {bits[-1]} bits per pixel, which decoders stretch to 0..255; save it with 8 bits"
        )
    return np.array(picture, dtype=np.uint8)


def _decode(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            raw_mode = picture.tile[0][3] if picture.tile else ""
            picture.load()
    except _DAMAGE as error:
        text = str(error).replace(str(path), "the file") or type(error).__name__
        raise InvalidInput(f"{path}: cannot be read as an image, it is missing, truncated or damaged ({text})") from None
    picture.info["hyctas_raw_mode"] = raw_mode if isinstance(raw_mode, str) else ""
    return picture

"""Turn frames into training batches: joint random geometry, light, normalisation, batching."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
from PIL import Image

from export.bundle.imaging import Preprocessing
from export.errors import InvalidInput
from export.ranges import Range, Settings
from hyctas.data.labels import IGNORE

if TYPE_CHECKING:
    import torch

PREPROCESSING = Preprocessing(mean=(0.411, 0.425, 0.432), std=(0.3, 0.31, 0.3))
"""What networks that are trained from random weights expect of their images."""
LUMA = np.array((0.299, 0.587, 0.114), np.float32)
"""Share of R, G and B in brightness (ITU-R BT.601)."""
_MARGIN = 3
_Side = Annotated[int, Range(1, 16384)]
_Zoom = Annotated[float, Range(above=0, at_most=100)]


@dataclass(frozen=True, kw_only=True)
class Augment(Settings):
    """How training images are varied."""

    crop: tuple[_Side, _Side]
    """Height and width of what comes out."""
    scale_min: _Zoom = 0.6
    """Smallest zoom; 0.5 shows the scene at half size."""
    scale_max: _Zoom = 1.6
    """Largest zoom."""
    flip: bool = True
    """Whether to mirror left and right, half of the time."""
    brightness: Annotated[float, Range(0, below=1)] = 0.3
    """Intensities are multiplied by a factor of 1 +- this."""
    offset: Annotated[float, Range(0, 1)] = 0.1
    """A number within +- this is added to each colour channel, of intensities in 0..1."""
    colour: Annotated[float, Range(0, 1)] = 0.0
    """Contrast and saturation are multiplied by factors of 1 +- this."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale_min > self.scale_max:
            raise InvalidInput(f"scale_min is {self.scale_min} and scale_max {self.scale_max}; wanted scale_min <= scale_max")


@dataclass(frozen=True, kw_only=True)
class View:
    """Which part of a frame a crop shows. What belongs to a frame (label, soft labels) is cut by the same view."""

    crop: tuple[int, int]
    """Height and width of the crop, in its pixels."""
    rows: tuple[float, float]
    """Interval of the frame that is shown, in the frame's pixels from its top."""
    columns: tuple[float, float]
    """The same from the left."""
    into_rows: slice
    """Rows of the crop that the interval fills; the others are padding."""
    into_columns: slice
    """Columns of the crop, before mirroring."""
    mirror: bool
    """Whether the crop, padding included, is mirrored left and right in the end."""


def draw_view(frame: tuple[int, int], config: Augment, rng: np.random.Generator) -> View:
    """Draw a zoom, a place and whether to mirror, for a frame of (H, W) pixels; four draws whatever the settings."""
    zoom, top, left, mirror = rng.random(4)
    scale = config.scale_min + zoom * (config.scale_max - config.scale_min)
    rows, into_rows = _window(frame[0], config.crop[0], scale, top)
    columns, into_columns = _window(frame[1], config.crop[1], scale, left)
    return View(
        crop=config.crop, rows=rows, columns=columns, into_rows=into_rows, into_columns=into_columns,
        mirror=bool(config.flip and mirror < 0.5),
    )  # fmt: skip


def augment(
    image: np.ndarray, label: np.ndarray, config: Augment, rng: np.random.Generator, preprocessing: Preprocessing
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one random view of a frame: zoom, crop (padded where the frame is too small), mirror, light.

    The same as resizing the whole frame and cropping then, but only the region that stays is resized.

    Args:
        image: uint8 (H, W, 3).
        label: uint8 (H, W).
        config: what to vary.
        rng: the same number of draws is taken whatever the settings, and two more after them where `colour` is above 0.
        preprocessing: of the network that is trained; its mean is the padding, which becomes 0 where the image is normalised.

    Returns:
        Image float32 (crop height, crop width, 3) in 0..1, padding = the mean; label uint8 of that size, padding = 255.
    """
    view = draw_view((image.shape[0], image.shape[1]), config, rng)
    return augment_view(image, label, view, config, rng, preprocessing)


def augment_view(
    image: np.ndarray, label: np.ndarray, view: View, config: Augment, rng: np.random.Generator, preprocessing: Preprocessing
) -> tuple[np.ndarray, np.ndarray]:
    """Do what `augment` does with a view that is drawn already: cut it out, and vary the light."""
    gain, *shift = rng.random(4)
    box = (view.columns[0], view.rows[0], view.columns[1], view.rows[1])
    size = (view.into_columns.stop - view.into_columns.start, view.into_rows.stop - view.into_rows.start)
    crop = _resize(image, box, size, Image.Resampling.BILINEAR).astype(np.float32)
    crop *= np.float32((1 + (2 * gain - 1) * config.brightness) / 255)
    crop += ((2 * np.array(shift) - 1) * config.offset).astype(np.float32)
    if config.colour:
        contrast, saturation = 1 + (2 * rng.random(2) - 1) * config.colour
        _adjust(crop, contrast, saturation)
    np.clip(crop, 0, 1, out=crop)
    seen = _resize(label, box, size, Image.Resampling.NEAREST)
    if size != (view.crop[1], view.crop[0]):
        inner, inner_label = crop, seen
        crop = np.broadcast_to(np.array(preprocessing.mean, np.float32), (*view.crop, 3)).copy()
        seen = np.full(view.crop, IGNORE, np.uint8)
        crop[view.into_rows, view.into_columns] = inner
        seen[view.into_rows, view.into_columns] = inner_label
    if view.mirror:
        crop, seen = crop[:, ::-1], seen[:, ::-1]
    return np.ascontiguousarray(crop), np.ascontiguousarray(seen)


def _adjust(image: np.ndarray, contrast: float, saturation: float) -> None:
    """Blend an image, in place, with its own grey version (saturation) and then with its mean grey (contrast).

    Both together are contrast * saturation * image + contrast * (1 - saturation) * grey + (1 - contrast) * mean grey: one pass.
    """
    grey = image @ LUMA
    mean = grey.mean()
    grey *= np.float32(contrast * (1 - saturation))
    grey += np.float32((1 - contrast) * mean)
    image *= np.float32(contrast * saturation)
    image += grey[..., None]


def _window(length: int, crop: int, scale: float, position: float) -> tuple[tuple[float, float], slice]:
    """Place a crop along one axis; return the source interval and where it goes in the crop.

    The crop's centre is drawn over the whole frame, and the crop moved inside: crops that are drawn inside hardly ever show the
    frame's edges.
    """
    wanted = crop / scale
    if wanted <= length:
        start = min(max(position * length - wanted / 2, 0), length - wanted)
        return (start, min(start + wanted, length)), slice(0, crop)
    start = position * (length - wanted)  # padding on both sides
    first = min(round(-start * scale), crop - 1)
    return (0, length), slice(first, max(first + 1, min(crop, first + round(length * scale))))


def _resize(array: np.ndarray, box: tuple[float, float, float, float], size: tuple[int, int], how: Image.Resampling) -> np.ndarray:
    """Resize the part of an array inside `box` (left, top, right, bottom, fractions allowed) to (width, height)."""
    x0, y0 = max(0, int(box[0]) - _MARGIN), max(0, int(box[1]) - _MARGIN)
    region = array[y0 : int(box[3]) + 1 + _MARGIN, x0 : int(box[2]) + 1 + _MARGIN]
    shifted = (box[0] - x0, box[1] - y0, box[2] - x0, box[3] - y0)
    return np.array(Image.fromarray(region).resize(size, how, box=shifted))


def normalise(image: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Subtract the mean and divide by the standard deviation, per channel.

    Args:
        image: float (..., 3) in 0..1.
        preprocessing: mean and standard deviation.

    Returns:
        float32 of the same shape.
    """
    return (image.astype(np.float32) - np.array(preprocessing.mean, np.float32)) / np.array(preprocessing.std, np.float32)


def to_batch(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack (image float (H, W, 3), label (H, W)) pairs of one size.

    Returns:
        Images float32 (N, 3, H, W), contiguous as channels-last, and labels int64 (N, H, W).

    Raises:
        InvalidInput: no pairs, or sizes differ.
    """
    import torch

    shapes = {label.shape for _, label in pairs} | {image.shape[:2] for image, _ in pairs}
    if len(shapes) != 1:
        found = ", ".join(sorted("x".join(map(str, shape)) for shape in shapes))
        raise InvalidInput(f"a batch needs images and labels of one size; got {found or 'no images'}")
    # `np.stack` would keep the memory order of its inputs (mirrored or broadcast views); a batch is filled in C order.
    height, width = next(iter(shapes))
    images = np.empty((len(pairs), height, width, 3), np.float32)
    labels = np.empty((len(pairs), height, width), np.int64)
    for i, (image, label) in enumerate(pairs):
        images[i], labels[i] = image, label
    return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels)

"""Paint predictions beside the truth: image, labels and prediction in one row, as JPEG."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from export.errors import InvalidInput

ROWS = 6
"""A page shows no more than these, so that it stays small."""
PANEL_WIDTH = 440
"""Pixels; wider images are shrunk, much smaller ones enlarged by a whole factor."""
QUALITY = 85
GAP = 4
STRENGTH = 0.62
"""How much of a painted pixel is the class's colour; the rest is the image's brightness."""
_GAP_COLOUR = (128, 136, 148)


def overlays(
    images: Sequence[np.ndarray], labels: Sequence[np.ndarray], predictions: Sequence[np.ndarray],
    colours: Sequence[Sequence[int]],
) -> list[bytes]:  # fmt: skip
    """Paint up to `ROWS` rows of three panels: the image, the labels over it, the prediction over it.

    Pixels whose label is no class (to be ignored) are hatched in grey in the middle panel; predicted values that are no class
    stay bare.

    Args:
        images: uint8 (H, W, 3) RGB.
        labels: integers (H, W): classes, or any other value for pixels that count for nothing.
        predictions: integers (H, W).
        colours: one RGB triple per class.

    Returns:
        JPEG files, one per row.

    Raises:
        InvalidInput: the numbers or the shapes of images, labels and predictions differ.
    """
    if not len(images) == len(labels) == len(predictions):
        raise InvalidInput(f"got {len(images)} images, {len(labels)} labels, {len(predictions)} predictions; give equally many")
    table = np.asarray(colours, np.uint8).reshape(-1, 3)
    rows = zip(images[:ROWS], labels[:ROWS], predictions[:ROWS], strict=True)
    return [_jpeg(_row(index, *row, table)) for index, row in enumerate(rows)]


def _row(index: int, image: np.ndarray, label: np.ndarray, prediction: np.ndarray, table: np.ndarray) -> np.ndarray:
    shapes = {"image": image.shape[:2], "label": label.shape, "prediction": prediction.shape}
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or len(set(shapes.values())) != 1:
        raise InvalidInput(f"example {index}: wanted a uint8 RGB image with label and prediction of its size, got "
                           f"{image.dtype} {image.shape}, {label.shape} and {prediction.shape}")  # fmt: skip
    size = _panel_size(*image.shape[:2])
    resized = _resize(image, size, Image.Resampling.LANCZOS)
    truth, guess = (_resize(_classes(values, len(table)), size, Image.Resampling.NEAREST) for values in (label, prediction))
    gap = np.full((size[0], GAP, 3), _GAP_COLOUR, np.uint8)
    return np.concatenate([resized, gap, _hatch(_paint(resized, truth, table), truth), gap, _paint(resized, guess, table)], axis=1)


def _panel_size(height: int, width: int) -> tuple[int, int]:
    if width > PANEL_WIDTH:
        return max(1, round(height * PANEL_WIDTH / width)), PANEL_WIDTH
    factor = max(1, PANEL_WIDTH // width)
    return height * factor, width * factor


def _classes(values: np.ndarray, count: int) -> np.ndarray:
    """Return uint8 (H, W) in which everything that is no class is 255."""
    return np.where((values >= 0) & (values < min(count, 255)), values, 255).astype(np.uint8)


def _resize(values: np.ndarray, size: tuple[int, int], method: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(values).resize((size[1], size[0]), method))


def _paint(image: np.ndarray, classes: np.ndarray, table: np.ndarray) -> np.ndarray:
    known = classes < 255
    brightness = image.mean(axis=2, keepdims=True)  # without the image's own colours, those of the classes stay true
    colour = table[np.where(known, classes, 0)] if len(table) else np.zeros_like(image)
    blended = STRENGTH * colour + (1 - STRENGTH) * brightness
    return np.where(known[..., None], blended.round().astype(np.uint8), image)


def _hatch(panel: np.ndarray, classes: np.ndarray) -> np.ndarray:
    diagonal = np.add.outer(np.arange(classes.shape[0]), np.arange(classes.shape[1]))
    stripes = np.where((diagonal // 4 % 2)[..., None] == 0, 96, 168).astype(np.uint8)
    return np.where((classes == 255)[..., None], stripes, panel)


def _jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return buffer.getvalue()

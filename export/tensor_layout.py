"""Say which input of a model is its image, and how an output becomes labels: shapes decide, what they leave open is noted.

| input (N, ., ., .)              | is                                        |
|---------------------------------|-------------------------------------------|
| 1, 3 or 4 behind N              | an image, channels first                  |
| 1, 3 or 4 at the end            | an image, channels last                   |

| output                          | becomes labels by                         |
|---------------------------------|-------------------------------------------|
| integers (1, H, W), also with an axis of 1 for channels | being them        |
| (1, C, h, w), (1, h, w, C)      | upsampling and argmax                     |
| floats (1, h, w), also with an axis of 1 for channels   | a threshold: class 1 above it |

Height and width of an output must be the image's, divided by one number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from export.bundle.imaging import exact_stride, upsample_argmax
from export.runtime import TensorSpec

CHANNELS = (1, 3, 4)
"""What an image has: grey, RGB, or one more."""


@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """The image among a model's inputs."""

    spec: TensorSpec
    channels_last: bool

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        shape = self.spec.shape
        return (shape[1], shape[2]) if self.channels_last else (shape[2], shape[3])

    @property
    def is_usual(self) -> bool:
        """Whether it is one float32 image (1, 3, H, W), which pictures can be made into."""
        return self.spec.dtype == "float32" and self.spec.shape[:2] == (1, 3) and not self.channels_last


def channels_axis(shape: Sequence[int | None]) -> int | None:
    """Return the axis of an image's channels, 1 or 3; None where a shape is no image's. A dynamic extent is None."""
    if len(shape) != 4:
        return None
    if shape[1] in CHANNELS:
        return 1
    if shape[3] in CHANNELS:
        return 3
    return 1 if shape[1] is None else None


def image_input(inputs: Sequence[TensorSpec]) -> ImageInput | None:
    """Return the first input that is an image."""
    for spec in inputs:
        axis = channels_axis(spec.shape)
        if axis is not None:
            return ImageInput(spec=spec, channels_last=axis == 3)
    return None


@dataclass(frozen=True, kw_only=True)
class LabelOutput:
    """How one output becomes labels."""

    index: int
    """Among the outputs."""
    kind: Literal["labels", "scores", "mask"]
    """Labels already; a score per class; or one channel for the class 1."""
    channels_last: bool = False
    ignored: int = 0
    """Channels behind the scores that are none."""
    threshold: float = 0.0
    """Of a mask: class 1 lies above it."""
    note: str = ""
    """What a reader should know, since the shape leaves it open."""

    def calibrated(self, values: np.ndarray) -> LabelOutput:
        """Return it with the threshold of a mask, as its values on an image show it: probabilities are in 0..1."""
        if self.kind != "mask":
            return self
        low, high = float(values.min()), float(values.max())
        share = low >= 0 and high <= 1
        read = "a probability: class 1 above 0.5" if share else "a logit: class 1 above 0"
        note = f"its output has one channel, of values from {low:.3g} to {high:.3g} on the first image: read as {read}"
        return replace(self, threshold=0.5 if share else 0.0, note=note)

    def labels(self, values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Return labels (H, W) from the output of one image; those that are no scores keep their own size."""
        if self.kind != "scores":
            plane = values.reshape(self._plane(values.shape))
            return plane if self.kind == "labels" else (plane > self.threshold).astype(np.uint8)
        scores = values[0].transpose(2, 0, 1) if self.channels_last else values[0]
        scores = scores[: scores.shape[0] - self.ignored]
        scores = scores if scores.dtype == np.float32 else scores.astype(np.float32)
        return scores.argmax(0) if scores.shape[1:] == tuple(size) else upsample_argmax(np.ascontiguousarray(scores), size)

    def _plane(self, shape: Sequence[int]) -> tuple[int, int]:
        if len(shape) == 3:
            return shape[1], shape[2]
        return (shape[1], shape[2]) if self.channels_last else (shape[2], shape[3])


def label_output(outputs: Sequence[TensorSpec], size: tuple[int, int]) -> LabelOutput | None:
    """Return how the first output that can be labels of an image (H, W) becomes them; None where none can.

    An output named `panoptic` has three channels behind its scores, as this package exports it.
    """
    for index, spec in enumerate(outputs):
        if (found := _read(spec, size)) is not None:
            return replace(found, index=index)
    return None


def _read(spec: TensorSpec, size: tuple[int, int]) -> LabelOutput | None:
    shape, whole = spec.shape, np.dtype(spec.dtype).kind in "iub"
    if shape[:1] != (1,) or len(shape) not in (3, 4) or 0 in shape:
        return None
    if len(shape) == 3:
        if not _fit((shape[1], shape[2]), size):
            return None
        return LabelOutput(index=0, kind="labels" if whole else "mask")
    first, last = _fit((shape[2], shape[3]), size), _fit((shape[1], shape[2]), size)
    if not (first or last):
        return None
    channels_last = last > first
    note = f"its output {shape} is read as (1, h, w, C)" if channels_last else ""
    if first == last:
        note = f"its output {shape} may be (1, C, h, w) or (1, h, w, C); it is read as the former"
    channels = shape[3] if channels_last else shape[1]
    if channels == 1:
        return LabelOutput(index=0, kind="labels" if whole else "mask", channels_last=channels_last, note=note)
    ignored = 3 if spec.name == "panoptic" and channels > 3 else 0
    return LabelOutput(index=0, kind="scores", channels_last=channels_last, ignored=ignored, note=note)


def _fit(plane: tuple[int, int], size: tuple[int, int]) -> int:
    """Say how well a plane (h, w) fits an image (H, W): 2 by a power of two, 1 by one ratio up to rounding, 0 not at all."""
    if exact_stride(plane, size) is not None:
        return 2
    return int(min(plane) > 1 and abs(plane[0] * size[1] / size[0] - plane[1]) <= 1)

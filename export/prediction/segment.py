"""Turn pictures into labels with an open model, step by step, and make benchmarks' frames of the steps."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from export.bench_models import OpenModel, listed
from export.bundle.imaging import decode, overlay
from export.errors import InvalidInput
from export.feeds import random_feeds
from export.target import format_size
from export.tensor_layout import label_output

MODES = ("model", "labels", "end-to-end")


class Segmenter:
    """The steps from a picture to an overlay, in their order.

    Raises:
        InvalidInput: the model does not take one image, or gives nothing that can be labels.
    """

    def __init__(self, model: OpenModel) -> None:
        self.model, self.image = model, model.usual_image()
        outputs = model.session.outputs
        output = label_output(outputs, self.image.size)
        if output is None:
            raise InvalidInput(
                "turning pictures into labels needs an output of integer labels (1, H, W), or of scores (1, C, h, w) or "
                f"(1, h, w, C) at one share of the image's {format_size(self.image.size)}; its outputs are {listed(outputs)}"
            )
        if len(outputs) > 1:
            model.notes.append(f"labels come from {outputs[output.index].name!r}")
        self._output, self._calibrated = output, False

    def prepare(self, picture: Image.Image) -> np.ndarray:
        """Return the model's input (1, 3, H, W) for a picture of any size."""
        return self.model.preprocessing.apply(picture, self.image.size)

    def run(self, tensor: np.ndarray) -> np.ndarray:
        """Return the output that labels come from."""
        return self.model.session.run({self.image.spec.name: tensor})[self._output.index]

    def labels(self, values: np.ndarray) -> np.ndarray:
        """Return labels (h, w) at the model's own size; the first output of all tells what its shape leaves open."""
        if not self._calibrated:
            self._output, self._calibrated = self._output.calibrated(values), True
            self.model.notes += [self._output.note] if self._output.note else []
        return self._output.labels(values, self.image.size)

    def fit(self, labels: np.ndarray, picture: Image.Image) -> np.ndarray:
        """Return labels at the size of their picture, each pixel's the nearest."""
        if labels.shape == (picture.height, picture.width):
            return labels
        plane = Image.fromarray(labels if labels.dtype == np.uint8 else labels.astype(np.int32))
        return np.asarray(plane.resize(picture.size, Image.Resampling.NEAREST))

    def draw(self, picture: Image.Image, labels: np.ndarray) -> np.ndarray:
        """Return an overlay (H, W, 3) uint8 of a picture and labels of its size."""
        return overlay(np.asarray(picture), labels, self.model.colours)


def frame(model: OpenModel, mode: str, jpegs: Sequence[bytes] = ()) -> Callable[[], float]:
    """Return a function that processes one frame and returns milliseconds.

    `model` times `Session.step` alone, on the first image, or on random inputs where the model takes something else. `labels`
    times a run from host memory to a label map. `end-to-end` times from JPEG bytes to an overlay at the image's size.

    Args:
        model: the model.
        mode: one of `MODES`.
        jpegs: images; default: one synthetic one of the model's size.

    Raises:
        InvalidInput: the model does not take one image, or gives nothing that can be labels, and the mode needs that.
    """
    if mode == "model":
        if model.takes_pictures:
            image = model.usual_image()
            first = jpegs[0] if jpegs else synthetic_jpeg(image.size, seed=0)
            model.session.bind({image.spec.name: model.preprocessing.apply(decode(first), image.size)})
        else:
            model.session.bind(random_feeds(model.session.inputs))
        return model.session.step
    segmenter = _segmenter(model, mode)
    jpegs = jpegs or [synthetic_jpeg(segmenter.image.size, seed=0)]
    tensors = [segmenter.prepare(decode(data)) for data in (jpegs if mode == "labels" else jpegs[:1])]
    segmenter.labels(segmenter.run(tensors[0]))

    def work(index: int) -> None:
        if mode == "labels":
            segmenter.labels(segmenter.run(tensors[index]))
            return
        picture = decode(jpegs[index])
        segmenter.draw(picture, segmenter.fit(segmenter.labels(segmenter.run(segmenter.prepare(picture))), picture))

    state = {"frame": 0}

    def timed() -> float:
        index, state["frame"] = state["frame"], (state["frame"] + 1) % len(jpegs)
        start = time.perf_counter_ns()
        work(index)
        return (time.perf_counter_ns() - start) / 1e6

    return timed


def on_pictures(model: OpenModel, mode: str) -> Callable[[Image.Image | None], object]:
    """Return a function that processes a picture that has arrived and is decoded.

    `model` runs the network on what is bound to it once, whatever the picture shows; `labels` goes from the picture to a label map,
    `end-to-end` to an overlay of the picture's size.

    Args:
        model: the model.
        mode: one of `MODES`.

    Raises:
        InvalidInput: as `frame`.
    """
    if mode == "model":
        once = frame(model, mode)
        return lambda picture: once()
    segmenter = _segmenter(model, mode)

    def work(picture: Image.Image | None) -> None:
        assert picture is not None
        labels = segmenter.labels(segmenter.run(segmenter.prepare(picture)))
        if mode == "end-to-end":
            segmenter.draw(picture, segmenter.fit(labels, picture))

    return work


def _segmenter(model: OpenModel, mode: str) -> Segmenter:
    try:
        return Segmenter(model)
    except InvalidInput as error:
        raise InvalidInput(f"mode {mode}: {error}. Time it in mode model") from None


def synthetic_jpeg(size: tuple[int, int], seed: int) -> bytes:
    """Make a smooth random image (H, W) as JPEG bytes, about as compressible as a photograph."""
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()

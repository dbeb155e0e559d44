"""Segment the pictures of a camera or a video with the network of a ladder that keeps up."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from export.governor import Governor
from export.prediction.frame_source import Frame
from export.prediction.segment import Segmenter

MIN_FRAMES = 10
"""Of a camera, before its rate is known."""


class LadderSegmenter:
    """The steps of `Segmenter`, each by the network in charge.

    The deadline is one period: of a camera what lies between its pictures, of a video shown live its rate. Without either, the most
    accurate network segments all.

    Args:
        segmenters: most accurate first.
        times_s: how long each takes for a picture.
    """

    def __init__(self, segmenters: Sequence[Segmenter], times_s: Sequence[float]) -> None:
        self._segmenters, self.governor = tuple(segmenters), Governor(times_s, math.inf)
        self.model = segmenters[0].model
        self._first: Frame | None = None
        self._outputs = [0] * len(segmenters)

    def prepare(self, picture: Image.Image) -> np.ndarray:
        return self._current.prepare(picture)

    def run(self, tensor: np.ndarray) -> np.ndarray:
        return self._current.run(tensor)

    def labels(self, values: np.ndarray) -> np.ndarray:
        return self._current.labels(values)

    def fit(self, labels: np.ndarray, picture: Image.Image) -> np.ndarray:
        return self._current.fit(labels, picture)

    def draw(self, picture: Image.Image, labels: np.ndarray) -> np.ndarray:
        return self._current.draw(picture, labels)

    def observe(self, frame: Frame, age_s: float, run_s: float, rate: float | None) -> None:
        """Take how old the overlay of a frame is, and how long it took; `rate` is that of a video shown live."""
        self._outputs[self.governor.level] += 1
        if frame.arrived is not None:
            rate = self._rate_of_camera(frame)
        if rate is not None:
            self.governor.deadline_s = 1 / rate
            self.governor.observe(age_s, run_s)

    def summary(self) -> str:
        """Say which network segmented how much."""
        total = max(1, sum(self._outputs))
        shares = ", ".join(f"{s.model.name} {n / total:.0%}" for s, n in zip(self._segmenters, self._outputs, strict=True))
        switches = self.governor.switches
        return f"networks of the ladder, share of the frames: {shares}; {switches} switch{'es' * (switches != 1)}"

    @property
    def _current(self) -> Segmenter:
        return self._segmenters[self.governor.level]

    def _rate_of_camera(self, frame: Frame) -> float | None:
        self._first = first = self._first or frame
        count = frame.number - first.number
        if count < MIN_FRAMES or frame.arrived is None or first.arrived is None:
            return None
        return count / (frame.arrived - first.arrived)

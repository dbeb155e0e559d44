"""Say what a data set is to the rest of hyctas: named samples in clips, read one at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from hyctas.data.labels import Labels


@dataclass(frozen=True)
class Sample:
    """One labelled image."""

    name: str
    """Unique within its split."""
    clip: str
    """The video sequence that it comes from: what an honest split must not tear apart."""
    index: int
    """Its order in the clip, from 0."""


class Source(Protocol):
    """A data set. Implementations: `hyctas.data.layouts.FileSource`, `hyctas.data.scenes.Scenes`."""

    @property
    def name(self) -> str:
        """A short name to print."""

    @property
    def labels(self) -> Labels:
        """The classes, as train ids."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits, `train` first."""

    def samples(self, split: str) -> tuple[Sample, ...]:
        """List a split, ordered by clip and index.

        Raises:
            InvalidInput: no such split.
        """

    def load(self, split: str, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """Read the image, uint8 (H, W, 3) RGB, and the label, uint8 (H, W) of train ids or 255.

        Raises:
            InvalidInput: a file is missing or unusable; the text begins with its path.
        """

    def fingerprint(self) -> dict[str, Any]:
        """Return JSON-able data that differs when the data set differs."""

"""Say what a data set is to the rest of hyctas: named samples in clips, read one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from hyctas.data.labels import Colour, Labels


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
    """A data set. Implementations: `hyctas.data.folders.FileSource`, `hyctas.data.scenes.Scenes`."""

    @property
    def name(self) -> str:
        """A short name to print."""

    @property
    def labels(self) -> Labels:
        """The classes, as train ids."""

    @property
    def layout(self) -> str:
        """What kind of data set it was recognised as, in words."""

    @property
    def expects_all(self) -> bool:
        """Whether a class that never occurs in `train` is a mistake; false where chance decides what occurs."""

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

    def palette(self, split: str, sample: Sample) -> dict[int, Colour]:
        """Return the colour that a label file gives to each number it holds, where only the numbers count and colours are there.

        Raises:
            InvalidInput: the file is missing or unusable.
        """

    def held(self, split: str) -> str:
        """Say in words what label files of a split hold, and what it stands for; for errors.

        Raises:
            InvalidInput: a file is missing or unusable.
        """

    def fingerprint(self, splits: Sequence[str] | None = None) -> dict[str, Any]:
        """Return JSON-able data that differs when the data set, or only these splits of it, differ."""

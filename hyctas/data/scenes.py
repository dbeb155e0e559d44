"""Generate labelled street scenes, so that everything can be tried without a data set.

Every frame is a function of (seed, split, number, size). Four frames in a row are one clip: one street, with a camera
and traffic that move a little, as in a video. Classes share colours (see `hyctas.data.world`), so that a network needs
surroundings and position to tell them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

import numpy as np

from export.errors import InvalidInput
from export.ranges import Range, Seed, Settings
from export.target import format_size
from hyctas.data.labels import Colour, Labels
from hyctas.data.painting import paint
from hyctas.data.sample import Sample
from hyctas.data.world import STREET, Street

FRAMES_PER_CLIP = 4
_SPLITS = ("train", "val")
_Side = Annotated[int, Range(16, 8192)]
_VERSION = 2
"""Raise this when the same seed draws another picture."""


@dataclass(frozen=True)
class Scenes(Settings):
    """A generated data set in the classes of `STREET`."""

    seed: Seed = 0
    """Another seed, other streets."""
    train: Annotated[int, Range(0, 10**6)] = 200
    """Number of training frames."""
    val: Annotated[int, Range(0, 10**6)] = 40
    """Number of validation frames."""
    size: tuple[_Side, _Side] = (96, 128)
    """Height and width."""

    @property
    def name(self) -> str:
        """What a user types to get this data set."""
        return f"scenes:seed={self.seed},train={self.train},val={self.val},size={format_size(self.size)}"

    @property
    def layout(self) -> str:
        """They have no files."""
        return "generated"

    @property
    def expects_all(self) -> bool:
        """A few streets need not show everything."""
        return False

    @property
    def labels(self) -> Labels:
        """The classes of the streets."""
        return STREET

    @property
    def splits(self) -> tuple[str, ...]:
        """Train and val; no street is in both."""
        return _SPLITS

    def samples(self, split: str) -> tuple[Sample, ...]:
        """List a split: clips of four frames, the last perhaps shorter."""
        count = self.train if self._number(split) == 0 else self.val
        numbers = (divmod(i, FRAMES_PER_CLIP) for i in range(count))
        return tuple(Sample(f"{split}_{clip:04d}_{frame}", _clip(split, clip), frame) for clip, frame in numbers)

    def load(self, split: str, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """Paint one frame; see `hyctas.data.sample.Source.load`."""
        number = self._number(split)
        clip = sample.clip.removeprefix(f"{split}-")
        if not (clip.isascii() and clip.isdecimal() and sample.clip == _clip(split, int(clip)) and sample.index >= 0):
            raise InvalidInput(f"{self.name}: split {split!r} has no clip {sample.clip!r}")
        key = (self.seed, number, int(clip))
        return paint(_street(*key), sample.index, self.size, np.random.default_rng([*key, sample.index, 1]))

    def palette(self, split: str, sample: Sample) -> dict[int, Colour]:
        """Labels are painted as train ids."""
        return {}

    def held(self, split: str) -> str:
        """Labels are painted as train ids."""
        return "train ids"

    def fingerprint(self, splits: Sequence[str] | None = None) -> dict[str, Any]:
        """Identify the data set by seed, counts, size and the version of the generator."""
        counts = {"train": self.train, "val": self.val}
        counts = {split: counts[split] for split in (counts if splits is None else splits)}
        return {
            "kind": "scenes",
            "version": _VERSION,
            "seed": self.seed,
            "counts": counts,
            "size": format_size(self.size),
            "classes": list(STREET.names),
        }

    def _number(self, split: str) -> int:
        if split not in _SPLITS:
            raise InvalidInput(f"{self.name}: no split {split!r}; it has: {', '.join(_SPLITS)}")
        return _SPLITS.index(split)


def _clip(split: str, number: int) -> str:
    return f"{split}-{number:04d}"


@lru_cache(maxsize=64)
def _street(seed: int, split: int, clip: int) -> Street:
    return Street(np.random.default_rng([seed, split, clip]))

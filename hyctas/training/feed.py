"""Feed training crops, fixed by (seed, step): an interrupted run continues with the very same crops."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from torch import Tensor

from export.imaging import Preprocessing
from hyctas.data import Augment, Frames, augment, normalise, to_batch
from hyctas.training.config import Recipe

ORDER, CROPS = 11, 12
"""Purposes of random draws: default_rng([seed, purpose, step or epoch])."""


class CropFeed:
    """Give the batch of any step; the next one is prepared meanwhile in a thread.

    Args:
        frames: images to train on.
        recipe: batch size, crop, scale, seed.
        preprocessing: how images are normalised.
        rank: which of `world` processes this is; each takes its own share of every step's images.
        world: number of processes.
    """

    def __init__(
        self, frames: Frames, recipe: Recipe, preprocessing: Preprocessing, rank: int = 0, world: int = 1
    ) -> None:
        self.frames, self.recipe, self.preprocessing, self.rank, self.world = frames, recipe, preprocessing, rank, world
        self.augmentation = Augment(
            crop=recipe.crop, scale_min=recipe.scale[0], scale_max=recipe.scale[1], colour=recipe.colour
        )
        self._pool = ThreadPoolExecutor(1)
        self._next: tuple[int, Future[tuple[Tensor, Tensor]]] | None = None

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return images (N, 3, h, w), normalised, and labels (N, h, w) of a step."""
        if self._next is not None and self._next[0] == step:
            result = self._next[1].result()
        else:
            result = self._make(step)
        self._next = (step + 1, self._pool.submit(self._make, step + 1))
        return result

    def close(self) -> None:
        """Stop the thread."""
        self._pool.shutdown(cancel_futures=True)

    def _make(self, step: int) -> tuple[Tensor, Tensor]:
        recipe = self.recipe
        total, start = recipe.batch * self.world, step * recipe.batch * self.world + self.rank * recipe.batch
        rng = np.random.default_rng([recipe.seed, CROPS, step, self.rank])
        pairs = []
        for position in range(start, start + recipe.batch):
            image, label = self.frames[self._index(position)]
            crop, mask = augment(image, label, self.augmentation, rng, self.preprocessing)
            pairs.append((normalise(crop, self.preprocessing), mask))
        assert len(pairs) * self.world == total
        return to_batch(pairs)

    def _index(self, position: int) -> int:
        """Return the image at a position of the endless sequence of shuffled epochs."""
        epoch, offset = divmod(position, len(self.frames))
        if getattr(self, "_epoch", None) != epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self.recipe.seed, ORDER, epoch]).permutation(len(self.frames))
        return int(self._order[offset])

"""Feed training crops, fixed by (seed, step): an interrupted run continues with the very same crops."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from export.bundle.imaging import Preprocessing
from hyctas.data import Augment, Frames, augment_view, draw_view, normalise, to_batch
from hyctas.training.config import Recipe
from hyctas.training.soft_labels import SoftLabels

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
        soft_labels: a teacher's, of the same frames.
    """

    def __init__(
        self, frames: Frames, recipe: Recipe, preprocessing: Preprocessing, rank: int = 0, world: int = 1,
        soft_labels: SoftLabels | None = None,
    ) -> None:  # fmt: skip
        self.frames, self.recipe, self.preprocessing, self.rank, self.world = frames, recipe, preprocessing, rank, world
        self.soft_labels = soft_labels
        self.augmentation = Augment(
            crop=recipe.crop, scale_min=recipe.scale[0], scale_max=recipe.scale[1], colour=recipe.colour
        )
        self._pool = ThreadPoolExecutor(1)
        self._next: tuple[int, Future[tuple[Tensor, ...]]] | None = None
        self._order: tuple[int, np.ndarray] | None = None

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """Return images (N, 3, h, w), normalised, and labels (N, h, w) of a step.

        With soft labels a third tensor holds theirs, cut as the images are, (N, classes, ceil(h / s), ceil(w / s)) float32.
        """
        if self._next is not None and self._next[0] == step:
            result = self._next[1].result()
        else:
            result = self._make(step)
        self._next = (step + 1, self._pool.submit(self._make, step + 1))
        return result

    def close(self) -> None:
        """Stop the thread."""
        self._pool.shutdown(cancel_futures=True)

    def _make(self, step: int) -> tuple[Tensor, ...]:
        recipe = self.recipe
        total, start = recipe.batch * self.world, step * recipe.batch * self.world + self.rank * recipe.batch
        rng = np.random.default_rng([recipe.seed, CROPS, step, self.rank])
        pairs, soft = [], []
        for position in range(start, start + recipe.batch):
            index = self._index(position)
            image, label = self.frames[index]
            view = draw_view((image.shape[0], image.shape[1]), self.augmentation, rng)
            crop, mask = augment_view(image, label, view, self.augmentation, rng, self.preprocessing)
            pairs.append((normalise(crop, self.preprocessing), mask))
            if self.soft_labels is not None:
                soft.append(self.soft_labels.cut(index, view))
        assert len(pairs) * self.world == total
        batch = to_batch(pairs)
        return (*batch, torch.from_numpy(np.stack(soft))) if soft else batch

    def _index(self, position: int) -> int:
        """Return the image at a position of the endless sequence of shuffled epochs."""
        epoch, offset = divmod(position, len(self.frames))
        known = self._order  # both threads read and replace it, whole
        if known is None or known[0] != epoch:
            known = self._order = (epoch, np.random.default_rng([self.recipe.seed, ORDER, epoch]).permutation(len(self.frames)))
        return int(known[1][offset])

"""Feed training crops, fixed by (seed, step, place in the batch): whoever computes a step, it has the very same crops."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from export.bundle.imaging import Preprocessing
from hyctas.data import Augment, Frames, augment_view, draw_view, normalise, to_batch
from hyctas.training.config import Recipe
from hyctas.training.soft_labels import SoftLabels

ORDER, CROPS = 11, 12
"""Purposes of random draws: default_rng([seed, purpose, epoch]), default_rng([seed, purpose, step, place in the batch])."""


class CropFeed:
    """Give a process its share of the batch of any step; the next one is prepared meanwhile in a thread.

    Args:
        frames: images to train on.
        recipe: batch size, crop, scale, seed.
        preprocessing: how images are normalised.
        rank: which of `world` processes this is.
        world: number of processes; they share every step's batch equally.
        soft_labels: a teacher's, of the same frames.

    Raises:
        InvalidInput: they cannot share the batch equally.
    """

    def __init__(
        self, frames: Frames, recipe: Recipe, preprocessing: Preprocessing, rank: int = 0, world: int = 1,
        soft_labels: SoftLabels | None = None,
    ) -> None:  # fmt: skip
        self.frames, self.recipe, self.preprocessing, self.rank, self.world = frames, recipe, preprocessing, rank, world
        self.soft_labels, self.sizes = soft_labels, recipe.micro_batches(world)
        self.augmentation = Augment(
            crop=recipe.crop, scale_min=recipe.scale[0], scale_max=recipe.scale[1], colour=recipe.colour
        )
        self._pool = ThreadPoolExecutor(1)
        self._next: tuple[int, Future[tuple[Tensor, ...]]] | None = None
        self._order: tuple[int, np.ndarray] | None = None

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """Return images (N, 3, h, w), normalised, and labels (N, h, w) of this process's share of a step.

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

    def micro_batches(self, batch: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """Cut a process's share of a step into what it computes at a time (`Recipe.device_batch`)."""
        return zip(*(tensor.split(self.sizes) for tensor in batch), strict=True)

    def _make(self, step: int) -> tuple[Tensor, ...]:
        recipe, share = self.recipe, sum(self.sizes)
        pairs, soft = [], []
        for place in range(self.rank * share, (self.rank + 1) * share):
            index, rng = self._index(step * recipe.batch + place), np.random.default_rng([recipe.seed, CROPS, step, place])
            image, label = self.frames[index]
            view = draw_view((image.shape[0], image.shape[1]), self.augmentation, rng)
            crop, mask = augment_view(image, label, view, self.augmentation, rng, self.preprocessing)
            pairs.append((normalise(crop, self.preprocessing), mask))
            if self.soft_labels is not None:
                soft.append(self.soft_labels.cut(index, view))
        batch = to_batch(pairs)
        return (*batch, torch.from_numpy(np.stack(soft))) if soft else batch

    def _index(self, position: int) -> int:
        """Return the image at a position of the endless sequence of shuffled epochs."""
        epoch, offset = divmod(position, len(self.frames))
        known = self._order  # both threads read and replace it, whole
        if known is None or known[0] != epoch:
            known = self._order = (epoch, np.random.default_rng([self.recipe.seed, ORDER, epoch]).permutation(len(self.frames)))
        return int(known[1][offset])

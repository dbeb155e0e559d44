"""Score a network with a supernet's weights: a pure function of (supernet, genotype, settings)."""

from __future__ import annotations

import numpy as np

from export.imaging import Preprocessing
from hyctas.data import Frames
from hyctas.genotype import Genotype
from hyctas.supernet import Supernet
from hyctas.training.evaluate import estimation_batches, evaluate, reestimate_norms

IMAGES = 23
"""Purpose of the random draw of images."""


class Scorer:
    """Score networks on a fixed part of the choosing split.

    Args:
        supernet: trained.
        train: images that norms are re-estimated on.
        choose: images to score on.
        preprocessing: what the supernet was trained with.
        seed: chooses the images of both, whatever is scored and in whatever order.
        images: how many of `choose` to use.
        norm_batches: batches of 8 for the norms.
    """

    def __init__(
        self, supernet: Supernet, train: Frames, choose: Frames, preprocessing: Preprocessing, *,
        seed: int, images: int, norm_batches: int,
    ) -> None:  # fmt: skip
        self.supernet, self.num_classes, self.preprocessing = supernet, supernet.num_classes, preprocessing
        self.batches = estimation_batches(train, seed, norm_batches, 8, preprocessing)
        order = np.random.default_rng([seed, IMAGES]).permutation(len(choose))[:images]
        samples = tuple(choose.samples[index] for index in sorted(order.tolist()))
        self.frames = Frames(choose.source, choose.split, samples, choose.size)

    def __call__(self, genotype: Genotype) -> float:
        """Return the network's mIoU."""
        network = self.supernet.extract(genotype)
        reestimate_norms(network, self.batches)
        return evaluate(network, self.frames, self.num_classes, self.preprocessing).miou

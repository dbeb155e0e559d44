"""Score a network with a supernet's weights: a pure function of (supernet, genotype, settings)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from export.backends.torch_session import torch_threads
from export.bundle.imaging import Preprocessing
from hyctas.arch.genotype import Genotype
from hyctas.data import Frames, Sample, score
from hyctas.network import Network
from hyctas.nn.supernet import Supernet
from hyctas.training.evaluate import confusion_matrix, estimation_batches, reestimate_norms

IMAGES = 23
"""Purpose of the random draw of images."""
KEPT = 16
"""Networks that were screened last and stay in memory, so that a survivor's norms are not estimated twice."""


def drawn_samples(samples: Sequence[Sample], seed: int, images: int) -> tuple[list[Sample], list[Sample]]:
    """Return the samples that a search scores on, in the order of the draw, and the rest, which it never sees."""
    order = np.random.default_rng([seed, IMAGES]).permutation(len(samples)).tolist()
    return [samples[index] for index in order[:images]], [samples[index] for index in order[images:]]


class Scorer:
    """Score networks on a fixed part of the choosing split: on few images (`screen`), or on all.

    Args:
        supernet: trained.
        train: images that norms are re-estimated on.
        few: images that `screen` scores on.
        rest: images that a whole score is of besides; none: the same as of `screen`.
        preprocessing: what the supernet was trained with.
        seed: chooses the images of the norms, whatever is scored and in whatever order.
        norm_batches: batches of 8 for the norms.
        threads: that torch computes with.
    """

    def __init__(
        self, supernet: Supernet, train: Frames, few: Frames, rest: Frames | None = None, *, preprocessing: Preprocessing,
        seed: int, norm_batches: int, threads: int,
    ) -> None:  # fmt: skip
        self.supernet, self.few, self.rest, self.preprocessing, self.threads = supernet, few, rest, preprocessing, threads
        self.batches = estimation_batches(train, seed, norm_batches, 8, preprocessing)
        self._screened: OrderedDict[str, tuple[Network, np.ndarray]] = OrderedDict()

    def ahead(self, kind: str, genotypes: Sequence[Genotype]) -> None:
        """Hear what comes next: networks are scored one by one here."""

    def screen(self, genotype: Genotype) -> float:
        """Return the network's mIoU on the few images."""
        return score(self._first(genotype)[1]).miou

    def __call__(self, genotype: Genotype) -> float:
        """Return the network's mIoU on all images."""
        network, total = self._first(genotype)
        return score(total if self.rest is None else total + self._confusion(network, self.rest)).miou

    def _first(self, genotype: Genotype) -> tuple[Network, np.ndarray]:
        """Return the network with its norms, and what it predicts on the few images."""
        if genotype.id not in self._screened:
            network = self.supernet.extract(genotype)
            with torch_threads(self.threads):
                reestimate_norms(network, self.batches)
            self._screened[genotype.id] = (network, self._confusion(network, self.few))
            if len(self._screened) > KEPT:
                self._screened.popitem(last=False)
        return self._screened[genotype.id]

    def _confusion(self, network: Network, frames: Frames) -> np.ndarray:
        with torch_threads(self.threads):
            return confusion_matrix(network, frames, self.supernet.num_classes, self.preprocessing)

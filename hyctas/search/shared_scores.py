"""Let several searches of one supernet share what they have in common: a network's score does not depend on target or limit.

No torch here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from export.codec import plain
from hyctas.arch.genotype import Genotype
from hyctas.search.history import SCREEN, SEARCH, Evaluation

CONDITIONS = (
    "supernet_sha256", "data", "images", "screen_images", "eval_size", "seed", "threads", "norm_batches", "preprocessing",
)  # fmt: skip
"""What of a search's configuration decides scores."""
Known = dict[tuple[str, str], float]
"""Scores by kind and genotype id."""


class Scores(Protocol):
    """What scores networks: on all images, or on a few."""

    def ahead(self, kind: str, genotypes: Sequence[Genotype]) -> None:
        """Hear which networks come next."""

    def __call__(self, genotype: Genotype) -> float: ...

    def screen(self, genotype: Genotype) -> float: ...


class SharedScores:
    """The scores of several searches, kept apart where their conditions differ."""

    def __init__(self) -> None:
        self._known: dict[str, Known] = {}

    def under(self, config: Mapping[str, Any], recorded: Sequence[Evaluation]) -> Known:
        """Return the scores under a search's conditions, those that it has recorded among them."""
        conditions = json.dumps(plain({name: config[name] for name in CONDITIONS}), sort_keys=True)
        known = self._known.setdefault(conditions, {})
        known.update({(evaluation.kind, evaluation.id): evaluation.miou for evaluation in recorded})
        return known


@dataclass(frozen=True)
class Remembering:
    """Looks scores up, and computes those that are not known."""

    scores: Scores
    known: Known

    def ahead(self, kind: str, genotypes: Sequence[Genotype]) -> None:
        """Hear which networks come next."""
        self.scores.ahead(kind, [genotype for genotype in genotypes if (kind, genotype.id) not in self.known])

    def __call__(self, genotype: Genotype) -> float:
        """Return a network's mIoU on all images."""
        return self._score(SEARCH, genotype)

    def screen(self, genotype: Genotype) -> float:
        """Return a network's mIoU on the few images."""
        return self._score(SCREEN, genotype)

    def _score(self, kind: str, genotype: Genotype) -> float:
        key = (kind, genotype.id)
        if key not in self.known:
            self.known[key] = self.scores.screen(genotype) if kind == SCREEN else self.scores(genotype)
        return self.known[key]

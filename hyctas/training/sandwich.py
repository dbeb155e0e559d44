"""Train a supernet: every step the largest network on the labels, and smaller ones that follow the labels and the largest.

Sampling (purpose DRAW) depends on (seed, step) and the branch ratios only. Paper: section on supernet training (single-path
sampling with branch ratios rho); sandwich rule and in-place distillation as in slimmable networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from export.errors import Infeasible
from export.imaging import Preprocessing
from hyctas.data import Frames
from hyctas.genotype import Genotype
from hyctas.plan import lower
from hyctas.search_space import SearchSpace
from hyctas.supernet import Supernet
from hyctas.training.config import SupernetRecipe
from hyctas.training.feed import CropFeed
from hyctas.training.loop import average_numbers, default_device, start_processes, to_device
from hyctas.training.losses import class_weights, distillation_loss, segmentation_loss

DRAW, LARGEST = 13, 14
POOL, TRIES, MEMBER_SHARE = 500, 100, 0.25
"""Networks drawn to find the largest and the smallest of a band, draws tried for one in the band, share of hand-made ones."""
ADAPT_RATE, ADAPT_STRENGTH = 0.02, 2.0
"""Adaptive ratios: weight of a new observation in the running lag, and how strongly a lag raises the ratio."""


@dataclass(frozen=True)
class Band:
    """The networks that a supernet is trained for: those whose cost lies between two bounds."""

    cost: Callable[[Genotype], float]
    """For instance the predicted latency."""
    low: float
    high: float
    unit: str
    """Of the cost, for messages."""

    def holds(self, genotype: Genotype) -> bool:
        """Say whether a network lies in the band."""
        return self.low <= self.cost(genotype) <= self.high


def macs_band(recipe: SupernetRecipe, num_classes: int) -> Band:
    """Return the band of networks with at most `max_gmacs`; without it, of all networks."""

    @lru_cache(maxsize=2 * POOL)  # the pool is asked for whether it lies in the band, for its largest and for its smallest
    def gmacs(genotype: Genotype) -> float:
        return lower(genotype, recipe.crop, num_classes).macs / 1e9

    return Band(gmacs, 0.0, float("inf") if recipe.max_gmacs is None else recipe.max_gmacs, "GMAC at the crop's size")


class Drawer:
    """Draw the networks of a step from a band.

    Args:
        space: where they come from.
        recipe: seed and numbers.
        band: what the supernet is trained for.
        members: hand-made networks of the space; those in the band are drawn too.

    Raises:
        Infeasible: no drawn network lies in the band.
    """

    def __init__(self, space: SearchSpace, recipe: SupernetRecipe, band: Band, members: Sequence[Genotype] = ()) -> None:
        self.space, self.recipe, self.band = space, recipe, band
        self.members = [genotype for genotype in members if band.holds(genotype)]
        rng = np.random.default_rng([recipe.seed, LARGEST])
        ends = [space.largest(), space.smallest()]
        self.known = [g for g in (*ends, *members, *(space.sample(rng) for _ in range(POOL))) if band.holds(g)]
        if not self.known:
            costs = sorted(band.cost(genotype) for genotype in ends)
            raise Infeasible(
                f"no network of space {space.name} was found between {band.low:.3g} and {band.high:.3g} {band.unit}; its smallest "
                f"has {costs[0]:.3g}, its largest {costs[1]:.3g}"
            )
        self.largest, self.smallest = max(self.known, key=band.cost), min(self.known, key=band.cost)

    def draw(self, step: int, ratios: tuple[float, float, float]) -> list[Genotype]:
        """Return the random networks of a step; `MEMBER_SHARE` of them are hand-made, where the band has such."""
        rng = np.random.default_rng([self.recipe.seed, DRAW, step])
        return [self._one(rng, ratios) for _ in range(self.recipe.random_networks)]

    def _one(self, rng: np.random.Generator, ratios: tuple[float, float, float]) -> Genotype:
        if self.members and rng.random() < MEMBER_SHARE:
            return self.members[int(rng.integers(len(self.members)))]
        for _ in range(TRIES):
            genotype = self.space.sample(rng, ratios)
            if self.band.holds(genotype):
                return genotype
        return self.known[int(rng.integers(len(self.known)))]


class Sandwich:
    """One step of supernet training, as `hyctas.training.loop.Trainer` calls it.

    Args:
        supernet: in place.
        recipe: batch, loss, seed, which networks a step draws.
        frames: images to train on.
        preprocessing: how images are normalised.
    """

    def __init__(self, supernet: Supernet, recipe: SupernetRecipe, frames: Frames, preprocessing: Preprocessing) -> None:
        self.supernet, self.recipe = supernet, recipe
        rank, world = start_processes()
        self.device = default_device()
        supernet.to(self.device)
        self.drawer = Drawer(supernet.space, recipe, macs_band(recipe, supernet.num_classes))
        self.feed = CropFeed(frames, recipe, preprocessing, rank, world)
        counts = torch.from_numpy(frames.class_counts())
        self.weights = class_weights(counts).to(self.device) if recipe.class_weights else None
        self.state: dict[str, Any] = {"lag": [0.0, 0.0, 0.0]}
        """Running lag of the losses of 1-, 2-, 3-branch networks behind the largest one's; part of the checkpoint."""

    @property
    def ratios(self) -> tuple[float, float, float]:
        """The branch ratios now: the recipe's, raised for branch counts that lag behind."""
        lag = np.array(self.state["lag"]) if self.recipe.adaptive else np.zeros(3)
        ratios = np.array(self.recipe.ratios) * np.exp(ADAPT_STRENGTH * (lag - lag.mean()).clip(-1, 1))
        one, two, three = (ratios / ratios.sum()).tolist()
        return one, two, three

    def __call__(self, step: int) -> dict[str, float]:
        images, labels = to_device(self.feed.batch(step), self.device)
        with self._autocast():
            logits = self.supernet(self.drawer.largest, images)
        loss = segmentation_loss(logits, labels, self.weights, self.recipe.loss)
        loss.backward()
        teacher, first = logits.detach(), float(loss.detach())
        for genotype in (self.drawer.smallest, *self.drawer.draw(step, self.ratios)):
            self._follow(genotype, images, labels, teacher, first)
        self.state["lag"] = average_numbers(self.state["lag"])  # so that all processes draw the same networks
        return {"loss": first, **{f"rho{n}": share for n, share in enumerate(self.ratios, 1)}}

    def _follow(self, genotype: Genotype, images: Tensor, labels: Tensor, teacher: Tensor, first: float) -> None:
        """Add the gradients of a smaller network, and note how far it lags behind the largest."""
        with self._autocast():
            logits = self.supernet(genotype, images)
        hard = segmentation_loss(logits, labels, self.weights, self.recipe.loss)
        weight = self.recipe.distillation
        loss = (1 - weight) * hard + weight * distillation_loss(logits, teacher) if weight else hard
        loss.backward()
        if genotype != self.drawer.smallest:
            lag, branches = self.state["lag"], len(genotype.branches) - 1
            lag[branches] += ADAPT_RATE * (float(hard.detach()) / max(first, 1e-6) - 1 - lag[branches])

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.amp)

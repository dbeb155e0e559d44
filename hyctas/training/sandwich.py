"""Train a supernet: every step the largest network on the labels, and smaller ones that follow the labels and the largest.

Sampling (purpose DRAW) depends on (seed, step) and the branch ratios only. Paper: section on supernet training (single-path
sampling with branch ratios rho); sandwich rule and in-place distillation as in slimmable networks.
"""

from __future__ import annotations

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
ADAPT_RATE, ADAPT_STRENGTH = 0.02, 2.0
"""Adaptive ratios: weight of a new observation in the running lag, and how strongly a lag raises the ratio."""


class Drawer:
    """Draw the networks of a step, no larger than `max_gmacs`."""

    def __init__(self, space: SearchSpace, recipe: SupernetRecipe, num_classes: int) -> None:
        self.space, self.recipe, self.num_classes = space, recipe, num_classes
        self.limit = float("inf") if recipe.max_gmacs is None else recipe.max_gmacs * 1e9
        self.smallest = space.smallest()
        if self.macs(self.smallest) > self.limit:
            raise Infeasible(
                f"the smallest network of space {space.name} has {self.macs(self.smallest) / 1e9:.3g} GMAC at the crop size "
                f"{recipe.crop}; max_gmacs is {recipe.max_gmacs}"
            )
        self.largest = self._largest()

    def macs(self, genotype: Genotype) -> int:
        """Count multiply-accumulates of one training crop."""
        return lower(genotype, self.recipe.crop, self.num_classes).macs

    def _largest(self) -> Genotype:
        """Return the largest network within the limit: the space's, or the largest of a thousand with most branches."""
        if self.macs(self.space.largest()) <= self.limit:
            return self.space.largest()
        rng = np.random.default_rng([self.recipe.seed, LARGEST])
        drawn = [self.space.sample(rng, (0, 0, 1)) for _ in range(1000)]
        fitting = [g for g in (*drawn, self.smallest) if self.macs(g) <= self.limit]
        return max(fitting, key=self.macs)

    def draw(self, step: int, ratios: tuple[float, float, float]) -> list[Genotype]:
        """Return the random networks of a step."""
        rng = np.random.default_rng([self.recipe.seed, DRAW, step])
        networks: list[Genotype] = []
        for _ in range(self.recipe.random_networks):
            for _ in range(100):
                genotype = self.space.sample(rng, ratios)
                if self.macs(genotype) <= self.limit:
                    break
            else:
                genotype = self.smallest
            networks.append(genotype)
        return networks


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
        self.drawer = Drawer(supernet.space, recipe, supernet.num_classes)
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

"""Train a supernet: every step the largest network on the labels, and smaller ones that follow the labels and the largest.

`hyctas.training.band` draws them. Paper: section on supernet training (single-path sampling with branch ratios rho). The sandwich
rule and in-place distillation are those of Yu and Huang, "Universally Slimmable Networks and Improved Training Techniques", ICCV
2019.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from export.bundle.imaging import Preprocessing
from hyctas.arch.genotype import Genotype
from hyctas.data import Frames
from hyctas.nn.supernet import Supernet
from hyctas.training.band import Drawer, macs_band
from hyctas.training.collectives import sum_numbers, sum_over_processes
from hyctas.training.config import SupernetRecipe
from hyctas.training.feed import CropFeed
from hyctas.training.loop import to_device
from hyctas.training.losses import class_weights, distillation_loss, labelled_weight, segmentation_loss
from hyctas.training.processes import default_device, start_processes
from hyctas.training.synchronised_norms import synchronised_norms

ADAPT_RATE, ADAPT_STRENGTH = 0.02, 2.0
"""Adaptive ratios: weight of a new observation in the running lag, and how strongly a lag raises the ratio."""


class Sandwich:
    """One step of supernet training, as `hyctas.training.loop.Trainer` calls it.

    Args:
        supernet: in place.
        recipe: batch, loss, seed, which networks a step draws.
        frames: images to train on.
        preprocessing: how images are normalised.
        drawer: which networks are trained; default: those with at most the recipe's `max_gmacs`.
    """

    def __init__(
        self, supernet: Supernet, recipe: SupernetRecipe, frames: Frames, preprocessing: Preprocessing, drawer: Drawer | None = None
    ) -> None:
        self.supernet, self.recipe = supernet, recipe
        rank, world = start_processes()
        self.device = default_device()
        supernet.to(self.device)
        self.drawer = drawer or Drawer(supernet.space, recipe, macs_band(recipe, supernet.num_classes))
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
        batch = to_device(self.feed.batch(step), self.device)
        pixels = sum_over_processes(labelled_weight(batch[1], self.weights))
        followers = [self.drawer.smallest, *self.drawer.draw(step, self.ratios)]
        losses = np.zeros(1 + len(followers))
        for images, labels in self.feed.micro_batches(batch):
            native, logits = self._logits(self.drawer.largest, images)
            loss = segmentation_loss(logits, labels, self.weights, self.recipe.loss, pixels)
            loss.backward()
            followed = [self._follow(genotype, images, labels, native.detach(), pixels) for genotype in followers]
            losses += [float(loss.detach()), *followed]
        first, _, *drawn = sum_numbers(losses.tolist())
        for genotype, loss_of_drawn in zip(followers[1:], drawn, strict=True):
            self._note_lag(genotype, loss_of_drawn / max(first, 1e-6) - 1)
        return {"loss": first, **{f"rho{n}": share for n, share in enumerate(self.ratios, 1)}}

    def _follow(self, genotype: Genotype, images: Tensor, labels: Tensor, teacher: Tensor, pixels: Tensor) -> float:
        """Add the gradients of a smaller network; return its loss on the labels."""
        native, logits = self._logits(genotype, images)
        hard = segmentation_loss(logits, labels, self.weights, self.recipe.loss, pixels)
        weight, share = self.recipe.distillation, len(images) / self.recipe.batch
        loss = (1 - weight) * hard + weight * share * distillation_loss(native, teacher) if weight else hard
        loss.backward()
        return float(hard.detach())

    def _note_lag(self, genotype: Genotype, observed: float) -> None:
        """Add to the running lag how far a network lies behind the largest."""
        lag, branches = self.state["lag"], len(genotype.branches) - 1
        lag[branches] += ADAPT_RATE * (observed - lag[branches])

    def _logits(self, genotype: Genotype, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return a network's logits at its head's stride, which followers are compared at, and at the size of the images."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.amp), synchronised_norms():
            return self.supernet.forward_both(genotype, images)

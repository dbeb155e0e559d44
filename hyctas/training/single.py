"""Train one network: every step its loss on a batch of crops."""

from __future__ import annotations

import torch
from torch import nn

from hyctas.data import Frames
from hyctas.training.config import Recipe
from hyctas.training.feed import CropFeed
from hyctas.training.loop import default_device, start_processes, to_device
from hyctas.training.losses import class_weights, segmentation_loss


class Single:
    """One step of training any network that maps (N, 3, H, W) to logits (N, classes, H, W)."""

    def __init__(self, network: nn.Module, recipe: Recipe, frames: Frames) -> None:
        self.network, self.recipe = network, recipe
        rank, world = start_processes()
        self.device = default_device()
        network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.feed = CropFeed(frames, recipe, rank, world)
        counts = torch.from_numpy(frames.class_counts())
        self.weights = class_weights(counts).to(self.device) if recipe.class_weights else None

    def __call__(self, step: int) -> dict[str, float]:
        self.network.train()
        images, labels = to_device(self.feed.batch(step), self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.amp):
            logits = self.network(images)
        loss = segmentation_loss(logits, labels, self.weights, self.recipe.loss)
        loss.backward()
        return {"loss": float(loss.detach())}

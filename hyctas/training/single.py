"""Train one network: every step its loss on a batch of crops."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from export.bundle.imaging import Preprocessing
from hyctas.data import Frames
from hyctas.network import Network
from hyctas.training.collectives import sum_numbers, sum_over_processes
from hyctas.training.config import Recipe
from hyctas.training.feed import CropFeed
from hyctas.training.loop import to_device
from hyctas.training.losses import class_weights, labelled_cells, labelled_weight, segmentation_loss, soft_label_loss
from hyctas.training.processes import default_device, start_processes
from hyctas.training.soft_labels import SoftLabels
from hyctas.training.synchronised_norms import synchronised_norms


class Single:
    """One step of training any network that maps (N, 3, H, W) to logits (N, classes, H, W).

    Args:
        network: in place.
        recipe: batch, loss, seed.
        frames: images to train on.
        preprocessing: how images are normalised.
        auxiliary: weight of the loss of each auxiliary head; above 0 the network must have been built with them.
        teacher: soft labels of the frames that the network follows besides the labels.
        distillation: weight of following the teacher, against the labels; 0..1, of use with a teacher only.
    """

    def __init__(
        self, network: nn.Module, recipe: Recipe, frames: Frames, preprocessing: Preprocessing, auxiliary: float = 0.0,
        teacher: SoftLabels | None = None, distillation: float = 0.5,
    ) -> None:
        self.network, self.recipe, self.auxiliary = network, recipe, auxiliary
        self.teacher, self.distillation = teacher, distillation
        rank, world = start_processes()
        self.device = default_device()
        network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.feed = CropFeed(frames, recipe, preprocessing, rank, world, teacher)
        counts = torch.from_numpy(frames.class_counts())
        self.weights = class_weights(counts).to(self.device) if recipe.class_weights else None

    def __call__(self, step: int) -> dict[str, float]:
        self.network.train()
        batch = to_device(self.feed.batch(step), self.device)
        pixels = sum_over_processes(labelled_weight(batch[1], self.weights))
        cells = sum_over_processes(labelled_cells(batch[2])) if self.teacher is not None else None
        loss = following = 0.0
        for images, labels, *soft in self.feed.micro_batches(batch):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.amp), synchronised_norms():
                logits, *others = self._logits(images)
            hard = total = segmentation_loss(logits, labels, self.weights, self.recipe.loss, pixels)
            loss += float(hard.detach())
            for other in others:
                total = total + self.auxiliary * segmentation_loss(other, labels, self.weights, self.recipe.loss, pixels)
            if self.teacher is not None:
                like_teacher = soft_label_loss(logits, soft[0], self.teacher.temperature, cells)
                following += float(like_teacher.detach())
                total = (1 - self.distillation) * total + self.distillation * like_teacher
            total.backward()
        loss, following = sum_numbers([loss, following])
        return {"loss": loss} if self.teacher is None else {"loss": loss, "distillation": following}

    def _logits(self, images: Tensor) -> list[Tensor]:
        """Return the logits of the head and of the auxiliary heads in use, all at the images' size."""
        if not self.auxiliary:
            return [self.network(images)]
        assert isinstance(self.network, Network)
        return self.network.forward_all_logits(images)

"""Estimate a network's norm statistics and score it on labelled images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from export.bundle.imaging import Preprocessing
from hyctas.data import Frames, Score, confusion, normalise, score, to_batch
from hyctas.data.cache import resized

Pairs = Sequence[tuple[np.ndarray, np.ndarray]]


def whole_images(frames: Frames | Pairs, indices: Sequence[int], preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """Return images (N, 3, H, W), normalised, and labels (N, H, W) of a split, without augmentation."""
    pairs = [frames[index] for index in indices]
    return to_batch([(normalise(image.astype(np.float32) / 255, preprocessing), label) for image, label in pairs])


def estimation_batches(frames: Frames, seed: int, count: int, batch: int, preprocessing: Preprocessing) -> list[Tensor]:
    """Return image batches for `reestimate_norms`, fixed by the seed (not by when they are asked for).

    Images of other sizes than the commonest are resized to it, so that they make batches: norms need several images at a time.
    """
    order = np.random.default_rng([seed, 7]).permutation(len(frames))[: count * batch]
    size = Counter(frames[index][1].shape for index in range(len(frames))).most_common(1)[0][0]
    pairs = [resized(*frames[index], (size[0], size[1])) for index in order.tolist()]
    return [whole_images(pairs, range(i, min(i + batch, len(pairs))), preprocessing)[0] for i in range(0, len(pairs), batch)]


def reestimate_norms(network: nn.Module, batches: Sequence[Tensor], amp: bool = True) -> None:
    """Replace the running statistics of all batch norms by their mean over the given batches; ends in eval mode.

    Statistics of shared weights fit no single network of a supernet (Yu and Huang, "Universally Slimmable Networks", ICCV 2019),
    and those of one that was trained lag behind its weights (Wu and Johnson, "Rethinking 'Batch' in BatchNorm", 2021).

    Args:
        network: in place; any module with batch norms.
        batches: images (N, 3, H, W), normalised as in training.
        amp: compute in bfloat16 autocast.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative mean
    network.train()
    device = next(network.parameters()).device
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=amp):
        for batch in batches:
            network(batch.to(device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


def evaluate(
    network: nn.Module, frames: Frames, num_classes: int, preprocessing: Preprocessing, *, batch: int = 8, amp: bool = True
) -> Score:
    """Score a network on whole images (see `hyctas.data.metric` for the policy); arguments as of `confusion_matrix`."""
    return score(confusion_matrix(network, frames, num_classes, preprocessing, batch=batch, amp=amp))


def confusion_matrix(
    network: nn.Module, frames: Frames, num_classes: int, preprocessing: Preprocessing, *, batch: int = 8, amp: bool = True
) -> np.ndarray:
    """Count a network's predictions in eval mode on whole images: int64 (classes, classes), as `hyctas.data.confusion` does.

    Args:
        network: maps (N, 3, H, W) to logits (N, classes, H, W).
        frames: images and labels; consecutive ones of equal size are batched.
        num_classes: number of classes.
        preprocessing: what the network was trained with.
        batch: images at a time.
        amp: compute in bfloat16 autocast.
    """
    network.eval()
    device = next(network.parameters()).device
    total = np.zeros((num_classes, num_classes), dtype=np.int64)
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=amp):
        for indices in equal_sizes(frames, batch):
            images, labels = whole_images(frames, indices, preprocessing)
            prediction = network(images.to(device)).argmax(1).cpu().numpy()
            total += confusion(labels.numpy(), prediction, num_classes)
    return total


def equal_sizes(frames: Frames, batch: int) -> list[list[int]]:
    """Group consecutive frames of equal size into batches of indices."""
    groups: list[list[int]] = []
    for index in range(len(frames)):
        shape = frames[index][1].shape
        if groups and len(groups[-1]) < batch and frames[groups[-1][0]][1].shape == shape:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups

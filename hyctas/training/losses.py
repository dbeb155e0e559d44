"""Losses over (N, classes, H, W) logits and (N, H, W) labels with 255 = ignore."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hyctas.training.collectives import gather, sum_over_processes

IGNORE = 255
UNBIASED = 0.5
"""Share of the weights' logarithm that logits are freed of."""
OHEM_PROBABILITY, OHEM_LEAST = 0.7, 1 / 16
"""Online hard example mining (Shrivastava et al., CVPR 2016) over pixels: those whose true class has less than this probability
count, and at least this share of all."""


def class_weights(counts: Tensor) -> Tensor:
    """Weight classes by 1 / ln(1.1 + p), p their share of pixels (ENet, section 5.2), scaled to a mean of 1 over pixels.

    Args:
        counts: (classes,) pixels per class.
    """
    share = counts.double() / counts.sum().clamp(min=1)
    weights = 1 / torch.log(1.1 + share)
    return (weights / (weights * share).sum().clamp(min=1e-12)).float()


def labelled_weight(labels: Tensor, weights: Tensor | None) -> Tensor:
    """Return what a mean over labelled pixels divides by, (): their number, or the sum of their classes' weights."""
    valid = labels.flatten() != IGNORE
    return valid.sum().float() if weights is None else weights[labels.flatten()[valid]].sum()


def segmentation_loss(
    logits: Tensor, labels: Tensor, weights: Tensor | None, kind: str = "cross_entropy", total: Tensor | None = None
) -> Tensor:
    """Return the mean loss over labelled pixels; 0 (with a gradient) where nothing is labelled.

    Weights of classes should help to learn rare ones, and not decide for them: they move a network's logits by ln(weight) (Menon
    et al., "Long-tail learning via logit adjustment", ICLR 2021). `UNBIASED` of that is added here, so that the network itself
    does without it.

    Args:
        logits: (N, classes, H, W), any float; computed in fp32.
        labels: (N, H, W) int64 in 0..classes-1 or 255.
        weights: (classes,) or None.
        kind: "cross_entropy" or "ohem".
        total: `labelled_weight` of the whole step, of which these pixels are a part; the result is then their part of the step's
            mean, and every process of a training must call this. The hardest pixels are those of a micro-batch of all processes,
            which counts by its share of `total`. None: these pixels are all.
    """
    logits = logits.float() if weights is None else logits.float() + UNBIASED * weights.log()[:, None, None]
    pixels = F.cross_entropy(logits, labels, weights, ignore_index=IGNORE, reduction="none").flatten()
    own = labelled_weight(labels, weights)
    if kind != "ohem":
        return pixels.sum() / (own if total is None else total).clamp(min=1e-6)  # ignored pixels are 0
    hard = _hardest(F.cross_entropy(logits.detach(), labels, ignore_index=IGNORE, reduction="none"), labels, total is not None)
    divisor = labelled_weight(labels.masked_fill(~hard, IGNORE), weights)
    if total is None:
        return pixels[hard.flatten()].sum() / divisor.clamp(min=1e-6)
    share = sum_over_processes(own) / total.clamp(min=1e-6)
    return share * pixels[hard.flatten()].sum() / sum_over_processes(divisor).clamp(min=1e-6)


def _hardest(losses: Tensor, labels: Tensor, shared: bool) -> Tensor:
    """Say which labelled pixels are hard, of this process's or, where the batch is shared, of all processes': bool (N, H, W)."""
    valid = labels != IGNORE
    hard = valid & (losses > -math.log(OHEM_PROBABILITY))
    counts = torch.stack([valid.sum(), hard.sum()])
    labelled, found = (sum_over_processes(counts) if shared else counts).tolist()
    least = int(OHEM_LEAST * labelled)
    if found >= least:
        return hard
    losses = losses.masked_fill(~valid, -1)
    highest = torch.topk(losses.flatten(), min(least, losses.numel())).values
    if shared:
        highest = gather(F.pad(highest, (0, least - len(highest)), value=-1)).flatten()
    return valid & (losses >= torch.topk(highest, least).values[-1])


def distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the cross-entropy of the student's logits against the teacher's probabilities, at the coarser of both sizes.

    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2, at temperature 1.

    Args:
        student: (N, classes, h, w) logits.
        teacher: (N, classes, H, W) logits, detached.
    """
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    student, teacher = (
        x.float() if tuple(x.shape[2:]) == size else F.interpolate(x.float(), size, mode="bilinear", align_corners=False)
        for x in (student, teacher)
    )
    return -(teacher.softmax(1) * student.log_softmax(1)).sum(1).mean()


def labelled_cells(soft: Tensor) -> Tensor:
    """Return how many cells of soft labels (N, classes, h, w) are not ignored, ()."""
    return (soft.sum(1) > 0.5).sum()


def soft_label_loss(logits: Tensor, soft: Tensor, temperature: float, total: Tensor | None = None) -> Tensor:
    """Return T^2 KL(teacher || student) at temperature T, the mean over labelled cells (Hinton et al. 2015, section 2).

    The factor keeps the size of its gradient, which falls as 1 / T^2, beside that of a loss on hard labels.

    Args:
        logits: the student's, (N, classes, H, W), any float; computed in fp32 at the size of `soft`.
        soft: (N, classes, h, w) the teacher's probabilities at the temperature, covering the same crop; cells of 0 for all
            classes are ignored.
        temperature: above 0.
        total: `labelled_cells` of the whole step, of which these are a part; None: these are all.
    """
    logits = logits.float()
    if logits.shape[2:] != soft.shape[2:]:
        logits = F.interpolate(logits, soft.shape[2:], mode="bilinear", align_corners=False)
    cells = F.kl_div((logits / temperature).log_softmax(1), soft, reduction="none").sum(1)  # 0 where soft is 0
    return temperature**2 * cells.sum() / (labelled_cells(soft) if total is None else total).clamp(min=1)

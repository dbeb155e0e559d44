"""Losses over (N, classes, H, W) logits and (N, H, W) labels with 255 = ignore."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = 255
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


def segmentation_loss(logits: Tensor, labels: Tensor, weights: Tensor | None, kind: str = "cross_entropy") -> Tensor:
    """Return the mean loss over labelled pixels; 0 (with a gradient) where nothing is labelled.

    Args:
        logits: (N, classes, H, W), any float; computed in fp32.
        labels: (N, H, W) int64 in 0..classes-1 or 255.
        weights: (classes,) or None.
        kind: "cross_entropy" or "ohem".
    """
    logits = logits.float()
    pixels = F.cross_entropy(logits, labels, weights, ignore_index=IGNORE, reduction="none").flatten()
    valid = labels.flatten() != IGNORE
    if kind == "ohem":
        with torch.no_grad():
            plain = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none").flatten()
            least = int(OHEM_LEAST * int(valid.sum()))
            hard = valid & (plain > -torch.log(torch.tensor(OHEM_PROBABILITY)))
            if int(hard.sum()) < least:
                threshold = torch.topk(plain.masked_fill(~valid, -1), least).values[-1]
                hard = valid & (plain >= threshold)
        valid = hard
    if weights is None:
        return pixels[valid].sum() / valid.sum().clamp(min=1)
    scale = weights[labels.flatten().clamp(max=len(weights) - 1)][valid].sum()
    return pixels[valid].sum() / scale.clamp(min=1e-6)


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


def soft_label_loss(logits: Tensor, soft: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(teacher || student) at temperature T, the mean over labelled cells (Hinton et al. 2015, section 2).

    The factor keeps the size of its gradient, which falls as 1 / T^2, beside that of a loss on hard labels.

    Args:
        logits: the student's, (N, classes, H, W), any float; computed in fp32 at the size of `soft`.
        soft: (N, classes, h, w) the teacher's probabilities at the temperature, covering the same crop; cells of 0 for all
            classes are ignored.
        temperature: above 0.
    """
    logits = logits.float()
    if logits.shape[2:] != soft.shape[2:]:
        logits = F.interpolate(logits, soft.shape[2:], mode="bilinear", align_corners=False)
    cells = F.kl_div((logits / temperature).log_softmax(1), soft, reduction="none").sum(1)  # 0 where soft is 0
    return temperature**2 * cells.sum() / (soft.sum(1) > 0.5).sum().clamp(min=1)

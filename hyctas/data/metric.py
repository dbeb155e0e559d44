"""Count and score predictions: confusion matrix, IoU per class, mIoU, pixel accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from export.codec import Share
from export.errors import InvalidInput
from hyctas.data.labels import IGNORE

POLICY = "mean over classes in truth or prediction; a class only predicted counts 0; a class in neither is left out"


SCORES_VERSION = 1


@dataclass(frozen=True)
class Score:
    """The score of a whole split (one confusion matrix summed over it, not a mean over images)."""

    OPEN: ClassVar = True
    miou: Share
    """Mean of the IoUs that are not None, 0..1."""
    iou: tuple[Share | None, ...]
    """IoU per class; None for a class that neither truth nor prediction holds anywhere in the split."""
    pixel_accuracy: Share
    """Fraction of the counted pixels that are right."""
    present: tuple[bool, ...]
    """Whether the truth holds the class."""
    policy: str = POLICY
    """How absent classes were treated, in words, for reports."""

    @classmethod
    def before_decoding(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Complete what was written before `present` was."""
        iou = value.get("iou")
        return {"present": [share is not None for share in iou], **value} if isinstance(iou, list) else value

    def __post_init__(self) -> None:
        if len(self.present) != len(self.iou):
            raise ValueError(f"present has {len(self.present)} classes, iou {len(self.iou)}")


@dataclass(frozen=True)
class Scores:
    """The content of scores.json."""

    OPEN: ClassVar = True
    genotype: str | None = None
    """Id of the network."""
    val: Score | None = None
    choose: Score | None = None

    def __post_init__(self) -> None:
        if self.val is None and self.choose is None:
            raise ValueError("it has a score of neither part, choose or val")

    @property
    def by_split(self) -> dict[str, Score]:
        """The scores that are there; `val` comes first."""
        return {split: score for split, score in (("val", self.val), ("choose", self.choose)) if score is not None}


def confusion(label: np.ndarray, prediction: np.ndarray, num_classes: int, ignore: int = IGNORE) -> np.ndarray:
    """Count pixels by true and predicted class.

    Args:
        label: integers of any shape: 0..C-1, or `ignore` for pixels that do not count.
        prediction: integers of the same shape, 0..C-1 wherever the label counts.
        num_classes: C.
        ignore: the label value to leave out.

    Returns:
        int64 (C, C), rows = truth, columns = prediction. Sum these over a split.

    Raises:
        InvalidInput: shapes differ, or a value is no class.
    """
    if label.shape != prediction.shape:
        raise InvalidInput(f"label has shape {label.shape}, prediction {prediction.shape}; they must be equal")
    counted = label != ignore
    truth, guess = label[counted].astype(np.int64), prediction[counted].astype(np.int64)
    for what, values in (("label", truth), ("prediction", guess)):
        if values.size and (values.min() < 0 or values.max() >= num_classes):
            bad = np.unique(values[(values < 0) | (values >= num_classes)])[:5].tolist()
            raise InvalidInput(f"{what} holds {bad}; wanted 0..{num_classes - 1}")
    return np.bincount(truth * num_classes + guess, minlength=num_classes**2).reshape(num_classes, num_classes)


def score(confusion: np.ndarray) -> Score:
    """Score a confusion matrix (rows = truth) summed over a whole split, as PASCAL VOC and Cityscapes do.

    IoU = right / (truth + predicted - right). A class that occurs in the truth or in the prediction has an IoU and
    counts in the mean: one that is predicted somewhere but occurs nowhere in the truth counts 0. A class in neither has
    IoU None and is left out of the mean.

    Raises:
        InvalidInput: not a square matrix of counts, or no counted pixel at all.
    """
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1] or (confusion < 0).any():
        raise InvalidInput(f"a confusion matrix is square and holds counts; got shape {confusion.shape}")
    total = int(confusion.sum())
    if not total:
        raise InvalidInput("nothing to score: every pixel is ignored, or there are no pixels")
    right, truth, guess = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    union = truth + guess - right
    iou = tuple(float(r / u) if u else None for r, u in zip(right, union, strict=True))
    counted = [value for value in iou if value is not None]
    return Score(
        miou=sum(counted) / len(counted), iou=iou, pixel_accuracy=float(right.sum() / total), present=tuple(bool(t) for t in truth)
    )

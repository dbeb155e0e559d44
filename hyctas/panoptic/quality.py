"""Score segments: panoptic quality PQ = SQ x RQ (Kirillov et al. 2019, arXiv 1801.00868, section 4)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from export.errors import InvalidInput

POLICY = "mean over classes with a counted segment in truth or prediction; a class only predicted counts 0"


@dataclass(frozen=True)
class QualityMean:
    """Means over the classes that hold a counted segment."""

    pq: float
    """Panoptic quality, 0..1."""
    sq: float
    """Segmentation quality, 0..1: mean IoU of the matched segments; 0 for a class without a match."""
    rq: float
    """Recognition quality, 0..1: the F1 score of the segments."""
    classes: int
    """How many classes the means are over, at least 1."""


@dataclass(frozen=True)
class QualityResult:
    """The panoptic quality of a whole split; each tuple has one entry per class."""

    pq: tuple[float | None, ...]
    """Sum of the matched IoUs / (TP + FP/2 + FN/2), 0..1; None for a class without a counted segment."""
    sq: tuple[float | None, ...]
    """Sum of the matched IoUs / TP, 0 without a match; None as above."""
    rq: tuple[float | None, ...]
    """TP / (TP + FP/2 + FN/2); None as above."""
    tp: tuple[int, ...]
    """Matched pairs of segments."""
    fp: tuple[int, ...]
    """Predicted segments without a match that are not excused (see `PanopticQuality`)."""
    fn: tuple[int, ...]
    """True segments without a match."""
    all: QualityMean | None
    """Over all classes; None where no class has a counted segment."""
    things: QualityMean | None
    """Over the thing classes."""
    stuff: QualityMean | None
    """Over the stuff classes."""
    policy: str = POLICY
    """How absent classes were treated, in words, for reports."""


@dataclass(frozen=True)
class _Segments:
    """The segments of one map; all arrays but `number` are (S,)."""

    number: np.ndarray
    """int64, flat: position of each pixel's segment in the other arrays."""
    classes: np.ndarray
    """Class of each segment; -1 = void."""
    grouped: np.ndarray
    """bool: pixels of a thing class without an instance."""
    area: np.ndarray
    """Pixels."""


class PanopticQuality:
    """Count matches over images, then score.

    A segment is a thing instance, or all pixels of a stuff class in an image. Of one class, a true and a predicted segment
    with an IoU above 0.5 match (at most one such partner exists). Void pixels of the truth leave the union, and a predicted
    segment without a match is excused, not a false positive, where more than half of it lies on void. True pixels of a
    thing class with instance 0 are a group (a crowd): no segment, never matched, and where more than half of a
    predicted segment of that class lies on void or group, it is excused too (section 4.2 of the paper).
    """

    def __init__(self, num_classes: int, things: Collection[int], ignore: int = 255) -> None:
        """Start with nothing counted.

        Args:
            num_classes: C; classes are 0..C-1.
            things: the classes with instances; the others are stuff.
            ignore: the class value of void, outside 0..C-1.

        Raises:
            InvalidInput: no class, a thing that is no class, or `ignore` is a class.
        """
        wrong = sorted(thing for thing in set(things) if not 0 <= thing < num_classes)
        if num_classes < 1 or wrong or 0 <= ignore < num_classes:
            raise InvalidInput(
                f"got {num_classes} classes, things {sorted(set(things))} and ignore value {ignore}; wanted 1 class or more, "
                f"things among 0..{num_classes - 1}, and an ignore value that is none of these"
            )
        self.num_classes, self.things, self.ignore = num_classes, frozenset(things), ignore
        self._iou = np.zeros(num_classes)
        self._tp, self._fp, self._fn = np.zeros((3, num_classes), np.int64)

    def update(
        self, pred_classes: np.ndarray, pred_instances: np.ndarray, true_classes: np.ndarray, true_instances: np.ndarray
    ) -> None:
        """Count the segments of one image.

        Args:
            pred_classes: integers (H, W): 0..C-1, or `ignore` where nothing is predicted.
            pred_instances: integers (H, W): above 0 on things, one number per instance; 0 on stuff and void.
            true_classes: as `pred_classes`; `ignore` = void.
            true_instances: as `pred_instances`, but 0 is allowed on things: a group.

        Raises:
            InvalidInput: shapes differ, a value is no integer or no class, an instance has two classes or lies on stuff or
                void, or a predicted thing has no instance. Then nothing was counted.
        """
        shapes = [x.shape for x in (pred_classes, pred_instances, true_classes, true_instances)]
        if len(set(shapes)) != 1 or len(shapes[0]) != 2:
            raise InvalidInput(f"the four maps of an image have one shape (H, W); got {', '.join(map(str, shapes))}")
        pred = self._segments("prediction", pred_classes, pred_instances)
        true = self._segments("truth", true_classes, true_instances)
        if pred.grouped.any():
            found = pred.classes[pred.grouped].tolist()
            raise InvalidInput(f"prediction holds pixels of the thing classes {found} with instance 0; wanted 1 or more there")
        overlap = np.bincount(true.number * len(pred.area) + pred.number, minlength=len(true.area) * len(pred.area))
        overlap = overlap.reshape(len(true.area), len(pred.area))
        on_void = overlap[true.classes < 0].sum(0)  # (S of prediction,)
        rows, columns = np.nonzero(overlap)
        same = (true.classes[rows] == pred.classes[columns]) & (true.classes[rows] >= 0)
        rows, columns = rows[same], columns[same]
        shared = overlap[rows, columns]
        on_group = np.bincount(columns, shared * true.grouped[rows], len(pred.area))
        union = true.area[rows] + pred.area[columns] - shared - on_void[columns]
        match = (2 * shared > union) & ~true.grouped[rows]
        rows, columns, iou = rows[match], columns[match], shared[match] / union[match]
        missed, false = (true.classes >= 0) & ~true.grouped, (pred.classes >= 0) & (2 * (on_void + on_group) <= pred.area)
        missed[rows], false[columns] = False, False
        self._iou += np.bincount(true.classes[rows], iou, self.num_classes)
        self._tp += np.bincount(true.classes[rows], minlength=self.num_classes)
        self._fp += np.bincount(pred.classes[false], minlength=self.num_classes)
        self._fn += np.bincount(true.classes[missed], minlength=self.num_classes)

    def merge(self, other: PanopticQuality) -> None:
        """Add what another one counted (on other images).

        Raises:
            InvalidInput: its classes, things or ignore value differ.
        """
        for name in ("num_classes", "things", "ignore"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise InvalidInput(f"only counts of the same classes merge; {name} is {mine} here and {theirs} there")
        self._iou += other._iou
        self._tp += other._tp
        self._fp += other._fp
        self._fn += other._fn

    def result(self) -> QualityResult:
        """Score what was counted so far."""
        scores: list[tuple[float, float, float] | None] = []
        for iou, tp, fp, fn in zip(self._iou.tolist(), self._tp.tolist(), self._fp.tolist(), self._fn.tolist(), strict=True):
            weight = tp + fp / 2 + fn / 2
            scores.append((iou / weight, iou / max(tp, 1), tp / weight) if weight else None)
        return QualityResult(
            pq=tuple(score and score[0] for score in scores),
            sq=tuple(score and score[1] for score in scores),
            rq=tuple(score and score[2] for score in scores),
            tp=tuple(self._tp.tolist()),
            fp=tuple(self._fp.tolist()),
            fn=tuple(self._fn.tolist()),
            all=_mean(scores),
            things=_mean([score for c, score in enumerate(scores) if c in self.things]),
            stuff=_mean([score for c, score in enumerate(scores) if c not in self.things]),
        )

    def _segments(self, what: str, classes: np.ndarray, instances: np.ndarray) -> _Segments:
        """Number the segments of a map; `what` names it in errors."""
        for name, values in (("classes", classes), ("instances", instances)):
            if not np.issubdtype(values.dtype, np.integer):
                raise InvalidInput(f"{what}: {name} must be integers; got {values.dtype}")
        label, instance = classes.ravel().astype(np.int64), instances.ravel().astype(np.int64)
        void, known = label == self.ignore, (label >= 0) & (label < self.num_classes)
        if not (void | known).all():
            bad = np.unique(label[~(void | known)])[:5].tolist()
            raise InvalidInput(f"{what} holds the classes {bad}; wanted 0..{self.num_classes - 1}, or {self.ignore} for void")
        if instance.size and instance.min() < 0:
            raise InvalidInput(f"{what} holds instance {instance.min()}; wanted 0 (stuff, void) or a number above it")
        label[void] = -1
        is_thing = np.zeros(self.num_classes + 1, bool)  # the last entry serves -1
        is_thing[list(self.things)] = True
        misplaced = (instance > 0) & ~is_thing[label]
        if misplaced.any():
            i, c = int(instance[misplaced][0]), int(classes.ravel()[misplaced][0])
            raise InvalidInput(f"{what} holds instance {i} on class {c}, which is stuff or void; only things have instances")
        code, number = np.unique(np.where(instance > 0, self.num_classes + instance, label), return_inverse=True)
        segment_classes = np.full(len(code), -1)
        segment_classes[number] = label
        if (segment_classes[number] != label).any():
            at = np.flatnonzero(segment_classes[number] != label)[0]
            both = sorted({int(label[at]), int(segment_classes[number[at]])})
            raise InvalidInput(f"{what}: instance {instance[at]} has the classes {both}; an instance has one class")
        grouped = is_thing[segment_classes] & (code < self.num_classes)
        return _Segments(number, segment_classes, grouped, np.bincount(number, minlength=len(code)))


def _mean(scores: list[tuple[float, float, float] | None]) -> QualityMean | None:
    """Return the means of (PQ, SQ, RQ) over the classes that have them."""
    counted = [score for score in scores if score is not None]
    if not counted:
        return None
    pq, sq, rq = (sum(values) / len(counted) for values in zip(*counted, strict=True))
    return QualityMean(pq, sq, rq, len(counted))

"""Open and check a data set, and cut the honest splits that training and choosing use."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from export.errors import InvalidInput
from export.target import format_size
from hyctas.cli.show import bar, say
from hyctas.data import Coverage, Sample, Source, VerifyReport, honest_split, open_source, verify

SPLIT_SEED = 0
NEEDED = ("train", "val")
MOST_LISTED = 12
DOCUMENT = "docs/own_data.md"
_checked: set[str] = set()
"""Fingerprints of the data sets that this process has read whole already; the demo opens its own several times."""


@dataclass(frozen=True)
class DataSet:
    """A checked data set: weights are trained on `train`, everything is chosen by `choose`, `val` is only reported."""

    spec: str
    """What the user typed."""
    source: Source
    train: tuple[Sample, ...]
    choose: tuple[Sample, ...]
    val: tuple[Sample, ...]
    method: str
    """How train and choose were cut apart."""

    @property
    def num_classes(self) -> int:
        return self.source.labels.num_classes

    def with_all_of_train(self) -> DataSet:
        """Return the same data with all of train to train on, and nothing to choose by."""
        train = self.source.samples("train")
        return replace(self, train=train, choose=(), method="all of train")

    def identity(self) -> dict[str, Any]:
        """Describe all of the data."""
        return self._described(self.source.fingerprint())

    def trained(self) -> dict[str, Any]:
        """Describe what weights are trained on, for a training's configuration: a changed val is not a new training."""
        return self._described(self.source.fingerprint(("train",)))

    def _described(self, fingerprint: dict[str, Any]) -> dict[str, Any]:
        return {**fingerprint, "train": len(self.train), "choose": len(self.choose), "method": self.method}

    def scored(self) -> dict[str, Any]:
        """Describe what a trained network is scored on besides: when that changes, it is scored again, and not trained again."""
        return self.source.fingerprint(("val",))


def open_dataset(spec: str, *, check: bool = True, absent_classes: bool = False) -> DataSet:
    """Open a data set; unless told otherwise, read every file first, so that errors come before training.

    Args:
        spec: what a user types.
        check: read every file, print what the splits hold, and refuse what training would be wasted on.
        absent_classes: accept classes that never occur in train.

    Raises:
        InvalidInput: the data set cannot be used; the text names the first bad file, the split without a labelled pixel, or
            the classes that never occur.
    """
    source = open_source(spec)
    fingerprint = json.dumps([source.fingerprint(), absent_classes], sort_keys=True)
    report = None
    if check and fingerprint not in _checked:
        with bar("check data") as shown:
            report = verify(source, NEEDED, lambda done, total: shown.update(done / total))
    split = honest_split(source.samples("train"), seed=SPLIT_SEED)
    data = DataSet(spec, source, split.weights, split.choosing, source.samples("val"), split.method)
    if report is not None:
        _describe(data, report)
        check_coverage(data, report, absent_classes)
        _checked.add(fingerprint)
    return data


def check_coverage(data: DataSet, report: VerifyReport, absent_classes: bool = False) -> None:
    """Refuse data on which a training would be wasted, or whose scores would be of nothing.

    Raises:
        InvalidInput: a part has no labelled pixel, or classes never occur in train (where they are expected to).
    """
    source = data.source
    for (name, part), where in zip(_parts(data, report).items(), ("train", "train", "val"), strict=True):
        if not sum(part.pixels):
            raise InvalidInput(
                f"data {source.name}: all pixels of the {part.samples} images {name} are ignored, so nothing could be learnt or "
                f"scored. The label files hold {source.held(where)}; correct them, or the class list ({DOCUMENT})"
            )
    missing = [source.labels.names[i] for i in report.absent("train")]
    if missing and source.expects_all and not absent_classes:
        ignored = report.part("train").ignored_share
        raise InvalidInput(
            f"data {source.name}: no pixel of train is of {_listed([repr(name) for name in missing])}; {ignored:.1%} of its pixels "
            f"are ignored. Read in the {source.layout}, its label files hold {source.held('train')}. Correct them, or the class "
            f"list ({DOCUMENT}); or put absent_classes = true into a TOML file (--config) to train without"
        )


def _describe(data: DataSet, report: VerifyReport) -> None:
    """Print what was found: the layout, the parts, ignored pixels and absent classes."""
    source = data.source
    say(f"data: {source.name} ({source.layout}): {len(data.train)} images to train on, {len(data.choose)} to choose by "
        f"(cut by {data.method}), {len(data.val)} to report")  # fmt: skip
    if len(report.sizes) > 1:
        sizes = [f"{format_size(size)} ({count} images)" for size, count in report.sizes.items()]
        say(f"  images of {len(sizes)} sizes: {_listed(sizes)}")
    for name, part in _parts(data, report).items():
        absent = [source.labels.names[i] for i in part.absent]
        say(f"  {name}: {part.ignored_share:.1%} of the pixels ignored" + f"; no pixel of {_listed(absent)}" * bool(absent))


def _parts(data: DataSet, report: VerifyReport) -> dict[str, Coverage]:
    """Add up the parts of a data set, by what they are for."""
    return {
        "to train on": report.part("train", data.train), "to choose by": report.part("train", data.choose),
        "to report": report.part("val", data.val),
    }  # fmt: skip


def _listed(names: list[str]) -> str:
    return ", ".join(names[:MOST_LISTED]) + (f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else "")

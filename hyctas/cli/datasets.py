"""Open and check a data set, and cut the honest splits that training and choosing use."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from hyctas.cli.show import bar, say
from hyctas.data import Sample, Source, honest_split, open_source, verify

SPLIT_SEED = 0
_checked: set[str] = set()
"""Fingerprints of the data sets that this process has read whole already; the demo opens its own several times."""


@dataclass(frozen=True)
class DataSet:
    """A checked data set: weights are trained on `train`, everything is chosen by `choose`, `val` is only reported."""

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
        """Describe the data for a run's configuration."""
        return {**self.source.fingerprint(), "train": len(self.train), "choose": len(self.choose), "method": self.method}


def open_dataset(spec: str, *, check: bool = True) -> DataSet:
    """Open a data set; unless told otherwise, read every file first, so that errors come before training.

    Raises:
        InvalidInput: the data set cannot be used; the text names the first bad file.
    """
    source = open_source(spec)
    fingerprint = json.dumps(source.fingerprint(), sort_keys=True)
    check = check and fingerprint not in _checked
    if check:
        with bar("check data") as shown:
            verify(source, ("train", "val"), lambda done, total: shown.update(done / total))
        _checked.add(fingerprint)
    split = honest_split(source.samples("train"), seed=SPLIT_SEED)
    if check:
        say(f"data: {source.name}: {len(split.weights)} images to train on, {len(split.choosing)} to choose by "
            f"(cut by {split.method}), {len(source.samples('val'))} to report")  # fmt: skip
    return DataSet(source, split.weights, split.choosing, source.samples("val"), split.method)

"""Read a whole data set before anything is trained on it, and say which file is unusable and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from export.errors import InvalidInput
from hyctas.data.labels import IGNORE
from hyctas.data.sample import Sample, Source

_THREADS = 2


@dataclass(frozen=True)
class VerifyReport:
    """What a data set holds; every file of it was read."""

    files: int
    """Number of files (or generated pictures) read: two per sample."""
    samples: dict[str, int]
    """Number of samples per split."""
    sizes: dict[tuple[int, int], int]
    """Number of samples per image size (height, width), the commonest first."""
    pixels: dict[str, tuple[int, ...]]
    """Per split, the number of pixels of each class."""
    ignored: dict[str, int]
    """Per split, the number of ignored pixels."""

    def absent(self, split: str) -> tuple[int, ...]:
        """Return the classes that have no pixel in a split."""
        return tuple(i for i, count in enumerate(self.pixels[split]) if not count)

    def to_json(self) -> dict[str, Any]:
        """Return plain data; sizes are written HEIGHTxWIDTH."""
        return {
            "files": self.files,
            "samples": dict(self.samples),
            "sizes": {f"{h}x{w}": count for (h, w), count in self.sizes.items()},
            "pixels": {split: list(counts) for split, counts in self.pixels.items()},
            "ignored": dict(self.ignored),
        }


def verify(
    source: Source, splits: Sequence[str] | None = None, progress: Callable[[int, int], None] | None = None
) -> VerifyReport:
    """Read every image and label of the splits (default: all).

    Args:
        source: the data set.
        splits: the splits to read.
        progress: called with (samples done, samples in all) after each sample, from this thread.

    Raises:
        InvalidInput: a split is empty, or a file is unpaired, unreadable, of a wrong mode or size, or holds label
            values that are no class. The first such file is named, and how many more there are.
    """
    wanted = tuple(source.splits if splits is None else splits)
    jobs = [(split, sample) for split in wanted for sample in source.samples(split)]
    problems: list[str] = [f"{source.name}: split {split!r} has no images" for split in wanted if not source.samples(split)]
    if problems:
        raise InvalidInput(problems[0])
    classes = source.labels.num_classes

    def read(job: tuple[str, Sample]) -> tuple[tuple[int, int], np.ndarray] | str:
        try:
            image, label = source.load(*job)
        except InvalidInput as error:
            return str(error)
        counts = np.bincount(label.ravel(), minlength=256)
        if image.dtype != np.uint8 or image.shape != (*label.shape, 3) or counts[classes:IGNORE].any():
            return f"{job[1].name}: the source returned a pair that breaks its contract"
        return (label.shape[0], label.shape[1]), counts

    sizes: Counter[tuple[int, int]] = Counter()
    totals = {split: np.zeros(256, np.int64) for split in wanted}
    pool = ThreadPoolExecutor(_THREADS)
    try:
        for done, (job, result) in enumerate(zip(jobs, pool.map(read, jobs), strict=True), 1):
            if isinstance(result, str):
                problems.append(result)
            else:
                sizes[result[0]] += 1
                totals[job[0]] += result[1]
            if progress is not None:
                progress(done, len(jobs))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C must not wait for the rest of the data set
    if problems:
        more = len(problems) - 1
        raise InvalidInput(problems[0] + (f"\n{more} more of the {len(jobs)} samples have a problem" if more else ""))
    return VerifyReport(
        files=2 * len(jobs),
        samples={split: len(source.samples(split)) for split in wanted},
        sizes=dict(sizes.most_common()),
        pixels={split: tuple(int(c) for c in totals[split][:classes]) for split in wanted},
        ignored={split: int(totals[split][IGNORE]) for split in wanted},
    )

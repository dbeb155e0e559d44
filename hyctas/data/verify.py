"""Read a whole data set before anything is trained on it, and say which file is unusable and why."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from export.errors import InvalidInput
from hyctas.data.labels import IGNORE, Colour
from hyctas.data.sample import Sample, Source

_THREADS = 2


@dataclass(frozen=True)
class Coverage:
    """What the labels of some samples hold."""

    samples: int
    pixels: tuple[int, ...]
    """Number of pixels of each class."""
    ignored: int
    """Number of pixels that count for nothing."""

    @property
    def absent(self) -> tuple[int, ...]:
        """The classes that have no pixel."""
        return tuple(i for i, count in enumerate(self.pixels) if not count)

    @property
    def ignored_share(self) -> float:
        """Fraction of the pixels that count for nothing."""
        return self.ignored / max(1, self.ignored + sum(self.pixels))


@dataclass(frozen=True, eq=False)
class VerifyReport:
    """What a data set holds; every file of it was read."""

    files: int
    """Number of files (or generated pictures) read: two per sample."""
    num_classes: int
    samples: dict[str, int]
    """Number of samples per split."""
    sizes: dict[tuple[int, int], int]
    """Number of samples per image size (height, width), the commonest first."""
    counts: dict[str, dict[Sample, np.ndarray]]
    """Per split and sample, the number of pixels of each class, and of ignored ones last: int64 (C + 1,)."""

    @property
    def pixels(self) -> dict[str, tuple[int, ...]]:
        """Per split, the number of pixels of each class."""
        return {split: tuple(self.part(split).pixels) for split in self.counts}

    @property
    def ignored(self) -> dict[str, int]:
        """Per split, the number of ignored pixels."""
        return {split: self.part(split).ignored for split in self.counts}

    def part(self, split: str, samples: Sequence[Sample] | None = None) -> Coverage:
        """Add up samples of a split; none: all of it."""
        counts = self.counts[split]
        chosen = [counts[sample] for sample in (counts if samples is None else samples)]
        total = [int(count) for count in np.sum(chosen, axis=0)] if chosen else [0] * (self.num_classes + 1)
        return Coverage(len(chosen), tuple(total[:-1]), total[-1])

    def absent(self, split: str) -> tuple[int, ...]:
        """Return the classes that have no pixel in a split."""
        return self.part(split).absent

    def to_json(self) -> dict[str, Any]:
        """Return plain data; sizes are written HEIGHTxWIDTH."""
        return {
            "files": self.files,
            "samples": dict(self.samples),
            "sizes": {f"{h}x{w}": count for (h, w), count in self.sizes.items()},
            "pixels": {split: list(counts) for split, counts in self.pixels.items()},
            "ignored": dict(self.ignored),
        }


def verify(source: Source, splits: Sequence[str] | None = None, progress: Callable[[int, int], None] | None = None) -> VerifyReport:
    """Read every image and label of the splits (default: all).

    Args:
        source: the data set.
        splits: the splits to read.
        progress: called with (samples done, samples in all) after each sample, from this thread.

    Raises:
        InvalidInput: a split is empty, or a file is unpaired, unreadable, of a wrong mode or size, holds label values that are
            no class, or gives a number another colour than the files before it. The first such file is named, and how many
            more there are.
    """
    wanted = tuple(source.splits if splits is None else splits)
    jobs = [(split, sample) for split in wanted for sample in source.samples(split)]
    problems: list[str] = [f"{source.name}: split {split!r} has no images" for split in wanted if not source.samples(split)]
    if problems:
        raise InvalidInput(problems[0])
    sizes: Counter[tuple[int, int]] = Counter()
    counted: dict[str, dict[Sample, np.ndarray]] = {split: {} for split in wanted}
    palettes = _Palettes()
    pool = ThreadPoolExecutor(_THREADS)
    try:
        for done, (job, result) in enumerate(zip(jobs, pool.map(functools.partial(_read, source), jobs), strict=True), 1):
            if isinstance(result, str):
                problems.append(result)
            else:
                sizes[result[0]] += 1
                counted[job[0]][job[1]] = result[1]
                problems += palettes.compare(job[1].name, result[2])
            if progress is not None:
                progress(done, len(jobs))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C must not wait for the rest of the data set
    if problems:
        more = len(problems) - 1
        raise InvalidInput(problems[0] + (f"\n{more} more of the {len(jobs)} samples have a problem" if more else ""))
    return VerifyReport(
        files=2 * len(jobs),
        num_classes=source.labels.num_classes,
        samples={split: len(source.samples(split)) for split in wanted},
        sizes=dict(sizes.most_common()),
        counts=counted,
    )


def _read(source: Source, job: tuple[str, Sample]) -> tuple[tuple[int, int], np.ndarray, dict[int, Colour]] | str:
    """Return a label's size, its pixels by class (ignored ones last) and its palette; or what is wrong with the pair."""
    try:
        (image, label), palette = source.load(*job), source.palette(*job)
    except InvalidInput as error:
        return str(error)
    classes, counts = source.labels.num_classes, np.bincount(label.ravel(), minlength=256)
    if image.dtype != np.uint8 or image.shape != (*label.shape, 3) or counts[classes:IGNORE].any():
        return f"{job[1].name}: the source returned a pair that breaks its contract"
    return (label.shape[0], label.shape[1]), counts[[*range(classes), IGNORE]], palette


class _Palettes:
    """The colour that each number had in the palette files so far: files painted with differing palettes mean differing things."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[Colour, str]] = {}

    def compare(self, name: str, palette: dict[int, Colour]) -> list[str]:
        """Add a file's palette; return a sentence where it contradicts an earlier one."""
        for number, colour in palette.items():
            before, first = self.seen.setdefault(number, (colour, name))
            if before != colour:
                return [
                    f"label {name}: gives the number {number} the colour {_hex(colour)}, label {first} {_hex(before)}: their "
                    "palettes differ, so their numbers may not mean the same; if the colours say what a pixel is, give each class "
                    "its colour in classes.txt (road #804080) and add the line palette=colours; if the numbers do, save the files "
                    "with one palette or with none"
                ]
        return []


def _hex(colour: Colour) -> str:
    return "#" + bytes(colour).hex()

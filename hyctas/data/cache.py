"""Hold the decoded frames of a split in memory, so that an epoch costs no decoding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from export.errors import InvalidInput
from hyctas.data.labels import Labels
from hyctas.data.sample import Sample, Source

_THREADS = 2
_BYTES_PER_PIXEL = 4
_MIB = 1 << 20


class Frames:
    """The samples of a split as uint8 arrays in memory, 4 bytes per pixel.

    CamVid's 367 training frames at 360x480 take 242 MiB; Cityscapes' 2,975 at 1024x2048 would take 23.2 GiB.
    """

    def __init__(
        self,
        source: Source,
        split: str,
        samples: Sequence[Sample] | None = None,
        size: tuple[int, int] | None = None,
        limit_mib: float = 8192,
    ) -> None:
        """Load the samples, two at a time.

        Args:
            source: the data set.
            split: the split that the samples belong to.
            samples: which ones, in which order; None means all.
            size: (height, width) to resize to (image bilinear, label nearest); None keeps each file's own size.
            limit_mib: the memory that the frames may take.

        Raises:
            InvalidInput: no samples, an unusable file, or more memory needed than allowed.
        """
        self.source = source
        self.samples = tuple(source.samples(split) if samples is None else samples)
        self.labels: Labels = source.labels
        self.split, self.size, self.limit_mib = split, size, limit_mib
        if not self.samples:
            raise InvalidInput(f"{source.name}: no samples of split {split!r} to load")
        if size is not None:
            if min(size) < 1:
                raise InvalidInput(f"size {size[0]}x{size[1]} is empty; wanted a positive HEIGHTxWIDTH")
            self._check(len(self.samples) * size[0] * size[1] * _BYTES_PER_PIXEL)
        self.nbytes = 0
        self._frames: list[tuple[np.ndarray, np.ndarray]] = []
        pool = ThreadPoolExecutor(_THREADS)
        try:
            for image, label in pool.map(lambda sample: resized(*source.load(split, sample), size), self.samples):
                self._frames.append((image, label))
                self.nbytes += image.nbytes + label.nbytes
                # As if the rest were like what is loaded: refuse after the first frame, not the last.
                self._check(max(self.nbytes, round(self.nbytes / len(self._frames) * len(self.samples))))
        finally:
            pool.shutdown(cancel_futures=True)

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return image uint8 (H, W, 3) and label uint8 (H, W); read-only views, not copies."""
        return self._frames[index]

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return iter(self._frames)

    def class_counts(self) -> np.ndarray:
        """Count the pixels of each class, int64 (C,); ignored pixels are left out."""
        counts = np.zeros(256, np.int64)
        for _, label in self._frames:
            counts += np.bincount(label.ravel(), minlength=256)
        return counts[: self.labels.num_classes]

    def _check(self, nbytes: int) -> None:
        if nbytes > self.limit_mib * _MIB:
            raise InvalidInput(
                f"{len(self.samples)} frames of split {self.split!r} need about {nbytes / _MIB:,.0f} MiB of memory and "
                f"{self.limit_mib:,.0f} MiB are allowed; choose a smaller size, fewer samples, or a higher limit"
            )


def resized(image: np.ndarray, label: np.ndarray, size: tuple[int, int] | None) -> tuple[np.ndarray, np.ndarray]:
    """Resize an image (bilinear) and its label (nearest) to (height, width); both become read-only. None keeps their size."""
    if size is not None and label.shape != size:
        height, width = size
        image = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
        label = np.array(Image.fromarray(label).resize((width, height), Image.Resampling.NEAREST))
    image.flags.writeable = label.flags.writeable = False
    return image, label

"""Say where the time of every frame went, stage by stage, and how many frames a second were reached."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

STAGES = ("reading", "pre-processing", "running", "labels", "drawing", "writing")
KEPT = 100_000
"""Frames whose times are kept; of an endless stream the latest."""
RECENT = 60
"""Frames that a live view is about."""


class StageTimes:
    """Times of frames; another thread may read while one adds."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._started = clock, clock()
        self._ms = {stage: deque[float](maxlen=KEPT) for stage in STAGES}
        self._ended = deque[float](maxlen=RECENT + 1)
        self.frames = 0

    def add(self, stage: str, ms: float) -> None:
        """Note how long a stage of the present frame took."""
        self._ms[stage].append(ms)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is inside as a stage."""
        start = self._clock()
        yield
        self.add(name, 1000 * (self._clock() - start))

    def end_frame(self) -> None:
        """Count a frame as done."""
        self._ended.append(self._clock())
        self.frames += 1

    @property
    def seconds(self) -> float:
        """From the beginning to the end of the last frame."""
        return self._ended[-1] - self._started if self.frames else 0.0

    @property
    def fps(self) -> float:
        """Frames per second since the beginning."""
        return self.frames / self.seconds if self.seconds else 0.0

    def recent_fps(self) -> float:
        """Frames per second of late."""
        ended = tuple(self._ended)
        return (len(ended) - 1) / (ended[-1] - ended[0]) if len(ended) > 1 and ended[-1] > ended[0] else 0.0

    def medians_ms(self, last: int = KEPT) -> dict[str, float]:
        """Return the median of each stage over the last frames, those that were timed."""
        recent = {stage: list(islice(reversed(values), last)) for stage, values in self._ms.items()}
        return {stage: statistics.median(values) for stage, values in recent.items() if values}

    def to_json(self) -> dict[str, Any]:
        """Return plain values about the last frames."""
        return {"frames": self.frames, "fps": self.recent_fps(), "median_ms": self.medians_ms(RECENT)}

    def summary(self) -> str:
        """Return two lines for people."""
        stages = ", ".join(f"{stage} {ms:.1f}" for stage, ms in self.medians_ms().items())
        count = f"{self.frames} frame{'s' * (self.frames != 1)}"
        return f"{count} in {self.seconds:.1f} s: {self.fps:.1f} FPS\nmedian ms of a frame: {stages}"

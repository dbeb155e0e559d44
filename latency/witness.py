"""Notice that the machine itself is slower for a while, which need not show as load: time a model between all that is timed.

Two virtual cores, for instance, are at times two threads of one core: for seconds or minutes, what runs on both takes a fifth
longer.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

from export.feeds import random_feeds
from export.runtime import Session

T = TypeVar("T")
LEAST_STEPS, READING_MS, SLOWED = 3, 50.0, 1.08
"""The length of a reading, and how many times as long as usual a step takes where the machine is slow."""
PATIENCE_S, GRACE_S, PAUSE_S = 300.0, 10.0, 0.5
"""How long all waits for a machine that is slow may take together, and how often it is looked at. They never take longer than the
work did so far, and `GRACE_S`."""


class Witness:
    """A model that is timed between others.

    Args:
        session: with its inputs bound and warmed up; none where the machine is taken to be always the same.
        known_ms: what it usually took on this machine before.
    """

    def __init__(self, session: Session | None, known_ms: float | None = None) -> None:
        self.session, self.known_ms = session, known_ms
        self.worked_s = self.waited_s = 0.0
        self.readings: list[float] = []
        self.counted: list[float] = []
        """What it took beside the times that count."""

    def read(self) -> float:
        """Time the model, in milliseconds: the median of some steps; always 1 without a session."""
        steps = list[float]()
        while self.session and (len(steps) < LEAST_STEPS or sum(steps) < READING_MS):
            steps.append(self.session.step())
        self.readings.append(float(np.median(steps or [1.0])))
        return self.readings[-1]

    def beside(self, work: Callable[[], T]) -> tuple[T, float]:
        """Return the result of some work, and the longer of the readings before and behind it.

        The reading behind one work is the one before the next, unless the machine was slow.
        """
        before_ms = self.readings[-1] if self.readings else self.read()
        if self.slow(before_ms):
            before_ms = self.read()
        start = time.monotonic()
        result = work()
        self.worked_s += time.monotonic() - start
        return result, max(before_ms, self.read())

    @property
    def usual_ms(self) -> float:
        """The lower quartile of all readings; what is known from before, where that is less."""
        own = float(np.quantile(self.readings, 0.25))
        return own if self.known_ms is None else min(own, self.known_ms)

    def slow(self, ms: float) -> bool:
        """Return whether a reading is longer than usual."""
        return ms > SLOWED * self.usual_ms

    def wait(self, sleep: Callable[[float], None] = time.sleep) -> None:
        """Wait until a slow machine is as usual, as long as patience lasts."""
        while self.waited_s < min(PATIENCE_S, GRACE_S + self.worked_s) and self.slow(self.read()):
            self.waited_s += PAUSE_S
            sleep(PAUSE_S)


@contextlib.contextmanager
def witness(session: Session | None, known_ms: float | None = None) -> Iterator[Witness]:
    """Bind random inputs to a session, warm it up, make it a witness, and close it in the end."""
    try:
        if session is not None:
            session.bind(random_feeds(session.inputs))
            for _ in range(LEAST_STEPS):
                session.step()
        yield Witness(session, known_ms)
    finally:
        if session is not None:
            session.close()

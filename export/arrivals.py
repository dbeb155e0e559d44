"""Say when frames arrive: by the clock, with a video or a camera, or as soon as the last one is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from export.errors import InvalidInput
from export.prediction.clocked_video import ClockedVideo
from export.prediction.frame_source import Camera

EPSILON = 1e-6
"""Of a frame, which the sums of a clock may be short of."""
Pictures = ClockedVideo | Camera
"""Where pictures come from that arrive by themselves."""


class Clock(Protocol):
    """Seconds from any origin."""

    def now(self) -> float: ...

    def sleep_until(self, moment: float) -> None: ...


class MonotonicClock:
    """The system's."""

    def now(self) -> float:
        return time.monotonic()

    def sleep_until(self, moment: float) -> None:
        time.sleep(max(0.0, moment - time.monotonic()))


@dataclass(frozen=True, eq=False)
class Arrival:
    """A frame that is to be processed now, the newest one."""

    frame: int
    """Its number; those left out were dropped."""
    moment: float
    """Of the clock, when it arrived."""
    picture: Image.Image | None = None
    """None where the frame is nothing but a moment."""


@dataclass(frozen=True)
class Output:
    """What became of a frame that was not dropped; times in seconds since the first frame arrived."""

    frame: int
    arrived: float
    started: float
    ended: float

    @property
    def age(self) -> float:
        """How long after its arrival the output was there."""
        return self.ended - self.arrived

    @property
    def run(self) -> float:
        return self.ended - self.started


def by_the_clock(clock: Clock, frames_per_second: float, seconds: float) -> Iterator[Arrival]:
    """Let frame i arrive at i / rate; the last one is always processed."""
    total, last, start = round(frames_per_second * seconds), -1, clock.now()
    while last < total - 1:
        newest = min(total - 1, int((clock.now() - start) * frames_per_second + EPSILON))
        if newest == last:
            clock.sleep_until(start + (last + 1) / frames_per_second)
            continue
        last = newest
        yield Arrival(newest, start + newest / frames_per_second)


def back_to_back(clock: Clock, seconds: float) -> Iterator[Arrival]:
    """Let a frame arrive as soon as the one before is done."""
    start, frame = clock.now(), 0
    while frame == 0 or clock.now() - start < seconds:
        yield Arrival(frame, clock.now())
        frame += 1


def of_pictures(pictures: Pictures, seconds: float) -> Iterator[Arrival]:
    """Let the pictures of a video or camera arrive when they do."""
    first: float | None = None
    frames = iter(pictures)
    with closing(frames):
        for frame in frames:
            if isinstance(frame, InvalidInput):
                raise frame
            assert frame.arrived is not None
            first = frame.arrived if first is None else first
            yield Arrival(frame.number, frame.arrived, frame.picture)
            if frame.arrived - first >= seconds - EPSILON:
                return


def play(process: Callable[[Image.Image | None], object], arrivals: Iterator[Arrival], clock: Clock) -> Iterator[Output]:
    """Process the newest frame, again and again; yield each output once it is there."""
    origin: Arrival | None = None
    for arrival in arrivals:
        origin = origin or arrival
        started = clock.now()
        process(arrival.picture)
        ended, start = clock.now(), origin.moment
        yield Output(arrival.frame - origin.frame, arrival.moment - start, started - start, ended - start)

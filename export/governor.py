"""Choose the network of a ladder that keeps the deadline: the most accurate one, as long as that is fast enough.

A ladder is a list of networks for the same task, most accurate first, each faster than the one before. An output of a network is
expected to be as old as

    what passes before a run begins where no frame waits (decoding): the least of the last `WINDOW` outputs
    + the p99 of the runs of the network in charge: the second largest of its last `WINDOW`, of fewer too
    x the ratio of the two networks' times when they were alone

* down, when that age is above `NEAR` of the deadline, for which two slow runs are enough: to the first faster network where it is
  not, at least by one;
* up by one, when there it is below `ROOM` of the deadline, and `hold` outputs have passed since the last change;
* `hold` is `WINDOW` at first. A climb that has to be taken back within `hold` outputs doubles it, up to `MAX_HOLD`; one that lasts
  sets it back.

How long frames wait for one another does not count: after a step down they catch up.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence

from export.errors import InvalidInput

WINDOW = 100
NEAR, ROOM = 0.9, 0.75
MAX_HOLD = 64 * WINDOW


class Governor:
    """Holds which network is in charge: `level`, 0 for the most accurate.

    Args:
        times_s: how long each network takes when nothing else runs, slowest first.
        deadline_s: how old an output may be.

    Raises:
        InvalidInput: a network is not faster than the one before.
    """

    def __init__(self, times_s: Sequence[float], deadline_s: float) -> None:
        for index, (slow, fast) in enumerate(itertools.pairwise(times_s), 1):
            if fast >= slow:
                raise InvalidInput(
                    f"network {index + 1} of the ladder takes {1000 * fast:.2f} ms here and network {index} {1000 * slow:.2f} ms: "
                    "each has to be faster than the one before"
                )
        self.times_s, self.deadline_s = tuple(times_s), deadline_s
        self.level, self.switches = 0, 0
        self.hold = WINDOW
        self._before: deque[float] = deque(maxlen=WINDOW)
        self._runs: deque[float] = deque(maxlen=WINDOW)
        self._since, self._climbed = 0, False

    def observe(self, age_s: float, run_s: float) -> None:
        """Take the age of an output and how long its run took, and choose the network in charge of the next frame."""
        self._before.append(age_s - run_s)
        self._runs.append(run_s)
        self._since += 1
        if self._climbed and self._since >= self.hold:
            self.hold, self._climbed = WINDOW, False
        if len(self._runs) < 2:
            return
        if self._expected_s(self.level) > NEAR * self.deadline_s and self.level + 1 < len(self.times_s):
            if self._climbed:
                self.hold = min(MAX_HOLD, 2 * self.hold)
            self._change(self._first_in_time(), climbed=False)
        elif self.level and self._since >= self.hold and self._expected_s(self.level - 1) < ROOM * self.deadline_s:
            self._change(self.level - 1, climbed=True)

    def _expected_s(self, level: int) -> float:
        p99 = sorted(self._runs)[-2]
        return min(self._before) + p99 * self.times_s[level] / self.times_s[self.level]

    def _first_in_time(self) -> int:
        lower = range(self.level + 1, len(self.times_s))
        return next((level for level in lower if self._expected_s(level) <= NEAR * self.deadline_s), lower[-1])

    def _change(self, level: int, climbed: bool) -> None:
        self.level, self._climbed, self._since = level, climbed, 0
        self.switches += 1
        self._runs.clear()

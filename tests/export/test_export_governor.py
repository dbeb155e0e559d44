"""The governor's rule, on scripted times: reaction, hysteresis, patience after failed climbs; no clock."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from export.errors import InvalidInput
from export.governor import MAX_HOLD, WINDOW, Governor

TIMES = (30.0, 20.0, 10.0)


def play(governor: Governor, load: Callable[[int], float], outputs: int) -> list[int]:
    """Let each output take its member's time, times the load; return the member of each."""
    levels = []
    for index in range(outputs):
        levels.append(governor.level)
        governor.observe(*2 * (load(index) * governor.times_s[governor.level],))
    return levels


def test_it_stays_where_there_is_time() -> None:
    governor = Governor(TIMES, 40.0)
    assert set(play(governor, lambda index: 1.0, 1000)) == {0} and governor.switches == 0


def test_one_late_output_in_a_hundred_is_no_reason_two_are() -> None:
    governor = Governor(TIMES, 40.0)
    assert set(play(governor, lambda index: 2.0 if index % WINDOW == 0 else 1.0, 1000)) == {0}
    levels = play(governor, lambda index: 2.0 if index % (WINDOW // 2) == 0 else 1.0, 200)
    assert 1 in levels or 2 in levels


def test_it_steps_down_after_two_and_as_far_as_it_has_to() -> None:
    assert play(Governor(TIMES, 40.0), lambda index: 1.5, 5) == [0, 0, 1, 1, 1], "45 ms are too many, 30 are not"
    assert play(Governor(TIMES, 40.0), lambda index: 2.5, 5) == [0, 0, 2, 2, 2], "nor would 50 be in time"
    assert play(Governor(TIMES, 40.0), lambda index: 9.0, 5) == [0, 0, 2, 2, 2], "the fastest one, even where it is late"


def test_it_climbs_when_the_load_has_gone_and_not_before_there_is_room() -> None:
    governor = Governor(TIMES, 40.0)
    levels = play(governor, lambda index: 1.5 if index < 50 else 1.0, 400)
    assert levels[2] == 1 and levels[-1] == 1, "30 ms of 40 are not below the share that makes room"
    governor = Governor(TIMES, 41.0)
    levels = play(governor, lambda index: 1.5 if index < 50 else 1.0, 400)
    assert levels[-1] == 0 and governor.switches == 2
    assert levels.index(0, 2) == 149, "when all of the last hundred were fast"


def test_failed_climbs_become_rare() -> None:
    """A member that is slower than its time alone says: each climb to it fails."""
    governor, climbs = Governor(TIMES, 41.0), []
    for output in range(5000):
        before = governor.level
        governor.observe(*2 * (45.0 if governor.level == 0 else governor.times_s[governor.level],))
        if governor.level < before:
            climbs.append(output)
    gaps = [later - earlier for earlier, later in itertools.pairwise(climbs)]
    assert len(climbs) <= 7 and gaps == sorted(gaps) and gaps[-1] > 5 * gaps[0], "twice as long after every failure"
    assert governor.hold <= MAX_HOLD
    play(governor, lambda index: 1.0, 3 * governor.hold)
    assert governor.level == 0 and governor.hold == WINDOW, "a climb that lasts is forgotten"


def test_a_faster_member_has_to_be_faster() -> None:
    with pytest.raises(InvalidInput, match=r"network 3 of the ladder takes 20\.00 ms here and network 2 20\.00 ms"):
        Governor((0.03, 0.02, 0.02), 0.04)


def test_a_frame_that_waited_does_not_count_against_faster_networks() -> None:
    governor = Governor(TIMES, 40.0)
    for age in (45.0, 60.0):
        governor.observe(age, 45.0)
    assert governor.level == 1, "its run is expected to take 30, and no frame will wait"
    governor = Governor(TIMES, 40.0)
    for _ in range(2):
        governor.observe(57.0, 45.0)
    assert governor.level == 2, "12 pass before every run, as decoding does"

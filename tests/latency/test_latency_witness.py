"""A witness of a machine's speed: when it is slow, and how long it is waited for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from latency import witness as module
from latency.witness import GRACE_S, LEAST_STEPS, PATIENCE_S, PAUSE_S, READING_MS, Witness, witness


class Scripted:
    """A session that takes as long as it is told."""

    inputs = ()

    def __init__(self, ms: Iterator[float]) -> None:
        self.ms, self.steps, self.closed = ms, 0, False

    def bind(self, feeds: Any) -> None:
        assert feeds == {}

    def step(self) -> float:
        self.steps += 1
        return next(self.ms)

    def close(self) -> None:
        self.closed = True


def readings(*ms: float) -> Witness:
    """Return a witness that is going to read this."""
    return Witness(Scripted(one for each in ms for one in [each] * max(LEAST_STEPS, math.ceil(READING_MS / each))))  # type: ignore[arg-type]


def test_slow_is_longer_than_usual() -> None:
    present = readings(10, 10.5, 12.5, 10, 12, 10)
    found = [present.read() for _ in range(6)]
    assert found == [10, 10.5, 12.5, 10, 12, 10]
    assert [present.slow(ms) for ms in found] == [False, False, True, False, True, False]


def test_beside_is_the_longer_reading_before_and_behind() -> None:
    present = readings(10, 12, 10, 10, 10)
    found = [present.beside(lambda: len(present.readings)) for _ in range(3)]
    assert [ms for _, ms in found] == [12, 10, 10]
    assert [done for done, _ in found] == [1, 3, 4], "a reading behind one work stands before the next, unless the machine was slow"


@pytest.mark.parametrize(("slow", "waits"), [(0, 0), (3, 3), (1000, round(GRACE_S / PAUSE_S))])
def test_a_slow_machine_is_waited_for(slow: int, waits: int) -> None:
    usual = 1000
    present = readings(*[10] * usual, *[13] * slow, *[10] * 3)
    for _ in range(usual):
        present.read()
    slept: list[float] = []
    present.wait(slept.append)
    assert slept == [PAUSE_S] * waits
    present.wait(slept.append)
    assert len(slept) == waits, "patience ends, also over several waits"


@pytest.mark.parametrize(("seconds", "waits_s"), [(7.0, GRACE_S + 7.0), (1e4, PATIENCE_S)])
def test_patience_grows_with_the_work(seconds: float, waits_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 100.0 + seconds])
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    present = readings(10, 10, *[13] * 1000)
    present.known_ms = 10
    present.beside(lambda: None)
    slept: list[float] = []
    present.wait(slept.append)
    assert sum(slept) == waits_s


def test_a_machine_that_was_faster_before_is_slow_from_the_start() -> None:
    present = readings(12, 12, 9)
    assert not present.slow(present.read())
    present.known_ms = 10
    assert present.slow(present.read()) and present.usual_ms == 10
    present.read()
    assert present.usual_ms == 10, "a quarter of the readings at least"


def test_without_a_session_nothing_is_slow() -> None:
    with witness(None) as present:
        assert not present.slow(present.beside(lambda: None)[1])


def test_a_session_is_warmed_up_and_closed() -> None:
    session = Scripted(iter([90.0] * LEAST_STEPS + [60.0] * LEAST_STEPS))
    with witness(session) as present:  # type: ignore[arg-type]
        assert present.read() == 60 and session.steps == 2 * LEAST_STEPS
    assert session.closed

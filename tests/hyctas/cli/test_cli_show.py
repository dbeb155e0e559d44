"""The progress bar: how much time it says is left, on a terminal and elsewhere."""

from __future__ import annotations

import pytest
from rich.console import Console

from hyctas.cli import show


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let the time be what the list's last number says."""
    times = [0.0]
    monkeypatch.setattr(show.time, "monotonic", lambda: times[-1])
    return times


def test_lines_elsewhere(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    bar = show.Bar("job", None)
    bar.tell("an engine was built")
    clock.append(20)
    bar.tell("another engine was built")
    clock.append(40)
    bar.update(0.25, "1/4")  # it continues here: nothing is known of the pace
    clock.append(60)
    bar.update(0.5, "2/4")
    clock.append(61)
    bar.update(0.5, "too soon for a line")
    clock.append(80)
    bar.update(0.5, "2/4", 120.0)
    clock.append(100)
    bar.tell("a third engine was built")
    assert capsys.readouterr().err.splitlines() == [
        "job:   0%  another engine was built",
        "job:  25%  1/4",
        "job:  50%, 40 s left  2/4",
        "job:  50%, 2 min 00 s left  2/4",
        "job:  50%, 2 min 00 s left  a third engine was built",
    ]


def test_time_left_before_the_first_share(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    bar = show.Bar("job", None)
    clock.append(20)
    bar.tell("an engine was built", 300.0)
    clock.append(40)
    bar.update(0.25, "1/4", 120.0)
    clock.append(60)
    bar.tell("another engine was built", 280.0)
    assert capsys.readouterr().err.splitlines() == [
        "job:   0%, 5 min 00 s left  an engine was built",
        "job:  25%, 2 min 00 s left  1/4",
        "job:  25%, 2 min 00 s left  another engine was built",
    ]


def test_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(force_terminal=True, width=150)
    monkeypatch.setattr(show, "console", console)
    with console.capture() as capture, show.bar("job") as bar:
        bar.update(0.5, "2/4", 3900.0)
        bar.tell("an engine was built")
        assert bar._progress is not None
        bar._progress.refresh()
    text = capture.get()
    assert "1 h 05 min left" in text and "an engine was built" in text and "✓" in text

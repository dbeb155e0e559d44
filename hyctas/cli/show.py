"""Show progress: a bar with time left on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_SECONDS = 15.0
console = Console(stderr=True, highlight=False)


class Bar:
    """Shows how far a task is."""

    def __init__(self, name: str, progress: Progress | None) -> None:
        self.name, self._progress = name, progress
        self._task = progress.add_task(name, total=1.0, text="") if progress else None
        self._started = self._shown = time.monotonic()
        self._first: float | None = None

    def update(self, share: float, text: str = "") -> None:
        """Show a share of 0..1 and a few words."""
        now = time.monotonic()
        if self._first is None:  # a continued task starts in the middle
            self._first, self._started = share, now
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=share, text=text)
        elif now - self._shown >= LINE_SECONDS:
            self._shown = now
            done = share - self._first
            left = f", {duration((now - self._started) * (1 - share) / done)} left" if done > 0 else ""
            print(f"{self.name}: {share:4.0%}{left}  {text}", file=sys.stderr, flush=True)


@contextmanager
def bar(name: str) -> Iterator[Bar]:
    """Open a progress bar; a last line with the time taken stays."""
    started = time.monotonic()
    if console.is_terminal:
        columns = (TextColumn("{task.description:<22}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
                   TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[text]}"))  # fmt: skip
        with Progress(*columns, console=console, transient=True) as progress:
            yield Bar(name, progress)
    else:
        yield Bar(name, None)
    console.print(f"[green]✓[/] {name} ({duration(time.monotonic() - started)})" if console.is_terminal
                  else f"{name}: done in {duration(time.monotonic() - started)}")  # fmt: skip


def duration(seconds: float) -> str:
    """Write a duration for people."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def say(text: str) -> None:
    """Print a line to stdout."""
    print(text, flush=True)

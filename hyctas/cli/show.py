"""Show progress: a bar with time left on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from hyctas.cli.streams import printable
from hyctas.training.processes import is_first

LINE_SECONDS = 15.0
REFRESH_SECONDS = 0.5
console = Console(stderr=True, highlight=False)


class Shown(Protocol):
    """What somebody who works tells of the progress."""

    def update(self, share: float, text: str = "") -> None:
        """Show a share of 0..1, and a few words."""


Show = Callable[[str], AbstractContextManager[Shown]]
"""Opens a progress bar of a name."""


class Bar:
    """Shows how far a task is."""

    def __init__(self, name: str, progress: Progress | None, shown: bool = True) -> None:
        self.name, self._progress, self._silent = name, progress, not shown
        self._task = progress.add_task(name, total=1.0, text="", left="") if progress else None
        self._started = self._shown = time.monotonic()
        self._first: float | None = None
        self._share = 0.0
        self._left_s: float | None = None

    def update(self, share: float, text: str = "", left_s: float | None = None) -> None:
        """Show a share of 0..1, a few words, and the seconds left, by default as the share tells."""
        now = time.monotonic()
        if self._first is None:  # a continued task starts in the middle
            self._first, self._started = share, now
        done = share - self._first
        if left_s is None and done > 0:
            left_s = (now - self._started) * (1 - share) / done
        self._share, self._left_s = share, left_s
        self._show(text, now)

    def count(self, text: str, done: int, total: int) -> None:
        """Show steps done of so many (0: not known), as TensorRT counts them."""
        self.update(done / total if total else 0.0, text)

    def tell(self, text: str, left_s: float | None = None) -> None:
        """Show a few words; share and time left stay, and only before the first share `left_s` is the time left."""
        if self._first is None:
            self._left_s = left_s
        self._show(text, time.monotonic())

    def _show(self, text: str, now: float) -> None:
        text = printable(text)
        left = f"{duration(self._left_s)} left" if self._left_s is not None else ""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=self._share, text=text, left=left)
        elif not self._silent and now - self._shown >= LINE_SECONDS:
            self._shown = now
            print(f"{self.name}: {self._share:4.0%}{', ' * bool(left)}{left}  {text}", file=sys.stderr, flush=True)


@contextmanager
def bar(name: str) -> Iterator[Bar]:
    """Open a progress bar; a last line with the time taken stays. Of torchrun's processes only the first shows one."""
    if not is_first():
        yield Bar(name, None, shown=False)
        return
    started = time.monotonic()
    if console.is_terminal:
        columns = (TextColumn("{task.description:<22}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
                   TimeElapsedColumn(), TextColumn("{task.fields[left]}"),
                   TextColumn("{task.fields[text]}", markup=False))  # fmt: skip
        with Progress(*columns, console=console, transient=True) as progress:
            yield Bar(name, progress)
    else:
        yield Bar(name, None)
    console.print(f"[green]✓[/] {name} ({duration(time.monotonic() - started)})" if console.is_terminal
                  else f"{name}: done in {duration(time.monotonic() - started)}")  # fmt: skip


@contextmanager
def still_bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """Open a progress bar that draws only when it is called, between timings: a drawing thread would disturb them."""
    if not console.is_terminal:
        with bar(name) as shown:
            yield lambda done, total: shown.update(done / total)
        return
    columns = TextColumn("{task.description:<22}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as progress:
        task, drawn = progress.add_task(name), [0.0]
        progress.refresh()

        def show(done: int, total: int) -> None:
            if time.monotonic() - drawn[0] >= REFRESH_SECONDS or done == total:
                progress.update(task, completed=done, total=total, refresh=True)
                drawn[0] = time.monotonic()

        yield show


def duration(seconds: float) -> str:
    """Write a duration for people."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def say(text: str) -> None:
    """Print a line to stdout; of torchrun's processes only the first does."""
    if is_first():
        print(text, flush=True)

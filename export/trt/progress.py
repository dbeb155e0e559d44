"""Show how far a build is, and end it cleanly on Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

Progress = Callable[[str, int, int], None]
"""Is told what is done (phases from the outermost to the innermost), steps done, and steps in all (0: not known)."""


class Cancel:
    """Why a build is to end early: Ctrl-C, or what the caller's callback raised."""

    def __init__(self) -> None:
        self.interrupted = False
        self.error: BaseException | None = None

    def __bool__(self) -> bool:
        return self.interrupted or self.error is not None

    def raise_reason(self) -> None:
        """Raise what ended the build; nothing happens where nothing did."""
        if self.error is not None:
            raise self.error
        if self.interrupted:
            raise KeyboardInterrupt


def monitor_of(trt: Any, progress: Progress | None, cancel: Cancel) -> Any:
    """Return a `trt.IProgressMonitor` that reports to `progress` and cancels the build once `cancel` holds.

    An exception must not leave a callback of TensorRT's (it would only be printed): the first one is kept in `cancel`.
    """

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases: dict[str, tuple[str, int]] = {}
            self.lock = threading.Lock()  # TensorRT may report from several threads

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self.lock:
                outer = self.phases.get(parent_phase, ("", 0))[0] if parent_phase else ""
                self.phases[phase_name] = (f"{outer} > {phase_name}" if outer else phase_name, max(num_steps, 0))
                self.tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self.lock:
                self.tell(phase_name, step + 1)
            return not cancel

        def phase_finish(self, phase_name: str) -> None:
            with self.lock:
                self.phases.pop(phase_name, None)

        def tell(self, phase_name: str, done: int) -> None:
            if progress is None or cancel or phase_name not in self.phases:
                return
            text, total = self.phases[phase_name]
            try:
                progress(text, min(done, total) if total else done, total)
            except BaseException as error:
                cancel.error = error

    return Monitor()


@contextmanager
def interruptible(cancel: Cancel) -> Iterator[None]:
    """Let Ctrl-C set `cancel` meanwhile, and raise at the end at the latest.

    A KeyboardInterrupt would mostly arise inside one of TensorRT's calls back into Python, where it is printed and forgotten.
    Only the main thread may do this; elsewhere nothing is changed, since Python interrupts the main thread alone. A process that
    ignores Ctrl-C goes on ignoring it.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return

    def note(_number: int, _frame: FrameType | None) -> None:
        cancel.interrupted = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        # None: a handler that was not installed from Python, and cannot be put back by it
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
        if cancel.interrupted and cancel.error is None:  # also in place of a failure, after which a caller may go on
            raise KeyboardInterrupt

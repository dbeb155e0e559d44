"""Collect TensorRT's own messages, and make exceptions of its failures.

TensorRT reports most failures by None or False and a line in its log; `checked` turns them into `TensorRTFailed` with those lines.
One logger serves the whole process, since TensorRT keeps the first it is given.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from export.errors import HyctasError

Result = TypeVar("Result")
if TYPE_CHECKING:  # Python 3.10 cannot be trusted to evaluate the union
    Advice = str | Callable[[Sequence[str]], str]
    """What to do next, or a function that decides it from what TensorRT logged."""
KEPT = 200
"""Messages that are kept at most."""
_KEPT_SEVERITIES = ("INTERNAL_ERROR", "ERROR", "WARNING")


class TensorRTFailed(HyctasError):
    """A call of TensorRT failed.

    Attributes:
        what: what was tried.
        lines: TensorRT's errors and warnings during it.
        advice: what to do next; may be empty.
    """

    def __init__(self, what: str, lines: Sequence[str], advice: str = "") -> None:
        self.what, self.lines, self.advice = what, list(lines), advice
        said = "\n".join(f"  TensorRT: {line}" for line in lines) or "  TensorRT logged nothing"
        super().__init__(f"{what} failed.\n{said}" + (f"\n{advice}" if advice else ""))


class Messages:
    """What TensorRT said: errors and warnings as text, newest last; `listener` gets every message of any severity.

    TensorRT logs from several threads: nothing here but single operations on a deque, which Python makes atomic.
    """

    def __init__(self) -> None:
        self._kept: deque[tuple[str, str]] = deque(maxlen=KEPT)
        self.listener: Callable[[str, str], None] | None = None

    def add(self, severity: str, text: str) -> None:
        """Take a message; severity as TensorRT names it, for instance `WARNING`."""
        if severity in _KEPT_SEVERITIES:
            self._kept.append((severity, text))
        if self.listener is not None:
            self.listener(severity, text)

    def take(self) -> list[str]:
        """Return the errors and warnings kept so far as `severity: text`, and forget them."""
        lines = []
        while self._kept:
            severity, text = self._kept.popleft()
            lines.append(f"{severity.lower().replace('_', ' ')}: {text}")
        return lines


MESSAGES = Messages()


@contextmanager
def heard(beginning: str, found: list[str]) -> Iterator[None]:
    """Add the messages of any severity that begin with a text to a list."""
    before = MESSAGES.listener

    def listen(severity: str, text: str) -> None:
        if text.startswith(beginning):
            found.append(text)
        if before is not None:
            before(severity, text)

    MESSAGES.listener = listen
    try:
        yield
    finally:
        MESSAGES.listener = before


@cache
def logger_of(trt: Any) -> Any:
    """Return the process's logger, a subclass of `trt.ILogger` that feeds `MESSAGES`."""
    verbose = trt.ILogger.Severity.VERBOSE

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            # a build logs hundreds of thousands of verbose lines, each a call into Python: they end here
            if severity == verbose and MESSAGES.listener is None:
                return
            MESSAGES.add(str(severity).rpartition(".")[2], msg)

    return Logger()


def checked(what: str, call: Callable[[], Result | None], advice: Advice = "") -> Result:
    """Make one call of TensorRT, whose failures are None, False and exceptions, and return what it gives.

    `TensorRTFailed` where it failed: what the step was ("creating a network"), what TensorRT logged meanwhile, and what to do next.
    """
    result = attempted(what, call, advice)
    if result is None or result is False:
        raise _failed(what, MESSAGES.take(), advice)
    return result


def attempted(what: str, call: Callable[[], Result], advice: Advice = "") -> Result:
    """Make one call of TensorRT as `checked` does, whose only failure is an exception (setters, methods without a result)."""
    MESSAGES.take()
    try:
        return call()
    except Exception as error:  # pybind11 raises TypeError, RuntimeError and others for the same reasons
        raise _failed(what, [*MESSAGES.take(), f"{type(error).__name__}: {error}"], advice) from error


def _failed(what: str, lines: list[str], advice: Advice) -> TensorRTFailed:
    return TensorRTFailed(what, lines, advice if isinstance(advice, str) else advice(lines))

"""Let a command outlive its readers: what it prints is plain text, and a closed stdout or stderr does not end its work.

Names in files are other people's text. A terminal obeys escape sequences in it, so control characters are written out, as are
names that are not UTF-8.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from typing import TextIO

_UNSAFE = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")


def shortened(text: str, most: int = 4000) -> str:
    """Leave out the middle of what is too long for a sentence: a value out of a file may be of any length."""
    return text if len(text) <= most else f"{text[: most // 2]} ... {len(text) - most} characters more ... {text[-most // 2 :]}"


def printable(text: str) -> str:
    """Write control characters (line ends and tabs apart), changes of direction and halves of characters as escapes."""
    return _UNSAFE.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a name that is not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class Stream:
    """Stands for stdout or stderr while a command runs."""

    def __init__(self, inner: TextIO) -> None:
        self.inner = inner
        self.error: OSError | None = None
        """Why nothing can be written any more; None while all is well."""

    def write(self, text: str) -> int:
        """Write text, or nothing once the reader has left."""
        if self.error is None:
            with self._noting():
                self.inner.write(printable(text))
        return len(text)

    def flush(self) -> None:
        """Pass on what is written."""
        if self.error is None:
            with self._noting():
                self.inner.flush()

    @property
    def rich_proxied_file(self) -> TextIO | Stream:
        """Where rich writes: a terminal itself, since rich's own escape sequences are meant; else here."""
        return self.inner if self.inner.isatty() else self

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = error
            with contextlib.suppress(OSError, ValueError):  # what is left in buffers must not fail again at the end
                number = os.open(os.devnull, os.O_WRONLY)
                os.dup2(number, self.inner.fileno())
                os.close(number)


def open_standard_streams() -> None:
    """Open what was closed (`>&-`) on nothing, so that no file of ours gets its number and the text that libraries print."""
    number = os.open(os.devnull, os.O_RDWR)
    while number < 3:
        number = os.dup(number)
    os.close(number)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # for as long as the process lives


@contextlib.contextmanager
def guarded() -> Iterator[Stream]:
    """Let stdout and stderr be `Stream`s; yields stdout's."""
    before = sys.stdout, sys.stderr
    out, err = Stream(sys.stdout), Stream(sys.stderr)
    sys.stdout, sys.stderr = out, err
    try:
        yield out
    finally:
        out.flush()
        sys.stdout, sys.stderr = before

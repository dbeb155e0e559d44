"""Hold the errors that all packages of the project share, with the exit code that each command gives them.

A command that ends with one of these prints its text (no traceback) and exits with `exit_code`; any other exception is a
defect of ours and exits with 70. Errors carry their objects as attributes, so that callers and tests need not parse text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class HyctasError(Exception):
    """Base of every error that a user can cause and mend."""

    exit_code = 2


class CheckFailed(HyctasError):
    """A check that was asked for ran and did not hold (parity, fidelity, a table that no longer fits)."""

    exit_code = 1


class Infeasible(HyctasError):
    """No network of the space meets the limits that were asked for."""

    exit_code = 1


class InvalidInput(HyctasError):
    """An argument, a configuration value or an input file is not usable; the text says what is allowed."""


class InvalidSetting(InvalidInput):
    """A setting has a value of the wrong type, or outside its range.

    Attributes:
        name: the setting's.
        value: what it was given.
        allowed: what it may be, for people.
    """

    def __init__(self, name: str, value: object, allowed: str) -> None:
        self.name, self.value, self.allowed = name, value, allowed
        super().__init__(f"{name} is {value!r}; allowed: {allowed}")


class CorruptFile(HyctasError):
    """A file of ours cannot be read: truncated, edited by hand, or of an unknown format version.

    Attributes:
        path: the file.
        line: 1-based line number where known.
        reason: what is wrong with it.
    """

    def __init__(self, path: Path | str, reason: str, line: int | None = None) -> None:
        self.path, self.line, self.reason = Path(path), line, reason
        where = f"{path}" if line is None else f"{path}, line {line}"
        super().__init__(f"{where}: {reason}")


class TableMismatch(HyctasError):
    """A latency table was measured for something other than what is asked of it."""


class MissingKeys(HyctasError):
    """A latency table lacks rows.

    Attributes:
        keys: every missing key.
        command: the command that measures them.
    """

    def __init__(self, keys: Sequence[str], command: str) -> None:
        self.keys, self.command = tuple(keys), command
        shown = "\n  ".join(self.keys[:5])
        more = f"\n  ... and {len(self.keys) - 5} more" if len(self.keys) > 5 else ""
        missing = f"the latency table lacks {len(self.keys)} of the operators asked for:\n  {shown}{more}"
        super().__init__(f"{missing}\nMeasure them with:\n  {command}")


class Unavailable(HyctasError):
    """A target cannot run on this machine.

    Attributes:
        target: what was asked for.
        reason: why it cannot run.
        install: the command or step that makes it available.
    """

    exit_code = 3

    def __init__(self, target: str, reason: str, install: str) -> None:
        self.target, self.reason, self.install = target, reason, install
        super().__init__(f"{target} is unavailable: {reason}\nTo make it available: {install}")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

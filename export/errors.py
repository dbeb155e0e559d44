"""Hold the errors that all packages of the project share, with the exit code that each command gives them.

A command that ends with one of these prints its text (no traceback) and exits with `exit_code`; any other exception is a
bug in hyctas and exits with 70. Errors carry their objects as attributes, so that callers and tests need not parse text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Give:
    """A setting fixes an error: `value` says which, or what kind of value; empty: another one."""

    setting: str
    value: str = ""
    purpose: str = ""
    """What the value does, where the setting's name does not say it: "start without trained weights"."""


@dataclass(frozen=True)
class LeaveOut:
    """Settings that do not go with what was asked for."""

    settings: tuple[str, ...]


@dataclass(frozen=True)
class StartOver:
    """Only moving the old results aside helps, or is one of the ways."""


@dataclass(frozen=True)
class Perform:
    """A step of the whole job makes what is missing: `profile`, `train supernet`, `search`, `train network`, `export`, `bench`."""

    step: str
    settings: Mapping[str, object] = field(default_factory=dict)
    argument: str = ""


Remedy = Give | LeaveOut | StartOver | Perform | str
"""What fixes an error, as data; the command line says it with its flags (`hyctas.cli.advice`). A command may give a sentence."""


class HyctasError(Exception):
    """Base of every error that a user can cause and fix.

    Attributes:
        remedies: what fixes it, each by itself.
    """

    exit_code = 2

    def __init__(self, text: str = "", *remedies: Remedy) -> None:
        self.remedies = remedies
        super().__init__(text)


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

    def __init__(self, path: Path | str, reason: str, line: int | None = None, *remedies: Remedy) -> None:
        self.path, self.line, self.reason = Path(path), line, reason
        where = f"{path}" if line is None else f"{path}, line {line}"
        super().__init__(f"{where}: {reason}", *remedies)


class TableMismatch(HyctasError):
    """A latency table was measured for something other than what is asked of it."""


class MissingKeys(HyctasError):
    """A latency table lacks rows.

    Attributes:
        keys: every missing key.
        remedies: what measures them.
    """

    def __init__(self, keys: Sequence[str], *remedies: Remedy) -> None:
        self.keys = tuple(keys)
        shown = "\n  ".join(self.keys[:5])
        more = f"\n  ... and {len(self.keys) - 5} more" if len(self.keys) > 5 else ""
        super().__init__(f"the latency table lacks {len(self.keys)} of the operators asked for:\n  {shown}{more}", *remedies)


class Unavailable(HyctasError):
    """A target cannot run on this machine.

    Attributes:
        target: what was asked for.
        reason: why it cannot run.
        install: the command or step that makes it available.
    """

    exit_code = 3

    def __init__(self, target: str, reason: str, install: str, *remedies: Remedy) -> None:
        self.target, self.reason, self.install = target, reason, install
        super().__init__(f"{target} is unavailable: {reason}\nTo make it available: {install}", *remedies)


class Disconnected(HyctasError):
    """Another process or machine of a job that several do together is gone, or was never reached."""

    exit_code = 3


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

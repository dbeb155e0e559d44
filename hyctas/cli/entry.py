"""Read a command's arguments (command line and TOML), run it, and end with the exit code that its errors ask for."""

from __future__ import annotations

import errno
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro

from export.errors import Disconnected, HyctasError, InvalidInput
from hyctas.cli.advice import explain, flag
from hyctas.cli.flags import registry
from hyctas.cli.streams import guarded, open_standard_streams, printable, shortened
from hyctas.cli.values import read_toml
from hyctas.training.processes import joined, reports_first

T = TypeVar("T")
DEFECT = 70
ROOM = "make room or choose another place"
ADVICE = {
    errno.EFBIG: "allow larger files (ulimit -f; some file systems have a limit of their own)",
    errno.ELOOP: "name the file itself: symbolic links stand in a circle, or where none is followed",
    errno.EMFILE: "allow more open files (ulimit -n 1024)", errno.ENFILE: "close other programs", errno.EIO: "check the disk",
    errno.ENOMEM: "give it more memory", errno.ENOLCK: "choose a file system with locks",
    errno.EOPNOTSUPP: "choose a file system with locks",
}  # fmt: skip
USERS_ERRORS = {
    getattr(errno, name)
    for name in "ENOSPC EDQUOT EACCES EROFS EISDIR ENOTDIR EEXIST ENAMETOOLONG EPERM EBUSY ETXTBSY ENXIO ENODEV ESTALE".split()
} | set(ADVICE)
"""What the system refuses for reasons that a user can mend."""
INTERRUPTED = 130
FIRST_S = 5.0
"""Of torchrun's processes one tells of an error. The others, which have mostly met the same, or miss that one, wait so long before
they do: torchrun ends them."""
NO_READER = 141
"""As the shell counts a process that SIGPIPE ended; the work is done all the same."""


def command(
    run: Callable[[T], None], config: type[T], description: str, argv: Sequence[str] | None = None, *, name: str = "",
    example: str = "", resumes: bool = True,
) -> None:  # fmt: skip
    """Parse `config` (a dataclass) from the command line, call `run` with it, and exit.

    Help begins with `name`, the file's by default, and ends with `example`, arguments as somebody would give them. `resumes` says
    whether the same command goes on where it was stopped.

    `--config FILE.toml` fills the same fields; what is on the command line wins. Errors of the user end with one sentence and
    exit code 1, 2 or 3 (`export.errors`); a bug in hyctas ends with its traceback and 70.
    """
    open_standard_streams()
    try:
        parsed = _parse(config, description, list(sys.argv[1:] if argv is None else argv), name, example)
    except Exception as error:
        _end(error)
    with guarded() as out:
        try:
            run(parsed)
        except (Exception, KeyboardInterrupt) as error:
            _end(error, resumes)
        out.flush()
    if out.error is not None:  # the work is done, but nobody saw all that it says
        if not isinstance(out.error, BrokenPipeError):
            print(f"error: {out.error.strerror}: while writing to stdout. The files are whole.", file=sys.stderr)
        sys.exit(NO_READER if isinstance(out.error, BrokenPipeError) else InvalidInput.exit_code)


def _end(error: BaseException, resumes: bool = True) -> NoReturn:
    """End with what an exception has to say, and its exit code."""
    if not reports_first():
        _follow(error)
    if isinstance(error, HyctasError):
        print(f"error: {printable(shortened(explain(error)))}", file=sys.stderr)
        sys.exit(error.exit_code)
    if isinstance(error, FileNotFoundError):
        print(f"error: no such file: {printable(str(error.filename))}", file=sys.stderr)
        sys.exit(InvalidInput.exit_code)
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(NO_READER)
    if isinstance(error, OSError) and error.errno in USERS_ERRORS:
        where = printable(str(error.filename)) if error.filename else "while writing"
        advice = ADVICE.get(error.errno or 0, ROOM)
        print(f"error: {error.strerror}: {where}. What was written before is whole; {advice}, and repeat the command.",
              file=sys.stderr)  # fmt: skip
        sys.exit(InvalidInput.exit_code)
    if isinstance(error, KeyboardInterrupt):
        print(f"stopped{'; the same command continues' * resumes}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    traceback.print_exception(error)
    print("This is a bug in hyctas, not in your input. Please report it with the lines above.", file=sys.stderr)
    sys.exit(DEFECT)


def _follow(error: BaseException) -> None:
    """Let another of torchrun's processes tell of an error; return where this one must, too."""
    if joined() and isinstance(error, (Disconnected, KeyboardInterrupt)):  # mostly what the other one's error led to
        sys.exit(INTERRUPTED if isinstance(error, KeyboardInterrupt) else Disconnected.exit_code)
    if not isinstance(error, Disconnected):  # that has met none that could tell
        time.sleep(FIRST_S)


def _parse(job: type[T], description: str, arguments: list[str], name: str, example: str) -> T:
    """Return the job that the command line and `--config FILE.toml` describe; help and wrong flags end here."""
    given, marks = dict[str, Any](), [tyro.conf.SuppressFixed]
    if "--config" in arguments:
        at = arguments.index("--config")
        if at + 1 >= len(arguments):
            raise InvalidInput("--config takes a TOML file")
        given = read_toml(Path(arguments[at + 1]), job)
        arguments = arguments[:at] + arguments[at + 2 :]
        alternatives = getattr(job, "ALTERNATIVES", ())  # one of them on the command line replaces any in the file
        if {argument.partition("=")[0] for argument in arguments} & set(map(flag, alternatives)):
            given = {name: value for name, value in given.items() if name not in alternatives}
    else:  # with a file, --no-FLAG takes back what that sets
        marks.append(tyro.conf.FlagCreatePairsOff)
    text = f"{description}\n--config FILE.toml fills the same settings; what is on the command line wins."
    try:
        return tyro.cli(
            job, prog=name or None, args=arguments, description=text, config=tuple(marks), registry=registry(job, given)
        )
    except SystemExit as end:
        if not end.code and example:
            print(f"example: {name} {example}")
        raise
    finally:
        sys.stdout.flush()  # help is the end of a command: a reader that has left shows here

"""Read a command's arguments (command line and TOML), run it, and end with the exit code that its errors ask for."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import sys
import tomllib
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import tyro

from export.errors import HyctasError, InvalidInput
from hyctas.cli.values import field_names, flag_arguments

T = TypeVar("T")
DEFECT = 70
USERS_ERRORS = {getattr(errno, name) for name in "ENOSPC EDQUOT EACCES EROFS EISDIR ENOTDIR EEXIST ENAMETOOLONG EPERM".split()}
"""What the file system refuses for reasons that a user can mend."""
INTERRUPTED = 130


def command(run: Callable[[T], None], config: type[T], description: str, argv: Sequence[str] | None = None) -> None:
    """Parse `config` (a dataclass) from the command line, call `run` with it, and exit.

    `--config FILE.toml` fills the same fields; what is on the command line wins. Errors of the user end with one sentence and
    exit code 1, 2 or 3 (`export.errors`); a defect of ours ends with its traceback and 70.
    """
    try:
        arguments, expert = _with_toml(list(sys.argv[1:] if argv is None else argv), config)
        text = f"{description}\n\n--config FILE.toml fills the same settings; what is on the command line wins."
        parsed = tyro.cli(config, args=arguments, description=text, config=(tyro.conf.FlagCreatePairsOff,))
        run(replace(parsed, expert=json.dumps(expert)) if expert else parsed)  # type: ignore[type-var]
    except HyctasError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except FileNotFoundError as error:
        print(f"error: no such file: {error.filename}", file=sys.stderr)
        sys.exit(InvalidInput.exit_code)
    except BrokenPipeError:  # the reader of our output left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if error.errno not in USERS_ERRORS:
            _defect()
        print(f"error: {error.strerror}: {error.filename or 'while writing'}. What was written before is whole; "
              "make room or choose another place, and repeat the command.", file=sys.stderr)  # fmt: skip
        sys.exit(InvalidInput.exit_code)
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception:
        _defect()


def _defect() -> None:
    traceback.print_exc()
    print("This is a defect of hyctas, not of your input. Please report it with the lines above.", file=sys.stderr)
    sys.exit(DEFECT)


def _with_toml(arguments: list[str], config: type) -> tuple[list[str], dict[str, Any]]:
    """Replace `--config FILE` by the file's values as arguments; settings that are no flags are returned beside."""
    if "--config" not in arguments:
        return arguments, {}
    at = arguments.index("--config")
    if at + 1 >= len(arguments):
        raise InvalidInput("--config takes a TOML file")
    path = Path(arguments[at + 1])
    given = arguments[:at] + arguments[at + 2 :]
    try:
        values = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} is not valid TOML: {error}") from None
    known = field_names(config)
    if unknown := sorted(set(values) - known):
        raise InvalidInput(f"{path} has unknown keys {unknown}; known: {', '.join(sorted(known))}")
    flags = {field.name for field in dataclasses.fields(config)}
    extra: list[str] = []
    for name, value in values.items():
        flag = f"--{name.replace('_', '-')}"
        if name not in flags or any(argument == flag or argument.startswith(flag + "=") for argument in given):
            continue
        extra += flag_arguments(config, name, value)
    return [*given, *extra], {name: value for name, value in values.items() if name not in flags}

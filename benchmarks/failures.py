"""End a benchmark command as the project's own commands end: one sentence and the error's exit code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from export.errors import HyctasError
from hyctas.cli.advice import explain
from hyctas.cli.streams import printable


@contextmanager
def one_sentence() -> Iterator[None]:
    """Turn an error that a user can mend into its text on stderr and its exit code."""
    try:
        yield
    except HyctasError as error:
        print(f"error: {printable(explain(error))}", file=sys.stderr)
        sys.exit(error.exit_code)

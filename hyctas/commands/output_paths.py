"""Check where results are to be written, before any work is spent on them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from export.errors import InvalidInput
from export.files import utf8_path


def check_writable(path: Path) -> None:
    """Refuse a path that cannot be written to before work is spent on it.

    Raises:
        InvalidInput: no folder can be there, it is read-only, or the name is empty or too long.
    """
    if not path.name or len(os.fsencode(path.name)) > 200:  # temporary names beside it are longer
        raise InvalidInput(f"cannot write {str(path)!r}: give a name of 1 to 200 bytes")
    utf8_path(path.absolute())
    try:
        place = path.absolute().parent
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.stat()  # unlike `exists`, it tells of symbolic links in a circle
        while not place.exists():
            place = place.parent
        fits = place.is_dir() and os.access(place, os.W_OK | os.X_OK)
    except OSError as error:
        raise InvalidInput(f"cannot write {path}: {error.strerror}") from None
    if not fits:
        why = "you may not write there" if place.is_dir() else "it is no folder"
        raise InvalidInput(f"cannot write {path}: {place} is in the way, {why}")

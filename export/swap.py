"""Replace a folder whole: built beside the old one and renamed into its place.

A kill before the swap leaves the old folder; a kill between its two renames leaves the old one under `.NAME.previous`, from
which the next write goes on.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from export.claims import building_folder

Unlisted = Callable[[Path], list[Path]]


@contextmanager
def replaced_folder(folder: Path, unlisted: Unlisted) -> Iterator[Path]:
    """Yield an empty sibling folder to fill; on success it takes the place of `folder`, on an exception it is removed.

    Args:
        folder: what to make or replace.
        unlisted: given the old folder, returns the entries in it that are the user's own and move along.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    recover(folder, unlisted)
    with building_folder(folder) as building:
        yield building
        _swap(building, folder, unlisted)


def previous_of(folder: Path) -> Path:
    """Return where the old folder stands during a swap."""
    return folder.with_name(f".{folder.name}.previous")


def recover(folder: Path, unlisted: Unlisted) -> None:
    """Finish or undo a swap that was killed."""
    previous = previous_of(folder)
    if previous.is_symlink() or not previous.is_dir():
        return
    if not folder.exists():
        os.rename(previous, folder)
        return
    for entry in unlisted(previous):
        if not (folder / entry.name).exists():
            os.rename(entry, folder / entry.name)
    shutil.rmtree(previous)


def _swap(building: Path, folder: Path, unlisted: Unlisted) -> None:
    previous = previous_of(folder)
    if folder.exists():
        os.rename(folder, previous)
    try:
        os.rename(building, folder)
    except BaseException:
        if previous.exists():
            os.rename(previous, folder)
        raise
    recover(folder, unlisted)

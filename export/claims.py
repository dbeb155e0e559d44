"""Own a file or folder for as long as a process lives: nobody else takes it meanwhile, and what a kill leaves is known for it.

A claim is a `flock`, which the operating system releases when the process ends, however it ends. New names are random and are
made so that an existing file, or a symbolic link, is never written through.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

_BUILDING = re.compile(r"\.(.+)\.[0-9a-f]{12}\.(?:tmp|building)", re.DOTALL)
_left: dict[str, dict[str, list[str]]] = {}
"""What was half written when this process first wrote to a folder, by folder and file: each folder is listed once."""


def create_file(path: Path) -> tuple[Path, int]:
    """Make a new empty file beside `path`, hidden, with an owner; return its name and an open handle."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        name = _fresh(path, "tmp")
        with contextlib.suppress(FileExistsError):
            handle = os.open(name, flags, 0o666)
            if _own(handle):
                return name, handle
            os.close(handle)


@contextlib.contextmanager
def building_folder(path: Path) -> Iterator[Path]:
    """Yield a new empty folder beside `path`, hidden, with an owner; what is still there of it in the end is removed."""
    sweep(path)
    while True:
        name = _fresh(path, "building")
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            name.mkdir()
            handle = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            if _own(handle):
                break
            os.close(handle)
    try:
        yield name
    finally:
        shutil.rmtree(name, ignore_errors=True)
        os.close(handle)


def sweep(path: Path) -> None:
    """Remove what killed processes left beside `path` of their attempts to replace it; what a living one writes stays."""
    folder = os.path.abspath(path.parent)
    if folder not in _left:
        _left[folder] = _leftovers(folder)
    for name in _left[folder].get(path.name, ()):
        _remove_unowned(path.with_name(name))


def claim(path: Path) -> int | None:
    """Own a lock file, made where it is absent; None where a living process owns it. `release` gives it back."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        except OSError:
            os.close(handle)
            raise
        if os.fstat(handle).st_nlink:
            return handle
        os.close(handle)  # its last owner removed it in between


def release(path: Path, handle: int) -> None:
    """Give a lock file back."""
    with contextlib.suppress(OSError):
        path.unlink()
    os.close(handle)


def owner(path: Path) -> int | None:
    """Return the number of the process that owns a lock file, where the system tells."""
    with contextlib.suppress(OSError, ValueError):
        inode = path.stat().st_ino
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if words[1] == "FLOCK" and int(words[5].rpartition(":")[2]) == inode and int(words[4]) > 0:
                return int(words[4])
    return None


def _fresh(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.{suffix}")


def _own(handle: int) -> bool:
    """Own what was just made; False where a sweep was quicker. A file system without locks has no owners, and no sweeps."""
    with contextlib.suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX)
    return os.fstat(handle).st_nlink > 0


def _leftovers(folder: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            if match := _BUILDING.fullmatch(entry.name):
                found.setdefault(match[1], []).append(entry.name)
    return found


def _remove_unowned(path: Path) -> None:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # gone, or a link, which nobody here made
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
    except OSError:  # owned
        pass
    finally:
        os.close(handle)

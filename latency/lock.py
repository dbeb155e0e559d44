"""Let one process at a time measure on this machine."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

log = logging.getLogger(__name__)
_mutex = threading.RLock()
_held: dict[tuple[int, Path], int] = {}  # (process, file) -> depth


def lock_path() -> Path:
    """The lock file that all users of this machine share."""
    return Path(tempfile.gettempdir()) / "hyctas-measuring.lock"


@contextlib.contextmanager
def measuring(message: Callable[[str], None] | None = None, path: Path | None = None) -> Iterator[None]:
    """Hold the machine's measuring lock; wait for whoever holds it. Reentrant within a process.

    The operating system releases the lock when the process ends, however it ends; the file stays.

    Args:
        message: told once, before waiting, who holds the lock; default: logged as a warning.
        path: another lock file, for tests.
    """
    path = path or lock_path()
    with _mutex:
        me = (os.getpid(), path)
        if _held.get(me):
            _held[me] += 1
            try:
                yield
            finally:
                _held[me] -= 1
            return
        handle = _open(path)
        try:
            _acquire(handle, path, message or log.warning)
            _held[me] = 1
            try:
                yield
            finally:
                del _held[me]
        finally:
            os.close(handle)  # releases the lock


def _open(path: Path) -> int:
    # An existing file is opened without O_CREAT: Linux refuses that flag on another user's file in a sticky folder.
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    for attempt in (os.O_RDWR, os.O_RDONLY):
        with contextlib.suppress(FileNotFoundError, PermissionError):
            return os.open(path, attempt | flags)
    return os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o666)


def _acquire(handle: int, path: Path, message: Callable[[str], None]) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(handle, 32, 0).decode(errors="replace").strip()
        message(f"another process ({holder or 'unknown'}) is measuring on this machine; waiting for {path}")
        fcntl.flock(handle, fcntl.LOCK_EX)
    with contextlib.suppress(OSError):  # the name of the holder is a courtesy; a read-only handle cannot leave it
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"pid {os.getpid()}\n".encode(), 0)

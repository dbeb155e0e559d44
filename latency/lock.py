"""Let one process at a time measure on this machine.

The lock is a name in Linux's abstract socket namespace, not a file: it is the same whatever TMPDIR says, nothing can be planted
in its place that outlives the process that does it, and it is free the moment its holder ends, however it ends. Who waits is
connected to the holder, and is woken by the end of that connection. (Containers have namespaces of their own.)
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)
VARIABLE = "HYCTAS_MEASURING_LOCK"
_PAUSE_S = 0.05
_mutex = threading.RLock()
_held: dict[tuple[int, str], int] = {}  # (process, name) -> depth


def lock_name() -> str:
    """Name the lock that all users of this machine share; `HYCTAS_MEASURING_LOCK` names another, as tests do."""
    return os.environ.get(VARIABLE) or "hyctas-measuring"


@contextlib.contextmanager
def measuring(message: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the machine's measuring lock; wait for whoever holds it. Reentrant within a process.

    Args:
        message: told once, before waiting, who holds the lock; default: logged as a warning.
    """
    name = lock_name()
    with _mutex:
        me = (os.getpid(), name)
        if _held.get(me):
            _held[me] += 1
            try:
                yield
            finally:
                _held[me] -= 1
            return
        with _acquire(name, message or log.warning):
            _held[me] = 1
            try:
                yield
            finally:
                del _held[me]


def _acquire(name: str, message: Callable[[str], None]) -> socket.socket:
    """Return a socket that has the name; closing it gives the name back."""
    address, told = f"\0{name}", False
    while True:
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            server.bind(address)
            server.listen(64)
            return server
        except OSError as error:
            server.close()
            if error.errno != errno.EADDRINUSE:
                raise
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as waiting, contextlib.suppress(ConnectionError):
            waiting.connect(address)
            if not told:
                message(f"process {_peer(waiting)} is measuring on this machine; waiting until it has done")
                told = True
            waiting.recv(1)  # nothing is ever sent: this returns when the holder ends
        time.sleep(_PAUSE_S)


def _peer(connection: socket.socket) -> str:
    """Name the process that holds the lock."""
    number = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    return str(number) if number else "of another container"

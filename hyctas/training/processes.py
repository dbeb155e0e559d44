"""Tell the processes that torchrun started apart, before torch is imported, and join them."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from export.errors import Disconnected, first_line

if TYPE_CHECKING:
    import torch

JOIN_S = 300.0
"""How long processes wait for each other at the start, in seconds."""
SILENT_S = 1800.0
"""How long a process waits for another one that keeps its connection open and says nothing: longest where one of them labels images
for a teacher and the others are done. One that ends closes its connection, which is noticed at once."""
CONTINUES = "repeated, the same command continues from the last checkpoint"

_store: Any = None
"""What the processes of a group met at; None where there is no group."""
_groups = 0
"""Joined so far: each has keys of its own in the store, as it would else connect to what an earlier one left there."""


def is_first() -> bool:
    """Say whether this process is the one that prints and writes results: the only one, or torchrun's first."""
    return os.environ.get("RANK", "0") == "0"


def processes() -> int:
    """Return how many processes work together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def first_goes_first() -> Iterator[bool]:
    """Let the first process do what is inside before the others do; yields whether this is the first."""
    if processes() == 1:
        yield True
        return
    rank, _ = start_processes()
    if rank:
        barrier()
    yield rank == 0
    if rank == 0:  # where this one failed, torchrun ends the others
        barrier()


@contextmanager
def group_closed() -> Iterator[None]:
    """Leave the group of processes at the end, if it was joined; torch warns otherwise."""
    global _store
    try:
        yield
    finally:
        dist = sys.modules.get("torch.distributed")  # an error that came before it was needed ends at once
        if dist is not None and processes() > 1 and dist.is_initialized():
            dist.destroy_process_group()
            _store = None
            if signal.getsignal(signal.SIGTERM) is _stop:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)


def start_processes() -> tuple[int, int]:
    """Join the other processes when started by torchrun; return (rank, number of processes).

    Raises:
        Disconnected: they did not meet within `JOIN_S`.
    """
    import torch.distributed as dist

    if processes() > 1 and not dist.is_initialized():
        _join()
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _join() -> None:
    global _store, _groups
    import torch
    import torch.distributed as dist

    rank, world = int(os.environ.get("RANK", "0")), processes()
    try:
        if rank:
            _wait_for_first()
        store, _, _ = next(dist.rendezvous("env://", timeout=timedelta(seconds=JOIN_S)))
    except (OSError, RuntimeError, ValueError) as error:
        raise Disconnected(
            f"process {rank} of {world} did not meet the others at {os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')} "
            f"within {JOIN_S:.0f} s ({_reason(error)}); check that MASTER_ADDR and MASTER_PORT name the first one's machine, that "
            f"it can be reached, and that all {world} were started"
        ) from None
    _groups += 1
    _store = dist.PrefixStore(f"hyctas/{_groups}", store)
    if torch.cuda.is_available():
        torch.cuda.set_device(default_device())  # else every process talks to the first GPU, too
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    with connected():
        dist.init_process_group(backend, store=_store, rank=rank, world_size=world, timeout=timedelta(seconds=SILENT_S))
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop)


def _wait_for_first() -> None:
    """Wait until the first process, or its torchrun, listens; torch fills the screen where it waits in vain itself.

    Raises:
        OSError: it does not within `JOIN_S`.
        ValueError: no number of a port is given.
    """
    place, end = (os.environ.get("MASTER_ADDR", ""), int(os.environ.get("MASTER_PORT", ""))), time.monotonic() + JOIN_S
    while True:
        try:
            socket.create_connection(place, timeout=JOIN_S).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
        time.sleep(0.2)


def _reason(error: BaseException) -> str:
    """Return what an error of torch's says first, without its source file and its advice."""
    return re.sub(r"^\[\S+\] ", "", first_line(error)).partition(". ")[0].removesuffix(".")


def _stop(number: int, frame: object) -> None:
    raise Disconnected(f"stopped by SIGTERM, as another process of the training ended or torchrun was stopped; {CONTINUES}")


@contextmanager
def connected() -> Iterator[None]:
    """Exchange data with the other processes inside.

    Raises:
        Disconnected: one of them is gone.
    """
    try:
        yield
    except RuntimeError as error:
        raise Disconnected(
            f"another process of the training ended, or its machine cannot be reached ({_reason(error)}); {CONTINUES}"
        ) from error


def barrier() -> None:
    """Wait for the other processes.

    Raises:
        Disconnected: one of them is gone.
    """
    import torch.distributed as dist

    with connected():
        dist.barrier()


def reports_first() -> bool:
    """Say whether this process is the one to tell of an error, which ends it; torchrun then ends the others.

    Of processes that have joined it is the one that asks first, since the first of them may be gone; before, it is the first.
    """
    if _store is None:
        return is_first()
    try:
        first = bool(_store.add("reported", 1) == 1)
    except RuntimeError:  # the machine of the first process is gone
        first = True
    signal.signal(signal.SIGTERM, signal.SIG_IGN if first else signal.SIG_DFL)
    return first


def joined() -> bool:
    """Say whether this process is one of a group."""
    return _store is not None


def default_device() -> torch.device:
    """Return the GPU of this process if there is one, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")

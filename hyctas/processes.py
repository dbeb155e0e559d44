"""Tell the processes that torchrun started apart, before torch is imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


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
    import torch.distributed as dist

    from hyctas.training.loop import start_processes

    rank, _ = start_processes()
    if rank:
        dist.barrier()
    yield rank == 0
    if rank == 0:  # where this one failed, torchrun ends the others
        dist.barrier()


@contextmanager
def group_closed() -> Iterator[None]:
    """Leave the group of processes at the end, if it was joined; torch warns otherwise."""
    try:
        yield
    finally:
        dist = sys.modules.get("torch.distributed")  # an error that came before it was needed ends at once
        if dist is not None and processes() > 1 and dist.is_initialized():
            dist.destroy_process_group()

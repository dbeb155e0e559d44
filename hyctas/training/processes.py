"""Tell the processes that torchrun started apart, before torch is imported, and join them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


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


def start_processes() -> tuple[int, int]:
    """Join the other processes when started by torchrun; return (rank, number of processes)."""
    import torch
    import torch.distributed as dist

    if processes() > 1 and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(default_device())  # else every process talks to the first GPU, too
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def default_device() -> torch.device:
    """Return the GPU of this process if there is one, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")

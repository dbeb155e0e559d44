"""Exchange numbers among the processes of a training. A process that is alone gets its own back.

All raise `export.errors.Disconnected` where another process is gone, and all must be called by every process, in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hyctas.training.processes import connected, default_device


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over the processes, which have it in one shape; no gradient flows through it."""
    if not dist.is_initialized():
        return tensor.detach()
    total = tensor.detach().clone()
    with connected():
        dist.all_reduce(total)
    return total


def sum_numbers(numbers: Sequence[float]) -> list[float]:
    """Return the sum of each number over the processes."""
    if not dist.is_initialized():
        return list(numbers)
    total: list[float] = sum_over_processes(torch.tensor(numbers, dtype=torch.float64, device=default_device())).tolist()
    return total


def gather(tensor: Tensor) -> Tensor:
    """Return the tensors (...) of all processes, of one shape, stacked (processes, ...); no gradient flows through it."""
    if not dist.is_initialized():
        return tensor.detach()[None]
    found = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    with connected():
        dist.all_gather(found, tensor.detach().contiguous())
    return torch.stack(found)


def from_first(number: float) -> float:
    """Return the first process's number."""
    if not dist.is_initialized():
        return number
    shared = torch.tensor(number, dtype=torch.float64, device=default_device())
    with connected():
        dist.broadcast(shared, 0)
    return shared.item()


def sum_gradients(model: nn.Module) -> None:
    """Sum a model's gradients over the processes, in place; all have drawn the same networks, so the same tensors have one."""
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = sum_over_processes(torch.cat([g.flatten() for g in gradients]))
    for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(total.view_as(gradient))

"""Train batch norms with the statistics of all processes' batches, so that several processes compute what one would.

torch's own `SyncBatchNorm` is for GPUs, and for modules: a supernet's norms are function calls. This one runs on CPUs, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hyctas.training.collectives import gather, sum_over_processes


def synchronised_norms() -> AbstractContextManager[object]:
    """Return a context in which batch norms in training mode take their statistics over the batches of all processes.

    All processes must compute the same layers in the same order inside; gradients may be taken outside. Parameters' gradients are
    this process's part, as those of all others are: their sum over the processes is the gradient.
    """
    return _SynchronisedNorms() if dist.is_initialized() else nullcontext()


def moments(x: Tensor, dims: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, variance (biased) and count of the numbers of all processes over some dimensions; no gradient flows back.

    Args:
        x: any float; computed in fp32 at least, and combined in fp64 (Chan, Golub and LeVeque 1983, equation 2.1).
        dims: what to average over.
    """
    with torch.no_grad():
        variance, mean = torch.var_mean(x.to(torch.promote_types(x.dtype, torch.float32)), tuple(dims), correction=0)
    count = torch.full_like(mean, x.numel() / mean.numel(), dtype=torch.float64)
    counts, means, variances = gather(torch.stack([count, mean.double(), variance.double()])).unbind(1)  # each (processes, ...)
    total = counts.sum(0)
    mean = (counts * means).sum(0) / total
    variance = (counts * (variances + (means - mean).square())).sum(0) / total
    return mean, variance, total


class _SynchronisedNorms(TorchFunctionMode):
    """Replaces `torch.nn.functional.batch_norm`, which modules call, too."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (_batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))


def _batch_norm(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor, bias: Tensor, training: bool = False,
    momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Do what `torch.nn.functional.batch_norm` does with x (N, C, H, W)."""
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    mean, variance, count = moments(x, (0, 2, 3))
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        unbiased = variance * count / (count - 1)
        running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    mean, variance, count = (value.to(weight.dtype) for value in (mean, variance, count))
    y: Tensor = _Normalise.apply(x, weight, bias, mean, variance, count, eps)
    return y


class _Normalise(torch.autograd.Function):
    """Normalise x (N, C, H, W) by statistics (C,) that all processes' x have made."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, count: Tensor, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps = eps
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Ioffe and Szegedy, "Batch Normalization", ICML 2015, section 3, with sums over all processes."""
        x, weight, mean, variance, count = ctx.saved_tensors
        (gradient,) = gradients
        _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean, variance, None, None, False, ctx.eps, [False, True, True]
        )
        along, total = sum_over_processes(torch.stack([of_weight, of_bias])) / count  # each (C,)
        scale = (variance + ctx.eps).rsqrt()
        mean, along, total, factor = (v[:, None, None] for v in (mean, scale * along, total, scale * weight))
        of_x = factor * ((gradient - total) - along * (x - mean))
        return of_x.to(x.dtype), of_weight, of_bias, None, None, None, None

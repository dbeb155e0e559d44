"""Make the modules that one row of a table is measured on: an operator alone, in several copies, or behind its neighbours.

An operator that is timed alone pays what a network pays once: the call into the runtime, and a change of memory layout at its
inputs and outputs. Two modules whose difference is the operator leave that out:

| protocol       | long module                    | short module                | row                        |
|----------------|--------------------------------|-----------------------------|----------------------------|
| (default)      | operator                       | -                           | long                       |
| `copies` = k   | 2k copies, side by side        | k copies                    | (long - short) / k         |
| `in_context`   | operator behind 1x1 convolutions | those convolutions alone  | long - short               |

Copies are for operators of a few microseconds on a GPU, where launching takes longer than computing; context is for runtimes
that keep another layout between operators than at the edge of a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from latency.measure import Measurement, MeasurementFailed, Protocol

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Composition:
    """The modules to time for one row, and how their times become its latency."""

    modules: tuple[nn.Module, ...]
    """One, or the long one and the short one."""
    copies: tuple[int, ...]
    """How often each takes the operator's inputs."""
    divisor: int

    def combine(self, measured: tuple[Measurement, ...]) -> Measurement:
        """Return the row's measurement.

        Raises:
            MeasurementFailed: the long module is not slower than the short one, so that the difference means nothing.
        """
        if len(measured) == 1:
            return measured[0]
        long, short = measured
        median = (long.median_ms - short.median_ms) / self.divisor
        if median <= 0:
            raise MeasurementFailed(
                f"the difference of {long.median_ms:.4f} and {short.median_ms:.4f} ms is not positive: the operator is lost in "
                "the noise; measure on a quieter machine, with a larger budget, or with more copies"
            )
        below = ((long.median_ms - long.p10_ms) ** 2 + (short.p90_ms - short.median_ms) ** 2) ** 0.5 / self.divisor
        above = ((long.p90_ms - long.median_ms) ** 2 + (short.median_ms - short.p10_ms) ** 2) ** 0.5 / self.divisor
        flags = tuple(dict.fromkeys((*long.flags, *short.flags)))
        tail = (long.p99_ms - long.median_ms) / self.divisor
        return Measurement(
            median, max(median - below, median / 10), median + above, median + max(above, tail),
            median + max(above, tail), min(long.n, short.n), max(long.cv, short.cv),
            max(long.ci, short.ci), long.discarded + short.discarded, long.retaken + short.retaken, flags,
        )  # fmt: skip


def compose(operator: nn.Module, inputs: tuple[torch.Tensor, ...], protocol: Protocol) -> Composition:
    """Make what a protocol times for an operator."""
    if protocol.in_context:
        before = _pointwise(inputs)
        return Composition((_Behind(before, operator), _Behind(before, None)), (1, 1), 1)
    if protocol.copies > 1:
        k = protocol.copies
        return Composition((_Copies(operator, 2 * k), _Copies(operator, k)), (2 * k, k), k)
    return Composition((operator,), (1,), 1)


def _pointwise(inputs: tuple[torch.Tensor, ...]) -> nn.ModuleList:
    from torch import nn

    return nn.ModuleList(nn.Conv2d(x.shape[1], x.shape[1], 1) if x.dim() == 4 else nn.Identity() for x in inputs)


def _module(forward: Callable[..., object], **children: object) -> nn.Module:
    """Make a module from a function of its inputs and the children that it uses."""
    from torch import nn

    class Composed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, child in children.items():
                if isinstance(child, nn.Module):
                    self.add_module(name, child)

        def forward(self, *inputs: torch.Tensor) -> object:
            return forward(*inputs)

    return Composed().eval()


def _Behind(before: nn.ModuleList, operator: nn.Module | None) -> nn.Module:
    def forward(*inputs: torch.Tensor) -> object:
        made = tuple(module(x) for module, x in zip(before, inputs, strict=True))
        return operator(*made) if operator is not None else made

    return _module(forward, before=before, operator=operator)


def _Copies(operator: nn.Module, count: int) -> nn.Module:
    def forward(*inputs: torch.Tensor) -> object:
        arity = len(inputs) // count
        return tuple(operator(*inputs[i * arity : (i + 1) * arity]) for i in range(count))

    return _module(forward, operator=operator)

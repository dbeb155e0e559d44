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

from dataclasses import dataclass
from typing import TYPE_CHECKING

from latency.measure import Measurement, MeasurementFailed
from latency.protocol import Protocol

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
        from latency.composed import Before, Behind

        before = Before(inputs).eval()
        return Composition((Behind(before, operator).eval(), before), (1, 1), 1)
    if protocol.copies > 1:
        from latency.composed import Copies

        k = protocol.copies
        return Composition((Copies(operator, 2 * k).eval(), Copies(operator, k).eval()), (2 * k, k), k)
    return Composition((operator,), (1,), 1)

"""Keep a running average of weights: what a network is at the end of training, without the noise of its last steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """An exponential moving average of parameters.

    The decay warms up as min(decay, (1 + step) / (10 + step)), as in TensorFlow's `ExponentialMovingAverage(num_updates=)`: the
    average reaches over about the last ninth of a training too short for the decay, instead of back to its random start.

    Args:
        parameters: averaged from what they are now on.
        decay: between 0 and 1, both excluded.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = list(parameters), decay
        self.values = [parameter.detach().clone() for parameter in self.parameters]
        """The averages, in the order of the parameters; part of the checkpoint."""

    def update(self, step: int) -> None:
        """Add the parameters as they are after a step (0, 1, ...)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(self.values, self.parameters, 0)

    @torch.no_grad()
    def load(self, values: Sequence[Tensor]) -> None:
        """Continue from averages of an earlier process."""
        for value, saved in zip(self.values, values, strict=True):
            value.copy_(saved)

    @torch.no_grad()
    def apply(self) -> None:
        """Set the parameters to their averages."""
        for parameter, value in zip(self.parameters, self.values, strict=True):
            parameter.copy_(value)

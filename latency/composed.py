"""Put an operator beside its copies, or behind 1x1 convolutions (see `latency.compose`). Imports torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Copies(nn.Module):
    """Several copies of an operator side by side, on inputs of their own: those of copy 0 first."""

    def __init__(self, operator: nn.Module, count: int) -> None:
        super().__init__()
        self.operator, self.count = operator, count

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        arity = len(inputs) // self.count
        return tuple(self.operator(*inputs[i * arity : (i + 1) * arity]) for i in range(self.count))


class Before(nn.Module):
    """A 1x1 convolution on every input that is an image of features; other inputs as they are."""

    def __init__(self, inputs: tuple[torch.Tensor, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(x.shape[1], x.shape[1], 1) if x.dim() == 4 else nn.Identity() for x in inputs)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(layer(x) for layer, x in zip(self.layers, inputs, strict=True))


class Behind(nn.Module):
    """An operator behind those convolutions."""

    def __init__(self, before: Before, operator: nn.Module) -> None:
        super().__init__()
        self.before, self.operator = before, operator

    def forward(self, *inputs: Tensor) -> Tensor:
        y: Tensor = self.operator(*self.before(*inputs))
        return y

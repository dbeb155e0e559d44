"""Say what is timed (`Workload`) and what a prediction sums over (`Unit`); one opaque key names it in both."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from export.errors import InvalidInput

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Workload:
    """One module at one input size, to be timed on its own."""

    key: str
    """Identifies operator and shapes; opaque here."""
    op: str
    """The operator's family, the only thing that this package groups by."""
    build: Callable[[], nn.Module]
    """Makes the module (random weights will do). Picklable: a function of a module or a `functools.partial` of one."""
    inputs: tuple[tuple[int, ...], ...]
    """Shape of each input, with a batch of 1."""
    output: tuple[int, ...] | None = None
    """Shape of its output; none: no other operator can take it."""

    def __post_init__(self) -> None:
        if not self.key or not self.op:
            raise InvalidInput(f"a workload needs a key and an op; got key {self.key!r}, op {self.op!r}")
        if not self.inputs:
            raise InvalidInput(f"workload {self.key} has no inputs")
        for shape in self.inputs:
            if not shape or shape[0] != 1 or any(n < 1 for n in shape):
                raise InvalidInput(f"workload {self.key}: input shape {shape} must be positive with a batch of 1")

    def example_inputs(self) -> tuple[np.ndarray, ...]:
        """Draw standard normal float32 inputs; the same ones for the same key on every machine."""
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(self.key.encode()).digest()[:8], "big"))
        return tuple(rng.standard_normal(shape, dtype=np.float32) for shape in self.inputs)

    def example(self) -> tuple[nn.Module, tuple[Tensor, ...]]:
        """Build the module, in eval mode, with `example_inputs` as tensors: what runtimes and exports take."""
        import torch

        return self.build().eval(), tuple(map(torch.from_numpy, self.example_inputs()))


@dataclass(frozen=True)
class Unit:
    """One timed part of a network: a node of its plan. One that several branches share counts once."""

    key: str
    """The latency table's key."""
    macs: int


def unique(workloads: Sequence[Workload]) -> dict[str, Workload]:
    """Index workloads by key, in the order given.

    Raises:
        InvalidInput: one key stands for two different workloads.
    """
    found: dict[str, Workload] = {}
    for workload in workloads:
        first = found.setdefault(workload.key, workload)
        if (first.op, first.inputs) != (workload.op, workload.inputs):
            raise InvalidInput(
                f"key {workload.key} stands for two workloads: {first.op} {first.inputs} and {workload.op} {workload.inputs}"
            )
    return found

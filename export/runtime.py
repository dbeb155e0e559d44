"""One protocol for every runtime: a `Runtime` turns modules or files into `Session`s; a `Session` computes and is timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from export.errors import HyctasError, InvalidInput, Unavailable
from export.target import Target

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self  # noqa: UP035  # for the checker alone, as devices have Python 3.10


@dataclass(frozen=True)
class TensorSpec:
    """Name, static shape and numpy dtype of a model's input or output."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"


@runtime_checkable
class Session(Protocol):
    """A model loaded on a target: the base of all sessions. Not thread-safe. Leaving it as a context manager frees everything."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Compute the outputs for the given inputs (validated against `inputs`)."""
        ...

    def bind(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Place the inputs where the device reads them, once, before `step` is timed."""
        ...

    def step(self) -> float:
        """Run once on the bound inputs, without transfers, and return the elapsed time in milliseconds."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@runtime_checkable
class Runtime(Protocol):
    """A way to run models on one target with one thread count."""

    target: Target
    threads: int

    def versions(self) -> dict[str, str]:
        """Name the versions that decide the speed (runtime, driver), for a latency table's identity."""
        ...

    def load_file(self, path: Path) -> Session:
        """Load an exported model file."""
        ...

    def load_modules(self, modules: Sequence[tuple[torch.nn.Module, tuple[torch.Tensor, ...]]]) -> list[Session]:
        """Load modules (in eval mode) with their example inputs; runtimes that need an export do it for all at once."""
        ...


@runtime_checkable
class OperatorRuntime(Runtime, Protocol):
    """A runtime that loads parts of networks in another way than whole ones, for latency tables."""

    def operator_versions(self) -> dict[str, str]:
        """Name what decides the times of operators besides `versions()`, for a latency table's identity."""
        ...

    def load_operators(self, modules: Sequence[tuple[torch.nn.Module, tuple[torch.Tensor, ...]]]) -> list[Session | HyctasError]:
        """Load operators to be timed; in the place of one that cannot be loaded stands why.

        A module that comes several times is built as often, independently.
        """
        ...


@runtime_checkable
class LayerRuntime(Runtime, Protocol):
    """A runtime that can say how long each layer of a model takes."""

    times_layers: bool
    """Whether it does so on its target."""

    def time_parts(self, path: Path, *, warmup_ms: float, runs: int) -> dict[str, list[float]]:
        """Time the parts of a model whose nodes are named `<part>/...`, on random inputs (`export.onnx.join.wire`).

        What a runtime inserts between two parts, such as a change of layout, is counted with one of them; what it inserts before
        the model's outputs is left out. A layer that was fused from several parts belongs to the one that it starts with.

        Args:
            path: an ONNX file.
            warmup_ms: run untimed for at least this long, and twice.
            runs: timed runs.

        Returns:
            Milliseconds of every run, by part.
        """
        ...


def check_can_run(target: Target, threads: int, why_not: tuple[str, str] | None) -> None:
    """Refuse a runtime that cannot be opened.

    Args:
        target: what was asked for.
        threads: threads inside one operator.
        why_not: the reason and the install line where the target is unavailable, as `unavailable_reason` gives them.

    Raises:
        InvalidInput: fewer than one thread.
        Unavailable: the target cannot run here.
    """
    if threads < 1:
        raise InvalidInput(f"threads must be at least 1, got {threads}")
    if why_not is not None:
        raise Unavailable(str(target), *why_not)

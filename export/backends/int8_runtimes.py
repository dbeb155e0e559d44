"""Run int8 on a CPU: quantised files with activations in uint8, and modules that are quantised for their speed alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.backends.onnxruntime_session import OnnxRuntime, load_exported
from export.backends.openvino_session import OpenVinoRuntime
from export.errors import HyctasError
from export.files import write_bytes
from export.runtime import Session

if TYPE_CHECKING:
    import onnx
    import torch

    Modules = Sequence[tuple[torch.nn.Module, tuple[torch.Tensor, ...]]]

AT_RANDOM = "quantised with random data: for timing alone"


class Int8Modules:
    """What the int8 runtimes of a CPU do with modules: they are quantised with random data, for their speed alone.

    Whole networks keep float inputs and outputs; operators of a latency table have quantised ones, as inside a network.
    """

    _cache: Path | None

    if TYPE_CHECKING:

        def load_file(self, path: Path) -> Any: ...

    def load_modules(self, modules: Modules) -> list[Session]:
        """Export modules, quantise them with random data, and load them; inputs are named `x0, ...`."""
        from export.int8.quantise import quantised_at_random

        return self._loaded(modules, quantised_at_random)

    def load_operators(self, modules: Modules) -> list[Session | HyctasError]:
        """Export operators, quantise them with random data, inputs and outputs too, and load them."""
        from export.int8.quantised_operator import quantised_operator

        return [*self._loaded(modules, quantised_operator)]

    def operator_versions(self) -> dict[str, str]:
        """Return what else decides the times of operators: how they are quantised."""
        return {"quantised": "random data, weights int8 per channel, activations uint8"}

    def _loaded(self, modules: Modules, quantise: Callable[[onnx.ModelProto], onnx.ModelProto]) -> list[Session]:
        from export.onnx.foreign import load_model

        def load(path: Path) -> Session:
            made = path.with_suffix(f".{quantise.__name__}.onnx")
            write_bytes(made, quantise(load_model(path)).SerializeToString())
            session: Session = self.load_file(made)
            session.notes.append(AT_RANDOM)  # type: ignore[attr-defined]
            return session

        return load_exported(modules, self._cache, load)


class Int8OnnxRuntime(Int8Modules, OnnxRuntime):
    """ONNX Runtime for `onnxruntime-cpu:int8`."""


class Int8OpenVinoRuntime(Int8Modules, OpenVinoRuntime):
    """OpenVINO for `openvino-cpu:int8`."""

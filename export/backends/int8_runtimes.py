"""Run int8 on a CPU: quantised files with activations in uint8, and what is quantised for its speed alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.backends.onnxruntime_session import OnnxRuntime, load_exported
from export.backends.openvino_session import OpenVinoRuntime
from export.files import write_bytes
from export.runtime import Session

if TYPE_CHECKING:
    import torch

    Modules = Sequence[tuple[torch.nn.Module, tuple[torch.Tensor, ...]]]

AT_RANDOM = "quantised with random data: for timing alone"


class Int8Modules:
    """Quantises modules, and graphs of operators, with random data: for their speed alone. Inputs and outputs stay floats."""

    _cache: Path | None

    if TYPE_CHECKING:

        def load_file(self, path: Path) -> Any: ...

    def load_modules(self, modules: Modules) -> list[Session]:
        """Export modules, quantise them with random data, and load them; inputs are named `x0, ...`."""

        def load(path: Path) -> Session:
            session: Session = self.load_file(_quantised(path))
            session.notes.append(AT_RANDOM)  # type: ignore[attr-defined]
            return session

        return load_exported(modules, self._cache, load)

    def time_parts(self, path: Path, *, warmup_ms: float, runs: int) -> dict[str, list[float]]:
        """Quantise a model as a whole, with random data, and time its parts; see `export.runtime.LayerRuntime`."""
        return super().time_parts(_quantised(path), warmup_ms=warmup_ms, runs=runs)  # type: ignore[misc]


def _quantised(path: Path) -> Path:
    """Write a model in int8 beside it."""
    from export.int8.quantise import quantised_at_random
    from export.onnx.foreign import load_model

    made = path.with_suffix(".int8.onnx")
    write_bytes(made, quantised_at_random(load_model(path)).SerializeToString())
    return made


class Int8OnnxRuntime(Int8Modules, OnnxRuntime):
    """ONNX Runtime for `onnxruntime-cpu:int8`."""


class Int8OpenVinoRuntime(Int8Modules, OpenVinoRuntime):
    """OpenVINO for `openvino-cpu:int8`."""

"""Read ONNX files as the int8 targets of a CPU run them, and make int8 models of modules whose speed alone matters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from export.errors import HyctasError
from export.files import write_bytes
from export.runtime import Session

if TYPE_CHECKING:
    import torch

    Modules = Sequence[tuple[torch.nn.Module, tuple[torch.Tensor, ...]]]

AT_RANDOM = "quantised with random data: for timing alone"
NOT_QUANTISED = "no layer of it is quantised: it computes in fp32"


def int8_content(path: Path) -> tuple[bytes, list[str]]:
    """Return an ONNX file as CPU runtimes compute it in int8, and what a reader of its times should know.

    Raises:
        InvalidInput: no such file, or one beyond 2 GiB.
        CorruptFile: not a whole ONNX file.
    """
    from export.int8.quantise import is_quantised
    from export.int8.uint8_form import uint8_form
    from export.onnx.foreign import load_model

    model = load_model(path)
    return uint8_form(model).SerializeToString(), [] if is_quantised(model) else [NOT_QUANTISED]


def other_precision(metadata: dict[str, str], precision: str) -> list[str]:
    """Say of an int8 file of ours that it runs on a target of another precision, which leaves it as it stands."""
    if metadata.get("precision") != "int8" or precision == "int8":
        return []
    return ["it is quantised to int8; the targets for such files are onnxruntime-cpu:int8 and openvino-cpu:int8"]


class Int8Modules:
    """What the int8 runtimes of a CPU do with modules: they are quantised with random data, for their speed alone.

    Whole networks keep float inputs and outputs; operators of a latency table have quantised ones, as inside a network.
    """

    _cache: Path | None
    _QUANTISER: ClassVar[str] = "random data, weights int8 per channel, activations uint8"

    if TYPE_CHECKING:

        def load_file(self, path: Path) -> Any: ...

    def load_modules(self, modules: Modules) -> list[Session]:
        """Export modules, quantise them with random data, and load them; inputs are named `x0, ...`."""
        from export.int8.quantise import quantised_at_random

        return self._loaded(modules, quantised_at_random)

    def load_operators(self, modules: Modules) -> list[Session | HyctasError]:
        """Export operators, quantise them with random data, inputs and outputs too, and load them."""
        from export.int8.operators import quantised_operator

        return [*self._loaded(modules, quantised_operator)]

    def operator_versions(self) -> dict[str, str]:
        """Return what else decides the times of operators: how they are quantised."""
        return {"quantised": self._QUANTISER}

    def _loaded(self, modules: Modules, quantise: Any) -> list[Session]:
        from export.backends.onnxruntime_session import load_exported
        from export.onnx.foreign import load_model

        def load(path: Path) -> Session:
            made = path.with_suffix(f".{quantise.__name__}.onnx")
            write_bytes(made, quantise(load_model(path)).SerializeToString())
            session: Session = self.load_file(made)
            session.notes.append(AT_RANDOM)  # type: ignore[attr-defined]
            return session

        return load_exported(modules, self._cache, load)

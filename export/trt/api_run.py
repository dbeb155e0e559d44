"""Say what our code uses of TensorRT when it runs engines, as protocols. No torch here.

Contract tests hold them against the real classes of several versions; the fakes of our tests implement the same ones. What exists
in some versions only is no part of them (see `export.trt.versions`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

REAL = {
    "RuntimeLike": "Runtime",
    "EngineLike": "ICudaEngine",
    "ContextLike": "IExecutionContext",
    "InspectorLike": "EngineInspector",
    "ProfilerLike": "IProfiler",
}
"""By protocol: the class of the module `tensorrt` that must fit it."""


class ProfilerLike(Protocol):
    """Is told how long each layer of one run took; our subclass is `export.trt.layers.layer_times`."""

    def report_layer_time(self, layer_name: str, ms: float) -> None: ...


class InspectorLike(Protocol):
    """Describes an engine's layers."""

    def get_engine_information(self, format: Any, /) -> str: ...


class ContextLike(Protocol):
    """An engine's state for one run at a time. What returns bool returns False where it fails."""

    @property
    def profiler(self) -> Any: ...

    @profiler.setter
    def profiler(self, value: Any, /) -> None: ...

    @property
    def enqueue_emits_profile(self) -> bool: ...

    @enqueue_emits_profile.setter
    def enqueue_emits_profile(self, value: bool, /) -> None: ...

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int, /) -> bool: ...

    def set_input_shape(self, name: str, shape: tuple[int, ...], /) -> bool: ...

    def get_tensor_shape(self, name: str, /) -> Any: ...

    def set_tensor_address(self, name: str, memory: int, /) -> bool: ...

    def execute_async_v3(self, stream_handle: int, /) -> bool: ...


class EngineLike(Protocol):
    """A deserialised plan."""

    @property
    def num_io_tensors(self) -> int: ...

    def get_tensor_name(self, index: int, /) -> str: ...

    def get_tensor_mode(self, name: str, /) -> Any: ...

    def get_tensor_dtype(self, name: str, /) -> Any: ...

    def get_tensor_shape(self, name: str, /) -> Any: ...

    def get_tensor_format(self, name: str, /) -> Any: ...

    def get_tensor_profile_shape(self, name: str, profile_index: int, /) -> Sequence[Any]: ...

    def is_shape_inference_io(self, name: str, /) -> bool: ...

    def create_execution_context(self) -> ContextLike | None: ...

    def create_engine_inspector(self) -> InspectorLike | None: ...


class RuntimeLike(Protocol):
    """What deserialises plans."""

    def deserialize_cuda_engine(self, serialized_engine: bytes, /) -> EngineLike | None: ...

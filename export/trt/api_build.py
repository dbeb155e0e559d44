"""Say what our code uses of TensorRT when it builds engines, as protocols. No torch here.

Contract tests hold them against the real classes of several versions; the fakes of our tests implement the same ones. What exists
in some versions only is no part of them (see `export.trt.versions`).
"""

from __future__ import annotations

from typing import Any, Protocol

REAL: dict[str, str] = {
    "HostMemoryLike": "IHostMemory",
    "TensorLike": "ITensor",
    "NetworkLike": "INetworkDefinition",
    "ParserErrorLike": "ParserError",
    "ParserLike": "OnnxParser",
    "ProfileLike": "IOptimizationProfile",
    "TimingCacheLike": "ITimingCache",
    "ConfigLike": "IBuilderConfig",
    "BuilderLike": "Builder",
    "MonitorLike": "IProgressMonitor",
}
"""By protocol: the class of the module `tensorrt` that must fit it."""


class HostMemoryLike(Protocol):
    """Bytes that TensorRT owns; `bytes(memoryview(...))` copies them out."""

    @property
    def nbytes(self) -> int: ...


class TensorLike(Protocol):
    """A network's input or output."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> Any: ...


class NetworkLike(Protocol):
    """What the parser fills."""

    @property
    def num_layers(self) -> int: ...

    @property
    def num_inputs(self) -> int: ...

    @property
    def num_outputs(self) -> int: ...

    def get_input(self, index: int, /) -> Any: ...


class ParserErrorLike(Protocol):
    """Why the parser refused a node."""

    def code(self) -> Any: ...

    def desc(self) -> str: ...

    def node(self) -> int: ...

    def node_name(self) -> str: ...

    def node_operator(self) -> str: ...

    def local_function_stack(self) -> list[str]: ...


class ParserLike(Protocol):
    """Reads ONNX into a network."""

    @property
    def num_errors(self) -> int: ...

    def parse(self, model: bytes, /) -> bool: ...

    def get_error(self, index: int, /) -> Any: ...


class ProfileLike(Protocol):
    """Ranges of dynamic inputs."""

    def set_shape(self, input: str, min: tuple[int, ...], opt: tuple[int, ...], max: tuple[int, ...], /) -> None: ...


class TimingCacheLike(Protocol):
    """How long kernels took, from earlier builds."""

    def serialize(self) -> Any: ...

    def combine(self, input_cache: Any, ignore_mismatch: bool, /) -> bool: ...


class ConfigLike(Protocol):
    """How to build."""

    builder_optimization_level: int
    avg_timing_iterations: int
    max_aux_streams: int
    profiling_verbosity: Any
    progress_monitor: Any

    def set_flag(self, flag: Any, /) -> None: ...

    def clear_flag(self, flag: Any, /) -> None: ...

    def set_memory_pool_limit(self, pool: Any, pool_size: int, /) -> None: ...

    def get_memory_pool_limit(self, pool: Any, /) -> int: ...

    def add_optimization_profile(self, profile: Any, /) -> int: ...

    def create_timing_cache(self, serialized_timing_cache: bytes, /) -> Any: ...

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool, /) -> bool: ...

    def get_timing_cache(self) -> Any: ...


class BuilderLike(Protocol):
    """What makes everything else."""

    def create_network(self, flags: int, /) -> Any: ...

    def create_builder_config(self) -> Any: ...

    def create_optimization_profile(self) -> Any: ...

    def build_serialized_network(self, network: Any, config: Any, /) -> Any: ...


class MonitorLike(Protocol):
    """Is told how far a build is; our subclass is `export.trt.progress.monitor_of`."""

    def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None: ...

    def step_complete(self, phase_name: str, step: int) -> bool: ...

    def phase_finish(self, phase_name: str) -> None: ...

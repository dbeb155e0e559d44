"""Stand in for the module `tensorrt` when engines are built: same names, same ways to fail, no library behind them.

`fake_tensorrt("10.3.0")` and `fake_tensorrt("11.4.0")` differ as the real ones do (contract tests hold the numbers against the real
bindings). They parse real ONNX bytes, keep a record of what was asked of them, and fail where `fails` says so:

| step         | failure                                             | step         | failure                                    |
|--------------|-----------------------------------------------------|--------------|--------------------------------------------|
| `builder`    | raises TypeError, as pybind11 for a null pointer    | `shape`      | `set_shape` raises RuntimeError            |
| `network`    | `create_network` gives None                         | `ranges`     | `add_optimization_profile` gives -1        |
| `parser`     | raises TypeError                                    | `cache`      | `create_timing_cache` gives None           |
| `parse`      | `parse` gives False; nodes in `refused` are errors  | `attach`     | `set_timing_cache` gives False             |
| `config`     | `create_builder_config` gives None                  | `combine`    | `combine` gives False                      |
| `configure`  | a setter raises RuntimeError                        | `serialize`  | the cache's `serialize` gives None         |
| `profile`    | `create_optimization_profile` gives None            | `build`      | `build_serialized_network` gives None      |

Each failure logs `logs[step]`, or an error that names the step. What a logger raises is lost, as in the bindings; a limit above the
memory of the device (`MEMORY_BYTES`) is not taken, and only the log says so.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import onnx

STEPS = 6
"""Steps of the build's inner phase."""
MEMORY_BYTES = 8 << 30
"""Of the device, and the limit of the workspace where none is set."""


@dataclass
class Record:
    """What was asked of a fake, and what it is to do."""

    version: str
    device: str
    fails: frozenset[str]
    logs: Mapping[str, str]
    refused: Mapping[str, str]
    calls: list[str] = field(default_factory=list)
    flags: int | None = None
    """Of the network."""
    config: Any = None
    while_building: Callable[[], None] = lambda: None
    """Called in the middle of a build."""


def plan_of(plan: bytes) -> dict[str, Any]:
    """Return what a fake engine says of its build."""
    return dict(json.loads(plan))


def cache_file(version: str, device: str, *entries: str) -> bytes:
    """Return a timing cache as a fake writes it."""
    return json.dumps({"version": version, "device": device, "entries": sorted(entries)}).encode()


def facts() -> dict[str, Any]:
    """Say how our subclasses and the enumerations behave with the `tensorrt` that this process imports, real or not."""
    import tensorrt as trt

    from export.trt.log import MESSAGES, logger_of
    from export.trt.progress import Cancel, monitor_of
    from export.trt.versions import network_flags

    logger, cancel, seen = logger_of(trt), Cancel(), list[tuple[str, int, int]]()
    for severity in ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"):
        logger.log(getattr(trt.ILogger.Severity, severity), f"said {severity}")
    monitor = monitor_of(trt, lambda *state: seen.append(state), cancel)
    monitor.phase_start("outer", None, 2)
    monitor.phase_start("inner", "outer", 3)
    going = [monitor.step_complete("inner", 0)]
    cancel.interrupted = True
    going.append(monitor.step_complete("inner", 1))
    monitor.phase_finish("inner")
    plugins = "PREFER_AOT_PYTHON_PLUGINS" in trt.NetworkDefinitionCreationFlag.__members__
    return {
        "is_logger": isinstance(logger, trt.ILogger),
        "is_monitor": isinstance(monitor, trt.IProgressMonitor),
        "lines": MESSAGES.take(),
        "seen": seen,
        "going": going,
        "network_flags": [network_flags(trt, plugins=with_plugins) for with_plugins in ((False, True) if plugins else (False,))],
        "NetworkDefinitionCreationFlag": _members(trt.NetworkDefinitionCreationFlag),
        "BuilderFlag": _members(trt.BuilderFlag),
        "MemoryPoolType": _members(trt.MemoryPoolType),
        "ProfilingVerbosity": _members(trt.ProfilingVerbosity),
        "ErrorCode": _members(trt.ErrorCode),
        "code": str(trt.ErrorCode.UNSUPPORTED_NODE),
    }


def _members(enumeration: Any) -> dict[str, int]:
    return {name: int(member) for name, member in enumeration.__members__.items()}


def fake_tensorrt(
    version: str,
    *,
    device: str = "Fake GPU",
    fails: Sequence[str] = (),
    logs: Mapping[str, str] | None = None,
    refused: Mapping[str, str] | None = None,
) -> Any:
    """Return a module that behaves as a version of TensorRT; its `record` tells what happened."""
    module: Any = ModuleType("tensorrt")
    module.__version__ = version
    module.record = Record(version, device, frozenset(fails), logs or {}, refused or {})
    old = version.startswith("10.")
    flags = {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1} if old else {"STRONGLY_TYPED": 0}
    if not version.startswith("10.3."):
        flags |= {"PREFER_JIT_PYTHON_PLUGINS": 1 + old, "PREFER_AOT_PYTHON_PLUGINS": 2 + old}
    module.NetworkDefinitionCreationFlag = _numbered("NetworkDefinitionCreationFlag", flags)
    module.BuilderFlag = _numbered("BuilderFlag", ({"FP16": 0, "INT8": 1, "FP8": 15} if old else {}) | {"DEBUG": 2, "TF32": 6})
    module.MemoryPoolType = _numbered("MemoryPoolType", {"WORKSPACE": 0})
    module.ProfilingVerbosity = _numbered("ProfilingVerbosity", {"LAYER_NAMES_ONLY": 0, "NONE": 1, "DETAILED": 2})
    module.ErrorCode = _numbered("ErrorCode", {"UNSUPPORTED_NODE": 8})
    module.ILogger, module.IProgressMonitor = ILogger, IProgressMonitor
    module.Builder = lambda logger: Builder(module, logger)
    module.OnnxParser = lambda network, logger: OnnxParser(module, network, logger)
    return module


class Severity(enum.Enum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __str__(self) -> str:
        return f"Severity.{self.name}"


class ILogger:
    Severity = Severity

    def __init__(self) -> None:
        self.made = True

    def log(self, severity: Severity, msg: str) -> None:
        raise NotImplementedError


class IProgressMonitor:
    def __init__(self) -> None:
        self.made = True

    def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None:
        raise NotImplementedError

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise NotImplementedError

    def phase_finish(self, phase_name: str) -> None:
        raise NotImplementedError


class HostMemory(bytes):
    @property
    def nbytes(self) -> int:
        return len(self)


class _Part:
    """An object of the module's, which can log and fail."""

    def __init__(self, module: Any, logger: Any) -> None:
        self.module, self.logger, self.record = module, logger, module.record

    def log(self, severity: Severity, text: str) -> None:
        with contextlib.suppress(BaseException):
            self.logger.log(severity, text)

    def fails(self, step: str) -> bool:
        self.record.calls.append(step)
        if step in self.record.fails:
            self.log(Severity.ERROR, self.record.logs.get(step, f"the step {step} was told to fail"))
            return True
        self.log(Severity.VERBOSE, f"{step} went well")
        return False


class Builder(_Part):
    def __init__(self, module: Any, logger: Any) -> None:
        assert isinstance(logger, ILogger) and logger.made, "a logger must derive from ILogger and call its constructor"
        super().__init__(module, logger)
        if self.fails("builder"):
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def create_network(self, flags: int = 0) -> Network | None:
        self.record.flags = flags
        return None if self.fails("network") else Network()

    def create_builder_config(self) -> Config | None:
        self.record.config = None if self.fails("config") else Config(self.module, self.logger)
        return self.record.config

    def create_optimization_profile(self) -> OptimizationProfile | None:
        return None if self.fails("profile") else OptimizationProfile(self.module, self.logger)

    def build_serialized_network(self, network: Network, config: Config) -> HostMemory | None:
        self.log(Severity.WARNING, "a warning of the build")
        if self.fails("build") or not _run_phases(self, network, config):
            return None
        described = {"version": self.record.version, "layers": network.num_layers, "graph": network.sha256, "config": config.told()}
        return HostMemory(json.dumps(described).encode())


class Network:
    def __init__(self) -> None:
        self.graph = onnx.GraphProto()
        self.sha256 = ""

    @property
    def num_layers(self) -> int:
        return sum(node.op_type != "Constant" for node in self.graph.node)

    @property
    def num_inputs(self) -> int:
        return len(self.graph.input)

    @property
    def num_outputs(self) -> int:
        return len(self.graph.output)

    def get_input(self, index: int) -> Tensor:
        return Tensor(self.graph.input[index])


class Tensor:
    def __init__(self, info: onnx.ValueInfoProto) -> None:
        self.name = info.name
        dims = info.type.tensor_type.shape.dim
        self.shape = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims]


class OnnxParser(_Part):
    def __init__(self, module: Any, network: Network, logger: Any) -> None:
        super().__init__(module, logger)
        self.network = network
        self.errors: list[ParserError] = []
        if self.fails("parser"):
            raise TypeError("pybind11::init(): factory function returned nullptr")

    @property
    def num_errors(self) -> int:
        return len(self.errors)

    def get_error(self, index: int) -> ParserError:
        return self.errors[index]

    def parse(self, model: bytes, path: str | None = None) -> bool:
        self.network.graph = onnx.ModelProto.FromString(model).graph
        self.network.sha256 = hashlib.sha256(model).hexdigest()
        bodies = {function.name: function.node for function in onnx.ModelProto.FromString(model).functions}
        self.errors = []
        for index, node in enumerate(self.network.graph.node):
            self._refuse(index, node)
            for inner in bodies.get(node.op_type, ()):
                self._refuse(index, inner, f"{node.name} ({node.op_type})")
        return not self.fails("parse") and not self.errors

    def _refuse(self, index: int, node: onnx.NodeProto, *stack: str) -> None:
        if node.name in self.record.refused:
            code = self.module.ErrorCode.UNSUPPORTED_NODE
            self.errors.append(ParserError(code, index, node, self.record.refused[node.name], stack))


class ParserError:
    def __init__(self, code: Any, index: int, node: onnx.NodeProto, reason: str, stack: Sequence[str] = ()) -> None:
        self._code, self._index, self._node, self._reason, self._stack = code, index, node, reason, list(stack)

    def code(self) -> Any:
        return self._code

    def desc(self) -> str:
        return self._reason

    def node(self) -> int:
        return self._index

    def node_name(self) -> str:
        return str(self._node.name)

    def node_operator(self) -> str:
        return str(self._node.op_type)

    def local_function_stack(self) -> list[str]:
        return self._stack


class OptimizationProfile(_Part):
    shapes: dict[str, tuple[tuple[int, ...], ...]]

    def set_shape(self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> None:
        if self.fails("shape"):
            raise RuntimeError("Shape provided for min is inconsistent with other shapes.")
        self.shapes = {**getattr(self, "shapes", {}), input: (tuple(min), tuple(opt), tuple(max))}


class Config(_Part):
    def __init__(self, module: Any, logger: Any) -> None:
        super().__init__(module, logger)
        self.on = {module.BuilderFlag.TF32}
        self.pools: dict[str, int] = {}
        self.profiles: list[OptimizationProfile] = []
        self.cache: TimingCache | None = None
        self.avg_timing_iterations = 1
        self.max_aux_streams = -1
        self.profiling_verbosity = module.ProfilingVerbosity.LAYER_NAMES_ONLY
        self.progress_monitor: Any = None
        self._level = 3

    @property
    def builder_optimization_level(self) -> int:
        return self._level

    @builder_optimization_level.setter
    def builder_optimization_level(self, level: int) -> None:
        if self.fails("configure"):
            raise RuntimeError("the level was refused")
        self._level = level

    def set_flag(self, flag: Any) -> None:
        self.on.add(flag)

    def clear_flag(self, flag: Any) -> None:
        self.on.discard(flag)

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        if pool_size > MEMORY_BYTES:
            self.log(Severity.ERROR, f"a limit of {pool_size} bytes is above the device's memory")
            return
        self.pools[pool.name] = pool_size

    def get_memory_pool_limit(self, pool: Any) -> int:
        return self.pools.get(pool.name, MEMORY_BYTES)

    def add_optimization_profile(self, profile: OptimizationProfile) -> int:
        if self.fails("ranges"):
            return -1
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache | None:
        if self.fails("cache"):
            return None
        if not serialized_timing_cache:
            return TimingCache(self.module, self.logger, self.record.version, self.record.device, set())
        try:
            read = json.loads(serialized_timing_cache)
        except ValueError:
            self.log(Severity.ERROR, "the serialized cache is corrupt")
            return None
        return TimingCache(self.module, self.logger, read["version"], read["device"], set(read["entries"]))

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        if self.fails("attach"):
            return False
        if not ignore_mismatch and cache.device != self.record.device:
            self.log(Severity.ERROR, f"the cache is of {cache.device}")
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> TimingCache | None:
        return self.cache

    def told(self) -> dict[str, Any]:
        return {
            "tf32": self.module.BuilderFlag.TF32 in self.on,
            "flags": sorted(flag.name for flag in self.on),
            "level": self._level,
            "iterations": self.avg_timing_iterations,
            "streams": self.max_aux_streams,
            "verbosity": self.profiling_verbosity.name,
            "pools": self.pools,
            "profiles": [profile.shapes for profile in self.profiles],
        }


class TimingCache(_Part):
    def __init__(self, module: Any, logger: Any, version: str, device: str, entries: set[str]) -> None:
        super().__init__(module, logger)
        self.version, self.device, self.entries = version, device, entries

    def serialize(self) -> HostMemory | None:
        if self.fails("serialize"):
            return None
        return HostMemory(cache_file(self.version, self.device, *self.entries))

    def combine(self, input_cache: TimingCache, ignore_mismatch: bool) -> bool:
        if self.fails("combine") or input_cache.version != self.version:
            return False
        self.entries |= input_cache.entries
        return True


def _run_phases(builder: Builder, network: Network, config: Config) -> bool:
    """Report as TensorRT does: a phase inside another; False as soon as a step is answered with False."""
    monitor = config.progress_monitor
    monitor.phase_start("Building", None, 1)
    monitor.phase_start("Timing kernels", "Building", STEPS)
    going = True
    for step in range(STEPS):
        if step == STEPS // 2:
            builder.record.while_building()
        if config.cache is not None:
            config.cache.entries.add(f"kernel {step}")
        going = monitor.step_complete("Timing kernels", step)
        if not going:
            builder.log(Severity.ERROR, "the build was cancelled")
            break
    monitor.phase_finish("Timing kernels")
    if going:
        going = monitor.step_complete("Building", 0)
    monitor.phase_finish("Building")
    return going


def _numbered(name: str, members: Mapping[str, int]) -> Any:
    """Return an enumeration as pybind11 makes them: not integers, but convertible to them."""
    made = enum.Enum(name, dict(members))
    made.__int__ = lambda self: self.value  # type: ignore[attr-defined]
    return made

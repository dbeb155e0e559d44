"""A TensorRT that computes on `FakeGpu`: its plans are JSON, and every output is twice the input of the same place, repeated or
cut where it has another shape.

It behaves as the real one where our code must mind it: failures are None or False and a line in the log, nothing may be constructed
without a GPU, a plan of another version is refused, the names of 10.x and 11.x differ.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, IntEnum
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from export.errors import Unavailable
from export.files import sha256
from export.trt import engine_file, log
from export.trt.cuda import guard
from export.trt.cuda.device import DeviceBackend
from export.trt.cuda.device_cuda_bindings import CudaBindingsBackend
from export.trt.cuda.guard import Gpu
from export.trt.runner import EngineSession
from tests.export.trt.fakes_cuda import fake_cuda_bindings, module
from tests.export.trt.fakes_gpu import FakeGpu

if TYPE_CHECKING:
    import pytest

try:
    from ml_dtypes import bfloat16, float8_e4m3fn
except ImportError:  # a device
    _EXTRA = {}
else:
    _EXTRA = {"BF16": bfloat16, "FP8": float8_e4m3fn}

DTYPES: dict[str, Any] = {"FLOAT": np.float32, "HALF": np.float16, **_EXTRA, "INT32": np.int32, "UINT8": np.uint8, "INT8": np.int8}
VERSIONS = ("10.3.0", "10.16.1", "11.4.0")
MAGIC = b"fake plan "
SHAPE = (1, 3, 4, 6)


class Severity(Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class DataType(Enum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    UINT8 = 5
    FP8 = 6
    BF16 = 7
    INT64 = 8
    INT4 = 9

    def __str__(self) -> str:
        return f"DataType.{self.name}"


class TensorIOMode(Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class TensorFormat(IntEnum):
    LINEAR = 0
    HWC8 = 1


class LayerInformationFormat(Enum):
    ONELINE = 0
    JSON = 1


class ILogger:
    Severity = Severity

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


class IProfiler:
    def report_layer_time(self, layer_name: str, ms: float) -> None:
        raise NotImplementedError


def plan(
    inputs: Mapping[str, Sequence[Any]] | None = None,
    outputs: Mapping[str, Sequence[Any]] | None = None,
    *,
    version: str = VERSIONS[1],
    ms: float = 0.25,
    layers: Sequence[Any] = ("conv", "relu", "conv"),
    profile: Mapping[str, Sequence[Sequence[int]]] | None = None,
    formats: Mapping[str, str] | None = None,
    shape_tensors: Sequence[str] = (),
    attention_scale: float | None = None,
) -> bytes:
    """Write a plan: tensors as name -> (type, extents...), -1 for dynamic ones, whose `profile` is (minimum, optimum, maximum).

    With `attention_scale` its first output is the attention of its inputs q, k and v.
    """
    value = {
        "version": version,
        "inputs": inputs or {"x": ["FLOAT", *SHAPE]},
        "outputs": outputs or {"y": ["FLOAT", *SHAPE]},
        "ms": ms,
        "layers": layers,
        "profile": profile or {},
        "formats": formats or {},
        "shape_tensors": shape_tensors,
        "attention_scale": attention_scale,
    }
    return MAGIC + json.dumps(value).encode()


class FakeTensorRT:
    """State of a fake `tensorrt`.

    Attributes:
        gpu: None where there is none, so that constructing anything would end the process.
        fail: by the name of a call: what TensorRT logs as an error when it fails.
        made: what was constructed, in order.
    """

    def __init__(self, gpu: FakeGpu | None, version: str = VERSIONS[1]) -> None:
        self.gpu, self.version = gpu, version
        self.fail: dict[str, str] = {}
        self.made: list[str] = []
        self.logger: Any = None
        self.module = self._module()

    def refused(self, call: str) -> bool:
        """Log the error of a call that is to fail, and say whether it is."""
        if call in self.fail:
            self.log(self.fail[call])
        return call in self.fail

    def log(self, text: str, severity: Severity = Severity.ERROR) -> None:
        self.logger.log(severity, text)

    def _module(self) -> ModuleType:
        state = self

        class Runtime:
            def __init__(self, logger: Any) -> None:
                assert state.gpu is not None, "without a GPU the real one would end the process"
                assert isinstance(logger, ILogger)
                state.logger = logger
                state.made.append("runtime")
                state.refused("Runtime")

            def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
                state.made.append("engine")
                if state.refused("deserialize_cuda_engine"):
                    return None
                if not serialized_engine.startswith(MAGIC):
                    state.log("Serialization (Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed.)")
                    return None
                value = json.loads(serialized_engine[len(MAGIC) :])
                if value["version"] != state.version:
                    state.log(f"The engine plan file is not compatible with this version of TensorRT: {value['version']}")
                    return None
                return (Engine11 if state.version.startswith("11") else Engine10)(state, value)

        return module(
            "tensorrt",
            __version__=self.version,
            ILogger=ILogger,
            IProfiler=IProfiler,
            Runtime=Runtime,
            DataType=DataType,
            TensorIOMode=TensorIOMode,
            TensorFormat=TensorFormat,
            LayerInformationFormat=LayerInformationFormat,
        )


class Engine:
    """What both majors have in common."""

    def __init__(self, state: FakeTensorRT, value: dict[str, Any]) -> None:
        self.state, self.value = state, value
        self.names = [*value["inputs"], *value["outputs"]]
        self.contexts = 0

    @property
    def num_io_tensors(self) -> int:
        return len(self.names)

    def tensor(self, name: str) -> list[Any]:
        found = self.value["inputs"].get(name) or self.value["outputs"].get(name)
        assert found is not None, f"the real one logs an error and returns rubbish: no tensor {name!r}"
        return list(found)

    def get_tensor_name(self, index: int) -> str:
        return str(self.names[index])

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.value["inputs"] else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[self.tensor(name)[0]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensor(name)[1:])

    def get_tensor_format(self, name: str) -> TensorFormat:
        return TensorFormat[self.value["formats"].get(name, "LINEAR")]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert profile_index == 0
        return [tuple(shape) for shape in self.value["profile"][name]]

    def is_shape_inference_io(self, name: str) -> bool:
        return name in self.value["shape_tensors"]

    def create_execution_context(self) -> Context | None:
        self.state.made.append("context")
        if self.state.refused("create_execution_context"):
            return None
        self.contexts += 1
        return Context(self, first=self.contexts == 1)

    def create_engine_inspector(self) -> Inspector:
        return Inspector(self)

    def inputs_outputs(self) -> dict[str, Any]:
        raise NotImplementedError


class Engine10(Engine):
    """10.x: the inspector lists bindings by name."""

    def inputs_outputs(self) -> dict[str, Any]:
        return {"Bindings": self.names}


class Engine11(Engine):
    """11.x: the inspector lists tensors as objects."""

    def inputs_outputs(self) -> dict[str, Any]:
        return {"I/O Tensors": [{"Name": name, "DataType": self.tensor(name)[0]} for name in self.names]}


class Inspector:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def get_engine_information(self, format: LayerInformationFormat) -> str:
        assert format is LayerInformationFormat.JSON
        if self.engine.state.refused("get_engine_information"):
            return ""
        return json.dumps({"Layers": self.engine.value["layers"], **self.engine.inputs_outputs()})


class Context:
    def __init__(self, engine: Engine, first: bool) -> None:
        self.engine, self.state = engine, engine.state
        self.profiler: Any = None
        self.enqueue_emits_profile = True
        self.addresses: dict[str, int] = {}
        self.shapes = {name: engine.get_tensor_shape(name) for name in engine.value["inputs"]}
        dynamic = any(-1 in shape for shape in self.shapes.values())
        self.chosen_profile = 0 if first or not dynamic else None  # as the documentation has it

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self.chosen_profile = profile_index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self.engine.get_tensor_profile_shape(name, 0)
        if not all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True)):
            self.state.log(f"Static dimension mismatch while setting input shape for {name}")
            return False
        self.shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self.shapes:
            return self.shapes[name]
        shape = self.engine.get_tensor_shape(name)
        return self._twin(name)[1] if -1 in shape and len(self._twin(name)[1]) == len(shape) else shape

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if self.state.refused("set_tensor_address"):
            return False
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        gpu = self.state.gpu
        assert gpu is not None
        capturing = gpu.queues[stream_handle].captured is not None
        if self.state.refused("execute_async_v3") or (capturing and self.state.refused("execute_async_v3 in a capture")):
            return False
        missing = [name for name in self.engine.names if name not in self.addresses]
        shapeless = [name for name, shape in self.shapes.items() if -1 in shape]
        if missing or shapeless or self.chosen_profile is None:
            self.state.log(f"execute: no address for {missing}, no shape for {shapeless}, profile {self.chosen_profile}")
            return False
        gpu.calls.append("captured enqueue" if capturing else "enqueue")
        gpu.enqueue(stream_handle, self._compute, self.engine.value["ms"])
        if self.profiler is not None and self.enqueue_emits_profile:
            gpu.wait_stream(stream_handle)
            for number, layer in enumerate(self.engine.value["layers"]):
                self.profiler.report_layer_time(layer if isinstance(layer, str) else layer["Name"], 0.01 * (number + 1))
        return True

    def _twin(self, output: str) -> tuple[str, tuple[int, ...]]:
        """Return the input that an output doubles, and its shape."""
        inputs = list(self.shapes)
        name = inputs[list(self.engine.value["outputs"]).index(output) % len(inputs)]
        return name, self.shapes[name]

    def _array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        assert self.state.gpu is not None
        dtype = np.dtype(DTYPES[self.engine.tensor(name)[0]])
        data = self.state.gpu.bytes_at(self.addresses[name], int(np.prod(shape)) * dtype.itemsize)
        return data.view(dtype).reshape(shape)

    def _attend(self, scale: float) -> None:
        """As the bodies of `hyctas::SelfAttention` do: channels before positions."""
        q, k, v = (self._array(name, self.shapes[name]).astype(np.float64) for name in "qkv")
        weights = np.exp(scale * q.swapaxes(2, 3) @ k)
        target = self._array("o", self.get_tensor_shape("o"))
        target[...] = (v @ (weights / weights.sum(3, keepdims=True)).swapaxes(2, 3)).astype(target.dtype)

    def _compute(self) -> None:
        if self.engine.value["attention_scale"] is not None:
            self._attend(self.engine.value["attention_scale"])
            return
        for name in self.engine.value["outputs"]:
            twin, shape = self._twin(name)
            target = self._array(name, self.get_tensor_shape(name))
            target[...] = (np.resize(self._array(twin, shape), target.shape).astype(np.float64) * 2).astype(target.dtype)


GPU = Gpu("Fake RTX", (8, 6), 8 << 30, 30, (12, 8))


def install(monkeypatch: pytest.MonkeyPatch, trt: FakeTensorRT) -> None:
    """Let `import tensorrt` find a fake, and the guard find a GPU where the fake has one."""

    def require_gpu(index: int = 0) -> Gpu:
        if trt.gpu is None:
            raise Unavailable("tensorrt", "the driver's cuInit failed with error 100 (CUDA_ERROR_NO_DEVICE)", "a GPU")
        return GPU

    monkeypatch.setitem(sys.modules, "tensorrt", trt.module)
    monkeypatch.setattr(guard, "require_gpu", require_gpu)
    monkeypatch.setattr(engine_file, "require_gpu", require_gpu)
    monkeypatch.setattr(engine_file, "cuda_runtime_version", lambda: "12.8.90")
    monkeypatch.setattr(engine_file, "driver_version", lambda: "570.86.15")
    log.MESSAGES.take()


def save(path: Path, trt: FakeTensorRT, data: bytes, precision: str = "fp32", **facts: Any) -> Path:
    """Write an engine with a manifest of the machine that `install` pretends, with other facts where some are given."""
    machine = replace(engine_file.machine_of(trt.module), **facts)
    onnx = path.with_name("model.onnx")
    if not onnx.exists():
        onnx.write_bytes(b"")
    digest = hashlib.sha256(data).hexdigest()
    manifest = engine_file.EngineManifest(
        machine=machine, engine_sha256=digest, size_bytes=len(data), onnx=onnx.name, onnx_sha256=sha256(onnx), graph_sha256="0",
        precision=precision, options={}, command="hyctas-export model.engine",
    )  # fmt: skip
    engine_file.save_engine(path, data, manifest)
    return path


@dataclass
class Rig:
    """A machine with a GPU and a TensorRT."""

    gpu: FakeGpu
    trt: FakeTensorRT
    backend: DeviceBackend

    def session(self, *arguments: Any, **named: Any) -> EngineSession:
        """Open a session on a plan of this TensorRT's version; arguments as `plan`, those of a session by name."""
        own = {key: named.pop(key) for key in ("cuda_graph", "backend") if key in named}
        data = plan(*arguments, version=self.trt.version, **named)
        return EngineSession(data, **{"backend": self.backend, **own})


def make_rig(monkeypatch: pytest.MonkeyPatch, version: str) -> Rig:
    """Let this machine have a GPU and a TensorRT of a version."""
    gpu = FakeGpu()
    trt = FakeTensorRT(gpu, version)
    install(monkeypatch, trt)
    return Rig(gpu, trt, CudaBindingsBackend(fake_cuda_bindings(gpu)))

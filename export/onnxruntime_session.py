"""Run ONNX files on ONNX Runtime: CPU, and CUDA with inputs and outputs kept on the device.

A session is made for timing: spinning off (a spinning pool steals the cores that the next measurement needs), one node at
a time, all graph optimisations, outputs allocated once.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from export.errors import CorruptFile, InvalidInput, Unavailable
from export.feeds import check_feeds, zeros
from export.runtime import Session, TensorSpec
from export.target import Target

if TYPE_CHECKING:
    import torch

PROVIDERS = {"onnxruntime-cpu": "CPUExecutionProvider", "onnxruntime-cuda": "CUDAExecutionProvider"}
INSTALL = {
    "onnxruntime-cpu": "pip install onnxruntime",
    "onnxruntime-cuda": "pip install onnxruntime-gpu (CUDA 12 or newer)",
}
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bool)": "bool",
    **{f"tensor({name})": name for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")},
}


class OnnxRuntime:
    """ONNX Runtime on one target with one thread count.

    Args:
        target: `onnxruntime-cpu:fp32` or `onnxruntime-cuda:fp32`.
        threads: threads inside one operator.
        cache: where `load_modules` keeps the files that it exports; without it they are temporary.

    Raises:
        Unavailable: onnxruntime or its provider is missing, or the precision has no implementation yet.
    """

    def __init__(self, target: Target, threads: int = 1, cache: Path | None = None) -> None:
        if threads < 1:
            raise InvalidInput(f"threads must be at least 1, got {threads}")
        why = unavailable_reason(target)
        if why is not None:
            raise Unavailable(str(target), *why)
        self.target, self.threads, self._cache = target, threads, cache

    def versions(self) -> dict[str, str]:
        """Return the version of ONNX Runtime, and the GPU's driver when one is used."""
        import onnxruntime

        versions = {"onnxruntime": str(onnxruntime.__version__)}
        if self.target.device == "cuda":
            from export.machine import gpus

            versions |= {f"gpu{i}": f"{gpu['name']}, driver {gpu['driver']}" for i, gpu in enumerate(gpus())}
        return versions

    def load_file(self, path: Path) -> OnnxSession:
        """Load an ONNX file.

        Raises:
            InvalidInput: no such file, dynamic input shapes, or a model that ONNX Runtime does not run.
            CorruptFile: not an ONNX file, or a truncated one.
            Unavailable: the provider was asked for and could not be started.
        """
        path = Path(path)
        if not path.is_file():
            raise InvalidInput(f"no such file: {path}")
        return OnnxSession(self._open(path), self.target)

    def load_modules(self, modules: Sequence[tuple[torch.nn.Module, tuple[torch.Tensor, ...]]]) -> list[Session]:
        """Export the modules in batches and load them; inputs are named `x0, ...`, outputs `y0, ...`."""
        from export.module_key import module_key
        from export.onnx_file import export_modules

        with tempfile.TemporaryDirectory(prefix="hyctas-") as temporary:
            keys = [module_key(module, inputs) if self._cache else str(i) for i, (module, inputs) in enumerate(modules)]
            first = {key: i for i, key in reversed(list(enumerate(keys)))}  # equal modules share a file
            files = export_modules([modules[i] for i in first.values()], self._cache or Path(temporary), list(first))
            paths = dict(zip(first, files, strict=True))
            return [self.load_file(paths[key]) for key in keys]

    def _open(self, path: Path) -> Any:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as states

        wanted = PROVIDERS[self.target.runtime]
        # TF32 would make "fp32" a promise of 10 mantissa bits
        providers: list[Any] = [(wanted, {"use_tf32": "0"})] if self.target.device == "cuda" else [wanted]
        try:
            session = onnxruntime.InferenceSession(str(path), _options(self.threads), providers=providers)
        except states.InvalidProtobuf as error:
            raise CorruptFile(path, f"is not a whole ONNX file ({_first_line(error)})") from None
        except (states.Fail, states.InvalidGraph, states.InvalidArgument, states.NotImplemented) as error:
            reason = f"ONNX Runtime {onnxruntime.__version__} does not run it: {_first_line(error)}"
            raise InvalidInput(f"{path}: {reason}") from None
        found = session.get_providers()
        if not found or found[0] != wanted:
            reason = f"ONNX Runtime opened the model on {', '.join(found) or 'nothing'} instead of {wanted}"
            raise Unavailable(str(self.target), reason, INSTALL[self.target.runtime])
        return session


class OnnxSession:
    """One model on ONNX Runtime; see `export.runtime.Session`."""

    def __init__(self, session: Any, target: Target) -> None:
        self.inputs = tuple(_static(info) for info in session.get_inputs())
        self._session, self._device = session, target.device
        self.metadata: dict[str, str] = dict(session.get_modelmeta().custom_metadata_map)
        self.outputs = self._describe_outputs()
        self._binding: Any = None

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Compute the outputs; bound inputs stay bound."""
        arrays = check_feeds(self.inputs, feeds)
        return list(self._session.run(None, {spec.name: a for spec, a in zip(self.inputs, arrays, strict=True)}))

    def bind(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Copy the inputs to the device and allocate the outputs there, once."""
        from onnxruntime import OrtValue

        arrays = check_feeds(self.inputs, feeds)
        binding = self._session.io_binding()
        self._arrays = [array.copy() for array in arrays]  # on a CPU an OrtValue points into the array
        for spec, array in zip(self.inputs, self._arrays, strict=True):
            binding.bind_ortvalue_input(spec.name, OrtValue.ortvalue_from_numpy(array, self._device, 0))
        self._results = [
            OrtValue.ortvalue_from_shape_and_type(spec.shape, np.dtype(spec.dtype).type, self._device, 0)
            for spec in self.outputs
        ]
        for spec, result in zip(self.outputs, self._results, strict=True):
            binding.bind_ortvalue_output(spec.name, result)
        binding.synchronize_inputs()
        self._binding = binding

    def step(self) -> float:
        """Run once on the bound inputs and return milliseconds; ONNX Runtime synchronises the device itself."""
        if self._binding is None:
            raise InvalidInput("call bind(feeds) before step()")
        run, binding = self._session.run_with_iobinding, self._binding
        start = time.perf_counter_ns()
        run(binding)
        return (time.perf_counter_ns() - start) / 1e6

    def results(self) -> list[np.ndarray]:
        """Copy out what the last `step` computed."""
        return [np.array(result.numpy()) for result in self._results]

    def close(self) -> None:
        """Free the model and its buffers."""
        self._session = self._binding = None
        self._arrays = self._results = []

    def __enter__(self) -> OnnxSession:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _describe_outputs(self) -> tuple[TensorSpec, ...]:
        infos = self._session.get_outputs()
        if all(isinstance(extent, int) for info in infos for extent in info.shape):
            return tuple(TensorSpec(info.name, tuple(info.shape), _dtype(info)) for info in infos)
        # shape inference gave up; the inputs are static, so one run tells
        found = self._session.run(None, zeros(self.inputs))
        pairs = zip(infos, found, strict=True)
        return tuple(TensorSpec(info.name, value.shape, str(value.dtype)) for info, value in pairs)


def unavailable_reason(target: Target) -> tuple[str, str] | None:
    """Say why a target of ONNX Runtime cannot run here, with the install line; None when it can."""
    try:
        import onnxruntime
    except ImportError as error:
        return f"the package onnxruntime cannot be imported ({error})", INSTALL[target.runtime]
    provider = PROVIDERS[target.runtime]
    if provider not in onnxruntime.get_available_providers():
        found = ", ".join(onnxruntime.get_available_providers())
        return f"onnxruntime {onnxruntime.__version__} here has no {provider}, only {found}", INSTALL[target.runtime]
    if target.precision != "fp32":
        return f"conversion to {target.precision} is not built into this release yet", f"use {target.runtime}:fp32"
    return None


def _options(threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors only: failures arrive as exceptions as well
    return options


def _static(info: Any) -> TensorSpec:
    if not all(isinstance(extent, int) and extent > 0 for extent in info.shape):
        raise InvalidInput(f"input {info.name!r} has the dynamic shape {info.shape}; a session needs static shapes")
    return TensorSpec(info.name, tuple(info.shape), _dtype(info))


def _dtype(info: Any) -> str:
    if info.type not in _DTYPES:
        raise InvalidInput(f"{info.name!r} has the type {info.type}, which has no numpy equivalent here")
    return _DTYPES[info.type]


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__

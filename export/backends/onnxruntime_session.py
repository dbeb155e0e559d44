"""Run ONNX files on ONNX Runtime: CPU, and CUDA with inputs and outputs kept on the device and the work in a CUDA graph.

A session is made for timing: threads wait for each other by spinning while a model runs, as they do by default (to be woken takes
longer than a small operator), and not after it (a spinning pool steals the cores that the next measurement needs); one node at a
time, all graph optimisations, outputs allocated once. ONNX Runtime likes to continue on the CPU where CUDA fails; its
fallback is switched off, what it opened is compared with what was asked for, and its own log is silenced: failures arrive as
our errors.
"""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from export.errors import CorruptFile, InvalidInput, Unavailable, first_line
from export.feeds import check_feeds, dynamic_note, random_feeds
from export.int8.loading import content_for, other_precision
from export.machine import instruction_sets
from export.platform import install_line, nvidia_driver, platform_kind
from export.runtime import Session, TensorSpec, check_can_run
from export.target import Target

if TYPE_CHECKING:
    import torch

    from export.onnx.functions import OnnxFunction

Loaded = TypeVar("Loaded")
PROVIDERS = {"onnxruntime-cpu": "CPUExecutionProvider", "onnxruntime-cuda": "CUDAExecutionProvider"}
_CUDA_FAILED = re.compile(r"cu(da|dnn|blas)\w* (failure|error)|CUDA-capable|libcu|failed to create CUDAExecutionProvider", re.I)
_WITHOUT_GRAPH = "torch-cuda:fp32 may run it; in Python, OnnxRuntime(target, cuda_graph=False) does, without a CUDA graph"
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
        target: `onnxruntime-cpu:fp32`, `onnxruntime-cuda:fp32`, or (`export.backends.int8_runtimes`) `onnxruntime-cpu:int8`.
        threads: threads inside one operator.
        cache: where `load_modules` keeps the files that it exports; without it they are temporary.
        cuda_graph: on CUDA, replay one captured graph in `step`; a model that cannot be captured is an error. Without it
            every kernel is launched by itself, which small networks spend more time on than on computing.

    Raises:
        Unavailable: onnxruntime or its provider is missing.
    """

    def __init__(self, target: Target, threads: int = 1, cache: Path | None = None, cuda_graph: bool = True) -> None:
        check_can_run(target, threads, unavailable_reason(target))
        self.target, self.threads, self._cache = target, threads, cache
        self._cuda_graph = cuda_graph and target.device == "cuda"
        self.times_layers = target.device == "cpu"

    def versions(self) -> dict[str, str]:
        """Return the version of ONNX Runtime and how threads wait; on CUDA GPU, driver, and whether a graph is timed."""
        import onnxruntime

        versions = {"onnxruntime": str(onnxruntime.__version__)}
        if self.target.device == "cuda":
            from export.machine import gpus

            versions["cuda_graph"] = "on" if self._cuda_graph else "off"
            versions |= {f"gpu{i}": f"{gpu['name']}, driver {gpu['driver']}" for i, gpu in enumerate(gpus())}
        elif self.threads > 1:
            versions["waiting"] = "spinning while a model runs"  # tables of before, without it, are slower
        return versions

    def load_file(self, path: Path) -> OnnxSession:
        """Load an ONNX file.

        Raises:
            InvalidInput: no such file, dynamic input shapes, a model that ONNX Runtime does not run, or one that fits in no
                CUDA graph.
            CorruptFile: not an ONNX file, or a truncated one.
            Unavailable: the provider was asked for and could not be started.
        """
        path = Path(path)
        if not path.is_file():
            raise InvalidInput(f"no such file: {path}")
        content, notes = content_for(self.target.precision, path)
        session = self._open(path, content)
        try:
            opened = OnnxSession(session, self.target, self._cuda_graph)
        except InvalidInput as error:
            raise InvalidInput(f"{path}: {error}") from None
        opened.notes += [*notes, *other_precision(opened.metadata, self.target.precision)]
        return opened

    def load_modules(self, modules: Sequence[tuple[torch.nn.Module, tuple[torch.Tensor, ...]]]) -> list[Session]:
        """Export the modules in batches and load them; inputs are named `x0, ...`, outputs `y0, ...`."""
        return [*load_exported(modules, self._cache, self.load_file)]

    def time_parts(self, path: Path, *, warmup_ms: float, runs: int) -> dict[str, list[float]]:
        """Time the parts of a model; see `export.runtime.LayerRuntime`."""
        from export.backends.onnxruntime_layers import time_parts

        (content, _), options = content_for(self.target.precision, path), _options(self.threads, on_cuda=False)
        return time_parts(lambda profiling: self._open(path, content, profiling), options, warmup_ms, runs)

    def _open(self, path: Path, content: str | bytes, options: Any = None) -> Any:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as states

        wanted, on_cuda = PROVIDERS[self.target.runtime], self.target.device == "cuda"
        missing = _load_cuda_libraries() if on_cuda else ""
        # TF32 would make "fp32" a promise of 10 mantissa bits
        extra = {"use_tf32": "0", "enable_cuda_graph": str(int(self._cuda_graph))} if on_cuda else {}
        try:
            with _silenced(on_cuda):
                session = onnxruntime.InferenceSession(
                    content, options or _options(self.threads, on_cuda), providers=[(wanted, extra)], enable_fallback=0
                )
        except states.InvalidProtobuf as error:
            raise CorruptFile(path, f"is not a whole ONNX file ({first_line(error)})") from None
        except UnicodeDecodeError:  # what ONNX Runtime says of a damaged name is no text
            raise CorruptFile(path, "is damaged: a name in it is no text") from None
        except _refusals() as error:
            if on_cuda and _CUDA_FAILED.search(str(error)):
                raise self._unavailable(f"CUDA does not start: {first_line(error)}") from None
            _check_whole(path)
            raise InvalidInput(f"{path}: {_why_refused(error)}") from None
        found = session.get_providers()
        if not found or found[0] != wanted:
            reason = f"ONNX Runtime opened the model on {', '.join(found) or 'nothing'} instead of {wanted}"
            raise self._unavailable(f"{reason} ({missing})" if missing else reason)
        return session

    def _unavailable(self, reason: str) -> Unavailable:
        return Unavailable(str(self.target), reason, install_line(self.target.runtime, platform_kind()))


class OnnxSession(Session):
    """One model on ONNX Runtime; see `export.runtime.Session`."""

    def __init__(self, session: Any, target: Target, cuda_graph: bool = False) -> None:
        self.inputs = tuple(_static(info) for info in session.get_inputs())
        self._session, self._device = session, target.device
        self.on_gpu = self._device != "cpu"
        self._launched = _launched() if cuda_graph else None  # run options that leave the graph alone
        self.notes: list[str] = []
        """What a reader of its times should know."""
        self.metadata: dict[str, str] = {}
        try:
            self.metadata |= session.get_modelmeta().custom_metadata_map
        except UnicodeDecodeError:
            self.notes.append("its metadata is not UTF-8 text and is not used")
        self._dynamic: frozenset[str] = frozenset()
        """Outputs whose shape is known after a run alone."""
        self.outputs = self._describe_outputs()
        self._binding: Any = None

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Compute the outputs; bound inputs stay bound."""
        arrays = check_feeds(self.inputs, feeds)
        return self._compute({spec.name: a for spec, a in zip(self.inputs, arrays, strict=True)})

    def _compute(self, named: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        try:
            return list(self._session.run(None, named, self._launched))
        except _refusals() as error:
            raise InvalidInput(_why_refused(error)) from None

    def bind(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Copy the inputs to the device; the first time, allocate inputs and outputs there and capture the CUDA graph.

        Raises:
            InvalidInput: the model cannot be captured in a CUDA graph.
        """
        arrays = check_feeds(self.inputs, feeds)
        if self._binding is None:
            self._allocate(arrays)
            return
        for value, array in zip(self._values, arrays, strict=True):
            value.update_inplace(array)  # a captured graph reads these addresses for ever
        if self._launched is None:
            self._release(self._binding)

    def _allocate(self, arrays: Sequence[np.ndarray]) -> None:
        from onnxruntime import OrtValue

        binding = self._session.io_binding()
        self._arrays = [array.copy() for array in arrays]  # on a CPU an OrtValue points into the array
        self._values = [OrtValue.ortvalue_from_numpy(array, self._device, 0) for array in self._arrays]
        for spec, value in zip(self.inputs, self._values, strict=True):
            binding.bind_ortvalue_input(spec.name, value)
        for spec in self.outputs:
            result = OrtValue.ortvalue_from_shape_and_type(spec.shape, np.dtype(spec.dtype).type, self._device, 0)
            binding.bind_ortvalue_output(spec.name, result)
        binding.synchronize_inputs()
        if self._launched is None:
            self._release(binding)
        else:
            self._capture(binding)
        self._binding = binding

    def _release(self, binding: Any) -> None:
        """Let the next run allocate the outputs whose shape depends on the inputs; a captured graph keeps its own."""
        for name in self._dynamic:
            binding.bind_output(name, self._device, 0)

    def _capture(self, binding: Any) -> None:
        """Run once without the graph, so that cuDNN has chosen and memory is there, and once to capture it."""
        try:
            self._session.run_with_iobinding(binding, self._launched)
            self._session.run_with_iobinding(binding)
        except _refusals() as error:
            raise InvalidInput(f"the model cannot be captured: {_why_refused(error)}. {_WITHOUT_GRAPH}") from None

    def step(self) -> float:
        """Run once on the bound inputs and return milliseconds, wall-clock, until the device is done."""
        if self._binding is None:
            raise InvalidInput("call bind(feeds) before step()")
        run, binding, on_cuda = self._session.run_with_iobinding, self._binding, self._device == "cuda"
        start = time.perf_counter_ns()
        try:
            run(binding)
        except _refusals() as error:
            raise InvalidInput(_why_refused(error)) from None
        if on_cuda:
            binding.synchronize_outputs()
        return (time.perf_counter_ns() - start) / 1e6

    def results(self) -> list[np.ndarray]:
        """Copy out what the last `step` computed."""
        return [np.array(result.numpy()) for result in self._binding.get_outputs()]

    def close(self) -> None:
        """Free the model and its buffers."""
        self._session = self._binding = None
        self._arrays, self._values = [], []

    def _describe_outputs(self) -> tuple[TensorSpec, ...]:
        infos = self._session.get_outputs()
        dynamic = frozenset(info.name for info in infos if not all(isinstance(extent, int) for extent in info.shape))
        if not dynamic:
            return tuple(TensorSpec(info.name, tuple(info.shape), _dtype(info)) for info in infos)
        # shape inference gave up, or the values decide; the inputs are static, so one run tells
        for info in infos:
            _dtype(info)  # a sequence has no shape
        found = self._compute(random_feeds(self.inputs))
        specs = tuple(TensorSpec(info.name, value.shape, str(value.dtype)) for info, value in zip(infos, found, strict=True))
        self._dynamic = dynamic
        self.notes += [dynamic_note(spec) for spec in specs if spec.name in dynamic]
        return specs


def unavailable_reason(target: Target) -> tuple[str, str] | None:
    """Say why a target of ONNX Runtime cannot run here, with the install line; None when it can.

    On CUDA that takes NVIDIA's driver too: the GPU wheel lists its provider on every machine.
    """
    provider, reasons = PROVIDERS[target.runtime], list[str]()
    try:
        import onnxruntime
    except ImportError as error:
        reasons.append(f"the package onnxruntime cannot be imported ({error})")
    else:
        found = onnxruntime.get_available_providers()
        if provider not in found:
            reasons.append(f"onnxruntime {onnxruntime.__version__} here has no {provider}, only {', '.join(found)}")
    if target.device == "cuda" and not nvidia_driver():
        reasons.append("no NVIDIA driver is found")
    if reasons:
        return "; ".join(reasons), install_line(target.runtime, platform_kind())
    return None


def load_exported(
    modules: Sequence[tuple[torch.nn.Module, tuple[torch.Tensor, ...]]],
    cache: Path | None,
    load: Callable[[Path], Loaded],
    functions: Sequence[OnnxFunction] = (),
    opset: int = 18,
) -> list[Loaded]:
    """Export modules to ONNX files in batches and load each, equal modules from one file.

    Args:
        modules: with their example inputs.
        cache: where the files are kept, under names that change with the content; without it they are temporary.
        load: opens one file.
        functions: as `export.onnx.exporter.export_onnx` takes them.
        opset: ONNX operator set.
    """
    from export.module_key import module_key
    from export.onnx.exporter import export_modules

    with tempfile.TemporaryDirectory(prefix="hyctas-") as temporary:
        kind = "-".join(["", str(opset), *(function.name for function in functions)]) if functions or opset != 18 else ""
        keys = [(module_key(module, inputs) if cache else str(i)) + kind for i, (module, inputs) in enumerate(modules)]
        first = {key: i for i, key in reversed(list(enumerate(keys)))}  # equal modules share a file
        chosen, folder = [modules[i] for i in first.values()], cache or Path(temporary)
        files = export_modules(chosen, folder, list(first), opset=opset, functions=functions)
        paths = dict(zip(first, files, strict=True))
        return [load(paths[key]) for key in keys]


def _options(threads: int, on_cuda: bool) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if not on_cuda:  # one block for all activations, planned at the first run, costs up to twice the memory and gains no time
        options.enable_mem_pattern = False
    if not {"avx_vnni", "avx512_vnni", "asimd"} & instruction_sets():  # else sums of two products overflow; it costs speed
        options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 4  # failures arrive as exceptions
    return options


def _launched() -> Any:
    """Return the run options of a run that neither captures nor replays a graph."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", "-1")
    return options


def _load_cuda_libraries() -> str:
    """Load CUDA and cuDNN from NVIDIA's wheels where they are installed; return what could not be loaded, else nothing."""
    import onnxruntime

    said = io.StringIO()
    if hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            onnxruntime.preload_dlls()
    lines = [line for line in said.getvalue().splitlines() if line.startswith("Failed to load ")]
    return lines[0].partition(": ")[2] if lines else ""


@contextlib.contextmanager
def _silenced(wanted: bool) -> Iterator[None]:
    """Keep the default logger quiet, which tells on standard error why a provider does not start."""
    import onnxruntime

    if wanted:
        onnxruntime.set_default_logger_severity(4)
    try:
        yield
    finally:
        if wanted:
            onnxruntime.set_default_logger_severity(2)  # its default; it cannot be read


def _refusals() -> tuple[type[Exception], ...]:
    """Return what ONNX Runtime raises; its kinds have no base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as states

    kinds = [kind for kind in vars(states).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*kinds, RuntimeError)  # what it does not translate


def _check_whole(path: Path) -> None:
    """Say what is wrong with a file that was refused, where that is the file; ONNX Runtime's own words name its source code."""
    try:
        from export.onnx.foreign import load_graph
    except ImportError:  # a device needs no onnx
        return
    load_graph(path)


def _why_refused(error: Exception) -> str:
    import onnxruntime

    text = f"ONNX Runtime {onnxruntime.__version__} does not run it: {first_line(error)}"
    return f"{text}. {_WITHOUT_GRAPH}" if "graph capture" in str(error) else text


def _static(info: Any) -> TensorSpec:
    if not all(isinstance(extent, int) and extent > 0 for extent in info.shape):
        raise InvalidInput(f"input {info.name!r} has the dynamic shape {info.shape}; a session needs static shapes")
    return TensorSpec(info.name, tuple(info.shape), _dtype(info))


def _dtype(info: Any) -> str:
    if info.type not in _DTYPES:
        raise InvalidInput(f"{info.name!r} has the type {info.type}, which has no numpy equivalent here")
    return _DTYPES[info.type]

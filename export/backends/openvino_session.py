"""Run ONNX files on OpenVINO's CPU device, in fp32, bf16 or int8.

Left alone, OpenVINO computes in bf16 wherever the CPU can (and in f16 on Arm), takes as many threads as it likes and pins
them. Here precision, threads and the rest are asked for by name and read back from the compiled model; what differs is an
error. Threads are not pinned: a pinned thread stays on its core whatever else runs there, so that two processes share core 0
while others idle; unpinned ones are placed by the kernel, as ONNX Runtime's and PyTorch's are, and `taskset` still decides.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from export.backends.layer_times import summed, warm
from export.backends.onnxruntime_session import load_exported
from export.errors import InvalidInput, Unavailable
from export.feeds import check_feeds, dynamic_note, random_feeds
from export.int8.loading import content_for, other_precision
from export.platform import install_line, platform_kind
from export.runtime import Session, TensorSpec, check_can_run
from export.target import Target

if TYPE_CHECKING:
    import torch

DEVICE = "CPU"
PRECISIONS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
"""What OpenVINO is told that a model computes in, outside of its quantised layers."""
_NEEDED = {"bf16": ("BF16", "a CPU with AMX or AVX512-BF16"), "int8": ("INT8", "an x86 CPU with AVX2 or better")}
"""What a CPU must be able to, as OpenVINO calls it, and which ones are."""
_TELEMETRY = "openvino_telemetry"


class OpenVinoRuntime:
    """OpenVINO on the CPU with one thread count.

    Args:
        target: `openvino-cpu:fp32`, `:bf16` or (`export.backends.int8_runtimes`) `:int8`. Inputs and outputs of networks are
            float32 in all.
        threads: threads inside one operator.
        cache: where `load_modules` keeps the ONNX files that it exports; without it they are temporary.

    Raises:
        Unavailable: openvino is missing, or the CPU does not compute in the precision.
    """

    def __init__(self, target: Target, threads: int = 1, cache: Path | None = None) -> None:
        check_can_run(target, threads, unavailable_reason(target))
        self.target, self.threads, self._cache = target, threads, cache
        self._core = _openvino().Core()
        self.times_layers = True

    def versions(self) -> dict[str, str]:
        """Return the version of OpenVINO."""
        return {"openvino": str(_openvino().__version__)}

    def load_file(self, path: Path) -> OpenVinoSession:
        """Load an ONNX file.

        Raises:
            InvalidInput: no such file, dynamic input shapes, a model that OpenVINO does not run, or more threads than it
                takes here.
            CorruptFile: not an ONNX file, or a truncated one.
            Unavailable: OpenVINO does not compute in the precision that was asked for.
        """
        path = Path(path)
        inputs, outputs, metadata = _described(path)
        content, notes = content_for(self.target.precision, path)
        try:
            compiled = self._core.compile_model(self._core.read_model(content), DEVICE, self._settings())
        except RuntimeError as error:
            raise InvalidInput(f"{path}: {_why_refused(error)}") from None
        self._compare(compiled)
        try:
            opened = OpenVinoSession(compiled, inputs, outputs, metadata)
        except InvalidInput as error:
            raise InvalidInput(f"{path}: {error}") from None
        opened.notes += [*notes, *other_precision(metadata, self.target.precision)]
        return opened

    def load_modules(self, modules: Sequence[tuple[torch.nn.Module, tuple[torch.Tensor, ...]]]) -> list[Session]:
        """Export the modules in batches and load them; inputs are named `x0, ...`, outputs `y0, ...`."""
        return load_exported(modules, self._cache, self.load_file)

    def time_parts(self, path: Path, *, warmup_ms: float, runs: int) -> dict[str, list[float]]:
        """Time the parts of a model by OpenVINO's own counters; see `export.runtime.LayerRuntime`."""
        with self.load_file(path) as plain:
            plain.bind(random_feeds(plain.inputs))
            warm(plain.step, warmup_ms)
            whole_ms = [plain.step() for _ in range(runs)]
        content, _ = content_for(self.target.precision, path)
        compiled = self._core.compile_model(self._core.read_model(content), DEVICE, {**self._settings(), "PERF_COUNT": True})
        origins = _origins(compiled)
        with OpenVinoSession(compiled, *_described(path)) as session:
            session.bind(random_feeds(session.inputs))
            warm(session.step, warmup_ms)
            layers: dict[str, list[float]] = {}
            for _ in range(runs):
                session.step()
                for name, ms in session.layers():
                    layers.setdefault(name, []).append(ms)
        parts = {name: origins.get(name, name).partition("/") for name in layers if "/sink_port_" not in name}
        return summed(layers, {name: part for name, (part, behind, _) in parts.items() if behind}, whole_ms)

    def _settings(self) -> dict[str, Any]:
        return {
            "INFERENCE_PRECISION_HINT": PRECISIONS[self.target.precision],
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": self.threads,
            # False would cut the threads down to the physical cores without a word; where they run is the kernel's choice
            "ENABLE_HYPER_THREADING": True,
            "ENABLE_CPU_PINNING": False,
        }

    def _compare(self, compiled: Any) -> None:
        """Compare what OpenVINO took with what it was asked for (hyper-threading reads False on CPUs that have none)."""
        asked = {name: value for name, value in self._settings().items() if name != "ENABLE_HYPER_THREADING"}
        found = {name: _plain(compiled.get_property(name)) for name in asked}
        hint = "INFERENCE_PRECISION_HINT"
        if found[hint] != asked[hint]:
            reason = f"OpenVINO took {found[hint]} where {asked[hint]} was asked for"
            raise Unavailable(str(self.target), reason, "use openvino-cpu:fp32")
        for name, value in asked.items():
            if found[name] != value:
                reason = f"OpenVINO took {name} {found[name]} where {value} was asked for"
                raise InvalidInput(f"{self.target} with {self.threads} threads: {reason}")


class OpenVinoSession(Session):
    """One model on OpenVINO; see `export.runtime.Session`."""

    def __init__(self, compiled: Any, inputs: Sequence[str], outputs: Sequence[str], metadata: Mapping[str, str]) -> None:
        # names as in the file: OpenVINO may know a tensor by several
        self._ports = [compiled.input(name) for name in inputs]
        self.inputs = tuple(_spec(name, port, port.shape) for name, port in zip(inputs, self._ports, strict=True))
        self.metadata = dict(metadata)
        self._compiled = compiled
        self._request = compiled.create_infer_request()
        self._bound: Any = None
        self.notes: list[str] = []
        """What a reader of its times should know."""
        ports = [compiled.output(name) for name in outputs]
        self._results = [_tensor(port, shape) for port, shape in zip(ports, self._shapes(ports), strict=True)]
        self.outputs = tuple(
            _spec(name, port, result.shape) for name, port, result in zip(outputs, ports, self._results, strict=True)
        )
        self._result_ports = ports
        pairs = zip(self.outputs, ports, strict=True)
        self.notes += [dynamic_note(spec) for spec, port in pairs if port.partial_shape.is_dynamic]

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Compute the outputs; bound inputs stay bound."""
        if self._compiled is None:
            raise InvalidInput("the session is closed")
        arrays = check_feeds(self.inputs, feeds)
        _infer(self._request, dict(zip(self._ports, arrays, strict=True)))
        return [np.array(self._request.get_tensor(port).data) for port in self._result_ports]

    def bind(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Copy the inputs into OpenVINO's own (aligned) memory, where with the outputs they stay."""
        arrays = check_feeds(self.inputs, feeds)
        if self._bound is None:
            if self._compiled is None:
                raise InvalidInput("the session is closed")
            bound = self._compiled.create_infer_request()
            for port in self._ports:
                bound.set_tensor(port, _tensor(port, port.shape))
            for port, result in zip(self._result_ports, self._results, strict=True):
                if not port.partial_shape.is_dynamic:  # those are allocated by every run
                    bound.set_tensor(port, result)
            self._bound = bound
        for port, array in zip(self._ports, arrays, strict=True):
            self._bound.get_tensor(port).data[...] = array

    def step(self) -> float:
        """Run once on the bound inputs and return wall-clock milliseconds."""
        if self._bound is None:
            raise InvalidInput("call bind(feeds) before step()")
        infer = self._bound.infer
        start = time.perf_counter_ns()
        try:
            infer(share_outputs=True)  # without it the outputs would be copied
        except RuntimeError as error:
            raise InvalidInput(_why_refused(error)) from None
        return (time.perf_counter_ns() - start) / 1e6

    def results(self) -> list[np.ndarray]:
        """Copy out what the last `step` computed."""
        return [np.array(self._bound.get_tensor(port).data) for port in self._result_ports]

    def layers(self) -> list[tuple[str, float]]:
        """Return the name of every layer of the last `step` and its milliseconds, where the model was loaded with counters."""
        counted = [layer for layer in self._bound.profiling_info if layer.status == layer.status.EXECUTED]
        return [(layer.node_name, 1e3 * layer.real_time.total_seconds()) for layer in counted]

    def close(self) -> None:
        """Free the model and its buffers."""
        self._compiled = self._request = self._bound = None
        self._ports, self._result_ports, self._results = [], [], []

    def _shapes(self, ports: Sequence[Any]) -> list[tuple[int, ...]]:
        if not any(port.partial_shape.is_dynamic for port in ports):
            return [tuple(port.shape) for port in ports]
        # shape inference gave up, or the values decide; the inputs are static, so one run tells
        feeds = random_feeds(self.inputs)
        _infer(self._request, {port: feeds[spec.name] for port, spec in zip(self._ports, self.inputs, strict=True)})
        return [tuple(self._request.get_tensor(port).shape) for port in ports]


def unavailable_reason(target: Target) -> tuple[str, str] | None:
    """Say why a target of OpenVINO cannot run here, with the install line; None when it can."""
    try:
        openvino = _openvino()
    except ImportError as error:
        reason = f"the package openvino cannot be imported ({error})"
        return reason, install_line(target.runtime, platform_kind())
    core = openvino.Core()
    if DEVICE not in core.available_devices:
        found = ", ".join(core.available_devices) or "none"
        return f"OpenVINO {openvino.__version__} finds no CPU device here, only: {found}", "use onnxruntime-cpu:fp32"
    able = core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
    needed, which = _NEEDED.get(target.precision, ("FP32", ""))
    if needed not in able:
        name = core.get_property(DEVICE, "FULL_DEVICE_NAME")
        reason = f"OpenVINO does not compute in {target.precision} on this CPU ({name}), only in {', '.join(able)}"
        return reason, f"{which}; on this one use openvino-cpu:fp32"
    return None


def _openvino() -> Any:
    """Import OpenVINO without its telemetry, which reports every import to Google Analytics and writes to the home folder."""
    if "openvino" in sys.modules:
        import openvino

        return openvino
    missing = object()
    before = sys.modules.get(_TELEMETRY, missing)
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # its import fails, and OpenVINO goes on with a stub
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import openvino
    finally:
        if before is missing:
            del sys.modules[_TELEMETRY]
        else:
            sys.modules[_TELEMETRY] = before  # type: ignore[assignment]
    return openvino


def _described(path: Path) -> tuple[list[str], list[str], dict[str, str]]:
    """Read the names of inputs and outputs and the metadata from an ONNX file.

    OpenVINO's own answer to a broken file does not tell it from a model that it cannot run.
    """
    from export.onnx.foreign import graph_inputs, load_graph, metadata_of, shape_of

    model = load_graph(path)
    inputs = graph_inputs(model)
    for info in inputs:
        shape = shape_of(info)
        if shape is None or None in shape:
            raise InvalidInput(f"{path}: input {info.name!r} has the dynamic shape {shape or 'of unknown rank'}; a session needs "
                               "static shapes")  # fmt: skip
    return [info.name for info in inputs], [info.name for info in model.graph.output], metadata_of(model)


def _origins(compiled: Any) -> dict[str, str]:
    """Name, for every layer, the first that it was made of; layers that were inserted have none."""
    found = {}
    for layer in compiled.get_runtime_model().get_ops():
        names = [name for name in layer.get_rt_info()["originalLayersNames"].value.split(",") if "/" in name]
        if names:
            found[layer.get_friendly_name()] = names[0]
    return found


def _infer(request: Any, feeds: Any) -> None:
    try:
        request.infer(feeds, share_outputs=True)
    except RuntimeError as error:
        raise InvalidInput(_why_refused(error)) from None


def _why_refused(error: RuntimeError) -> str:
    return f"OpenVINO {_openvino().__version__} does not run it: {_reason(error)}"


def _spec(name: str, port: Any, shape: Sequence[int]) -> TensorSpec:
    return TensorSpec(name, tuple(int(extent) for extent in shape), str(np.dtype(port.element_type.to_dtype())))


def _tensor(port: Any, shape: Sequence[int]) -> Any:
    openvino = _openvino()
    return openvino.Tensor(port.element_type, openvino.Shape(list(shape)))


def _plain(value: Any) -> Any:
    """Return a property as it is written in a request: types and enumerations by name, numbers and flags as they are."""
    if hasattr(value, "get_type_name"):
        return value.get_type_name()
    return value if isinstance(value, (bool, int)) else str(value).rpartition(".")[2]


def _reason(error: RuntimeError) -> str:
    """Return the last line of OpenVINO's message; those before it name places in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__

"""Run and time TensorRT engines behind `export.runtime.Session`. No torch here.

Timing is trtexec 11's: the work sits in a CUDA graph, inputs and outputs stay on the device, events on the device take the time,
the host waits by spinning. Where a graph takes less than `LEAD_BELOW_MS`, it is enqueued once before the timed one, so that the
device is busy while the host enqueues, as trtexec's second query in flight keeps it; this keeps the caches as warm, too.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.errors import CorruptFile, InvalidInput
from export.feeds import check_feeds
from export.files import sha256
from export.runtime import TensorSpec
from export.trt.api_run import ContextLike
from export.trt.device import CudaFailed, Device, DeviceBackend, Graph, Memory, open_backend
from export.trt.engine_file import EngineManifest, machine_of, read_engine
from export.trt.engine_io import chosen_shapes, deserialised, tensor_names, tensor_spec
from export.trt.guard import import_tensorrt
from export.trt.layers import LayerTimes, profiler_of
from export.trt.layers import layer_info as describe_layers
from export.trt.log import TensorRTFailed, attempted, checked
from export.trt.onnx_metadata import onnx_metadata
from export.trt.proof import is_proven, prove
from export.trt.rtx import RuntimeCache, own_cache_path
from export.trt.versions import device_memory_bytes, is_rtx

CUDA_GRAPH = ("auto", "require", "off")
LEAD_BELOW_MS = 10.0
"""Above it, what the host takes to launch a graph (some microseconds, up to 0.1 ms for hundreds of kernels and a slow CPU) is
below 1 % of the time."""
_PROFILE_WARM_UP = 3
_NO_MEMORY = "If this is for want of memory: end what else uses the GPU, or build with a smaller workspace limit."


class EngineSession:
    """An engine in memory; see `export.runtime.Session`. Not thread-safe.

    Args:
        plan: the engine's bytes. Deserialising executes code in them: pass what this process built or `read_engine` let through.
        backend: who talks to CUDA; default `open_backend()`.
        cuda_graph: `auto` captures the runs in a CUDA graph, and where that fails `step` times plain enqueues and `notes` says
            so; `require` makes that failure an error; `off` captures none.
        repeats: runs in one graph; `step` divides by them. For engines of some microseconds, where one run is shorter than what
            surrounds it: so many that a graph takes 50 us.
        shapes: of dynamic inputs, by name; without one, that which the engine was tuned for.
        metadata: of the model (preprocessing, labels), as its ONNX file has it.
        trt: the module `tensorrt`, or TensorRT-RTX; imported, once a GPU is proven, where it is None.
        runtime_cache: file of kernels that TensorRT-RTX compiled before; it has no meaning for TensorRT.

    Raises:
        Unavailable: no usable GPU, TensorRT or CUDA backend; found out before anything of TensorRT is made.
        CudaFailed: CUDA refuses, for instance memory.
        TensorRTFailed: the engine cannot be loaded, for instance for want of memory; with TensorRT's own words.
        InvalidInput: its inputs or outputs are of a kind that a session does not know, or `shapes` do not fit.
    """

    on_gpu = True

    def __init__(
        self,
        plan: bytes,
        *,
        backend: DeviceBackend | None = None,
        cuda_graph: str = "auto",
        repeats: int = 1,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        metadata: Mapping[str, str] | None = None,
        trt: Any = None,
        runtime_cache: Path | None = None,
    ) -> None:
        _check_timing(cuda_graph, repeats)
        self._trt: Any = import_tensorrt() if trt is None else trt
        self._cache_path = runtime_cache
        self.metadata = dict(metadata or {})
        self.notes: list[str] = []
        """What a user should know of this session: fallbacks, types, chosen shapes."""
        self.manifest: EngineManifest | None = None
        self._repeats, self._cuda_graph = repeats, cuda_graph
        self._graph: Graph | None = None
        self._ready = self._short = False
        self._bound: list[np.ndarray] | None = None
        self._replaced = False
        """Whether the device holds other inputs than the bound ones."""
        self._flushed = False
        self._flush_memory: Memory | None = None
        self._runtime: Any = None
        self._compiled: RuntimeCache | None = None
        self._engine: Any = None
        self._context: Any = None
        self._inputs: list[_Tensor] = []
        self._outputs: list[_Tensor] = []
        self._device = Device(backend or open_backend())
        try:
            self._stream = self._device.stream()
            self._begin, self._end = self._device.event(), self._device.event()
            self._load(plan, dict(shapes or {}))
        except BaseException:
            with contextlib.suppress(CudaFailed):  # the first failure tells more
                self.close()
            raise

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Compute the outputs; bound inputs stay bound."""
        self._check_open()
        arrays = check_feeds(self.inputs, feeds)
        self._replaced = self._bound is not None
        self._upload(arrays)
        self._prepare()
        if self._graph is not None and self._repeats == 1:
            self._device.launch(self._graph)
        else:
            self._enqueue()
        return self.results()

    def bind(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Copy the inputs to the device; the first time, run once and capture the CUDA graph.

        Raises:
            InvalidInput: the arrays do not fit, or a CUDA graph is required and cannot be captured.
        """
        self._check_open()
        arrays = [array.copy() for array in check_feeds(self.inputs, feeds)]
        self._bound, self._replaced = None, False  # until all of them are there
        self._upload(arrays)
        self._prepare()
        self._bound = arrays

    def step(self) -> float:
        """Run on the bound inputs, without transfers, and return the milliseconds that one run took on the device."""
        self._check_open()
        if self._bound is None:
            raise InvalidInput("call bind(feeds) before step()")
        self._restore()
        if self._short and not self._flushed:  # what fills the caches with other data keeps the device busy, too
            self._launch()
        self._device.record(self._begin, self._stream)
        self._launch()
        self._device.record(self._end, self._stream)
        self._device.wait(self._end)
        took_ms = self._device.elapsed_ms(self._begin, self._end)
        self._flushed, self._short = False, took_ms < LEAD_BELOW_MS
        return took_ms / self._repeats

    def flush(self, mib: float) -> None:
        """Overwrite this much memory on the device, so that the next `step` finds its caches cold; not part of its time."""
        self._check_open()
        self._restore()
        size_bytes = max(1, round(mib * 2**20))
        if self._flush_memory is None or self._flush_memory.size_bytes != size_bytes:
            if self._flush_memory is not None:
                self._device.free(self._flush_memory)
                self._flush_memory = None
            self._flush_memory = self._device.allocate(size_bytes)
        self._device.fill(self._flush_memory, self._stream)
        self._flushed = True

    def results(self) -> list[np.ndarray]:
        """Copy out what the last `step` or `run` computed."""
        self._check_open()
        return [self._device.download(t.memory, t.spec.shape, np.dtype(t.spec.dtype), self._stream) for t in self._outputs]

    @property
    def device_memory_bytes(self) -> int:
        """Device memory that TensorRT takes for a run, without weights, inputs and outputs."""
        self._check_open()
        return device_memory_bytes(self._engine)

    def time_layers(self, runs: int = 50) -> LayerTimes:
        """Run with TensorRT's profiler, in a context of its own, and return the time of each layer.

        The inputs are those that are bound, zeros where none are. Do this after timing: it disturbs.

        Raises:
            InvalidInput: fewer than one run.
        """
        self._check_open()
        if runs < 1:
            raise InvalidInput(f"a profile needs at least 1 run, got {runs}")
        if self._bound is None:
            self._upload([np.zeros(spec.shape, spec.dtype) for spec in self.inputs])
        self._restore()
        times = LayerTimes()
        profiler = profiler_of(self._trt, times)
        self._run_profiled(times, profiler, runs)  # the context reports to the profiler, and ends before it
        return times

    def layer_info(self) -> dict[str, Any]:
        """Describe the engine's layers in the schema of trtexec's `--exportLayerInfo`; see `export.trt.layers.layer_info`."""
        self._check_open()
        return describe_layers(self._trt, self._engine)

    def close(self) -> None:
        """Free the CUDA graph and all memory, then the engine, in the order that TensorRT wants."""
        self._graph = self._flush_memory = self._bound = None
        try:
            self._device.close()
        finally:
            self._inputs, self._outputs = [], []
            self._context = self._compiled = None
            self._engine = None
            self._runtime = None

    def __enter__(self) -> EngineSession:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _load(self, plan: bytes, shapes: dict[str, tuple[int, ...]]) -> None:
        self._runtime, self._engine = deserialised(self._trt, plan)
        inputs, outputs = tensor_names(self._trt, self._engine)
        self._shapes = chosen_shapes(self._engine, inputs, shapes, self.notes)
        if self._cache_path is not None:
            self._compiled = RuntimeCache(self._engine, self._cache_path)
        self._context = self._new_context()
        self._inputs, self._outputs = ([self._tensor(name) for name in names] for names in (inputs, outputs))
        self.inputs = tuple(tensor.spec for tensor in self._inputs)
        self.outputs = tuple(tensor.spec for tensor in self._outputs)
        self._set_addresses(self._context)

    def _tensor(self, name: str) -> _Tensor:
        spec = tensor_spec(self._trt, self._engine, self._context, name, self.notes)
        return _Tensor(spec, self._device.allocate(math.prod(spec.shape) * np.dtype(spec.dtype).itemsize))

    def _new_context(self) -> ContextLike:
        given = () if self._compiled is None else (self._compiled.config,)
        make = functools.partial(self._engine.create_execution_context, *given)
        context: ContextLike = checked("creating an execution context", make, _NO_MEMORY)
        if self._shapes:
            choose = functools.partial(context.set_optimization_profile_async, 0, self._stream.handle)
            checked("choosing the optimisation profile", choose)  # only an engine's first context starts with one
            self._device.wait(self._stream)
        for name, shape in self._shapes.items():
            checked(f"setting the shape of {name!r} to {shape}", functools.partial(context.set_input_shape, name, shape))
        return context

    def _set_addresses(self, context: ContextLike) -> None:
        for tensor in (*self._inputs, *self._outputs):
            name, address = tensor.spec.name, tensor.memory.address
            checked(f"setting the address of {name!r}", functools.partial(context.set_tensor_address, name, address))

    def _run_profiled(self, times: LayerTimes, profiler: Any, runs: int) -> None:
        context = self._new_context()
        self._set_addresses(context)
        for _ in range(_PROFILE_WARM_UP):
            self._enqueue(context)
        self._device.wait(self._stream)

        def attach() -> None:
            context.profiler, context.enqueue_emits_profile = profiler, True

        attempted("attaching a profiler", attach)
        for _ in range(runs):
            times.begin_run()
            self._enqueue(context)
            self._device.wait(self._stream)

    def _upload(self, arrays: list[np.ndarray]) -> None:
        for tensor, array in zip(self._inputs, arrays, strict=True):
            self._device.upload(tensor.memory, array, self._stream)

    def _restore(self) -> None:
        if self._replaced and self._bound is not None:
            self._upload(self._bound)
            self._replaced = False

    def _prepare(self) -> None:
        """Run once, in which TensorRT sets up what it left undone, and capture the graph."""
        if self._ready:
            return
        self._enqueue()
        self._device.wait(self._stream)
        if self._cuda_graph != "off":
            try:
                self._graph = self._device.capture(self._stream, self._enqueue_all)
            except (CudaFailed, TensorRTFailed) as error:
                self._go_on_without_graph(error)
        if self._compiled is not None and (why := self._compiled.store()):
            self.notes.append(why)
        self._ready = self._short = True

    def _go_on_without_graph(self, error: Exception) -> None:
        why = " ".join(str(error).split())
        if self._cuda_graph == "require":
            raise InvalidInput(f"the engine cannot be captured in a CUDA graph, which is required here: {why}") from error
        self.notes.append(f"no CUDA graph, so times include launching every kernel: {why}")
        self._enqueue()  # proves that plain runs still work after the failure
        self._device.wait(self._stream)

    def _launch(self) -> None:
        if self._graph is not None:
            self._device.launch(self._graph)
        else:
            self._enqueue_all()

    def _enqueue_all(self) -> None:
        for _ in range(self._repeats):
            self._enqueue()

    def _enqueue(self, context: ContextLike | None = None) -> None:
        run = (context or self._context).execute_async_v3
        checked("running the engine", functools.partial(run, self._stream.handle))

    def _check_open(self) -> None:
        if self._engine is None:
            raise InvalidInput("the session is closed; load the engine again")


@dataclass(frozen=True)
class _Tensor:
    spec: TensorSpec
    memory: Memory


def open_engine(
    path: Path | str,
    *,
    trust: bool = False,
    backend: DeviceBackend | None = None,
    cuda_graph: str = "auto",
    repeats: int = 1,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    runtime: str = "tensorrt",
) -> EngineSession:
    """Load an engine file, once a GPU is proven and its manifest fits it and this machine.

    Args:
        path: the engine.
        trust: load it even without a manifest, or with another content than the manifest's. Code in it is executed.
        backend: see `EngineSession`, as for all others.
        cuda_graph: the same.
        repeats: the same.
        shapes: the same.
        runtime: `tensorrt` or `tensorrt-rtx`. An engine of the latter that was built where it could not run is proven first.

    Raises:
        EngineRefused: it does not fit; names the first thing that does not.
        InvalidInput: no such file.
        CorruptFile: the manifest cannot be read.
        CheckFailed: it is the first run of an engine, and it does not compute what its ONNX file computes.
        Unavailable: as `EngineSession`, as for all others.
        TensorRTFailed: the same.
        CudaFailed: the same.
    """
    path = Path(path)
    _check_timing(cuda_graph, repeats)
    trt = import_tensorrt(runtime=runtime)
    machine = machine_of(trt)
    engine = read_engine(path, machine, trust=trust)
    metadata, notices = _metadata_beside(path, engine.manifest)
    session = EngineSession(
        engine.plan, backend=backend, cuda_graph=cuda_graph, repeats=repeats, shapes=shapes, metadata=metadata, trt=trt,
        runtime_cache=own_cache_path(trt, machine),
    )  # fmt: skip
    session.manifest = engine.manifest
    session.notes[:0] = [*engine.notices, *notices]
    if session.manifest is not None and is_rtx(trt) and not is_proven(session.manifest, machine):
        try:
            session.manifest = prove(session, path, session.manifest, machine)
        except BaseException:
            session.close()
            raise
        session.notes.append(f"parity proven on this GPU, against {session.manifest.onnx}")
    return session


def _metadata_beside(path: Path, manifest: EngineManifest | None) -> tuple[dict[str, str], list[str]]:
    """Return the metadata of the ONNX file that the engine was built from, and what to say where it is another file now."""
    source = path.with_name(manifest.onnx) if manifest is not None else None
    if source is None or manifest is None or not source.is_file():
        return {}, []
    if sha256(source) != manifest.onnx_sha256:
        return {}, [f"{source.name} changed since {path.name} was built from it; its preprocessing and labels are not used"]
    try:
        return onnx_metadata(source), []
    except CorruptFile as error:
        return {}, [f"preprocessing and labels are not known: {error}"]


def _check_timing(cuda_graph: str, repeats: int) -> None:
    if cuda_graph not in CUDA_GRAPH:
        raise InvalidInput(f"cuda_graph is {cuda_graph!r}; write one of {', '.join(CUDA_GRAPH)}")
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
        raise InvalidInput(f"repeats must be an integer of at least 1, got {repeats!r}")

"""Run and time TensorRT engines behind `export.runtime.Session`.

Timing is trtexec 11's: the work sits in a CUDA graph, inputs and outputs stay on the device, events on the device take the time,
the host waits by spinning. Where a graph takes less than `LEAD_BELOW_MS`, it is enqueued once before the timed one, so that the
device is busy while the host enqueues, as trtexec's second query in flight keeps it; this keeps the caches as warm, too.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from export.errors import CorruptFile, InvalidInput
from export.feeds import check_feeds
from export.files import sha256
from export.runtime import Session
from export.trt.cuda.device import CudaFailed, DeviceBackend, open_backend
from export.trt.cuda.guard import import_tensorrt
from export.trt.engine_file import EngineManifest, machine_of, read_engine
from export.trt.engine_io import deserialised, tensor_names, tensor_spec, tuned_shapes
from export.trt.layers import LayerTimes, profiler_of
from export.trt.layers import layer_info as describe_layers
from export.trt.log import TensorRTFailed, attempted, checked
from export.trt.onnx_metadata import onnx_metadata
from export.trt.proof import is_proven, prove
from export.trt.rtx import RuntimeCache, own_cache_path
from export.trt.versions import is_rtx

CUDA_GRAPH = ("auto", "require", "off")
LEAD_BELOW_MS = 10.0
"""Above it, what the host takes to launch a graph (some microseconds, up to 0.1 ms for hundreds of kernels and a slow CPU) is
below 1 % of the time."""
_PROFILE_WARM_UP = 3
_NO_MEMORY = "If this is for want of memory: end what else uses the GPU, or build with a smaller workspace limit."
Owned = TypeVar("Owned")


class EngineSession(Session):
    """An engine in memory; see `export.runtime.Session`. Not thread-safe.

    Args:
        plan: the engine's bytes. Deserialising executes code in them: pass what this process built or `read_engine` let through.
        backend: who talks to CUDA; default `open_backend()`.
        cuda_graph: `auto` captures the runs in a CUDA graph, and where that fails `step` times plain enqueues and `notes` says
            so; `require` makes that failure an error; `off` captures none.
        metadata: of the model (preprocessing, labels), as its ONNX file has it.
        trt: the module `tensorrt`, or TensorRT-RTX; imported, once a GPU is proven, where it is None.
        runtime_cache: file of kernels that TensorRT-RTX compiled before; it has no meaning for TensorRT.

    Raises:
        Unavailable: no usable GPU, TensorRT or CUDA backend; found out before anything of TensorRT is made.
        CudaFailed: CUDA refuses, for instance memory.
        TensorRTFailed: the engine cannot be loaded, for instance for want of memory; with TensorRT's own words.
        InvalidInput: its inputs or outputs are of a kind that a session does not know.
    """

    on_gpu = True

    def __init__(
        self,
        plan: bytes,
        *,
        backend: DeviceBackend | None = None,
        cuda_graph: str = "auto",
        metadata: Mapping[str, str] | None = None,
        trt: Any = None,
        runtime_cache: Path | None = None,
    ) -> None:
        _check_graph_mode(cuda_graph)
        self._trt: Any = import_tensorrt() if trt is None else trt
        self.metadata = dict(metadata or {})
        self.notes: list[str] = []
        """What a user should know of this session: fallbacks, types, chosen shapes."""
        self.manifest: EngineManifest | None = None
        self._cuda_graph = cuda_graph
        self._ready = self._short = self._flushed = False
        self._bound: list[np.ndarray] | None = None
        self._replaced = False
        """Whether the device holds other inputs than the bound ones."""
        self._owned: list[Any] = []
        """What must be freed of CUDA's, in the order of making."""
        self._graph: Any = None
        self._scratch: tuple[int, Any] = (0, None)
        """Bytes and memory that `flush` overwrites."""
        self._memory: dict[str, Any] = {}
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._compiled: RuntimeCache | None = None
        self._backend = backend or open_backend()
        try:
            self._stream = self._own(self._backend.make_stream())
            self._begin, self._end = (self._own(self._backend.make_event()) for _ in range(2))
            self._load(plan, runtime_cache)
        except BaseException:
            with suppress(CudaFailed):  # the first failure tells more
                self.close()
            raise

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Compute the outputs; bound inputs stay bound."""
        self._check_open()
        arrays = check_feeds(self.inputs, feeds)
        self._replaced = self._bound is not None
        self._upload(arrays)
        self._prepare()
        self._launch()
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
        self._backend.record(self._begin, self._stream)
        self._launch()
        self._backend.record(self._end, self._stream)
        self._backend.wait(self._end)
        took_ms = self._backend.elapsed_ms(self._begin, self._end)
        self._flushed, self._short = False, took_ms < LEAD_BELOW_MS
        return took_ms

    def flush(self, mib: float) -> None:
        """Overwrite this much memory on the device, so that the next `step` finds its caches cold; not part of its time."""
        self._check_open()
        self._restore()
        size_bytes = max(1, round(mib * 2**20))
        if self._scratch[0] != size_bytes:
            if self._scratch[0]:
                self._backend.synchronize()
                self._owned = [item for item in self._owned if item is not self._scratch[1]]
                self._backend.free(self._scratch[1])
                self._scratch = (0, None)
            self._scratch = (size_bytes, self._own(self._backend.allocate(size_bytes)))
        self._backend.fill(self._scratch[1], size_bytes, self._stream)
        self._flushed = True

    def results(self) -> list[np.ndarray]:
        """Copy out what the last `step` or `run` computed."""
        self._check_open()
        download = functools.partial(self._backend.download, stream=self._stream)
        return [download(self._memory[spec.name], spec.shape, np.dtype(spec.dtype)) for spec in self.outputs]

    def time_layers(self, runs: int = 50) -> LayerTimes:
        """Run with TensorRT's profiler, in a context of its own, and return the time of each layer.

        The inputs are those that are bound, zeros where none are. Do this after timing: it disturbs.
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
        """Wait for the device and free all of CUDA's, the newest first, then the engine, in the order that TensorRT wants."""
        self._graph = self._bound = None
        self._scratch, self._memory = (0, None), {}
        try:
            with ExitStack() as stack:  # calls all, whatever fails, and raises a failure afterwards
                for item in self._owned:
                    stack.callback(self._backend.free, item)
                if self._owned:
                    stack.callback(self._backend.synchronize)
                self._owned = []
                self._stream = self._begin = self._end = None
        finally:
            self._context = self._compiled = None
            self._engine = None
            self._runtime = None

    def _own(self, item: Owned) -> Owned:
        self._owned.append(item)
        return item

    def _load(self, plan: bytes, runtime_cache: Path | None) -> None:
        self._runtime, self._engine = deserialised(self._trt, plan)
        inputs, outputs = tensor_names(self._trt, self._engine)
        self._shapes = tuned_shapes(self._engine, inputs, self.notes)
        if runtime_cache is not None:
            self._compiled = RuntimeCache(self._engine, runtime_cache)
        self._context = self._new_context()
        describe = functools.partial(tensor_spec, self._trt, self._engine, self._context, notes=self.notes)
        self.inputs, self.outputs = (tuple(map(describe, names)) for names in (inputs, outputs))
        for spec in (*self.inputs, *self.outputs):
            size_bytes = math.prod(spec.shape) * np.dtype(spec.dtype).itemsize
            self._memory[spec.name] = self._own(self._backend.allocate(size_bytes))
        self._set_addresses(self._context)

    def _new_context(self) -> Any:
        given = () if self._compiled is None else (self._compiled.config,)
        make = functools.partial(self._engine.create_execution_context, *given)
        context: Any = checked("creating an execution context", make, _NO_MEMORY)
        if self._shapes:
            choose = functools.partial(context.set_optimization_profile_async, 0, self._backend.number(self._stream))
            checked("choosing the optimisation profile", choose)  # only an engine's first context starts with one
            self._backend.wait(self._stream)
        for name, shape in self._shapes.items():
            checked(f"setting the shape of {name!r} to {shape}", functools.partial(context.set_input_shape, name, shape))
        return context

    def _set_addresses(self, context: Any) -> None:
        for name, memory in self._memory.items():
            setting = functools.partial(context.set_tensor_address, name, self._backend.number(memory))
            checked(f"setting the address of {name!r}", setting)

    def _run_profiled(self, times: LayerTimes, profiler: Any, runs: int) -> None:
        context = self._new_context()
        self._set_addresses(context)
        for _ in range(_PROFILE_WARM_UP):
            self._enqueue(context)
        self._backend.wait(self._stream)

        def attach() -> None:
            context.profiler, context.enqueue_emits_profile = profiler, True

        attempted("attaching a profiler", attach)
        for _ in range(runs):
            times.begin_run()
            self._enqueue(context)
            self._backend.wait(self._stream)

    def _upload(self, arrays: Sequence[np.ndarray]) -> None:
        for spec, array in zip(self.inputs, arrays, strict=True):
            self._backend.upload(self._memory[spec.name], array, self._stream)

    def _restore(self) -> None:
        if self._replaced and self._bound is not None:
            self._upload(self._bound)
            self._replaced = False

    def _prepare(self) -> None:
        """Run once, in which TensorRT sets up what it left undone, and capture the graph."""
        if self._ready:
            return
        self._enqueue()
        self._backend.wait(self._stream)
        if self._cuda_graph != "off":
            try:
                self._graph = self._own(self._backend.capture(self._stream, self._enqueue))
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
        self._backend.wait(self._stream)

    def _launch(self) -> None:
        if self._graph is not None:
            self._backend.launch(self._graph, self._stream)
        else:
            self._enqueue()

    def _enqueue(self, context: Any = None) -> None:
        run = (context or self._context).execute_async_v3
        checked("running the engine", functools.partial(run, self._backend.number(self._stream)))

    def _check_open(self) -> None:
        if self._engine is None:
            raise InvalidInput("the session is closed; load the engine again")


def open_engine(path: Path | str, *, trust: bool = False, runtime: str = "tensorrt", **session: Any) -> EngineSession:
    """Load an engine file, once a GPU is proven and its manifest fits it and this machine.

    Args:
        path: the engine.
        trust: load it even without a manifest, or with another content than the manifest's. Code in it is executed.
        runtime: `tensorrt` or `tensorrt-rtx`. An engine of the latter that was built where it could not run is proven first.
        session: `backend` and `cuda_graph` of `EngineSession`, whose errors are raised as well.

    Raises:
        EngineRefused: it does not fit; names the first thing that does not.
        InvalidInput: no such file.
        CorruptFile: the manifest cannot be read.
        CheckFailed: it is the first run of an engine, and it does not compute what its ONNX file computes.
    """
    path = Path(path)
    _check_graph_mode(session.get("cuda_graph", "auto"))
    trt = import_tensorrt(runtime=runtime)
    machine = machine_of(trt)
    engine = read_engine(path, machine, trust=trust)
    metadata, notices = _metadata_beside(path, engine.manifest)
    opened = EngineSession(engine.plan, metadata=metadata, trt=trt, runtime_cache=own_cache_path(trt, machine), **session)
    opened.manifest = engine.manifest
    opened.notes[:0] = [*engine.notices, *notices]
    if opened.manifest is not None and is_rtx(trt) and not is_proven(opened.manifest, machine):
        try:
            opened.manifest = prove(opened, path, opened.manifest, machine)
        except BaseException:
            opened.close()
            raise
        opened.notes.append(f"parity proven on this GPU, against {opened.manifest.onnx}")
    return opened


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


def _check_graph_mode(cuda_graph: str) -> None:
    if cuda_graph not in CUDA_GRAPH:
        raise InvalidInput(f"cuda_graph is {cuda_graph!r}; write one of {', '.join(CUDA_GRAPH)}")

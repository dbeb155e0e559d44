"""Build TensorRT engines from ONNX graphs, one way for 10.3 to 11.x: strongly typed, precision from the graph.

Nothing here changes the graph: `export.trt.prepare.prepared` gives it its precision before, and a graph that does not fit
what is asked for is refused. Building needs the GPU that the engine is for. Ctrl-C ends a build after the step at hand.
"""

from __future__ import annotations

import functools
import hashlib
import re
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.errors import InvalidInput
from export.files import sha256
from export.trt.cuda.guard import import_tensorrt
from export.trt.engine_file import EngineManifest, Machine, machine_of
from export.trt.layers import Layer, builder_layers
from export.trt.log import MESSAGES, TensorRTFailed, attempted, checked, heard, logger_of
from export.trt.options import BuildOptions
from export.trt.progress import Cancel, Progress, interruptible, monitor_of
from export.trt.rtx import check_buildable, import_rtx
from export.trt.timing_cache import attach, cache_path, host_bytes, store
from export.trt.versions import compute_capability, is_rtx, network_flags, newest_opset

SHOWN_ERRORS = 5
"""Refused nodes that a message lists."""


@dataclass(frozen=True)
class BuildResult:
    """An engine as bytes, and how it came about."""

    plan: bytes = field(repr=False)
    seconds: float
    """Time that TensorRT took to build it."""
    layers: int
    """Layers of the network that TensorRT was given, before it fused them; `export.trt.layers` describes the engine's own."""
    options: BuildOptions
    graph_sha256: str
    """Of the ONNX graph that was parsed."""
    notices: tuple[str, ...]
    """What happened to the timing cache, where something did."""
    engine_layers: tuple[Layer, ...] = field(default=(), repr=False)
    """The engine's own, which TensorRT-RTX's builder tells; empty where its verbosity is not detailed, and of TensorRT."""

    @property
    def sha256(self) -> str:
        """The engine's hash."""
        return hashlib.sha256(self.plan).hexdigest()

    def manifest(self, machine: Machine, onnx: Path, command: str, **known: Any) -> EngineManifest:
        """Return the manifest to save beside the engine; `known` are its `attention`, `parity` and `latency`.

    The ONNX file is the one that it can be rebuilt from, beside the engine, and the command what rebuilds it.
    """
        return EngineManifest(
            machine=machine, engine_sha256=self.sha256, size_bytes=len(self.plan), onnx=onnx.name, onnx_sha256=sha256(onnx),
            graph_sha256=self.graph_sha256, precision=self.options.precision, options=self.options.to_json(), command=command,
            **known,
        )  # fmt: skip


def build_engine(
    onnx: Path | bytes,
    options: BuildOptions,
    *,
    timing_cache: Path | None = None,
    machine: Machine | None = None,
    trt: Any = None,
    progress: Progress | None = None,
) -> BuildResult:
    """Build an engine for this machine's GPU; of TensorRT-RTX for those that the options name, on any machine.

    Args:
        onnx: the graph, a single file or its bytes, with the types of `options.precision`.
        options: how to build.
        timing_cache: folder of timing caches (see `export.trt.timing_cache`); None builds without one.
        machine: this machine, where the caller knows it already.
        trt: the module `tensorrt`, imported after a GPU is proven where it is None; TensorRT-RTX where the options name GPUs.
        progress: told how far the build is; what it raises ends the build and is raised here.

    Raises:
        Unavailable: no usable GPU, or no TensorRT that this code is for.
        InvalidInput: no such file, no ONNX graph, or a graph whose types or shapes do not fit the options.
        TensorRTFailed: TensorRT failed, with what it logged and what to try; where its parser did, with the nodes it refused.
        KeyboardInterrupt: Ctrl-C.
    """
    from export.trt.engine_precision import check_graph, computed_products

    if not isinstance(onnx, bytes) and not onnx.is_file():
        raise InvalidInput(f"no such file: {onnx}")
    data = onnx if isinstance(onnx, bytes) else onnx.read_bytes()
    check_graph(data, options.precision)
    if trt is None:
        trt = import_rtx() if options.capabilities else import_tensorrt()
    if is_rtx(trt):
        check_buildable(options, attention=75 in options.capabilities and computed_products(data))
        timing_cache = None  # it has none: its calls are deprecated and do nothing
    elif options.capabilities:
        raise InvalidInput("TensorRT builds for the GPU that is here; only tensorrt-rtx builds for GPUs that are named")
    advice = functools.partial(_advice, options=options)
    cancel = Cancel()
    with interruptible(cancel):  # from the first call on: all of them log through Python, where a Ctrl-C would be lost
        builder: Any = checked("creating TensorRT's builder", lambda: trt.Builder(logger_of(trt)), advice)
        network = _parsed(trt, builder, data, options)
        config = _configured(trt, builder, options)
        cache = attach(config, cache_path(timing_cache, machine or machine_of(trt))) if timing_cache is not None else None
        attempted("setting the progress monitor", lambda: setattr(config, "progress_monitor", monitor_of(trt, progress, cancel)))
        start, told = time.perf_counter(), list[str]()
        with heard("Layers:", told) if is_rtx(trt) and options.detailed else nullcontext():
            plan = _built(builder, network, config, cancel, advice)
        seconds = time.perf_counter() - start
        if cache is not None:  # what an ended build has timed so far is kept for the next
            store(config, cache)
        cancel.raise_reason()
    notices = tuple(cache.notices) if cache is not None else ()
    graph = hashlib.sha256(data).hexdigest()
    layers = builder_layers(told[0]) if told else ()  # one list per compute capability, all alike in what is fused
    return BuildResult(plan, seconds, network.num_layers, options, graph, notices, layers)


def _parsed(trt: Any, builder: Any, data: bytes, options: BuildOptions) -> Any:
    flags = network_flags(trt, plugins=options.plugins)
    network: Any = checked("creating a strongly typed network", lambda: builder.create_network(flags))
    parser: Any = checked("creating TensorRT's ONNX parser", lambda: trt.OnnxParser(network, logger_of(trt)))
    try:
        checked("parsing the ONNX graph", lambda: parser.parse(data))
    except TensorRTFailed as error:
        count = parser.num_errors
        refused = [_told(parser.get_error(index)) for index in range(min(count, SHOWN_ERRORS))]
        refused += [f"... and {count - SHOWN_ERRORS} more nodes"] if count > SHOWN_ERRORS else []
        raise TensorRTFailed(error.what, [*refused, *error.lines], _opset_advice(trt, data)) from None
    if not network.num_outputs:
        raise InvalidInput("the parsed network has no outputs")
    for tensor in map(network.get_input, range(network.num_inputs)):
        if -1 in tensor.shape:
            raise InvalidInput(f"input {tensor.name!r} has the dynamic shape {tuple(tensor.shape)}; export it with a static shape")
    return network


def _told(error: Any) -> str:
    """Say which node the parser refused, and why."""
    code = str(error.code()).rpartition(".")[2]
    where = f"node {error.node_name()!r} ({error.node_operator()})" if error.node_operator() else f"node {error.node()}"
    if stack := list(error.local_function_stack()):  # nodes of a function have one name, wherever it is used
        where += f" of {' > '.join(stack)}"
    return f"{where}: {code}: {error.desc()}"


def _opset_advice(trt: Any, data: bytes) -> str:
    """Say whether the operator set is newer than what the parser is documented for."""
    import onnx

    from export.onnx.opset import standard_opset

    found = standard_opset(onnx.ModelProto.FromString(data))
    known = newest_opset(trt)
    if found <= known:
        return ""
    instead = ", take fp16 instead of bf16 (which needs 22)" if known < 22 <= found else ""
    text = f"The graph is of operator set {found}; TensorRT {trt.__version__} is documented for {known} at least. "
    return f"{text}Export the graph with that{instead}, or take a newer TensorRT"


def _configured(trt: Any, builder: Any, options: BuildOptions) -> Any:
    config: Any = checked("creating a build configuration", builder.create_builder_config)

    def configure() -> None:
        config.builder_optimization_level = options.level
        config.avg_timing_iterations = options.timing_iterations
        detailed, names = trt.ProfilingVerbosity.DETAILED, trt.ProfilingVerbosity.LAYER_NAMES_ONLY
        config.profiling_verbosity = detailed if options.detailed else names
        # TensorRT's default is TF32, which would make "fp32" a promise of 10 mantissa bits
        (config.set_flag if options.tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
        if options.max_aux_streams is not None:
            config.max_aux_streams = options.max_aux_streams
        if options.capabilities:
            config.num_compute_capabilities = len(options.capabilities)
        for index, number in enumerate(options.capabilities):
            config.set_compute_capability(compute_capability(trt, number), index)

    attempted("configuring the build", configure)
    if options.workspace_mib is not None:  # a limit that TensorRT does not take changes nothing, and only its log says so
        pool, limit = trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20
        before = config.get_memory_pool_limit(pool)
        attempted("limiting the workspace", lambda: config.set_memory_pool_limit(pool, limit))
        if config.get_memory_pool_limit(pool) == before != limit:
            own = f"TensorRT's own limit is {before >> 20}"
            advice = f"workspace_mib is {options.workspace_mib}, more than this device allows. Leave it out, or set less: {own}"
            raise TensorRTFailed("limiting the workspace", MESSAGES.take(), advice)
    return config


def _built(builder: Any, network: Any, config: Any, cancel: Cancel, advice: Callable[[Sequence[str]], str]) -> bytes:
    """Build; the result of a build that was ended is nothing."""
    try:
        return host_bytes(checked("building the engine", lambda: builder.build_serialized_network(network, config), advice))
    except TensorRTFailed:
        if not cancel:
            raise
        return b""


ADVICE = {
    r"unsupported SM|GPU SM \d+ is not supported":
        "This TensorRT is not for this GPU: a newer GPU needs a newer TensorRT, and an old one an older TensorRT",
    r"CUDA initialization failure|no kernel image|insufficient driver|driver version":
        "TensorRT does not fit this GPU or driver: update the driver, or take the TensorRT made for its CUDA version",
    r"No space left|disk": "The disk is full: TensorRT writes temporary files",
}  # fmt: skip
"""What to do, by what TensorRT says."""


def _advice(lines: Sequence[str], options: BuildOptions) -> str:
    """Say what to try; TensorRT reports memory that ran out as "could not find any implementation", too."""
    text = "\n".join(lines)
    if re.search(r"out of memory|OutOfMemory|insufficient memory|memory is insufficient", text, re.I):
        limit = f"it is {options.workspace_mib} MiB" if options.workspace_mib else "it is not limited"
        return f"The GPU's memory ran out. Close what else uses it, or set a lower workspace_mib, for instance 256 ({limit})"
    if re.search(r"could not find any implementation", text, re.I):
        if options.workspace_mib:
            return f"No kernel fits into workspace_mib={options.workspace_mib}, or none exists for these types: raise the limit"
        return "No kernel exists for these types and shapes on this GPU: take fp16, or a newer TensorRT"
    return next((advice for pattern, advice in ADVICE.items() if re.search(pattern, text, re.I)), "")

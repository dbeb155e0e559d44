"""Build a TensorRT engine from a trained network, with its manifest and the ONNX file that it can be rebuilt from.

The engine is built from a graph that still knows where attention is, so that every shape of it gets the implementation that is
fastest here (`export.trt.choose`); the ONNX file beside it is the portable one. Nothing is written before the engine's outputs were
compared with the network's in PyTorch. What talks to the GPU comes in as a `Workshop`. No torch here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.errors import CheckFailed, HyctasError, InvalidInput

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from export.onnx_function import OnnxFunction
    from export.parity import ParityReport
    from export.plugin_kernel import PluginKernel
    from export.trt.attention_case import AttentionCase
    from export.trt.build import BuildResult
    from export.trt.choose import AttentionChoice, Lab, Offer
    from export.trt.engine_file import Machine
    from export.trt.guard import Gpu
    from export.trt.layers import FusedAttention
    from export.trt.options import BuildOptions
    from export.trt.progress import Progress
    from export.trt.runner import EngineSession
    from hyctas.bundling import Trained
    from latency.measure import Measurement

PRESETS = ("release", "search")
PRECISIONS = ("fp32", "fp16", "bf16")
"""Of engines that are built from a network alone; int8 and fp8 need a graph that was quantised with data."""
MEMORY_SHARE = 8
"""Attention that holds all its logits may take one part in so many of the GPU's memory."""
MIXED_LOGITS_BYTES = 256 << 20
"""What the logits of one attention may take on the CPU while `mixed` looks for the nodes that stay in fp32."""


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What a TOML file may set of an engine's build."""

    preset: str = "release"
    """release: every kernel is tried, which takes minutes; search: a quick build, for a first look."""
    workspace_mib: int | None = None
    """Most scratch memory of one layer in MiB, for small devices; default: what the GPU has."""
    tf32: bool = False
    """Let fp32 convolutions round their inputs to TF32."""
    mixed: bool = False
    """With fp16: keep as many nodes in fp32 as parity needs, found by trying them on the CPU."""
    measure_attention: bool = True
    """Measure the implementations of attention; without it the first that may work is taken."""
    cuda_backend: str | None = None
    """Who talks to CUDA: torch, cuda-bindings or pycuda; default: the first that works."""
    timing_cache: str | None = None
    """Folder of timing caches; default: hyctas/tensorrt in the user's cache."""

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise InvalidInput(f"preset is {self.preset!r}; write one of {', '.join(PRESETS)}")

    def options(self, precision: str, **changes: Any) -> BuildOptions:
        """Return how TensorRT is to build.

        Raises:
            InvalidInput: a value that is not allowed.
        """
        from export.trt.options import BuildOptions

        make = BuildOptions.release if self.preset == "release" else BuildOptions.search
        return make(precision, workspace_mib=self.workspace_mib, tf32=self.tf32, **changes)

    def cache(self) -> Path:
        """Return the folder of timing caches."""
        from export.trt.timing_cache import default_folder

        return Path(self.timing_cache).expanduser() if self.timing_cache is not None else default_folder()


@dataclass(frozen=True, kw_only=True)
class LoadSettings:
    """What a TOML file may set of how engines are loaded to be timed."""

    trust: bool = False
    """Load engines without a manifest, or changed since it was written: executes code in them."""
    cuda_backend: str | None = None
    """Who talks to CUDA: torch, cuda-bindings or pycuda; default: the first that works."""

    def arguments(self) -> dict[str, Any]:
        """Return them as `export.trt.runtime.TensorRTRuntime` takes them."""
        return {"trust": self.trust, "backend": self.cuda_backend}


@dataclass(frozen=True)
class Workshop:
    """What building needs of this machine; tests put other things in its place."""

    trt: Any
    """The module `tensorrt`."""
    gpu: Gpu
    machine: Machine
    lab: Lab
    """Builds and runs the small engines that attention is chosen by."""
    build: Callable[[bytes, BuildOptions, Progress | None], BuildResult]
    open: Callable[[bytes], EngineSession]
    compile: Callable[[AttentionCase, Gpu, int | None], PluginKernel]
    """Compiles the plugin's kernel for a shape, a GPU and its driver, and the shared memory that a block may take."""


@dataclass(frozen=True)
class EngineReport:
    """What was written."""

    path: Path
    onnx: Path
    """The portable file that stands beside it."""
    build: BuildResult = field(repr=False)
    attention: AttentionChoice = field(repr=False)
    fused: FusedAttention
    parity: ParityReport
    latency: Measurement
    notes: tuple[str, ...]


def open_workshop(settings: EngineSettings) -> Workshop:
    """Return the one of this machine.

    Raises:
        Unavailable: no usable GPU, TensorRT or CUDA backend.
    """
    from export.trt.build import build_engine
    from export.trt.choose import EngineLab
    from export.trt.device import open_backend
    from export.trt.engine_file import machine_of
    from export.trt.guard import import_tensorrt, require_gpu
    from export.trt.runner import EngineSession

    trt, gpu = import_tensorrt(), require_gpu()
    machine, backend, cache = machine_of(trt), open_backend(settings.cuda_backend), settings.cache()
    level = settings.options("fp32").level
    values = {"workspace_mib": settings.workspace_mib, "tf32": settings.tf32, "level": level}
    lab = EngineLab(trt, machine, backend, cache, values)

    def build(graph: bytes, options: BuildOptions, progress: Progress | None) -> BuildResult:
        return build_engine(graph, options, timing_cache=cache, machine=machine, trt=trt, progress=progress)

    return Workshop(trt, gpu, machine, lab, build, lambda plan: EngineSession(plan, backend=backend), compiled_kernel)


def compiled_kernel(case: AttentionCase, gpu: Gpu, most_shared_bytes: int | None = None) -> PluginKernel:
    """Compile the plugin's kernel for a shape, with Triton.

    Raises:
        HyctasError: it cannot be: no Triton, no such architecture, too old a driver, no tile that holds.
    """
    from hyctas.attention.plugin import plugin_kernel

    (major, minor), channels = gpu.capability, (case.qk_channels, case.value_channels)
    return plugin_kernel(
        major * 10 + minor, *channels, case.dtype, queries=case.queries, keys=case.keys, driver_cuda=gpu.driver_cuda,
        most_shared_bytes=most_shared_bytes,
    )  # fmt: skip


def write_engine(
    trained: Trained,
    path: Path,
    size: tuple[int, int],
    output: str,
    precision: str,
    command: str,
    settings: EngineSettings,
    workshop: Workshop,
    examples: Sequence[np.ndarray] = (),
    extra: Mapping[str, Any] | None = None,
    tell: Callable[[str], None] | None = None,
    progress: Progress | None = None,
    portable: Path | None = None,
) -> EngineReport:
    """Write `x.engine`, its manifest `x.engine.json`, and `x.onnx` with its own manifest.

    Args:
        trained: the network.
        path: of the engine.
        size: (H, W).
        output: `native`, `logits`, `labels` or `panoptic`.
        precision: one of `PRECISIONS`.
        command: what builds it anew, for the manifest.
        settings: how to build.
        workshop: this machine's.
        examples: RGB images (h, w, 3) uint8 that parity is checked on besides random ones.
        extra: noted in the ONNX file's manifest.
        tell: is told what is being done.
        progress: is told how far the build is.
        portable: the network's ONNX file in the same folder, where there is one already (a bundle's); none is written then.

    Raises:
        CheckFailed: the engine does not compute what the network computes, or gives no usable times.
        InvalidInput: an unknown precision, or a file stands in the way.
        HyctasError: an attention has no implementation here, or TensorRT failed, with its words.
    """
    from export.trt.engine_file import check_free, save_engine
    from export.trt.layers import fused_attention
    from hyctas.bundling import write_file

    precision = built_precision(precision, settings)
    settings.options(precision)  # refused before minutes are spent
    check_free(path)
    images = _prepared_images(trained, examples, size)
    model, function = intermediate(trained, size, output, precision, images)
    attention = choose(model, function, workshop, measure=settings.measure_attention, tell=tell)
    options = settings.options(precision, plugins=bool(attention.plugins))
    if tell is not None:
        tell(f"build {path.name}: {precision}, preset {settings.preset}")
    built = workshop.build(attention.model.SerializeToString(), options, progress)
    with workshop.open(built.plan) as session:
        parity = _proven(trained, session, images, size, options)
        latency = _timed(session, images)
        fused = fused_attention(session.layer_info(), attention.plugins)
        notes = (*built.notices, *session.notes)
    onnx = portable
    if onnx is None:
        onnx = write_file(trained, path.with_suffix(".onnx"), size, output, f"tensorrt:{precision}", examples, extra).path
    found = {**attention.to_json(), "fused": fused.verdict, "evidence": list(fused.evidence)}
    manifest = built.manifest(
        workshop.machine, onnx, command, attention=found, parity=parity.to_json(), latency=_described(latency)
    )
    save_engine(path, built.plan, manifest)
    return EngineReport(path, onnx, built, attention, fused, parity, latency, notes)


def intermediate(
    trained: Trained, size: tuple[int, int], output: str, precision: str, images: Sequence[np.ndarray] = ()
) -> tuple[onnx.ModelProto, OnnxFunction]:
    """Return a network's graph in a precision, with a node per attention, and the function that the nodes are of.

    Args:
        trained: the network.
        size: (H, W).
        output: as `write_engine`.
        precision: fp32, fp16, bf16 or mixed.
        images: (1, 3, H, W) float32; `mixed` holds parity on them, at least one.

    Raises:
        InvalidInput: the network cannot be exported or converted.
        CheckFailed: `mixed` cannot meet its limit.
    """
    import onnx

    from export.onnx_file import export_onnx
    from export.precision import opset
    from export.trt.precision import prepared
    from hyctas.attention.onnx_function import self_attention_function
    from hyctas.attention.onnx_nodes import nodes

    version = opset("bf16" if precision == "bf16" else "fp32")
    function = self_attention_function(version)
    with tempfile.TemporaryDirectory(prefix="hyctas-engine-") as temporary, nodes():
        file = Path(temporary) / "nodes.onnx"
        export_onnx(trained.network, size, file, output, opset=version, functions=[function])
        model = onnx.load(file)
    if precision == "mixed":  # computes the graph on the CPU, where attention must not hold all its logits
        model, function = _in_chunks(model, function)
    feeds = [{"image": image} for image in images]
    return prepared(model, precision, examples=feeds).model, function


def _in_chunks(model: onnx.ModelProto, function: OnnxFunction) -> tuple[onnx.ModelProto, OnnxFunction]:
    """Give every attention whose logits are large a body that holds some at a time; return the function that has these, too."""
    from export.onnx_function import attach, nodes_of
    from export.trt.attention_case import AttentionCase
    from hyctas.attention.onnx_chunks import body_name, with_chunks

    bodies, sizes = {}, set()
    for node in nodes_of(model, function):
        size, _ = _chunks(AttentionCase.of(node), MIXED_LOGITS_BYTES)
        bodies[node.name] = function.default if size is None else body_name(*size)
        sizes |= {size} if size is not None else set()
    function = with_chunks(function, sorted(sizes))
    return (attach(model, function, bodies) if bodies else model), function


def choose(
    model: onnx.ModelProto,
    function: OnnxFunction,
    workshop: Workshop,
    *,
    measure: bool = True,
    tell: Callable[[str], None] | None = None,
) -> AttentionChoice:
    """Choose an implementation for every attention of an intermediate graph; arguments and errors are `choose_attention`'s."""
    from export.onnx_function import nodes_of
    from export.trt.attention_case import AttentionCase
    from export.trt.choose import choose_attention
    from hyctas.attention.onnx_chunks import with_chunks

    cases = {AttentionCase.of(node) for node in nodes_of(model, function)}
    memory = _memory(workshop)
    sizes = sorted({found for case in cases if (found := _chunks(case, memory)[0]) is not None})
    bodies = with_chunks(function, sizes)
    return choose_attention(model, bodies, lambda case: offers(case, workshop), workshop.lab, measure=measure, tell=tell)


def offers(case: AttentionCase, workshop: Workshop) -> list[Offer]:
    """Return what computes an attention, or why it cannot: plugins, fused, decomposed, chunked."""
    from export.trt.choose import Offer
    from hyctas.attention.onnx_chunks import body_name
    from hyctas.attention.onnx_function import refusal

    memory = _memory(workshop)
    found = _plugins(case, workshop)
    for name, body in (("fused", "padded"), ("decomposed", "plain")):
        why = refusal(body, case.shapes, case.dtype, memory)
        found.append(Offer(name=name, refused=why) if why else Offer(name=name, body=body))
    size, why = _chunks(case, memory)
    found.append(Offer(name="chunked", refused=why) if size is None else Offer(name="chunked", body=body_name(*size)))
    return found


def _plugins(case: AttentionCase, workshop: Workshop) -> list[Offer]:
    """Offer the plugin, and where it takes much shared memory one that does not."""
    from export.trt.choose import KERNELS, PLAIN_SHARED_BYTES

    plain, small = KERNELS
    found = [_plugin(plain, None, case, workshop)]
    kernel = found[0].kernel
    if kernel is not None and kernel.shared_bytes > PLAIN_SHARED_BYTES:
        found.append(_plugin(small, PLAIN_SHARED_BYTES, case, workshop))
    return found


def _plugin(name: str, most_shared_bytes: int | None, case: AttentionCase, workshop: Workshop) -> Offer:
    from export.trt.choose import Offer
    from export.trt.plugin import refusal, version_refusal

    why = version_refusal(workshop.trt)
    if why:
        return Offer(name=name, refused=why)
    try:
        kernel = workshop.compile(case, workshop.gpu, most_shared_bytes)
    except HyctasError as error:
        return Offer(name=name, refused=" ".join(str(error).split()))
    why = refusal(kernel, workshop.trt, workshop.gpu, case.shapes)
    return Offer(name=name, refused=why) if why else Offer(name=name, kernel=kernel)


def _chunks(case: AttentionCase, memory_bytes: int) -> tuple[tuple[int, int] | None, str]:
    """Return queries in all and at a time of the chunked body, or why there is none."""
    from hyctas.attention.onnx_chunks import MOST_CHUNKS, chunk_rows
    from hyctas.attention.onnx_function import refusal

    if not refusal("plain", case.shapes, case.dtype, memory_bytes):
        return None, "all logits fit at once"
    rows = chunk_rows(case.shapes, memory_bytes)
    chunks = -(-case.queries // rows)
    if chunks > MOST_CHUNKS:
        return None, f"{case.queries} queries would be {chunks} chunks of {rows}; a graph has at most {MOST_CHUNKS}"
    return (case.queries, rows), ""


def _memory(workshop: Workshop) -> int:
    from hyctas.attention.onnx_function import MEMORY_BYTES

    return min(MEMORY_BYTES, workshop.gpu.memory_bytes // MEMORY_SHARE)


def built_precision(precision: str, settings: EngineSettings) -> str:
    """Return the precision of `BuildOptions` for a target's.

    Raises:
        InvalidInput: engines in it are not built from a network alone, or it does not go with the settings.
    """
    if precision not in PRECISIONS:
        raise InvalidInput(
            f"an engine in {precision} needs a graph that was quantised with images: write an .onnx file, quantise it (NVIDIA "
            f"ModelOpt), and build that: python -m export.trt.from_onnx FILE.onnx --precision {precision}; "
            f"here take {', '.join(PRECISIONS)}"
        )
    if settings.mixed and precision != "fp16":
        raise InvalidInput(f"mixed keeps parts of an fp16 engine in fp32; it does not go with {precision}")
    return "mixed" if settings.mixed else precision


def _prepared_images(trained: Trained, examples: Sequence[np.ndarray], size: tuple[int, int]) -> list[np.ndarray]:
    from PIL import Image

    return [trained.preprocessing.apply(Image.fromarray(example), size) for example in examples]


def _proven(
    trained: Trained,
    session: EngineSession,
    images: Sequence[np.ndarray],
    size: tuple[int, int],
    options: BuildOptions,
) -> ParityReport:
    from export.parity import check_parity

    tolerance, agreement = options.parity_limits
    report = check_parity(trained.network, session, images, size, tolerance=tolerance, min_agreement=agreement)
    if not report.passed:
        advice = "; set mixed = true in the TOML file, or take tensorrt:fp32" if options.precision == "fp16" else ""
        raise CheckFailed(f"the engine is not written: {report.summary()}{advice}")
    return report


def _timed(session: EngineSession, images: Sequence[np.ndarray]) -> Measurement:
    import numpy as np

    from latency.measure import measure
    from latency.protocol import Protocol

    spec = session.inputs[0]
    image = images[0] if images else np.random.default_rng(0).standard_normal(spec.shape, np.float32)
    session.bind({spec.name: image})
    return measure(session, Protocol(warmup_ms=200, min_samples=50, max_samples=3000, budget_ms=2000))


def _described(latency: Measurement) -> dict[str, Any]:
    from export.trt.engine_file import LATENCY_PROTOCOL

    return {**asdict(latency), "flags": list(latency.flags), "protocol": LATENCY_PROTOCOL}

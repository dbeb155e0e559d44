"""Build a TensorRT engine from a trained network, with its manifest and the ONNX file that it can be rebuilt from.

The engine is built from a graph that still knows where attention is, so that every shape of it gets the implementation that is
fastest here (`export.trt.choose`); the ONNX file beside it is the portable one. Where a GPU is, nothing is written before the
engine's outputs were compared with the network's in PyTorch; an engine for GPUs elsewhere says that it is not proven.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.errors import CheckFailed
from hyctas.engine.attention_choice import choose, intermediate
from hyctas.engine.settings import built_precision

if TYPE_CHECKING:
    import numpy as np

    from export.parity import ParityReport
    from export.trt.build import BuildResult
    from export.trt.choose import AttentionChoice
    from export.trt.layers import FusedAttention, Layer
    from export.trt.progress import Progress
    from export.trt.runner import EngineSession
    from hyctas.artifacts.bundling import Trained
    from hyctas.engine.context import BuildContext
    from hyctas.engine.settings import EngineSettings
    from latency.measure import Measurement


@dataclass(frozen=True)
class EngineReport:
    """What was written."""

    path: Path
    onnx: Path
    """The portable file that stands beside it."""
    build: BuildResult = field(repr=False)
    attention: AttentionChoice = field(repr=False)
    fused: FusedAttention
    parity: ParityReport | None
    """None where the engine cannot run here."""
    latency: Measurement | None
    notes: tuple[str, ...]


def write_engine(
    trained: Trained,
    path: Path,
    size: tuple[int, int],
    output: str,
    precision: str,
    command: str,
    settings: EngineSettings,
    context: BuildContext,
    examples: Sequence[np.ndarray] = (),
    extra: Mapping[str, Any] | None = None,
    on_status: Callable[[str], None] | None = None,
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
        command: what rebuilds it, for the manifest.
        settings: how to build.
        context: where and with what.
        examples: RGB images (h, w, 3) uint8 that parity is checked on besides random ones.
        extra: noted in the ONNX file's manifest.
        on_status: is told what is being done.
        progress: is told how far the build is.
        portable: the network's ONNX file in the same folder, where there is one already (a bundle's); none is written then.

    Raises:
        CheckFailed: the engine does not compute what the network computes, or gives no usable times.
        InvalidInput: an unknown precision, or a file stands in the way.
        HyctasError: an attention has no implementation here, or TensorRT failed, with its words.
    """
    from export.trt.engine_file import UNPROVEN, check_free, save_engine
    from export.trt.layers import fused_attention, softmax_nodes
    from export.trt.options import target_precision
    from hyctas.artifacts.bundling import drafted_file

    precision = built_precision(precision, settings)
    settings.options(precision)  # refused before minutes are spent
    check_free(path)
    onnx, target = portable or path.with_suffix(".onnx"), f"{context.machine.runtime}:{target_precision(precision)}"
    # the ONNX file first: what it may fail for is known before minutes are spent; it takes its place when the engine is proven
    with nullcontext() if portable else drafted_file(trained, onnx, size, output, target, examples, extra):
        images = _prepared_images(trained, examples, size)
        model, function = intermediate(trained, size, output, precision, images)
        attention = choose(model, function, context, on_status)
        capabilities = tuple(major * 10 + minor for major, minor in context.machine.capabilities)
        options = settings.options(precision, plugins=bool(attention.plugins), capabilities=capabilities)
        if on_status is not None:
            on_status(f"build {path.name}: {precision}, preset {settings.preset}")
        built = context.build(attention.model.SerializeToString(), options, progress)
        if context.open is None:
            found, notes = Proof(built.engine_layers), []
        else:
            with context.open(built.plan) as session:
                found, notes = _proven(trained, session, built, images, size), [*session.notes]
    fused = fused_attention(found.layers, softmax_nodes(attention.model))
    chosen = {**attention.to_json(), "fused": fused.verdict, "evidence": list(fused.evidence)}
    parity = found.parity.to_json() if found.parity is not None else UNPROVEN
    latency = _described(found.latency) if found.latency is not None else None
    manifest = built.manifest(context.machine, onnx, command, attention=chosen, parity=parity, latency=latency)
    save_engine(path, built.plan, manifest)
    return EngineReport(path, onnx, built, attention, fused, found.parity, found.latency, (*built.notices, *notes))


def _prepared_images(trained: Trained, examples: Sequence[np.ndarray], size: tuple[int, int]) -> list[np.ndarray]:
    from PIL import Image

    return [trained.preprocessing.apply(Image.fromarray(example), size) for example in examples]


@dataclass(frozen=True)
class Proof:
    """What is known of an engine: its layers; and where it runs here, how right and how fast it is."""

    layers: Sequence[Layer]
    parity: ParityReport | None = None
    latency: Measurement | None = None


def _proven(
    trained: Trained, session: EngineSession, built: BuildResult, images: Sequence[np.ndarray], size: tuple[int, int]
) -> Proof:
    """Compare an engine with the network, time it, and look at its layers.

    Raises:
        CheckFailed: it does not compute what the network computes.
    """
    from export.parity import check_parity
    from export.trt.layers import engine_layers

    tolerance, agreement = built.options.parity_limits
    report = check_parity(trained.network, session, images, size, tolerance=tolerance, min_agreement=agreement)
    if not report.passed:
        advice = "; set mixed = true in the TOML file, or take tensorrt:fp32" if built.options.precision == "fp16" else ""
        raise CheckFailed(f"the engine is not written: {report.summary()}{advice}")
    return Proof(engine_layers(session.layer_info()), report, _timed(session, images))


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

"""Export networks with their attention as nodes, and choose an implementation for each. No torch here before a network is given."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from export.errors import HyctasError

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from export.onnx.functions import OnnxFunction
    from export.trt.attention_case import AttentionCase
    from export.trt.choose import AttentionChoice, Candidate
    from hyctas.artifacts.bundling import Trained
    from hyctas.engine.context import BuildContext

MEMORY_SHARE = 8
"""Attention that holds all its logits may take one part in so many of the GPU's memory."""
MIXED_LOGITS_BYTES = 256 << 20
"""What the logits of one attention may take on the CPU while `mixed` looks for the nodes that stay in fp32."""


def intermediate(
    trained: Trained, size: tuple[int, int], output: str, precision: str, images: Sequence[np.ndarray] = ()
) -> tuple[onnx.ModelProto, OnnxFunction]:
    """Return a network's graph in a precision, with a node per attention, and the function that the nodes are of.

    Size is (H, W), the output one of `write_engine`'s; `mixed` holds parity on the images (1, 3, H, W) float32, at least one.

    Raises:
        InvalidInput: the network cannot be exported or converted.
        CheckFailed: `mixed` cannot meet its limit.
    """
    import onnx

    from export.onnx.exporter import export_onnx
    from export.onnx.precision import opset
    from export.trt.prepare import prepared
    from hyctas.attention.onnx.bodies import self_attention_function
    from hyctas.attention.onnx.nodes import nodes

    version = opset("bf16" if precision == "bf16" else "fp32")
    function = self_attention_function(version)
    with tempfile.TemporaryDirectory(prefix="hyctas-engine-") as temporary, nodes():
        file = Path(temporary) / "nodes.onnx"
        export_onnx(trained.network, size, file, output, opset=version, functions=[function])
        model = onnx.load(file)
    if precision == "mixed":  # computes the graph on the CPU, where attention must not hold all its logits
        model, function = _in_chunks(model, function)
    feeds = [{"image": image} for image in images]
    return prepared(model, precision, examples=feeds), function


def _in_chunks(model: onnx.ModelProto, function: OnnxFunction) -> tuple[onnx.ModelProto, OnnxFunction]:
    """Give every attention whose logits are large a body that holds some at a time; return the function that has these, too."""
    from export.onnx.functions import attach, nodes_of
    from export.trt.attention_case import AttentionCase
    from hyctas.attention.onnx.chunks import body_name, with_chunks

    bodies, sizes = {}, set()
    for node in nodes_of(model, function):
        size, _ = _chunks(AttentionCase.of(node), MIXED_LOGITS_BYTES)
        bodies[node.name] = function.default if size is None else body_name(*size)
        sizes |= {size} if size is not None else set()
    function = with_chunks(function, sorted(sizes))
    return (attach(model, function, bodies) if bodies else model), function


def choose(
    model: onnx.ModelProto, function: OnnxFunction, context: BuildContext, status: Callable[[str], None] | None = None
) -> AttentionChoice:
    """Choose an implementation for every attention of an intermediate graph; errors are `choose_attention`'s."""
    from export.onnx.functions import nodes_of
    from export.trt.attention_case import AttentionCase
    from export.trt.choose import choose_attention
    from hyctas.attention.onnx.chunks import with_chunks

    cases = {AttentionCase.of(node) for node in nodes_of(model, function)}
    sizes = sorted({found for case in cases if (found := _chunks(case, _memory(context))[0]) is not None})
    return choose_attention(model, with_chunks(function, sizes), lambda case: candidates(case, context), context.judge, status)


def candidates(case: AttentionCase, context: BuildContext) -> list[Candidate]:
    """Return what computes an attention, or why it cannot."""
    from export.trt.choose import Candidate
    from hyctas.attention.onnx.bodies import refusal
    from hyctas.attention.onnx.chunks import body_name

    memory, found = _memory(context), []
    grouped = "grouped_odd" if case.queries % 2 else "grouped"
    for name, body in (("fused", "padded"), ("grouped", grouped), ("decomposed", "plain")):
        why = refusal(body, case.shapes, case.dtype, memory)
        found.append(Candidate(name=name, refused=why) if why else Candidate(name=name, body=body))
    size, why = _chunks(case, memory)
    found.append(Candidate(name="chunked", refused=why) if size is None else Candidate(name="chunked", body=body_name(*size)))
    return [*found, *_plugin(case, context)]


def _plugin(case: AttentionCase, context: BuildContext) -> list[Candidate]:
    from export.trt.choose import Candidate
    from export.trt.plugin import refusal, version_refusal

    if context.compile is None or context.gpu is None:
        return []
    if why := version_refusal(context.trt):
        return [Candidate(name="plugin", refused=why)]
    try:
        kernel = context.compile(case, context.gpu)
        why = refusal(kernel, context.trt, context.gpu, case.shapes)
    except HyctasError as error:
        why = " ".join(str(error).split())
    return [Candidate(name="plugin", refused=why) if why else Candidate(name="plugin", kernel=kernel)]


def _chunks(case: AttentionCase, memory_bytes: int) -> tuple[tuple[int, int] | None, str]:
    """Return queries in all and at a time of the chunked body, or why there is none."""
    from hyctas.attention.onnx.bodies import refusal
    from hyctas.attention.onnx.chunks import MOST_CHUNKS, chunk_rows

    if not refusal("plain", case.shapes, case.dtype, memory_bytes):
        return None, "all logits fit at once"
    rows = chunk_rows(case.shapes, memory_bytes)
    chunks = -(-case.queries // rows)
    if chunks > MOST_CHUNKS:
        return None, f"{case.queries} queries would be {chunks} chunks of {rows}; a graph has at most {MOST_CHUNKS}"
    return (case.queries, rows), ""


def _memory(context: BuildContext) -> int:
    from hyctas.attention.onnx.bodies import MEMORY_BYTES

    return MEMORY_BYTES if context.gpu is None else min(MEMORY_BYTES, context.gpu.memory_bytes // MEMORY_SHARE)

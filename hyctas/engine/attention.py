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

    from export.onnx_function import OnnxFunction
    from export.trt.attention_case import AttentionCase
    from export.trt.attention_trial import Offer
    from export.trt.choose import AttentionChoice, Memory
    from hyctas.bundling import Trained
    from hyctas.engine.workshop import Workshop

MEMORY_SHARE = 8
"""Attention that holds all its logits may take one part in so many of the GPU's memory."""
MIXED_LOGITS_BYTES = 256 << 20
"""What the logits of one attention may take on the CPU while `mixed` looks for the nodes that stay in fp32."""


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
    lean: bool = False,
    memory: Memory | None = None,
    tell: Callable[[str], None] | None = None,
) -> AttentionChoice:
    """Choose an implementation for every attention of an intermediate graph; arguments and errors are `choose_attention`'s."""
    from export.onnx_function import nodes_of
    from export.trt.attention_case import AttentionCase
    from export.trt.choose import choose_attention
    from hyctas.attention.onnx_chunks import with_chunks
    from hyctas.attention.onnx_function import native_attention_function

    cases = {AttentionCase.of(node) for node in nodes_of(model, function)}
    limit = _memory(workshop)
    sizes = sorted({found for case in cases if (found := _chunks(case, limit)[0]) is not None})
    bodies = with_chunks(function, sizes)
    return choose_attention(
        model, bodies, lambda case: offers(case, workshop), workshop.lab, measure=measure, lean=lean,
        newer=native_attention_function(), memory=memory, tell=tell,
    )  # fmt: skip


def offers(case: AttentionCase, workshop: Workshop) -> list[Offer]:
    """Return what computes an attention, or why it cannot: plugins, native, fused, decomposed, chunked."""
    from export.trt.attention_trial import Offer
    from hyctas.attention.onnx_chunks import body_name
    from hyctas.attention.onnx_function import refusal

    memory = _memory(workshop)
    found = _plugins(case, workshop)
    bodies = (("native", "native", _layer_refusal(workshop)), ("fused", "padded", ""), ("decomposed", "plain", ""))
    for name, body, too_old in bodies:
        why = too_old or refusal(body, case.shapes, case.dtype, memory)
        found.append(Offer(name=name, refused=why) if why else Offer(name=name, body=body))
    size, why = _chunks(case, memory)
    found.append(Offer(name="chunked", refused=why) if size is None else Offer(name="chunked", body=body_name(*size)))
    return found


def _layer_refusal(workshop: Workshop) -> str:
    """Say why this TensorRT has no attention layer of its own; empty where it has."""
    from export.trt.versions import ATTENTION_FROM, has_attention, version_of

    if has_attention(workshop.trt):
        return ""
    least, here = (".".join(map(str, version)) for version in (ATTENTION_FROM, version_of(workshop.trt)))
    return f"TensorRT has a layer for it from {least} on, and here is {here}"


def _plugins(case: AttentionCase, workshop: Workshop) -> list[Offer]:
    """Offer the plugin, and where it takes much shared memory one that does not."""
    from export.trt.attention_trial import KERNELS, PLAIN_SHARED_BYTES

    plain, small = KERNELS
    found = [_plugin(plain, None, case, workshop)]
    kernel = found[0].kernel
    if kernel is not None and kernel.shared_bytes > PLAIN_SHARED_BYTES:
        found.append(_plugin(small, PLAIN_SHARED_BYTES, case, workshop))
    return found


def _plugin(name: str, most_shared_bytes: int | None, case: AttentionCase, workshop: Workshop) -> Offer:
    from export.trt.attention_trial import Offer
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

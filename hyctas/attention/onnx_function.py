"""Say in standard ONNX operators what a `hyctas::SelfAttention` node computes: bodies for TensorRT to choose from per shape.

| body     | for                                   | softmax | memory                                                            |
|----------|---------------------------------------|---------|-------------------------------------------------------------------|
| `plain`  | any shape and dtype                   | fp32    | the N x M logits: no kernel of TensorRT's has d != e              |
| `padded` | fp16 and bfloat16, one fused kernel   | as v    | none if TensorRT fuses it; ask its inspector, for it may decline  |
| `native` | the same, by ONNX's operator Attention | its own | none: where TensorRT has no kernel for it, the build fails        |

`native` needs operator set 23, so it is in a function of its own (`native_attention_function`); graphs are taken to that set only
where it is chosen. TensorRT's own attribute that lets it decompose the operator is none of ONNX's, and is not written.

`plain` casts the logits to fp32 for the softmax, whose sums over thousands of keys fp16 does not hold. TensorRT honours casts,
and one between the products would break its fusion, so `padded` has none: its fused kernel keeps the statistics itself, in the
tensors' dtype, and so takes fewer than 65,504 keys in fp16. q and k get zero channels up to v's number, which changes no logit, as
the fusion wants one head size H: 16 to 256 and a multiple of 8. Both multiply q by the scale before the first product, as TensorRT
asks: d x N products instead of N x M. Neither splits the queries: where `refusal` says that `plain` is too large, take the plugin
(`hyctas.attention.plugin`), or the export without nodes, which is in chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any

from onnx import NodeProto, TensorProto, helper

from export.errors import InvalidInput
from export.onnx_function import OnnxFunction
from hyctas.attention.onnx_nodes import DOMAIN, NAME

NATIVE_NAME, NATIVE_OPSET = f"Native{NAME}", 23
OPSETS = range(18, 24)
"""Standard operator sets that the bodies can be written in; before 18, Pad and others differ."""
HALF = ("float16", "bfloat16")
MAX_KEYS = 65504
"""The largest finite fp16 number: the sum of that many equal weights, 1 each, overflows in TensorRT's fused kernel."""
HEAD_SIZES = (16, 256)
"""The channels that TensorRT fuses; multiples of 8."""
MEMORY_BYTES = 1 << 30
"""What `plain` may take unless the caller allows more."""
BYTES_PER_LOGIT = 8
"""The softmax's input and output in fp32."""


@cache
def self_attention_function(opset: int = 18) -> OnnxFunction:
    """Return the function for models of an operator set.

    Raises:
        InvalidInput: an operator set that the bodies are not written for.
    """
    if opset not in OPSETS:
        allowed = f"opset {OPSETS[0]} to {OPSETS[-1]}"
        raise InvalidInput(f"{DOMAIN}::{NAME} has bodies for {allowed}, not for {opset}; export with one of those")
    bodies = {"plain": function_body(_plain(), opset), "padded": function_body(_padded(), opset)}
    return OnnxFunction(DOMAIN, NAME, opset, bodies, "plain")


@cache
def native_attention_function() -> OnnxFunction:
    """Return the function whose body is the operator Attention: for graphs of operator set 23, its first."""
    body = function_body(_native(), NATIVE_OPSET, NATIVE_NAME)
    return OnnxFunction(DOMAIN, NATIVE_NAME, NATIVE_OPSET, {"native": body}, "native")


def refusal(body: str, shapes: Sequence[Sequence[int]], dtype: str, memory_bytes: int = MEMORY_BYTES) -> str:
    """Say why a body does not suit a node; empty where it does.

    Args:
        body: `plain`, `padded` or `native`.
        shapes: of q (B, h, d, N), k (B, h, d, M) and v (B, h, e, M), as `export.onnx_function.nodes_of` gives them.
        dtype: of q, k and v, as numpy names it.
        memory_bytes: what the logits of one `plain` node may take while it runs.

    Raises:
        InvalidInput: an unknown body, or shapes that are not those of attention.
    """
    if len(shapes) != 3 or any(len(shape) != 4 for shape in shapes):
        raise InvalidInput(f"self-attention has three inputs of rank 4, q, k and v; got {[tuple(shape) for shape in shapes]}")
    (batch, heads, d, queries), keys, e = shapes[0], shapes[1][3], shapes[2][2]
    if body == "plain":
        needed = prod((batch, heads, queries, keys)) * BYTES_PER_LOGIT
        if needed <= memory_bytes:
            return ""
        taken = f"logits of {queries} queries x {keys} keys take {needed / 2**30:.2f} GiB"
        return f"{taken}, above {memory_bytes / 2**30:.2f} GiB; take the plugin or the chunked export"
    if body not in ("padded", "native"):
        raise InvalidInput(f"{DOMAIN}::{NAME} has no body {body!r}; its bodies: padded, plain, native")
    if dtype not in HALF:
        return f"TensorRT fuses attention in {' and '.join(HALF)}, not in {dtype}"
    if d > e:
        return f"q and k have more channels ({d}) than v ({e}): padding cannot make them equal"
    if not HEAD_SIZES[0] <= e <= HEAD_SIZES[1] or e % 8:
        return f"TensorRT fuses {HEAD_SIZES[0]} to {HEAD_SIZES[1]} channels per head, multiples of 8; v has {e}"
    if dtype == "float16" and keys >= MAX_KEYS:
        return f"{keys} keys: TensorRT's fused fp16 attention overflows from {MAX_KEYS} keys on; take bfloat16 or the plugin"
    return ""


def node(op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> NodeProto:
    """Return a standard node that is named as its output."""
    return helper.make_node(op_type, list(inputs), [output], name=output, **attributes)


def _given(attribute: str, kind: str, output: str) -> NodeProto:
    """Return a constant with the value that the calling node's attribute has."""
    constant = node("Constant", [], output)
    types = {"value_float": helper.AttributeProto.FLOAT, "value_ints": helper.AttributeProto.INTS}
    constant.attribute.add(name=kind, ref_attr_name=attribute, type=types[kind])
    return constant


def scaled() -> list[NodeProto]:
    """Multiply q by the attribute `scale`, in q's dtype."""
    return [
        _given("scale", "value_float", "scale_fp32"),
        node("CastLike", ["scale_fp32", "q"], "scale_as_q"),
        node("Mul", ["q", "scale_as_q"], "q_scaled"),
    ]


def _plain() -> list[NodeProto]:
    return [
        *scaled(),
        node("Transpose", ["q_scaled"], "q_rows", perm=[0, 1, 3, 2]),  # (B, h, N, d)
        node("MatMul", ["q_rows", "k"], "logits"),  # (B, h, N, M)
        node("Cast", ["logits"], "logits_fp32", to=TensorProto.FLOAT),
        node("Softmax", ["logits_fp32"], "weights_fp32", axis=-1),
        node("CastLike", ["weights_fp32", "v"], "weights"),
        *_averaged(),
    ]


def _padded_rows() -> list[NodeProto]:
    """Give q and k as many channels as v; q in rows."""
    return [
        *scaled(),
        _given("padding", "value_ints", "pads"),
        node("Pad", ["q_scaled", "pads"], "q_padded"),  # (B, h, e, N)
        node("Pad", ["k", "pads"], "k_padded"),  # (B, h, e, M)
        node("Transpose", ["q_padded"], "q_rows", perm=[0, 1, 3, 2]),  # (B, h, N, e)
    ]


def _native() -> list[NodeProto]:
    return [
        *_padded_rows(),
        node("Transpose", ["k_padded"], "k_rows", perm=[0, 1, 3, 2]),  # (B, h, M, e)
        node("Transpose", ["v"], "v_rows", perm=[0, 1, 3, 2]),  # (B, h, M, e)
        node("Attention", ["q_rows", "k_rows", "v_rows"], "o_rows", scale=1.0),  # (B, h, N, e)
        node("Transpose", ["o_rows"], "o", perm=[0, 1, 3, 2]),  # (B, h, e, N)
    ]


def _padded() -> list[NodeProto]:
    return [
        *_padded_rows(),
        node("MatMul", ["q_rows", "k_padded"], "logits"),  # (B, h, N, M)
        node("Softmax", ["logits"], "weights", axis=-1),
        *_averaged(),
    ]


def _averaged() -> list[NodeProto]:
    """Average v with the weights."""
    return [
        node("Transpose", ["v"], "v_rows", perm=[0, 1, 3, 2]),  # (B, h, M, e)
        node("MatMul", ["weights", "v_rows"], "o_rows"),  # (B, h, N, e)
        node("Transpose", ["o_rows"], "o", perm=[0, 1, 3, 2]),  # (B, h, e, N)
    ]


def function_body(nodes: Sequence[NodeProto], opset: int, name: str = NAME) -> bytes:
    """Return nodes from q, k, v to o as a serialised FunctionProto."""
    imports = [helper.make_opsetid("", opset)]
    function = helper.make_function(DOMAIN, name, ["q", "k", "v"], ["o"], nodes, imports, ["scale", "padding"])
    data: bytes = function.SerializeToString(deterministic=True)
    return data

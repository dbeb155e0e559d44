"""Say in standard ONNX operators what a `hyctas::SelfAttention` node computes: bodies for TensorRT to choose from per shape.

| body          | for                                                 | memory                                                  |
|---------------|-----------------------------------------------------|---------------------------------------------------------|
| `plain`       | any shape and dtype                                 | the N x M logits: no kernel of TensorRT's has d != e    |
| `padded`      | fp16 and bfloat16, at least two heads (or images)   | none if TensorRT fuses it; ask its builder              |
| `grouped`     | the same with one head and an even number of queries | the same                                               |
| `grouped_odd` | the same with an odd number                         | the same                                                |

TensorRT makes one kernel of two products and the softmax between them where q, k and v have one number of channels per head, 16 to
256 and a multiple of 8 (`head_size`), so q, k and v get zero channels up to that; the output loses them again. Zero channels change
no logit. TensorRT-RTX's builder was seen to fuse a single head only from 2**24 pairs of a query and a key on, and two heads always:
`grouped` makes two heads of one, each with half of the queries and all keys.

All bodies cast the logits to fp32 for the softmax, whose sums over thousands of keys fp16 does not hold; this does not prevent the
fusion (seen with TensorRT-RTX 1.7). All multiply q by the scale before the first product: d x N products instead of N x M.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any

from onnx import NodeProto, TensorProto, helper

from export.errors import InvalidInput
from export.onnx.functions import OnnxFunction
from hyctas.attention.onnx.nodes import DOMAIN, HEAD_SIZES, NAME

OPSETS = range(18, 24)
"""Standard operator sets that the bodies can be written in; before 18, Pad and others differ."""
HALF = ("float16", "bfloat16")
MANY_PAIRS = 1 << 24
"""Pairs of a query and a key from which on TensorRT-RTX fuses a single head."""
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
    made = {"plain": _plain(), "padded": _padded(), "grouped": _grouped(odd=False), "grouped_odd": _grouped(odd=True)}
    bodies = {name: function_body(nodes, opset) for name, nodes in made.items()}
    return OnnxFunction(DOMAIN, NAME, opset, bodies, "plain")


def refusal(body: str, shapes: Sequence[Sequence[int]], dtype: str, memory_bytes: int = MEMORY_BYTES) -> str:
    """Say why a body does not suit a node; empty where it does.

    Args:
        body: one of `self_attention_function`.
        shapes: of q (B, h, d, N), k (B, h, d, M) and v (B, h, e, M), as `export.onnx.functions.nodes_of` gives them.
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
    if body not in ("padded", "grouped", "grouped_odd"):
        raise InvalidInput(f"{DOMAIN}::{NAME} has no body {body!r}; its bodies: grouped, grouped_odd, padded, plain")
    if dtype not in HALF:
        return f"TensorRT fuses attention in {' and '.join(HALF)}, not in {dtype}"
    if max(d, e) > HEAD_SIZES[1]:
        return f"TensorRT fuses at most {HEAD_SIZES[1]} channels per head; here are {max(d, e)}"
    if body == "padded":
        return "" if batch * heads > 1 or queries * keys >= MANY_PAIRS else "TensorRT does not fuse a single head of so few pairs"
    if batch * heads > 1:
        return f"it is for a single head; here are {batch * heads}"
    odd = body == "grouped_odd"
    if queries > 1 and queries % 2 == odd:
        return ""
    return f"it is for an {'odd' if odd else 'even'} number of queries; here are {queries}"


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


def _padded() -> list[NodeProto]:
    return [*_widened(), *_averages("q_rows", "k_padded", "v_rows"), *_narrowed("o_rows")]


def _grouped(*, odd: bool) -> list[NodeProto]:
    """Give each of two heads half of one head's queries (one zero query more where their number is odd), and all keys."""
    rows = "q_rows"
    nodes = _widened()
    if odd:
        nodes += [ints("one_more", [0, 0, 0, 0, 0, 0, 1, 0]), node("Pad", [rows, "one_more"], "q_even")]
        rows = "q_even"
    nodes += [
        ints("two_heads", [0, 2, -1, 0]),
        node("Reshape", [rows, "two_heads"], "q_halves"),  # (1, 2, N / 2, H)
        node("Concat", ["k_padded", "k_padded"], "k_twice", axis=1),  # (1, 2, H, M)
        node("Concat", ["v_rows", "v_rows"], "v_twice", axis=1),  # (1, 2, M, H)
        *_averages("q_halves", "k_twice", "v_twice"),
        ints("one_head", [0, 1, -1, 0]),
        node("Reshape", ["o_rows", "one_head"], "o_joined"),  # (1, 1, N, H)
    ]
    if odd:
        nodes += [ints("first", [0]), ints("last", [-1]), ints("rows", [2])]
        nodes.append(node("Slice", ["o_joined", "first", "last", "rows"], "o_even"))
    return [*nodes, *_narrowed("o_even" if odd else "o_joined")]


def _widened() -> list[NodeProto]:
    """Give q, k and v the channels that TensorRT fuses; q and v in rows."""
    return [
        *scaled(),
        _given("padding", "value_ints", "pads"),
        _given("value_padding", "value_ints", "v_pads"),
        node("Pad", ["q_scaled", "pads"], "q_padded"),  # (B, h, H, N)
        node("Pad", ["k", "pads"], "k_padded"),  # (B, h, H, M)
        node("Pad", ["v", "v_pads"], "v_padded"),  # (B, h, H, M)
        node("Transpose", ["q_padded"], "q_rows", perm=[0, 1, 3, 2]),  # (B, h, N, H)
        node("Transpose", ["v_padded"], "v_rows", perm=[0, 1, 3, 2]),  # (B, h, M, H)
    ]


def _narrowed(rows: str) -> list[NodeProto]:
    """Take v's own channels of the output, in columns."""
    return [
        _given("channels", "value_ints", "width"),
        ints("none", [0]),
        ints("columns", [3]),
        node("Slice", [rows, "none", "width", "columns"], "o_narrow"),  # (B, h, N, e)
        node("Transpose", ["o_narrow"], "o", perm=[0, 1, 3, 2]),  # (B, h, e, N)
    ]


def _plain() -> list[NodeProto]:
    return [
        *scaled(),
        node("Transpose", ["q_scaled"], "q_rows", perm=[0, 1, 3, 2]),  # (B, h, N, d)
        node("Transpose", ["v"], "v_rows", perm=[0, 1, 3, 2]),  # (B, h, M, e)
        *_averages("q_rows", "k", "v_rows"),
        node("Transpose", ["o_rows"], "o", perm=[0, 1, 3, 2]),  # (B, h, e, N)
    ]


def _averages(q: str, k: str, v: str) -> list[NodeProto]:
    """Average the values with the weights."""
    return [
        node("MatMul", [q, k], "logits"),  # (B, h, N, M)
        node("Cast", ["logits"], "logits_fp32", to=TensorProto.FLOAT),
        node("Softmax", ["logits_fp32"], "weights_fp32", axis=-1),
        node("CastLike", ["weights_fp32", "v"], "weights"),
        node("MatMul", ["weights", v], "o_rows"),  # (B, h, N, e)
    ]


def ints(output: str, values: Sequence[int]) -> NodeProto:
    """Return a constant of integers."""
    return node("Constant", [], output, value_ints=list(values))


def function_body(nodes: Sequence[NodeProto], opset: int) -> bytes:
    """Return nodes from q, k, v to o as a serialised FunctionProto."""
    imports = [helper.make_opsetid("", opset)]
    attributes = ["scale", "padding", "value_padding", "channels"]
    function = helper.make_function(DOMAIN, NAME, ["q", "k", "v"], ["o"], nodes, imports, attributes)
    data: bytes = function.SerializeToString(deterministic=True)
    return data

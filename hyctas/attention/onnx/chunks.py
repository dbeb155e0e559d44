"""Write bodies of `hyctas::SelfAttention` for TensorRT that hold the logits of some queries at a time, where all take too much.

The arithmetic is that of the body `plain` (`hyctas.attention.onnx.bodies`), unrolled over chunks of a known number of queries; a
body is therefore for one number of queries, which its name says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from onnx import NodeProto, TensorProto

from export.errors import InvalidInput
from export.onnx.functions import OnnxFunction
from hyctas.attention.onnx.bodies import BYTES_PER_LOGIT, MEMORY_BYTES, function_body, ints, node, scaled

MOST_CHUNKS = 64
"""Chunks that a graph is unrolled into at most: each is seven layers more for TensorRT to choose kernels for."""


def chunk_rows(shapes: Sequence[Sequence[int]], memory_bytes: int = MEMORY_BYTES) -> int:
    """Return how many queries are computed at a time: as many as the memory allows, in equal chunks (the last may be smaller).

    Args:
        shapes: of q (B, h, d, N), k (B, h, d, M) and v (B, h, e, M).
        memory_bytes: what the logits may take.
    """
    (batch, heads, _, queries), keys = shapes[0], shapes[1][3]
    most = max(1, memory_bytes // (prod((batch, heads, keys)) * BYTES_PER_LOGIT))
    chunks = -(-queries // most)
    return -(-queries // chunks)


def body_name(queries: int, rows: int) -> str:
    """Name the body for a number of queries in chunks of `rows`."""
    return f"chunked_{queries}_{rows}"


def with_chunks(function: OnnxFunction, sizes: Sequence[tuple[int, int]]) -> OnnxFunction:
    """Return a function with a body more for each (queries, rows).

    Raises:
        InvalidInput: a size below 1, or more chunks than `MOST_CHUNKS`.
    """
    more = {body_name(queries, rows): _body(function, queries, rows) for queries, rows in sizes}
    return replace(function, bodies={**function.bodies, **more})


def _body(function: OnnxFunction, queries: int, rows: int) -> bytes:
    if min(queries, rows) < 1 or -(-queries // rows) > MOST_CHUNKS:
        raise InvalidInput(f"{queries} queries in chunks of {rows} are not 1 to {MOST_CHUNKS} chunks")
    nodes = [*scaled(), node("Transpose", ["v"], "v_rows", perm=[0, 1, 3, 2])]  # (B, h, M, e)
    nodes.append(ints("axis", [3]))
    outputs = []
    for number, start in enumerate(range(0, queries, rows)):
        nodes += _chunk(number, start, min(start + rows, queries))
        outputs.append(f"o_{number}")
    nodes.append(node("Concat", outputs, "o", axis=3))
    return function_body(nodes, function.opset)


def _chunk(number: int, start: int, end: int) -> list[NodeProto]:
    n = str(number)
    return [
        ints(f"start_{n}", [start]),
        ints(f"end_{n}", [end]),
        node("Slice", ["q_scaled", f"start_{n}", f"end_{n}", "axis"], f"q_{n}"),  # (B, h, d, n)
        node("Transpose", [f"q_{n}"], f"q_rows_{n}", perm=[0, 1, 3, 2]),
        node("MatMul", [f"q_rows_{n}", "k"], f"logits_{n}"),  # (B, h, n, M)
        node("Cast", [f"logits_{n}"], f"logits_fp32_{n}", to=TensorProto.FLOAT),
        node("Softmax", [f"logits_fp32_{n}"], f"weights_fp32_{n}", axis=-1),
        node("CastLike", [f"weights_fp32_{n}", "v"], f"weights_{n}"),
        node("MatMul", [f"weights_{n}", "v_rows"], f"o_rows_{n}"),  # (B, h, n, e)
        node("Transpose", [f"o_rows_{n}"], f"o_{n}", perm=[0, 1, 3, 2]),
    ]

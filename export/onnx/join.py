"""Put ONNX models side by side into one graph, told apart by the prefixes of their names. No torch here."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import compose

from export.errors import InvalidInput

MAX_BYTES = 2**31 - 2**20
"""What protobuf can hold, less some room."""


def join(parts: Sequence[tuple[str, onnx.ModelProto]]) -> onnx.ModelProto:
    """Put models side by side into one; every node and tensor gets its model's prefix.

    Args:
        parts: prefix and model, of one operator set and without functions of their own.

    Raises:
        InvalidInput: more than 2 GiB together.
    """
    if sum(model.ByteSize() for _, model in parts) > MAX_BYTES:
        raise InvalidInput(f"{len(parts)} models side by side would exceed 2 GiB; put fewer of them together")
    whole = onnx.ModelProto(ir_version=max(model.ir_version for _, model in parts), producer_name="hyctas")
    whole.opset_import.extend(parts[0][1].opset_import)
    whole.graph.name = "kit"
    for prefix, model in parts:
        part = compose.add_prefix_graph(model.graph, prefix)
        whole.graph.MergeFrom(onnx.GraphProto(node=part.node, initializer=part.initializer, input=part.input,
                                              output=part.output, value_info=part.value_info))  # fmt: skip
    onnx.checker.check_model(whole, full_check=True)
    return whole

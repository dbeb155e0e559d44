"""Put ONNX models side by side into one graph, or one behind another, told apart by their names' prefixes. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import compose, helper

from export.errors import InvalidInput

MAX_BYTES = 2**31 - 2**20
"""What protobuf can hold, less some room."""


@dataclass(frozen=True)
class Part:
    """One model of a graph of models."""

    name: str
    model: onnx.ModelProto
    inputs: tuple[str, ...]
    """What each of its inputs reads: names of parts, or of inputs of the whole."""


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


def wire(parts: Sequence[Part], inputs: Mapping[str, Sequence[int]]) -> onnx.ModelProto:
    """Connect models into one graph; nodes and tensors of a part are named `<part>/...`.

    Args:
        parts: in an order in which every part comes behind those that it reads; of one operator set, without functions of their
            own, each with one output.
        inputs: name and shape of the graph's inputs, float32.

    Returns:
        The model; its outputs are the tensors that no part reads.
    """
    whole = onnx.ModelProto(ir_version=max(part.model.ir_version for part in parts), producer_name="hyctas")
    whole.opset_import.extend(parts[0].model.opset_import)
    graph = whole.graph
    graph.name = "wired"
    graph.input.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in inputs.items())
    made = {name: name for name in inputs}
    for part in parts:
        own = compose.add_prefix_graph(part.model.graph, f"{part.name}/")
        reads = {spec.name: made[source] for spec, source in zip(own.input, part.inputs, strict=True)}
        for node in own.node:
            node.input[:] = [reads.get(name, name) for name in node.input]
        graph.node.extend(own.node)
        graph.initializer.extend(own.initializer)
        made[part.name] = own.output[0].name
        graph.value_info.extend(own.output)
    read = {source for part in parts for source in part.inputs}
    ends = [made[part.name] for part in parts if part.name not in read]
    graph.output.extend(info for info in graph.value_info if info.name in ends)
    kept = [info for info in graph.value_info if info.name not in ends]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    onnx.checker.check_model(whole, full_check=True)
    return whole

"""Quantise single operators as they stand inside a network: with inputs and outputs in integers, to be timed."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from export.int8.quantise import calibrated

EDGE = "__edge"
"""Ends the names of what is put behind an output, so that the quantiser finds a reader that wants it quantised."""


def quantised_operator(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return an operator in int8, calibrated with one random input, with inputs and outputs in 8 bits where they can be.

    An input that is read in float, too, stays in float; so does an output that is no float.

    Args:
        model: fp32, static shapes.
    """
    from export.feeds import random_feeds
    from export.onnx.graph_split import spec_of

    whole, edges = _with_readers(model)
    feeds = random_feeds([spec_of(info) for info in model.graph.input])
    made = calibrated(whole, [feeds], edges).quantised()
    for name in edges:
        _cut_output(made, name)
    _remove_unread(made.graph)
    for info in made.graph.input:
        _cut_input(made.graph, info)
    onnx.checker.check_model(made, full_check=True)
    return made


def _with_readers(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """Put a Concat of one input behind every output of floats; return the graph and the names of those nodes."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    floats = [info for info in copy.graph.output if info.type.tensor_type.elem_type == TensorProto.FLOAT]
    for info in floats:
        node = helper.make_node("Concat", [info.name], [info.name + EDGE], name=info.name + EDGE, axis=0)
        copy.graph.node.append(node)
        info.name += EDGE
    return copy, [info.name for info in floats]


def _cut_output(model: onnx.ModelProto, edge: str) -> None:
    """Make the rounded tensor before a Concat the output, under the name of the one that it is the rounding of."""
    made = {name: node for node in model.graph.node for name in node.output}
    (info,) = (info for info in model.graph.output if info.name in (edge, made[edge].output[0]))
    node = made[edge]
    while node.op_type != "Concat":
        node = made[node.input[0]]
    rounded = made[made[node.input[0]].input[0]]
    name = edge.removesuffix(EDGE)
    names = {name: f"{name}__float", rounded.output[0]: name}
    for other in model.graph.node:
        other.input[:] = [names.get(one, one) for one in other.input]
        other.output[:] = [names.get(one, one) for one in other.output]
    info.name, info.type.tensor_type.elem_type = name, TensorProto.INT8


def _cut_input(graph: onnx.GraphProto, info: onnx.ValueInfoProto) -> None:
    """Take an input that is read by one QuantizeLinear alone in the type that this gives."""
    readers = [node for node in graph.node if info.name in node.input]
    if len(readers) != 1 or readers[0].op_type != "QuantizeLinear":
        return
    rounded = readers[0].output[0]
    for node in graph.node:
        node.input[:] = [info.name if name == rounded else name for name in node.input]
    graph.node.remove(readers[0])
    info.type.tensor_type.elem_type = TensorProto.INT8


def _remove_unread(graph: onnx.GraphProto) -> None:
    needed = {info.name for info in graph.output}
    for node in reversed(list(graph.node)):
        if needed & {*node.output}:
            needed |= {*node.input}
        else:
            graph.node.remove(node)
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in needed]:
        graph.initializer.remove(tensor)

"""Cut one ONNX graph that computes many independent things into one model per output group."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from export.onnx.foreign import walk
from export.runtime import TensorSpec


def clean(model: onnx.ModelProto) -> None:
    """Remove in place what the exporter wrote for debugging: stack traces with paths of this machine, scopes."""
    for owner in (model, model.graph, *model.graph.input, *model.graph.output, *model.graph.value_info):
        _strip(owner)
    for tensor in model.graph.initializer:
        _strip(tensor)
    for node in walk(model.graph):
        _strip(node)
    initialisers = {tensor.name for tensor in model.graph.initializer}
    kept = [info for info in model.graph.value_info if info.name not in initialisers]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)


Described = onnx.ModelProto | onnx.GraphProto | onnx.NodeProto | onnx.ValueInfoProto | onnx.TensorProto


def _strip(message: Described) -> None:
    message.ClearField("doc_string")
    message.ClearField("metadata_props")


def spec_of(info: onnx.ValueInfoProto) -> TensorSpec:
    """Describe a graph input or output; a dynamic dimension becomes 0."""
    kind = info.type.tensor_type
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else 0 for dim in kind.shape.dim)
    return TensorSpec(info.name, shape, str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)))


class Splitter:
    """Index a graph once, then cut one model after the other out of it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        graph = model.graph
        self._values = {info.name: info for info in (*graph.input, *graph.output, *graph.value_info)}
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._maker = {name: index for index, node in enumerate(graph.node) for name in node.output if name}

    def cut(self, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.ModelProto:
        """Return the model that computes `outputs` from `inputs`; every name in it is rewritten.

        Inputs become `x0, x1, ...`, outputs `y0, y1, ...`, weights `w0, ...`, the rest `v0, ...`: the same module gives
        the same bytes wherever it stood in its batch.
        """
        nodes, weights = self._needed(outputs)
        for index in nodes:
            attributes = self._model.graph.node[index].attribute
            assert not any(a.HasField("g") or a.graphs for a in attributes), "static modules have no sub-graphs"
        names = {name: f"x{i}" for i, name in enumerate(inputs)}
        names |= {name: f"y{i}" for i, name in enumerate(outputs)}
        names |= {name: f"w{i}" for i, name in enumerate(weights)}
        model = onnx.ModelProto()
        model.CopyFrom(onnx.ModelProto(ir_version=self._model.ir_version, producer_name=self._model.producer_name))
        model.producer_version = self._model.producer_version
        domains = {"", "ai.onnx", *(self._model.graph.node[index].domain for index in nodes)}
        model.opset_import.extend(entry for entry in self._model.opset_import if entry.domain in domains)
        graph = model.graph
        graph.name = "module"
        for position, index in enumerate(nodes):
            node = graph.node.add()
            node.CopyFrom(self._model.graph.node[index])
            node.name = f"n{position}"
            for name in node.output:
                if name and name not in names:
                    names[name] = f"v{len(names)}"
                    if name in self._values:
                        graph.value_info.add().CopyFrom(self._renamed(name, names[name]))
            node.input[:] = [name and names[name] for name in node.input]
            node.output[:] = [name and names[name] for name in node.output]
        for name in weights:
            tensor = graph.initializer.add()
            tensor.CopyFrom(self._weights[name])
            tensor.name = names[name]
        graph.input.extend(self._renamed(name, names[name]) for name in inputs)
        graph.output.extend(self._renamed(name, names[name]) for name in outputs)
        return model

    def _renamed(self, name: str, new: str) -> onnx.ValueInfoProto:
        info = onnx.ValueInfoProto()
        info.CopyFrom(self._values[name])
        info.name = new
        return info

    def _needed(self, outputs: Sequence[str]) -> tuple[list[int], list[str]]:
        """Walk back from `outputs`: indices of the nodes in graph order, and weights in order of first use."""
        pending, nodes = list(outputs), set[int]()
        while pending:
            index = self._maker.get(pending.pop())
            if index is not None and index not in nodes:
                nodes.add(index)
                pending.extend(self._model.graph.node[index].input)
        order = sorted(nodes)
        used = dict.fromkeys(name for i in order for name in self._model.graph.node[i].input if name in self._weights)
        return order, list(used)

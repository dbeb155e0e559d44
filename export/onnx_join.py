"""Join ONNX models of single operators into the model of a network, names telling which operator each node is of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

SEPARATOR = "/"


@dataclass(frozen=True)
class Part:
    """One operator of a network."""

    name: str
    """Unique in the network; every name inside the joined model begins with it and `SEPARATOR`."""
    model: onnx.ModelProto
    """As `export_modules` writes it: inputs `x0, ...`, one output `y0`."""
    inputs: tuple[str, ...]
    """Names of earlier parts, or of the network's inputs."""


def join(parts: Sequence[Part], inputs: Mapping[str, tuple[int, ...]], output: str) -> onnx.ModelProto:
    """Return the model of a network.

    Args:
        parts: in an order in which inputs come first.
        inputs: names and shapes of the network's inputs, fp32.
        output: the part whose output is the network's.
    """
    first = parts[0].model
    values = {name: name for name in inputs}
    model = onnx.ModelProto(ir_version=first.ir_version, producer_name=first.producer_name)
    opsets = {entry.domain: entry.version for part in parts for entry in part.model.opset_import}
    model.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items())
    graph = model.graph
    graph.name = "network"
    for name, shape in inputs.items():
        graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    for part in parts:
        names = {f"x{i}": values[source] for i, source in enumerate(part.inputs)}
        _add(graph, part, names)
        values[part.name] = f"{part.name}{SEPARATOR}y0"
        if part.name == output:
            info = onnx.ValueInfoProto()
            info.CopyFrom(part.model.graph.output[0])
            info.name = values[part.name]
            graph.output.append(info)
    return model


def _add(graph: onnx.GraphProto, part: Part, names: dict[str, str]) -> None:
    """Append a part's nodes and weights; `names` maps its inputs."""

    def renamed(name: str) -> str:
        return name and names.get(name, f"{part.name}{SEPARATOR}{name}")

    for tensor in part.model.graph.initializer:
        graph.initializer.add().CopyFrom(tensor)
        graph.initializer[-1].name = renamed(tensor.name)
    for node in part.model.graph.node:
        graph.node.add().CopyFrom(node)
        added = graph.node[-1]
        added.name = f"{part.name}{SEPARATOR}{node.name}"
        added.input[:] = [renamed(name) for name in node.input]
        added.output[:] = [renamed(name) for name in node.output]

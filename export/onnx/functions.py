"""Carry an operator of a domain of its own into ONNX files, as data: one interface, several function bodies to choose from.

Where a model holds nodes of such an operator (`export_onnx(functions=)`), `attach` gives each of them the body that suits its
shape: ONNX Runtime and TensorRT's parser expand it, a plugin may stand in for it. Some readers reject functions (OpenVINO): files
with such nodes are intermediates; a bundle's file has none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx

from export.errors import InvalidInput
from export.onnx.foreign import walk
from export.onnx.graph_split import spec_of
from export.onnx.opset import STANDARD, standard_opset
from export.runtime import TensorSpec


@dataclass(frozen=True)
class OnnxFunction:
    """An operator of another domain, with bodies of standard operators that all compute the same."""

    domain: str
    name: str
    """The nodes' op_type, unique among TensorRT's operators and plugins, which are matched by it alone."""
    opset: int
    """The standard operator set that the bodies are written in."""
    bodies: Mapping[str, bytes] = field(hash=False, repr=False)
    """Serialised FunctionProto by the name of the body."""
    default: str
    """The body of nodes that nothing was chosen for."""

    def __post_init__(self) -> None:
        if self.domain in STANDARD or not self.name.isidentifier():
            raise InvalidInput(f"a function needs a domain of its own and a name; got {self.domain!r} and {self.name!r}")
        if self.default not in self.bodies:
            raise InvalidInput(f"{self.label} has no body {self.default!r}; its bodies: {', '.join(sorted(self.bodies))}")
        interfaces = {body: self._interface(body) for body in self.bodies}
        if len(set(interfaces.values())) > 1:
            raise InvalidInput(f"the bodies of {self.label} differ in inputs, outputs or attributes: {interfaces}")

    @property
    def label(self) -> str:
        """The name for people."""
        return f"{self.domain}::{self.name}"

    def op_type(self, body: str) -> str:
        """Return what nodes with a body are called: the plain name for the default, since a name has one body per file."""
        return self.name if body == self.default else f"{self.name}_{body}"

    @property
    def op_types(self) -> dict[str, str]:
        """Body by op_type, of every body."""
        return {self.op_type(body): body for body in self.bodies}

    def owns(self, domain: str, op_type: str) -> bool:
        """Return whether a node or a function of a model is one of this operator's."""
        return domain == self.domain and op_type in self.op_types

    def proto(self, body: str) -> onnx.FunctionProto:
        """Return a body under the name that its nodes have."""
        function = onnx.FunctionProto.FromString(self.bodies[body])
        function.name = self.op_type(body)
        return function

    def _interface(self, body: str) -> tuple[tuple[str, ...], ...]:
        if not body.isidentifier():
            raise InvalidInput(f"a body's name is part of an op_type; {body!r} cannot be")
        try:
            function = self.proto(body)
        except Exception as error:  # protobuf's DecodeError derives from Exception alone
            raise InvalidInput(f"body {body!r} of {self.label} is not a FunctionProto ({type(error).__name__})") from None
        imports = {(item.domain, item.version) for item in function.opset_import}
        if function.domain != self.domain or imports != {("", self.opset)}:
            wanted = f"must be in that domain and import opset {self.opset} alone"
            raise InvalidInput(f"body {body!r} of {self.label} {wanted}; it is in {function.domain} and imports {sorted(imports)}")
        return tuple(function.input), tuple(function.output), tuple(sorted(function.attribute))


@dataclass(frozen=True)
class FunctionNode:
    """One node of an `OnnxFunction` in a model."""

    name: str
    body: str
    """The body that it has, or would take."""
    inputs: tuple[TensorSpec, ...]
    """Names, static shapes and dtypes, in the function's order."""
    outputs: tuple[TensorSpec, ...]
    attributes: Mapping[str, Any] = field(hash=False)


def nodes_of(model: onnx.ModelProto, function: OnnxFunction) -> tuple[FunctionNode, ...]:
    """List a model's nodes of a function with their shapes, in graph order; none is an empty result.

    Raises:
        InvalidInput: a shape is not static, or a node has no name or shares it.
    """
    nodes = _nodes(model, function)
    if not nodes:
        return ()
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    known = {info.name: spec_of(info) for info in values if info.type.tensor_type.HasField("shape")}
    for tensor in graph.initializer:
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
        known[tensor.name] = TensorSpec(tensor.name, tuple(tensor.dims), dtype)
    found = []
    for node in nodes:
        unknown = [name for name in (*node.input, *node.output) if name not in known or 0 in known[name].shape]
        if unknown:
            raise InvalidInput(
                f"node {node.name} of {function.label} has no static shape at {', '.join(unknown)}: bodies and plugins are chosen "
                "by shape; export with static shapes"
            )
        inputs, outputs = (tuple(known[name] for name in names) for names in (node.input, node.output))
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        found.append(FunctionNode(node.name, function.op_types[node.op_type], inputs, outputs, attributes))
    return tuple(found)


def attach(model: onnx.ModelProto, function: OnnxFunction, body: str | Mapping[str, str] | None = None) -> onnx.ModelProto:
    """Return a copy of a model whose nodes of a function have bodies; bodies attached before are replaced.

    Args:
        model: with nodes of the function, at the function's opset.
        function: the operator.
        body: one for all nodes; or body by node name, for all nodes; None: the default.

    Raises:
        InvalidInput: no such nodes, an unknown body, a choice that misses nodes or names unknown ones, nodes without names of
            their own, or another opset.
    """
    opset = standard_opset(model)
    if opset != function.opset:
        raise InvalidInput(
            f"{function.label} has bodies for opset {function.opset}, the model is opset {opset}: "
            f"make the function for opset {opset} or export with opset {function.opset}"
        )
    names = [node.name for node in _nodes(model, function)]
    if not names:
        raise InvalidInput(f"the model has no {function.label} node; export it so that the operator stays a node")
    body = function.default if body is None else body
    chosen = dict.fromkeys(names, body) if isinstance(body, str) else dict(body)
    _check_choice(function, names, chosen)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for node in _nodes(result, function):
        node.op_type = function.op_type(chosen[node.name])
    kept = [item for item in result.functions if not function.owns(item.domain, item.name)]
    del result.functions[:]
    result.functions.extend([*kept, *(function.proto(name) for name in sorted(set(chosen.values())))])
    if all(item.domain != function.domain for item in result.opset_import):
        result.opset_import.append(onnx.helper.make_opsetid(function.domain, 1))
    return result


def _nodes(model: onnx.ModelProto, function: OnnxFunction) -> list[onnx.NodeProto]:
    nodes = [node for node in walk(model.graph) if function.owns(node.domain, node.op_type)]
    counts = Counter(node.name for node in nodes)
    if wrong := sorted(name for name, count in counts.items() if not name or count > 1):
        raise InvalidInput(f"nodes of {function.label} are chosen by name; these have none or share it: {wrong}")
    return nodes


def _check_choice(function: OnnxFunction, names: list[str], chosen: Mapping[str, str]) -> None:
    if unknown := sorted(set(chosen.values()) - set(function.bodies)):
        raise InvalidInput(f"{function.label} has no body {', '.join(unknown)}; its bodies: {', '.join(sorted(function.bodies))}")
    if set(chosen) != set(names):
        missing, extra = sorted(set(names) - set(chosen)), sorted(set(chosen) - set(names))
        raise InvalidInput(f"a choice names every {function.label} node: without a body are {missing}, not in the model {extra}")

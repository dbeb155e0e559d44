"""ONNX files as other exporters write them: every layout, type and number of inputs and outputs; weights in other files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

Shape = Sequence[int | str]
Weights = Sequence[TensorProto] | Mapping[str, np.ndarray]
WEIGHTS = np.linspace(-1, 1, 15, dtype=np.float32).reshape(5, 3, 1, 1)


def info(name: str, shape: Shape | None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def weight(name: str, values: np.ndarray) -> TensorProto:
    return onnx.numpy_helper.from_array(values, name)


def model(
    nodes: Sequence[NodeProto], inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto],
    weights: Weights = (), *, opset: int = 18, functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:  # fmt: skip
    """Make a model; functions bring their domains along."""
    held = [weight(name, values) for name, values in weights.items()] if isinstance(weights, Mapping) else list(weights)
    body = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), held)
    domains = {"": opset, **{function.domain: 1 for function in functions}}
    imports = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
    return helper.make_model(body, opset_imports=imports, functions=list(functions), ir_version=10)


def save(path: Path, *parts: Any, metadata: dict[str, str] | None = None) -> Path:
    """Write a model; parts as `model` takes them."""
    made = model(*parts)
    helper.set_model_props(made, metadata or {})
    path.write_bytes(made.SerializeToString())
    return path


def conv(source: str = "pixels", result: str = "mask") -> NodeProto:
    return helper.make_node("Conv", [source, "w"], [result])


def classes(path: Path, shape: Shape = (1, 3, 8, 12), metadata: dict[str, str] | None = None) -> Path:
    """A 1x1 convolution to 5 channels."""
    rank = [shape[0], 5, *shape[2:]]
    return save(path, [conv()], [info("pixels", shape)], [info("mask", rank)], [weight("w", WEIGHTS)], metadata=metadata)


def cast_input(path: Path, kind: int) -> Path:
    """The image in another type than the network's."""
    nodes = [helper.make_node("Cast", ["pixels"], ["x"], to=TensorProto.FLOAT), conv("x")]
    return save(path, nodes, [info("pixels", [1, 3, 8, 12], kind)], [info("mask", [1, 5, 8, 12])], [weight("w", WEIGHTS)])


def channels_last(path: Path, shape: Shape = (1, 8, 12, 3), kind: int = TensorProto.FLOAT) -> Path:
    """The image and the scores with their channels at the end, as TensorFlow writes them."""
    nodes = [
        helper.make_node("Cast", ["pixels"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["c"], ["x"], perm=[0, 3, 1, 2]),
        conv("x", "y"),
        helper.make_node("Transpose", ["y"], ["mask"], perm=[0, 2, 3, 1]),
    ]
    return save(path, nodes, [info("pixels", shape, kind)], [info("mask", [*shape[:3], 5])], [weight("w", WEIGHTS)])


def scores_last(path: Path) -> Path:
    """The scores alone with their channels at the end; class 4 everywhere where the image is white."""
    nodes = [conv(result="y"), helper.make_node("Transpose", ["y"], ["mask"], perm=[0, 2, 3, 1])]
    return save(path, nodes, [info("pixels", [1, 3, 8, 12])], [info("mask", [1, 8, 12, 5])], [weight("w", WEIGHTS)])


def two_images(path: Path, shape: Shape = (1, 3, 8, 12)) -> Path:
    """A network that compares two images."""
    nodes = [helper.make_node("Sub", ["before", "after"], ["x"]), conv("x")]
    outputs = [info("mask", [shape[0], 5, *shape[2:]])]
    return save(path, nodes, [info("before", shape), info("after", shape)], outputs, [weight("w", WEIGHTS)])


def sigmoid(path: Path, last: str = "Sigmoid") -> Path:
    """One channel: of a probability, or of a logit where `last` is Identity; positive in the left half of the image."""
    ramp = np.broadcast_to(np.linspace(4, -4, 12, dtype=np.float32), (1, 1, 8, 12))
    nodes = [
        helper.make_node("ReduceMean", ["pixels", "axis"], ["grey"]),
        helper.make_node("Mul", ["grey", "nothing"], ["zero"]),
        helper.make_node("Add", ["zero", "ramp"], ["y"]),
        helper.make_node(last, ["y"], ["mask"]),
    ]
    weights = [weight("axis", np.array([1], np.int64)), weight("nothing", np.zeros(1, np.float32)), weight("ramp", ramp)]
    return save(path, nodes, [info("pixels", [1, 3, 8, 12])], [info("mask", [1, 1, 8, 12])], weights)


def with_positions(path: Path, first: bool = False) -> Path:
    """Scores, and beside them the positions of what is positive: their number depends on the image."""
    nodes = [conv(), helper.make_node("NonZero", ["positive"], ["positions"])]
    nodes.insert(1, helper.make_node("Relu", ["mask"], ["positive"]))
    outputs = [info("mask", [1, 5, 8, 12]), info("positions", [4, "n"], TensorProto.INT64)]
    return save(path, nodes, [info("pixels", [1, 3, 8, 12])], outputs[::-1] if first else outputs, [weight("w", WEIGHTS)])


def external(path: Path, location: str, shape: Shape = (1, 3, 8, 12), **more: str | int) -> Path:
    """A network that keeps its weight in another file; `more` are offset and length."""
    outside = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=WEIGHTS.shape, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **more}.items():
        outside.external_data.add(key=key, value=str(value))
    return save(path, [conv()], [info("pixels", shape)], [info("mask", [shape[0], 5, *shape[2:]])], [outside])

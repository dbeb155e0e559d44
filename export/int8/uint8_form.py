"""Give a symmetric int8 graph the form in which CPU runtimes are fast: activations in uint8, ReLUs in the rounding.

ONNX Runtime's kernels on x86 take activations in uint8, and it fuses a convolution with what follows only where that is a
QuantizeLinear. In a symmetric int8 graph a ReLU stands between the two, and half of the range behind it is never used. So

| tensor                            | in the file               | here                                                      |
|-----------------------------------|---------------------------|-----------------------------------------------------------|
| of either sign                    | int8, scale s             | uint8, scale s, zero point 128: the same values           |
| never negative (behind a ReLU)    | int8, scale s: 0 to 127 s | uint8, scale 127/255 s, zero point 0: twice as many steps |
| between a layer and such a tensor | Relu, Clip                | nothing: rounding to uint8 cuts off what they would       |

Weights, layers and scales are those of the file; the result is never further from fp32 than it, rounding aside.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from export.onnx.opset import STANDARD

STEPS = 255 / 127
"""How many steps of uint8 one of symmetric int8 becomes where nothing is negative."""
_SAME_SIGN = (
    "Resize", "MaxPool", "AveragePool", "GlobalAveragePool", "Slice", "Concat", "Add", "QuantizeLinear", "DequantizeLinear",
)  # fmt: skip
"""Operators that give nothing negative where they read nothing negative (a Resize that is not cubic)."""
_NEVER_NEGATIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax")


def uint8_form(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph with its symmetric int8 activations in uint8; what is quantised in another way stays as it is."""
    result = onnx.ModelProto.FromString(model.SerializeToString())
    graph = result.graph
    constants = _constants(graph)
    positive = _never_negative(graph, constants)
    readers = defaultdict[str, list[onnx.NodeProto]](list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    rounded = [node for node in graph.node if _is_symmetric(node, constants) and _read_by_dequantise(node, readers, graph)]
    for node in rounded:
        _make_uint8(graph, node, readers[node.output[0]], constants, node.input[0] in positive)
    _drop_activations(graph, {id(node) for node in rounded}, constants, readers)
    del graph.value_info[:]
    return result


def _constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Return the scalars of a graph, and constants of nodes."""
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if not tensor.dims or [*tensor.dims] == [1]}
    nodes = [node for node in graph.node if node.op_type == "Constant"]
    return found | {n.output[0]: numpy_helper.to_array(a.t) for n in nodes for a in n.attribute if a.name == "value"}


def _is_symmetric(node: onnx.NodeProto, constants: Mapping[str, np.ndarray]) -> bool:
    """Say whether a node rounds a tensor to int8 around 0."""
    if node.op_type != "QuantizeLinear" or node.domain not in STANDARD or len(node.input) < 3:
        return False
    zero, scale = constants.get(node.input[2]), constants.get(node.input[1])
    return zero is not None and scale is not None and zero.dtype == np.int8 and zero.size == 1 and not zero.any()


def _read_by_dequantise(
    node: onnx.NodeProto, readers: Mapping[str, list[onnx.NodeProto]], graph: onnx.GraphProto
) -> bool:
    outputs = {info.name for info in graph.output}
    return node.output[0] not in outputs and all(reader.op_type == "DequantizeLinear" for reader in readers[node.output[0]])


def _make_uint8(
    graph: onnx.GraphProto, node: onnx.NodeProto, readers: list[onnx.NodeProto], constants: Mapping[str, np.ndarray], positive: bool
) -> None:
    scale = constants[node.input[1]].astype(np.float32).reshape(())
    zero = np.uint8(0 if positive else 128)
    names = f"{node.output[0]}_uint8_scale", f"{node.output[0]}_uint8_zero_point"
    values: tuple[np.ndarray, np.ndarray] = np.array(scale / STEPS if positive else scale, np.float32), np.array(zero)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in zip(names, values, strict=True))
    for user in (node, *readers):
        user.input[1], user.input[2] = names


def _drop_activations(
    graph: onnx.GraphProto, rounded: set[int], constants: Mapping[str, np.ndarray], readers: Mapping[str, list[onnx.NodeProto]]
) -> None:
    """Remove each activation that is read by rounding alone, which cuts off at least as much."""
    outputs = {info.name for info in graph.output}
    scales = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if not tensor.dims}
    for node in [node for node in graph.node if node.op_type in ("Relu", "Clip")]:
        users = readers[node.output[0]]
        limits = _limits(node, constants)
        if limits is None or node.output[0] in outputs or not users or not all(id(user) in rounded for user in users):
            continue
        tops = [255 * float(scales[user.input[1]]) for user in users if scales[user.input[2]] == 0]
        if limits[0] == 0 and len(tops) == len(users) and max(tops) <= limits[1] * (1 + 1e-5):
            for user in users:
                user.input[0] = node.input[0]
            graph.node.remove(node)


def _limits(node: onnx.NodeProto, constants: Mapping[str, np.ndarray]) -> tuple[float, float] | None:
    """Return between what an activation cuts off; None where that is not known."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    ends = [node.input[place] if len(node.input) > place else "" for place in (1, 2)]
    if any(name and name not in constants for name in ends):
        return None
    low, high = (float(constants[name].reshape(())) if name else end for name, end in zip(ends, (-np.inf, np.inf), strict=True))
    return low, high


def _never_negative(graph: onnx.GraphProto, constants: Mapping[str, np.ndarray]) -> set[str]:
    """Name the tensors that hold nothing negative."""
    found = set[str]()
    for node in graph.node:
        if node.op_type == "Clip":
            limits = _limits(node, constants)
            sure = limits is not None and limits[0] >= 0
        elif node.op_type in _SAME_SIGN:
            read = node.input if node.op_type in ("Concat", "Add") else node.input[:1]
            cubic = any(a.name == "mode" and a.s == b"cubic" for a in node.attribute)
            sure = not cubic and all(name in found for name in read)
        else:
            sure = node.op_type in _NEVER_NEGATIVE
        found |= {*node.output} if sure else set()
    return found



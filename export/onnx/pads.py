"""Merge paddings of their own into the convolutions and max-poolings that follow them, as the `pads` those have.

A padding that PyTorch computes with `F.pad`, since its layer cannot pad one side more than the other, is a pass over memory in
ONNX. Convolutions pad with 0 and max-poolings with minus infinity, so those values are merged. One that crops (negative pads), or
that others read too, stays.
"""

from __future__ import annotations

import math
from collections import Counter

import onnx
from onnx import NodeProto, helper, numpy_helper

VALUES = {"Conv": 0.0, "MaxPool": -math.inf}
"""What these operators pad with."""


def merge_pads(model: onnx.ModelProto) -> None:
    """Merge, in place, every `Pad` that the one node behind it can do itself."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    uses = Counter(name for node in graph.node for name in node.input) + Counter(info.name for info in graph.output)
    merged: set[str] = set()
    for node in graph.node:
        pad = makers.get(node.input[0]) if node.op_type in VALUES and node.domain == "" else None
        if pad is None or pad.op_type != "Pad" or uses[pad.output[0]] != 1:
            continue
        before = _spatial(pad, constants, VALUES[node.op_type])
        if before is not None and _takes(node, before):
            merged.add(pad.output[0])
            node.input[0] = pad.input[0]
    kept = [node for node in graph.node if node.output[0] not in merged]
    if len(kept) == len(graph.node):
        return
    del graph.node[:]
    graph.node.extend(kept)
    read = {name for node in kept for name in node.input}
    weights = [tensor for tensor in graph.initializer if tensor.name in read]
    known = [info for info in graph.value_info if info.name not in merged]
    del graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(weights)
    graph.value_info.extend(known)


def _spatial(pad: NodeProto, constants: dict[str, onnx.TensorProto], value: float) -> list[int] | None:
    """Return the pads (before each spatial axis, after each) of a padding with a value; None where it is another one."""
    names = [*pad.input, "", "", ""][:4]
    mode = next((helper.get_attribute_value(attribute) for attribute in pad.attribute if attribute.name == "mode"), b"constant")
    if mode != b"constant" or names[3] or names[1] not in constants or (names[2] and names[2] not in constants):
        return None
    if (float(numpy_helper.to_array(constants[names[2]]).item()) if names[2] else 0.0) != value:
        return None
    pads = [int(count) for count in numpy_helper.to_array(constants[names[1]])]
    rank = len(pads) // 2
    if min(pads) < 0 or any((*pads[:2], *pads[rank : rank + 2])):
        return None
    return pads[2:rank] + pads[rank + 2 :]


def _takes(node: NodeProto, more: list[int]) -> bool:
    """Add pads to a node's own; false where it cannot have them."""
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if attributes.get("auto_pad", b"NOTSET") != b"NOTSET" or attributes.get("ceil_mode", 0) or len(node.output) > 1:
        return False
    kernel: list[int] = attributes.get("kernel_shape", [])
    total = [own + extra for own, extra in zip(attributes.get("pads", [0] * len(more)), more, strict=True)]
    # ONNX lets no window of a pooling lie in the padding alone
    if node.op_type == "MaxPool" and any(count >= side for count, side in zip(total, kernel + kernel, strict=True)):
        return False
    kept = [attribute for attribute in node.attribute if attribute.name != "pads"]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute("pads", total)])
    return True

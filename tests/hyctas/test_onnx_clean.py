"""What the exporter writes for hand-made networks of `edge` is clean: paddings are their operators' own, activations are fused."""

from __future__ import annotations

import math
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from export import check_parity, export_onnx
from export.onnx.exporter import export_modules
from export.onnx.pads import merge_pads
from export.onnx.precision import converted
from export.onnx.precision import opset as opset_of
from export.trt.engine_precision import bf16
from hyctas.arch.operators import Conv, InvertedResidual, MaxPool, Operator, Residual
from hyctas.network import Network, build
from hyctas.nn.blocks import Block
from hyctas.spaces.members import members

ALLOWED = {"Add", "Clip", "Concat", "Conv", "MaxPool", "Pad", "ReduceMean", "Relu", "Resize", "Slice"}


@cache
def network(name: str) -> Network:
    torch.manual_seed(0)
    return build(members()[name], 5).eval()


@cache
def exported(name: str, size: tuple[int, int], opset: int = 18) -> bytes:
    """Export once for all tests of this file."""
    with tempfile.TemporaryDirectory() as folder:
        return export_onnx(network(name), size, Path(folder) / "n.onnx", opset=opset).path.read_bytes()


def paddings(model: onnx.ModelProto) -> list[list[int]]:
    """Return the pads of every Pad that is left."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "Pad"]
    return [numpy_helper.to_array(weights[node.input[1]]).tolist() for node in nodes]


def crops_alone(model: onnx.ModelProto) -> bool:
    """Say whether every Pad that is left crops: that of a residual cell's 1x1 shortcut at stride 2, one per such cell."""
    return all(pads[2] == pads[3] == -1 for pads in paddings(model))


@pytest.mark.parametrize(("name", "size"), [("lite0-16", (72, 96)), ("resnet-w50", (45, 61)), ("plain", (45, 61))])
def test_no_padding_is_a_node(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    (tmp_path / "n.onnx").write_bytes(exported(name, size))
    model = onnx.load(tmp_path / "n.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {node.op_type for node in model.graph.node} <= ALLOWED
    assert crops_alone(model) and len(paddings(model)) == (3 if name == "resnet-w50" else 0)
    parity = check_parity(network(name), tmp_path / "n.onnx", size=size, count=1)
    assert parity.passed, parity.summary()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_nor_in_half_precision(precision: str) -> None:
    """Nor do converters bring back what was merged; casts stand at inputs and outputs alone."""
    model = onnx.load_from_string(exported("resnet-w50", (45, 61), opset_of(precision)))
    half = converted(model, "fp16", keep_io=True) if precision == "fp16" else bf16(model, keep_io=True)
    onnx.checker.check_model(half, full_check=True)
    assert crops_alone(half) and len(paddings(half)) == 3
    assert {node.op_type for node in half.graph.node} <= ALLOWED | {"Cast"}
    assert sum(node.op_type == "Cast" for node in half.graph.node) == 2


OPERATORS: list[Operator] = [
    Conv((8,), 16, 3, 2, relu6=True, aligned=True),
    Conv((8,), 16, 5, 2, aligned=True),
    InvertedResidual((8,), 16, cell_stride=2, aligned=True, kernel=5),
    MaxPool((8,), 8, aligned=True),
    Residual((8,), 16, cell_stride=2, aligned=True),
]


@pytest.mark.parametrize("size", [(12, 9), (13, 10)], ids=str)
def test_nor_in_operators_that_are_timed(tmp_path: Path, size: tuple[int, int]) -> None:
    """`export_modules` cuts many operators out of one graph."""
    blocks = [Block(op).eval() for op in OPERATORS]
    inputs = [(torch.randn(1, 8, *size),) for _ in blocks]  # max-pooling: what is padded must not be the largest
    paths = export_modules(list(zip(blocks, inputs, strict=True)), tmp_path, [f"o{i}" for i in range(len(blocks))])
    for block, (x,), path in zip(blocks, inputs, paths, strict=True):
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        assert len(paddings(model)) == isinstance(block.operator, Residual) and crops_alone(model)
        found = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x0": x.numpy()})[0]
        with torch.inference_mode():
            np.testing.assert_allclose(found, block(x).numpy(), atol=1e-4, err_msg=str(block.operator))


@pytest.mark.parametrize("name", ["lite0-16", "resnet-w50"])
def test_onnx_runtime_fuses_the_activations(tmp_path: Path, name: str) -> None:
    """No Clip is left, and the Relu after a sum alone is a node of its own where no convolution can take it."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "o.onnx"), 4
    onnxruntime.InferenceSession(exported(name, (45, 61)), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "o.onnx").graph
    makers = {result: node.op_type for node in graph.node for result in node.output}
    assert [node for node in graph.node if node.op_type in ("Clip", "Relu") and "Conv" in makers[node.input[0]]] == []
    assert not {"Clip", "Transpose", "Identity"} & set(makers.values())


def single(extents: list[int], op: str, value: float | None, mode: str = "constant", **more: object) -> onnx.ModelProto:
    """A padding before an operator with a 3x3 window."""
    names = ["x", "pads"] + ([] if value is None else ["value"])
    weights = [numpy_helper.from_array(np.array(extents), "pads"), numpy_helper.from_array(np.ones((2, 2, 3, 3), np.float32), "w")]
    weights += [] if value is None else [numpy_helper.from_array(np.array(value, np.float32), "value")]
    nodes = [
        helper.make_node("Pad", names, ["p"], mode=mode),
        helper.make_node(op, ["p"] + ["w"] * (op == "Conv"), ["y"], kernel_shape=[3, 3], **more),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", [1, 2, 8, 8]), ("y", None))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


BEFORE_AND_AFTER = [0, 0, 0, 1, 0, 0, 1, 2]


@pytest.mark.parametrize(
    ("model", "pads"),
    [
        (single(BEFORE_AND_AFTER, "Conv", None), [0, 1, 1, 2]),
        (single(BEFORE_AND_AFTER, "Conv", 0.0, pads=[1, 1, 1, 1], strides=[2, 2]), [1, 2, 2, 3]),
        (single(BEFORE_AND_AFTER, "MaxPool", -math.inf), [0, 1, 1, 2]),
        (single(BEFORE_AND_AFTER, "MaxPool", 0.0), None),
        (single(BEFORE_AND_AFTER, "MaxPool", -math.inf, ceil_mode=1), None),
        (single([0, 0, 0, 0, 0, 0, 3, 0], "MaxPool", -math.inf), None),
        (single(BEFORE_AND_AFTER, "AveragePool", 0.0), None),
        (single(BEFORE_AND_AFTER, "Conv", 1.0), None),
        (single(BEFORE_AND_AFTER, "Conv", None, mode="reflect"), None),
        (single(BEFORE_AND_AFTER, "Conv", None, auto_pad="SAME_UPPER"), None),
        (single([0, 0, -1, 0, 0, 0, 1, 0], "Conv", None), None),
        (single([0, 1, 0, 0, 0, 0, 1, 0], "MaxPool", -math.inf), None),
    ],
)
def test_what_is_merged(model: onnx.ModelProto, pads: list[int] | None) -> None:
    x = np.random.default_rng(0).standard_normal((1, 2, 8, 8), np.float32)

    def run() -> np.ndarray:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        result: np.ndarray = session.run(None, {"x": x})[0]
        return result

    runs = pads is not None
    before = run() if runs else x
    merge_pads(model)
    assert ("Pad" in [node.op_type for node in model.graph.node]) == (pads is None)
    if pads is not None:
        (node,) = model.graph.node
        found = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        assert found["pads"] == pads and {tensor.name for tensor in model.graph.initializer} <= {"w"}
        np.testing.assert_allclose(run(), before, atol=1e-5)


def test_a_padding_that_others_read_stays() -> None:
    model = single(BEFORE_AND_AFTER, "Conv", None)
    model.graph.output.append(helper.make_tensor_value_info("p", TensorProto.FLOAT, None))
    merge_pads(model)
    assert [node.op_type for node in model.graph.node] == ["Pad", "Conv"]

"""Operators of another domain in ONNX files: bodies per node, inlining, what the exporter lets pass, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, inliner
from torch import nn

from export.errors import InvalidInput
from export.onnx.exporter import export_onnx
from export.onnx.functions import OnnxFunction, attach, nodes_of
from export.onnx.tracing import checked_bytes

ort = pytest.importorskip("onnxruntime")


def body(nodes: list[onnx.NodeProto], opset: int = 18, domain: str = "test", attributes: tuple[str, ...] = ("factor",)) -> bytes:
    """Serialise a body of test::Scale (x) -> (y)."""
    imports = [helper.make_opsetid("", opset)]
    data: bytes = helper.make_function(domain, "Scale", ["x"], ["y"], nodes, imports, list(attributes)).SerializeToString()
    return data


def factor(name: str) -> onnx.NodeProto:
    """Make a constant of the node's attribute."""
    node = helper.make_node("Constant", [], [name])
    node.attribute.add(name="value_float", ref_attr_name="factor", type=onnx.AttributeProto.FLOAT)
    return node


MUL = body([factor("f"), helper.make_node("Mul", ["x", "f"], ["y"])])
DIV = body([factor("f"), helper.make_node("Reciprocal", ["f"], ["r"]), helper.make_node("Div", ["x", "r"], ["y"])])
SCALE = OnnxFunction("test", "Scale", 18, {"mul": MUL, "div": DIV}, "mul")


def scaled(x: torch.Tensor, by: float) -> torch.Tensor:
    """Trace one test::Scale node."""
    return torch.onnx.ops.symbolic("test::Scale", [x], {"factor": by}, dtype=x.dtype, shape=x.shape, version=1)


class Net(nn.Module):
    """Two nodes around a convolution."""

    def forward_native(self, x: torch.Tensor) -> torch.Tensor:
        return scaled(torch.relu(scaled(x, 3.0)), 0.5)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    path = tmp_path_factory.mktemp("function") / "m.onnx"
    report = export_onnx(Net(), (4, 6), path, functions=[SCALE])
    assert report.operators["Scale"] == 2
    return onnx.load(path)


def run(model: onnx.ModelProto, image: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": image})[0])


def test_exported_file_has_the_default_body_and_runs(model: onnx.ModelProto) -> None:
    assert [(f.domain, f.name) for f in model.functions] == [("test", "Scale")]
    assert {(o.domain, o.version) for o in model.opset_import} == {("", 18), ("test", 1)}
    image = np.random.default_rng(0).standard_normal((1, 3, 4, 6), dtype=np.float32)
    np.testing.assert_allclose(run(model, image), np.maximum(image, 0) * 1.5, rtol=1e-6)


def test_nodes_have_names_shapes_and_attributes(model: onnx.ModelProto) -> None:
    first, second = nodes_of(model, SCALE)
    assert first.name != second.name and first.body == "mul"
    assert (first.inputs[0].name, first.inputs[0].shape, first.inputs[0].dtype) == ("image", (1, 3, 4, 6), "float32")
    assert second.outputs[0].shape == (1, 3, 4, 6)
    assert (first.attributes, second.attributes) == ({"factor": 3.0}, {"factor": 0.5})


@pytest.mark.parametrize("choice", ["all", "each"])
def test_bodies_are_exchanged_for_all_nodes_or_one(model: onnx.ModelProto, choice: str) -> None:
    first, second = (node.name for node in nodes_of(model, SCALE))
    before = model.SerializeToString(deterministic=True)
    result = attach(model, SCALE, "div" if choice == "all" else {first: "div", second: "mul"})
    assert model.SerializeToString(deterministic=True) == before, "the argument stays as it is"
    assert [node.body for node in nodes_of(result, SCALE)] == (["div", "div"] if choice == "all" else ["div", "mul"])
    assert [f.name for f in result.functions] == (["Scale_div"] if choice == "all" else ["Scale_div", "Scale"])
    onnx.checker.check_model(result, full_check=True)
    image = np.random.default_rng(0).standard_normal((1, 3, 4, 6), dtype=np.float32)
    np.testing.assert_allclose(run(result, image), np.maximum(image, 0) * 1.5, rtol=1e-6)
    again = attach(result, SCALE)
    assert again.SerializeToString(deterministic=True) == before, "and back"


def test_without_functions_only_standard_onnx_is_written(model: onnx.ModelProto, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="not standard ONNX: it uses test"):
        export_onnx(Net(), (4, 6), tmp_path / "m.onnx")
    other = OnnxFunction("test", "Other", 18, {"mul": named(MUL, "Other")}, "mul")
    with pytest.raises(InvalidInput, match="not standard ONNX: it uses test"):
        export_onnx(Net(), (4, 6), tmp_path / "m.onnx", functions=[other])
    assert not (tmp_path / "m.onnx").exists()
    stray = onnx.ModelProto()
    stray.CopyFrom(inliner.inline_local_functions(model))
    stray.functions.append(other.proto("mul"))
    with pytest.raises(InvalidInput, match="function Other"):
        checked_bytes(stray, "stray", [SCALE])


def test_a_network_without_such_nodes_stays_standard(tmp_path: Path) -> None:
    report = export_onnx(nn.Conv2d(3, 4, 1), (4, 4), tmp_path / "m.onnx", "logits", functions=[SCALE])
    written = onnx.load(report.path)
    assert not written.functions and {o.domain for o in written.opset_import} == {""}


def named(data: bytes, name: str) -> bytes:
    function = onnx.FunctionProto.FromString(data)
    function.name = name
    renamed: bytes = function.SerializeToString()
    return renamed


def edited(model: onnx.ModelProto, edit: Callable[[onnx.ModelProto], Any]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    edit(copy)
    return copy


def test_refusals_of_attach(model: onnx.ModelProto) -> None:
    first, second = (node.name for node in nodes_of(model, SCALE))
    with pytest.raises(InvalidInput, match="no test::Scale node"):
        attach(inliner.inline_local_functions(model), SCALE)
    with pytest.raises(InvalidInput, match="no body add; its bodies: div, mul"):
        attach(model, SCALE, "add")
    with pytest.raises(InvalidInput, match="no body ;"):
        attach(model, SCALE, "")
    with pytest.raises(InvalidInput, match=rf"without a body are \['{second}'\]"):
        attach(model, SCALE, {first: "div"})
    with pytest.raises(InvalidInput, match=r"not in the model \['nobody'\]"):
        attach(model, SCALE, {first: "div", second: "div", "nobody": "div"})
    for version in (17, 19):
        with pytest.raises(InvalidInput, match=f"the model is opset {version}: make the function for opset {version}"):
            attach(edited(model, lambda m, v=version: [setattr(o, "version", v) for o in m.opset_import if not o.domain]), SCALE)
    with pytest.raises(InvalidInput, match="have none or share it"):
        attach(edited(model, lambda m: [node.ClearField("name") for node in m.graph.node]), SCALE)


def test_shapes_must_be_static() -> None:
    node = helper.make_node("Scale", ["x"], ["y"], name="n", domain="test", factor=2.0)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, "size"]) for name in ("x", "y")]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("test", 1)])
    with pytest.raises(InvalidInput, match="no static shape at x, y"):
        nodes_of(model, SCALE)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("", "Scale", 18, {"mul": MUL}, "mul"), "domain of its own"),
        (("test", "a b", 18, {"mul": MUL}, "mul"), "domain of its own"),
        (("test", "Scale", 18, {"mul": MUL}, "div"), "no body 'div'; its bodies: mul"),
        (("test", "Scale", 18, {"m-l": MUL}, "m-l"), "part of an op_type"),
        (("test", "Scale", 18, {"mul": b"\xff\xff"}, "mul"), "not a FunctionProto"),
        (("test", "Scale", 19, {"mul": MUL}, "mul"), "import opset 19 alone"),
        (("else", "Scale", 18, {"mul": MUL}, "mul"), "in that domain"),
        (("test", "Scale", 18, {"mul": MUL, "bare": body([], attributes=())}, "mul"), "differ in inputs, outputs or attributes"),
    ],
)
def test_refused_functions(arguments: tuple[Any, ...], text: str) -> None:
    with pytest.raises(InvalidInput, match=text):
        OnnxFunction(*arguments)

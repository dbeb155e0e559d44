"""int8: what the quantiser leaves in float, the form that CPU runtimes compute, operators with integer edges, float layers."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from export import export_onnx
from export.backends.int8_runtimes import AT_RANDOM
from export.backends.openvino_session import unavailable_reason
from export.errors import CheckFailed, InvalidInput
from export.int8.float_layers import float_layers
from export.int8.loading import NOT_QUANTISED
from export.int8.loss import Int8Loss, SplitLoss
from export.int8.quantise import Calibrated, calibrated, is_quantised, quantised_at_random
from export.int8.quantised_operator import quantised_operator
from export.int8.uint8_form import uint8_form
from export.onnx.exporter import export_modules
from export.onnx.join import Part, wire
from export.runtime import LayerRuntime
from export.runtimes import open_runtime
from export.target import Target
from export.trt.build import build_engine
from export.trt.engine_precision import check_graph
from hyctas.network import build
from hyctas.space import tiny
from hyctas.spaces.members import members
from tests.export.trt.rtx_builds import needs_rtx, options

ORT, OPENVINO = Target("onnxruntime-cpu", "int8"), Target("openvino-cpu", "int8")
SIZE = (64, 96)


class Chain(nn.Module):
    """A convolution, ReLU6, a depthwise convolution, a sum, a resize, and a prediction."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.last = nn.Conv2d(8, 5, 1)

    def forward_native(self, image: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu6(self.first(image))
        x = nn.functional.relu(x + self.second(x))
        return self.last(nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear"))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.forward_native(image)


def images(count: int = 2) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    return [{"image": random.standard_normal((1, 3, *SIZE), np.float32)} for _ in range(count)]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    torch.manual_seed(0)
    return onnx.load(export_onnx(Chain().eval(), SIZE, tmp_path_factory.mktemp("int8") / "chain.onnx").path)


@pytest.fixture(scope="module")
def source(chain: onnx.ModelProto) -> Calibrated:
    return calibrated(chain, images())


def optimised(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """Count the operators that ONNX Runtime runs of a graph."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 4, str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


def outputs(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])


def test_the_graph_is_what_every_runtime_takes(source: Calibrated) -> None:
    made = source.quantised()
    assert check_graph(made, "int8") == {"fp32": 3}
    counts = Counter(node.op_type for node in made.graph.node)
    assert counts["DequantizeLinear"] == counts["QuantizeLinear"] + 3, "weights are stored in int8"
    stored = {tensor.name: tensor for tensor in made.graph.initializer}
    convolutions = [node for node in made.graph.node if node.op_type == "Conv"]
    assert all(stored[node.input[2]].data_type == TensorProto.FLOAT for node in convolutions), "biases stay in float"
    scales = [stored[node.input[1]] for node in made.graph.node if node.op_type == "DequantizeLinear"]
    assert sorted(scale.dims[0] for scale in scales if scale.dims) == [5, 8, 8], "a scale per channel"
    read = {name: node.op_type for node in made.graph.node for name in node.input}
    assert [read.get(node.output[0]) for node in convolutions] == ["Clip", "QuantizeLinear", None], "nothing before an activation"
    assert made.graph.output[0].name == "native" and {item.domain for item in made.opset_import} == {""}


def test_layers_that_are_kept_stay_in_float(source: Calibrated) -> None:
    first, *rest = source.layers
    made = source.quantised([first])
    assert Counter(node.op_type for node in made.graph.node)["Conv"] == 3
    with_float = [node for node in made.graph.node if node.op_type == "Conv" and node.input[0] == "image"]
    assert [node.name for node in with_float] == [first]
    alone = source.quantised(only=rest[:1])
    assert sum(node.op_type == "QuantizeLinear" for node in alone.graph.node) == 1


def test_uint8_form_computes_the_same_and_fuses(source: Calibrated, tmp_path: Path) -> None:
    made = source.quantised()
    form = uint8_form(made)
    fp32, before, after = (outputs(model, images()[0]) for model in (source.model, made, form))
    assert np.abs(after - fp32).max() < np.abs(before - fp32).max() * 1.2
    assert np.abs(after - fp32).std() < 0.1 * fp32.std()
    counts = optimised(form, tmp_path)
    assert counts["QLinearConv"] == 2 and counts["QLinearAdd"] == 1 and not {"Relu", "Clip"} & set(counts), counts
    assert optimised(made, tmp_path)["QLinearConv"] < 2, "which is why there is such a form"
    assert not {"Relu", "Clip"} & {node.op_type for node in form.graph.node}


def test_uint8_form_leaves_the_rest() -> None:
    """Asymmetric tensors, and an activation that others read, too."""
    constants = {"s": np.float32(0.1), "z": np.int8(0), "z3": np.int8(3)}
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("QuantizeLinear", ["r", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("QuantizeLinear", ["d", "s", "z3"], ["q3"]),
        helper.make_node("DequantizeLinear", ["q3", "s", "z3"], ["d3"]),
        helper.make_node("Add", ["d3", "r"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in "xy"]
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    form = uint8_form(model)
    zeros = {tensor.name: numpy_helper.to_array(tensor) for tensor in form.graph.initializer}
    kinds = [zeros[node.input[2]].dtype for node in form.graph.node if node.op_type == "QuantizeLinear"]
    assert kinds == [np.uint8, np.int8] and form.graph.node[0].op_type == "Relu"
    x = {"x": np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)}
    assert np.allclose(outputs(form, x), outputs(model, x), atol=0.1)


def test_attention_and_logits_stay_in_float(tmp_path: Path) -> None:
    network = build(members()["lite0-16-attention-w50"], 5).eval()
    model = onnx.load(export_onnx(network, SIZE, tmp_path / "m.onnx", output="labels").path)
    made = quantised_at_random(model)
    kinds = {name: node.op_type for node in made.graph.node for name in node.output}
    for node in made.graph.node:
        if node.op_type in ("MatMul", "Softmax", "Reshape", "Transpose", "ArgMax"):
            assert "DequantizeLinear" not in {kinds.get(name) for name in node.input}, node.name
    assert check_graph(made, "int8")["fp32"] >= 40
    assert onnxruntime.InferenceSession(uint8_form(made).SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("model", "feeds", "reason"),
    [
        (lambda source: source.quantised(), images(1), "quantised already"),
        (lambda source: source.model, [], "there are none"),
        (lambda source: source.model, [{"image": np.zeros((1, 3, 32, 32), np.float32)}], r"of shape \(1, 3, 64, 96\)"),
        (lambda source: softmax(), [], "nothing to quantise"),
    ],
    ids=["quantised", "no images", "another size", "no layers"],
)
def test_refused(source: Calibrated, model: Callable[[Calibrated], onnx.ModelProto], feeds: Any, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        calibrated(model(source), feeds)


def softmax() -> onnx.ModelProto:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Softmax", ["x"], ["y"])], "g", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


@pytest.mark.parametrize("target", [ORT, OPENVINO], ids=str)
def test_runtimes(target: Target, source: Calibrated, chain: onnx.ModelProto, tmp_path: Path) -> None:
    if importlib.util.find_spec("openvino") is None or (target is OPENVINO and unavailable_reason(target) is not None):
        pytest.skip("OpenVINO does not compute in int8 here")
    onnx.save(source.quantised(), tmp_path / "int8.onnx")
    onnx.save(chain, tmp_path / "fp32.onnx")
    runtime = open_runtime(target, 1)
    wanted = outputs(chain, images()[0])
    for name, notes in (("int8", []), ("fp32", [NOT_QUANTISED])):
        with runtime.load_file(tmp_path / f"{name}.onnx") as session:
            assert np.abs(session.run(images()[0])[0] - wanted).std() < 0.1 * wanted.std()
            assert session.notes == notes  # type: ignore[attr-defined]
    assert isinstance(runtime, LayerRuntime) and runtime.times_layers
    part = Part("only", onnx.load(tmp_path / "fp32.onnx"), ("image",))
    onnx.save(wire([part], {"image": (1, 3, *SIZE)}), tmp_path / "wired.onnx")
    times = runtime.time_parts(tmp_path / "wired.onnx", warmup_ms=0, runs=2)
    assert len(times["only"]) == 2 and min(times["only"]) > 0
    (network,) = runtime.load_modules([(Chain().eval(), (torch.zeros(1, 3, *SIZE),))])
    with network:
        assert network.inputs[0].dtype == "float32" and AT_RANDOM in network.notes  # type: ignore[attr-defined]


def test_operators_of_a_space(tmp_path: Path) -> None:
    """Whatever its edges are, an operator can be quantised and run."""
    from hyctas.cost.workloads import workloads

    wanted = {work.op: work for work in workloads(tiny().keys(SIZE, 5))}
    modules = [work.example() for work in wanted.values()]
    for path in export_modules(modules, tmp_path, [f"m{i}" for i in range(len(modules))]):
        made = quantised_operator(onnx.load(path))
        kinds = {info.type.tensor_type.elem_type for info in (*made.graph.input, *made.graph.output)}
        assert kinds <= {TensorProto.INT8, TensorProto.FLOAT} and is_quantised(made), path
        onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])


@needs_rtx
def test_the_real_builder_takes_operators() -> None:
    """Symmetric, with int8 inputs and outputs."""
    made = quantised_operator(convolution())
    ends = {info.type.tensor_type.elem_type for info in (*made.graph.input, *made.graph.output)}
    assert ends == {TensorProto.INT8} and [info.name for info in (*made.graph.input, *made.graph.output)] == ["x", "y"]
    assert build_engine(made.SerializeToString(), options("int8")).plan


def convolution() -> onnx.ModelProto:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 8, 8]) for name in "xy"]
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((4, 4, 1, 1)).astype(np.float32), "w")
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Relu", ["c"], ["y"])]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def test_float_layers_are_as_few_as_hold(source: Calibrated) -> None:
    """The layer whose quantisation changes most comes first; one that the bound does not need is none of them."""
    faults = dict(zip(source.layers, (0.9, 0.5, 0.99), strict=True))

    def quantised(model: onnx.ModelProto) -> set[str]:
        made = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
        return {node.name for node in model.graph.node if node.op_type == "Conv" and node.input[1] in made}

    def agreement(model: onnx.ModelProto) -> float:
        return min((faults[name] for name in quantised(model)), default=1.0)

    def kept(least: float) -> tuple[str, ...]:
        return float_layers(source, lambda model: agreement(model) >= least, agreement)

    first, second, _ = source.layers
    assert kept(0.4) == ()
    assert kept(0.8) == (second,)
    assert kept(0.95) == (second, first)
    with pytest.raises(CheckFailed, match="even with 2 of 3 layers in float"):
        kept(1.0)


def test_loss_is_judged_by_its_bounds() -> None:
    split = SplitLoss(images=2, fp32_miou=0.6, int8_miou=0.59)
    loss = Int8Loss(
        target="onnxruntime-cpu:int8", data="streets", calibration_images=4, judged_images=2, layers=3, float_layers=("a",),
        agreement=0.99, worst_agreement=0.9, portable_agreement=0.98, splits={"choose": split}, min_agreement=0.98,
        max_miou_loss=0.02,
    )  # fmt: skip
    assert loss.passed and "2 of 3 layers in int8" in loss.summary() and "+1.00 points lost (at most 2.0)" in loss.summary()
    assert not replace(loss, min_agreement=0.995).passed and not replace(loss, max_miou_loss=0.005).passed

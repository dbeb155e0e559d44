"""Graphs in every precision: what is refused, what the conversions round and what they leave, and which nodes stay in fp32."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from export.errors import CheckFailed, InvalidInput
from export.onnx.exporter import export_modules
from export.onnx.precision import ERROR_BOUND
from export.trt.engine_precision import bf16, bf16_values, check_graph, fp16, named, tensor_types
from export.trt.mixed import emulated, faults, keep_list, output_error
from export.trt.prepare import prepared
from hyctas.arch.operators import Conv, DownUp, Predict, SelfAttention
from hyctas.cost.workloads import build_block
from tests.export import foreign_files as foreign

ort = pytest.importorskip("onnxruntime")
FLOAT, HALF, BF16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
Nodes = list[onnx.NodeProto]


def model_of(
    nodes: Nodes,
    weights: dict[str, np.ndarray],
    *,
    shape: tuple[int, ...] = (1, 4),
    out: tuple[int, ...] | None = None,
    opset: int = 18,
) -> onnx.ModelProto:
    """Return a checked graph from `x` to `y`, which has the shape of x unless `out` is given."""
    model = foreign.model(nodes, [foreign.info("x", shape)], [foreign.info("y", out or shape)], weights, opset=opset)
    onnx.checker.check_model(model, full_check=True)
    return model


def computed(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    """Return a small network of our operators: a light-weight convolution, attention, a head."""
    torch.manual_seed(0)
    keys = [
        Conv((3,), 16, cell_stride=2).key([(3, 24, 20)]),
        SelfAttention((16,), 16, qk_channels=8).key([(16, 12, 10)]),
        DownUp((16,), 16, depth=2).key([(16, 12, 10)]),
        Predict((16,), 5).key([(16, 12, 10)]),
    ]
    module = nn.Sequential(*(build_block(key) for key in keys)).eval()
    (path,) = export_modules([(module, (torch.randn(1, 3, 24, 20),))], tmp_path_factory.mktemp("network"), ["network"])
    return onnx.load(path)


def image(model: onnx.ModelProto, seed: int = 0) -> dict[str, np.ndarray]:
    (info,) = model.graph.input
    shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
    return {info.name: np.random.default_rng(seed).standard_normal(shape, np.float32)}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_whole_network_in_half_precision(network: onnx.ModelProto, precision: str) -> None:
    before = network.SerializeToString(deterministic=True)
    result = prepared(network, precision)
    assert network.SerializeToString(deterministic=True) == before
    heavy = sum(node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") for node in network.graph.node)
    assert check_graph(result, precision) == {precision: heavy} and heavy >= 8
    kinds = {info.type.tensor_type.elem_type for info in (*result.graph.input, *result.graph.output)}
    assert kinds == {FLOAT}, "inputs and outputs stay fp32"
    types, kept = tensor_types(result), [node for node in result.graph.node if node.op_type == "Softmax"]
    assert kept and all(types[node.input[0]] == types[node.output[0]] == FLOAT for node in kept)
    error = output_error(network, [image(network)])(result)
    assert 0 < error < (ERROR_BOUND if precision == "fp16" else 8 * ERROR_BOUND)


def test_parts_of_networks_have_half_inputs_and_outputs(network: onnx.ModelProto) -> None:
    for precision, kind in (("fp16", HALF), ("bf16", BF16)):
        part = prepared(network, precision, keep_io=False)
        assert {info.type.tensor_type.elem_type for info in (*part.graph.input, *part.graph.output)} == {kind}
        wide = emulated(part)
        assert {info.type.tensor_type.elem_type for info in (*wide.graph.input, *wide.graph.output)} == {FLOAT}
        assert output_error(network, [image(network)])(part) < 8 * ERROR_BOUND


def chain(*factors: float) -> onnx.ModelProto:
    """Multiply x by one factor after another, in nodes `m0`, `m1`, ..."""
    names = ["x", *(f"t{index}" for index in range(len(factors) - 1)), "y"]
    nodes = [helper.make_node("Mul", [names[i], f"f{i}"], [names[i + 1]], name=f"m{i}") for i in range(len(factors))]
    return model_of(nodes, {f"f{i}": np.array([factor], np.float32) for i, factor in enumerate(factors)})


def test_nodes_that_stay_in_fp32_read_each_other_without_rounding() -> None:
    model, x = chain(1e4, 10.0, 1e-5), np.full((1, 4), 3.3, np.float32)
    kept = fp16(model, keep_nodes=["m0", "m1", "m2"])
    assert [node.op_type for node in kept.graph.node if node.op_type not in ("Mul", "Identity")] == []
    np.testing.assert_allclose(computed(kept, x), x, rtol=1e-6)
    onnx.checker.check_model(kept, full_check=True)
    apart = fp16(model, keep_nodes=["m0", "m2"])  # m1 is in fp16: 3.3e5 does not fit
    assert not np.isfinite(computed(emulated(apart), x)).any()


def test_emulation_rounds_where_tensors_are_stored() -> None:
    x = np.array([[0.1, 1.0001, 1000.3, 60000.0]], np.float32)
    model = chain(1.1, 3.0)
    half = fp16(model)
    with np.errstate(over="ignore"):
        by_hand = np.float16(np.float16(x).astype(np.float32) * np.float32(np.float16(1.1))).astype(np.float32)
        by_hand = np.float16(by_hand * np.float32(3.0)).astype(np.float32)
    assert np.isinf(by_hand[0, 3])
    np.testing.assert_array_equal(computed(emulated(half), x), by_hand)


def test_bf16_weights_are_rounded_from_fp32_not_from_fp16() -> None:
    values = np.array([[1e-9, 1e6, 1.00390625, -3e38]], np.float32)  # below, above and between what fp16 holds
    model = model_of([helper.make_node("Mul", ["x", "w"], ["y"], name="m")], {"w": values})
    half = bf16(model)
    (weight,) = half.graph.initializer
    want = torch.from_numpy(values).to(torch.bfloat16).float().numpy()
    (wide,) = emulated(half).graph.initializer
    assert weight.data_type == BF16 and weight.name == "w"
    np.testing.assert_array_equal(numpy_helper.to_array(wide), want)


def test_bf16_constants_and_operator_set() -> None:
    nodes = [
        helper.make_node("Constant", [], ["c"], name="c", value=numpy_helper.from_array(np.float32([1e-8, 70000, 1, 2]))),
        helper.make_node("Add", ["x", "c"], ["s"], name="s"),
        helper.make_node("Cast", ["s"], ["i"], name="i", to=TensorProto.INT32),
        helper.make_node("Cast", ["i"], ["y"], name="y", to=FLOAT),
    ]
    model = model_of(nodes, {})
    helper.set_model_props(model, {"size": "8x8"})
    half = bf16(model)
    assert {entry.key: entry.value for entry in half.metadata_props} == {"size": "8x8"}
    assert [(entry.domain, entry.version) for entry in half.opset_import] == [("", 22)]
    types = tensor_types(half)
    assert types["c"] == types["s"] == BF16 and HALF not in types.values()
    x = np.zeros((1, 4), np.float32)
    np.testing.assert_array_equal(computed(emulated(half), x), [[0, 70144, 1, 2]])  # 70144: bf16's next to 70000
    assert bf16(model_of(nodes, {}, opset=22)).opset_import[0].version == 22


def test_bf16_agrees_with_onnx_reference_evaluator() -> None:
    from onnx.reference import ReferenceEvaluator

    rng = np.random.default_rng(0)
    w = rng.standard_normal((4, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="c", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="r"),
        helper.make_node("ReduceMean", ["r", "axes"], ["y"], name="y"),
    ]
    model = model_of(nodes, {"w": w, "axes": np.array([2, 3], np.int64)}, shape=(1, 3, 6, 5), out=(1, 4, 1, 1))
    x = rng.standard_normal((1, 3, 6, 5)).astype(np.float32)
    half = bf16(model)
    want = np.asarray(ReferenceEvaluator(half).run(None, {"x": x})[0], np.float32)
    np.testing.assert_allclose(computed(emulated(half), x), want, rtol=2e-2)
    exact = computed(model, x)
    assert 0 < np.max(np.abs(want - exact)) < 0.02 * np.max(np.abs(exact))


def test_bf16_rounding_is_torchs() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**32, 20000, np.uint64).astype(np.uint32).view(np.float32)
    values = np.concatenate([values, np.float32([0, -0.0, np.inf, -np.inf])])
    values = values[~np.isnan(values)]
    want = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(bf16_values(values), want)
    nan = np.array([0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)  # would round to infinity, and past the end
    assert np.isnan((bf16_values(nan).astype(np.uint32) << np.uint32(16)).view(np.float32)).all()


def test_a_graph_in_the_wrong_precision_is_refused_with_what_to_do(network: onnx.ModelProto) -> None:
    half, brain = fp16(network), bf16(network)
    conv = next(node.name for node in network.graph.node if node.op_type == "Conv")
    part = fp16(network, keep_nodes=[conv])
    refused = [
        (network, "fp16", r"products in another type \(first: '.*'\): \d+ in fp32\. .*prepared\(model, 'fp16'\), or ask for mixed"),
        (brain, "fp16", r"\d+ in bf16"),
        (half, "bf16", r"\d+ in fp16"),
        (half, "fp32", r"holds tensors of half precision \(first: '.*'\)\. .* ask for fp16"),
        (brain, "fp32", "half precision"),
        (network, "mixed", r"computes nothing in fp16 \(\d+ in fp32\)"),
        (part, "fp16", rf"has 1 of \d+ .*\(first: '{conv}'\): \d+ in fp16, 1 in fp32"),
        (network, "fp12", "unknown precision 'fp12'; known: fp32, fp16, bf16, mixed, int8, fp8"),
        (network, "int8", r"has no QuantizeLinear and DequantizeLinear nodes\. .* ModelOpt .*quantize_static"),
        (network, "fp8", r"has no QuantizeLinear .*quantize_mode=fp8"),
    ]
    for model, precision, message in refused:
        with pytest.raises(InvalidInput, match=message):
            check_graph(model.SerializeToString(), precision)
    assert check_graph(part, "mixed")["fp32"] == 1
    assert set(check_graph(network, "fp32")) == {"fp32"}


def test_graphs_without_convolutions_are_judged_by_their_tensors() -> None:
    model = chain(2.0)
    assert check_graph(fp16(model), "fp16") == {}
    assert check_graph(fp16(model), "mixed") == {}
    with pytest.raises(InvalidInput, match="no convolutions or products"):
        check_graph(model, "fp16")


def test_weights_in_other_files_are_refused() -> None:
    model = chain(2.0)
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    with pytest.raises(InvalidInput, match="single file, whose hash covers them"):
        check_graph(model, "fp32")


def test_nodes_get_names_of_their_own() -> None:
    names = ["", "same", "same", "Mul_0"]
    nodes = [helper.make_node("Mul", [a, a], [b], name=n) for a, b, n in zip("xabc", "abcy", names, strict=True)]
    found = [node.name for node in named(model_of(nodes, {})).graph.node]
    assert len(set(found)) == 4 and found[3] == "Mul_0" and "" not in found
    assert [node.name for node in nodes] == names
    end = helper.make_tensor_value_info("b", FLOAT, None)
    branch = helper.make_graph([helper.make_node("Identity", ["x"], ["b"])], "b", [], [end])
    chosen = helper.make_node("If", ["c"], ["y"], name="if", then_branch=branch, else_branch=branch)
    with pytest.raises(InvalidInput, match=r"node 'if' \(If\) holds a graph of its own"):
        named(model_of([chosen], {"c": np.array(True)}))


def overflowing() -> onnx.ModelProto:
    """Return a chain of ten nodes of which the value between the fifth and the sixth, 2e5, does not fit into fp16."""
    return chain(1.0, 2.0, 0.5, 1.5, 1e5, 1e-5, 2.0, 0.5, 1.5, 1.0)


def test_mixed_finds_the_nodes_around_an_overflow() -> None:
    model = overflowing()
    examples = [{"x": np.full((1, 4), 1.2, np.float32)}, {"x": np.full((1, 4), 0.1, np.float32)}]
    kept = keep_list(model, examples)
    assert kept == ["m4", "m5"], "the node that overflows, and the one that reads it"
    error_of = output_error(model, examples)
    assert math.isinf(error_of(fp16(model))) and error_of(fp16(model, keep_nodes=kept)) <= ERROR_BOUND
    assert keep_list(model, examples) == kept
    result = prepared(model, "mixed", examples=examples)
    np.testing.assert_allclose(computed(emulated(result), examples[0]["x"]), computed(model, examples[0]["x"]), rtol=5e-3)


def test_mixed_keeps_nothing_where_fp16_is_right(network: onnx.ModelProto) -> None:
    assert keep_list(network, [image(network)]) == []
    assert 0 < output_error(network, [image(network)])(fp16(network)) <= ERROR_BOUND


def test_mixed_lowers_the_error_to_a_tight_limit(network: onnx.ModelProto) -> None:
    error_of = output_error(network, [image(network)])
    plain = error_of(fp16(network))
    kept = keep_list(network, [image(network)], limit=plain / 2)
    assert 0 < len(kept) < len(network.graph.node)
    result = prepared(network, "mixed", examples=[image(network)], limit=plain / 2)
    assert error_of(result) == error_of(fp16(network, keep_nodes=kept)) <= plain / 2
    assert error_of(fp16(network, keep_nodes=kept[:-1])) > plain / 2, "the list ends with a node that is needed"


def test_mixed_says_where_no_list_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.trt.mixed.output_error", lambda model, examples: lambda half: 1.0)
    with pytest.raises(CheckFailed, match=r"fp16 is 100\.000% off, and 100\.000% with the \d nodes .* in fp32; the limit is 50"):
        keep_list(chain(1.1, 1.3, 1.7), [{"x": np.full((1, 4), 1.23, np.float32)}], limit=0.5)


def test_mixed_counts_labels_that_differ() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node("ArgMax", ["r"], ["i"], name="max", axis=1, keepdims=0),
        helper.make_node("Cast", ["i"], ["y"], name="cast", to=TensorProto.UINT8),
    ]
    model = foreign.model(nodes, [foreign.info("x", (1, 2, 200))], [foreign.info("y", (1, 200), TensorProto.UINT8)])
    logits = np.zeros((1, 2, 200), np.float32)
    logits[0, 1] = 1.0
    logits[0, :, 0] = 2048, 2049  # equal in fp16, and label 0 then
    kept = keep_list(model, [{"x": logits}])
    assert kept == [] and output_error(model, [{"x": logits}])(fp16(model)) == 1 / 200


def test_what_mixed_needs() -> None:
    with pytest.raises(InvalidInput, match="at least one example"):
        prepared(chain(1.0), "mixed")


def test_mixed_keeps_a_node_of_a_local_function_as_a_whole() -> None:
    """Attention is such a node: what overflows inside it puts the node in fp32, not the operators of its body."""
    body = [helper.make_node("Mul", ["a", "a"], ["s"]), helper.make_node("Div", ["s", "a"], ["o"])]
    function = helper.make_function("hyctas", "Att", ["a"], ["o"], body, [helper.make_opsetid("", 18)])
    nodes = [
        helper.make_node("Mul", ["x", "f"], ["m"], name="m"),
        helper.make_node("Att", ["m"], ["t"], name="t", domain="hyctas"),
        helper.make_node("Relu", ["t"], ["y"], name="y"),
    ]
    x, y = (foreign.info(name, (1, 4)) for name in "xy")
    model = foreign.model(nodes, [x], [y], {"f": np.array([1.5], np.float32)}, functions=[function])
    feeds = {"x": np.full((1, 4), 200.0, np.float32)}  # 300 squared is beyond fp16
    kept = keep_list(model, [feeds])
    result, error_of = fp16(model, keep_nodes=kept), output_error(model, [feeds])
    assert kept == ["t"] and math.isinf(error_of(fp16(model))) and error_of(result) < 1e-3
    assert [f.name for f in result.functions] == ["Att"] and tensor_types(result)["m"] == HALF
    assert next(node for node in result.graph.node if node.name == "t").input[0] != "m", "it reads a cast to fp32"
    assert keep_list(model, [{"x": np.full((1, 4), 2.0, np.float32)}]) == []


def test_examples_that_fp32_cannot_compute_are_refused() -> None:
    with pytest.raises(InvalidInput, match="the fp32 graph itself gives values that are not finite"):
        keep_list(chain(1e38, 1e38), [{"x": np.ones((1, 4), np.float32)}])


def test_graphs_with_local_functions_are_converted_around_them() -> None:
    """Attention is such a function; its body takes the types of what it is called with."""
    body = [helper.make_node("MatMul", ["a", "b"], ["s"]), helper.make_node("Softmax", ["s"], ["o"], axis=-1)]
    function = helper.make_function("hyctas", "Att", ["a", "b"], ["o"], body, [helper.make_opsetid("", 22)])
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["m"], name="m"),
        helper.make_node("Att", ["m", "m"], ["t"], name="t", domain="hyctas"),
        helper.make_node("Relu", ["t"], ["y"], name="y"),
    ]
    x, y = (foreign.info(name, (4, 4)) for name in "xy")
    model = foreign.model(nodes, [x], [y], {"w": np.ones((4, 4), np.float32)}, opset=22, functions=[function])
    for make, kind, name in ((fp16, HALF, "fp16"), (bf16, BF16, "bf16")):
        half = make(model)
        assert tensor_types(half)["t"] == kind and check_graph(half, name) == {name: 1}
        assert [f.name for f in half.functions] == ["Att"]
    with pytest.raises(InvalidInput, match="1 in fp32"):
        check_graph(model, "fp16")
    model.opset_import[0].version = model.functions[0].opset_import[0].version = 18
    assert fp16(model).functions
    with pytest.raises(InvalidInput, match="local functions cannot go from operator set 18 to 22: export with that"):
        bf16(model)


def test_faults_are_where_error_arises() -> None:
    model, feeds = overflowing(), {"x": np.full((1, 4), 1.2, np.float32)}
    assert faults(model, fp16(model), feeds, set())[0] == "m4"
    assert faults(model, fp16(model, keep_nodes=["m4"]), feeds, {"m4"})[0] == "m5"
    assert not {"m4", "m5"} & set(faults(model, fp16(model, keep_nodes=["m4", "m5"]), feeds, {"m4", "m5"}))


ADVISED = {"ActivationSymmetric": True, "QuantizeBias": False}


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> dict[str, onnx.ModelProto]:
    """Return a convolution with a bias as ONNX Runtime's static quantisation writes it, as advised and as it comes."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [{"x": np.random.default_rng(seed).standard_normal((1, 3, 8, 8)).astype(np.float32)} for seed in range(2)]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return self.left.pop() if self.left else None

    folder = tmp_path_factory.mktemp("int8")
    weights = {"w": np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32), "b": np.ones(4, np.float32)}
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv"), helper.make_node("Relu", ["c"], ["y"], name="relu")]
    onnx.save(model_of(nodes, weights, shape=(1, 3, 8, 8), out=(1, 4, 6, 6)), folder / "fp32.onnx")
    made = {}
    for name, kind in (("symmetric", QuantType.QInt8), ("default", QuantType.QUInt8)):
        quantize_static(
            folder / "fp32.onnx", folder / f"{name}.onnx", Reader(), quant_format=QuantFormat.QDQ, activation_type=kind,
            weight_type=QuantType.QInt8, per_channel=True, extra_options=ADVISED if name == "symmetric" else {},
        )  # fmt: skip
        made[name] = onnx.load(folder / f"{name}.onnx")
    return made


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_int8_takes_symmetric_quantised_graphs_alone(quantised: dict[str, onnx.ModelProto]) -> None:
    good = quantised["symmetric"]
    assert prepared(good, "int8") is good
    with pytest.raises(InvalidInput, match=re.escape(f"extra_options={ADVISED})")):
        check_graph(model_of([helper.make_node("Identity", ["x"], ["y"])], {}), "int8")
    with pytest.raises(InvalidInput, match=r"quantises '.*' to another type than int8\. .*ActivationSymmetric"):
        check_graph(quantised["default"], "int8")
    with pytest.raises(InvalidInput, match="another type than float8e4m3fn"):
        check_graph(good, "fp8")
    shifted = onnx.ModelProto.FromString(good.SerializeToString())
    scalar = next(node.input[2] for node in shifted.graph.node if node.op_type == "QuantizeLinear")
    for tensor in shifted.graph.initializer:
        if tensor.name == scalar:
            tensor.CopyFrom(numpy_helper.from_array(np.array(3, np.int8), scalar))
    with pytest.raises(InvalidInput, match="a zero point other than 0"):
        check_graph(shifted, "int8")


def test_quantised_activations_alone_are_not_int8() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="d"),
        helper.make_node("MatMul", ["d", "w"], ["y"], name="m"),
    ]
    weights = {"s": np.array(0.1, np.float32), "z": np.array(0, np.int8), "w": np.ones((4, 4), np.float32)}
    with pytest.raises(InvalidInput, match="has no convolution or product with both inputs quantised"):
        check_graph(model_of(nodes, weights), "int8")


def test_quantising_without_a_zero_point_means_uint8() -> None:
    nodes = []
    for name in "xw":
        nodes += [helper.make_node("QuantizeLinear", [name, "s"], [f"{name}q"], name=f"q{name}")]
        nodes += [helper.make_node("DequantizeLinear", [f"{name}q", "s"], [f"{name}d"], name=f"d{name}")]
    nodes += [helper.make_node("MatMul", ["xd", "wd"], ["y"], name="m")]
    weights = {"s": np.array(0.1, np.float32), "w": np.ones((4, 4), np.float32)}
    with pytest.raises(InvalidInput, match="quantises 'qx' to uint8, which TensorRT does not take"):
        check_graph(model_of(nodes, weights, shape=(4, 4)), "int8")


def test_fp8_graphs_are_known_by_their_zero_points(tmp_path: Path) -> None:
    zero = helper.make_tensor("z", TensorProto.FLOAT8E4M3FN, [], [0.0])
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="d"),
        helper.make_node("QuantizeLinear", ["w", "s", "z"], ["wq"], name="wq"),
        helper.make_node("DequantizeLinear", ["wq", "s", "z"], ["wd"], name="wd"),
        helper.make_node("MatMul", ["d", "wd"], ["y"], name="m"),
    ]
    ends = [helper.make_tensor_value_info(name, FLOAT, (4, 4)) for name in "xy"]
    weights = [numpy_helper.from_array(np.full(shape, 0.5, np.float32), name) for name, shape in (("s", ()), ("w", (4, 4)))]
    body = helper.make_graph(nodes, "g", ends[:1], ends[1:], [*weights, zero])
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 19)])
    assert check_graph(model, "fp8") == {"fp32": 1}
    with pytest.raises(InvalidInput, match="another type than int8"):
        check_graph(model, "int8")

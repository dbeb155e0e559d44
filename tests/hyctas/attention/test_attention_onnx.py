"""Attention in ONNX: nodes with bodies for TensorRT, and the standard graph in chunks for everybody else."""

from __future__ import annotations

import tempfile
from functools import cache
from math import prod
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.inliner import inline_local_functions
from torch import nn

from export.errors import InvalidInput
from export.onnx import precision
from export.onnx.exporter import export_onnx
from export.onnx.functions import attach, nodes_of
from hyctas import published
from hyctas.arch.operators import SelfAttention
from hyctas.attention import chunked, self_attention
from hyctas.attention.onnx.bodies import OPSETS, refusal, self_attention_function
from hyctas.attention.onnx.nodes import head_size, nodes
from hyctas.network import build
from hyctas.plan import lower
from hyctas.space import edge

ort = pytest.importorskip("onnxruntime")
FUNCTION = self_attention_function()
BODIES = tuple(FUNCTION.bodies)
EDGE = {"edge-a": 0}
"""Genotypes drawn with these seeds, all with attention."""
SIZE = (64, 96)


def genotype(name: str) -> object:
    """Return a released network, or one drawn from `edge` whose head or branches attend."""
    return published.genotype(name, 8) if name in published.NAMES else edge().sample(np.random.default_rng(EDGE[name]))


def network(name: str) -> nn.Module:
    """Build a network in which attention matters: in a fresh one its last norms are 0, and its weights nearly uniform."""
    torch.manual_seed(0)
    made = build(genotype(name), 5).eval()  # type: ignore[arg-type]
    for key, part in made.named_modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.8, 1.2)
        if key.endswith((".query", ".key", ".value")):
            assert isinstance(part, nn.Conv2d)
            nn.init.normal_(part.weight, std=3 * part.in_channels**-0.5)
    return made


def count(name: str) -> int:
    """Count attention operators in a network's plan."""
    plan = lower(genotype(name), SIZE, 5)  # type: ignore[arg-type]
    return sum(isinstance(node.operator, SelfAttention) for node in plan.needed())


def image() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((1, 3, *SIZE), dtype=np.float32)


def run(model: onnx.ModelProto, runtime: str = "onnxruntime") -> np.ndarray:
    """Compute the image with a runtime."""
    if runtime == "openvino":
        openvino = pytest.importorskip("openvino")
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return np.asarray(compiled([image()])[0])
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": image()})[0])


def assert_same(found: np.ndarray, expected: np.ndarray, bound: float = 1e-5) -> None:
    assert found.shape == expected.shape and np.isfinite(expected).all() and expected.std() > 0
    assert np.abs(found - expected).max() <= bound * np.abs(expected).max()


Exported = tuple[str, onnx.ModelProto, onnx.ModelProto]


@cache
def files(name: str) -> Exported:
    """Export a network with nodes and without."""
    made = network(name)
    with tempfile.TemporaryDirectory() as folder:
        with_nodes, standard = Path(folder, "nodes.onnx"), Path(folder, "standard.onnx")
        export_onnx(made, SIZE, standard)
        with nodes():
            export_onnx(made, SIZE, with_nodes, functions=[FUNCTION])
        return name, onnx.load(with_nodes), onnx.load(standard)


@pytest.fixture(params=["S", *EDGE])
def exported(request: pytest.FixtureRequest) -> Exported:
    """Give a network's name, its file with nodes, and its standard file."""
    return files(request.param)


def test_every_network_exports_one_node_per_attention(exported: Exported) -> None:
    name, with_nodes, standard = exported
    found = nodes_of(with_nodes, FUNCTION)
    assert len(found) == count(name) > 0
    for node in found:
        q, k, v = (spec.shape for spec in node.inputs)
        assert node.outputs[0].shape == (q[0], q[1], v[2], q[3]) and k == (*q[:3], v[3])
        assert node.attributes["padding"] == [0, 0, 0, 0, 0, 0, head_size(q[2], v[2]) - q[2], 0] and node.attributes["scale"] > 0
    assert {node.domain for node in standard.graph.node} <= {"", "ai.onnx"} and not standard.functions


@pytest.mark.parametrize("body", ["plain", "padded", "grouped"])
def test_every_body_computes_the_standard_graph(exported: Exported, body: str) -> None:
    _, with_nodes, standard = exported
    queries = {node.name: node.inputs[0].shape for node in nodes_of(with_nodes, FUNCTION)}
    grouped = {name: "padded" if q[1] > 1 else "grouped_odd" if q[3] % 2 else "grouped" for name, q in queries.items()}
    model = attach(with_nodes, FUNCTION, grouped if body == "grouped" else body)
    onnx.checker.check_model(model, full_check=True)
    expected = run(standard)
    assert_same(run(model), expected)
    flat = inline_local_functions(model)
    assert_same(run(flat), expected)
    assert_same(run(flat, "openvino"), expected, 1e-4)
    uniform = onnx.ModelProto.FromString(model.SerializeToString())
    for node in uniform.graph.node:
        for attribute in node.attribute:
            if node.domain == FUNCTION.domain and attribute.name == "scale":
                attribute.f = 0.0
    assert np.abs(run(uniform) - expected).max() > 1e-3 * np.abs(expected).max(), "the attention matters, and its scale is used"


def test_bodies_differ_per_node_and_survive_fp16(exported: Exported) -> None:
    _, with_nodes, standard = exported
    half = precision.converted(with_nodes, "fp16", keep_io=True)
    found = nodes_of(half, FUNCTION)
    assert {spec.dtype for node in found for spec in (*node.inputs, *node.outputs)} == {"float16"}
    model = attach(half, FUNCTION, {node.name: BODIES[index % 2] for index, node in enumerate(found)})
    assert [node.body for node in nodes_of(model, FUNCTION)] == [BODIES[index % 2] for index in range(len(found))]
    onnx.checker.check_model(model, full_check=True)
    assert_same(run(model), run(standard), 0.03)
    flat = onnx.shape_inference.infer_shapes(inline_local_functions(attach(half, FUNCTION, "plain"))).graph
    softmaxes = [node for node in flat.node if node.op_type == "Softmax"]
    types = {info.name: info.type.tensor_type.elem_type for info in flat.value_info}
    assert {types[node.input[0]] for node in softmaxes} == {onnx.TensorProto.FLOAT}, "fp16 graphs keep the softmax in fp32"


def single(
    shape: tuple[int, int, int, int], opset: int = 18, dtype: str = "float32", scale: float = 0.7, heads: tuple[int, int] = (2, 3)
) -> onnx.ModelProto:
    """Make a model of one node, for shape = (d, e, N, M) and heads = (batch, heads)."""
    d, e, n, m = shape
    sizes = {"q": (*heads, d, n), "k": (*heads, d, m), "v": (*heads, e, m), "o": (*heads, e, n)}
    kind = {"float32": onnx.TensorProto.FLOAT, "float16": onnx.TensorProto.FLOAT16, "bfloat16": onnx.TensorProto.BFLOAT16}[dtype]
    values = {name: onnx.helper.make_tensor_value_info(name, kind, size) for name, size in sizes.items()}
    size = head_size(d, e)
    attributes = {"padding": [0] * 6 + [size - d, 0], "value_padding": [0] * 6 + [size - e, 0], "channels": [e]}
    node = onnx.helper.make_node("SelfAttention", ["q", "k", "v"], ["o"], name="a", domain="hyctas", scale=scale, **attributes)
    graph = onnx.helper.make_graph([node], "g", [values["q"], values["k"], values["v"]], [values["o"]])
    imports = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid("hyctas", 1)]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=10)


SHAPES = {"published": (8, 64, 77, 77), "pooled": (16, 16, 65, 20), "thin": (3, 5, 9, 4), "wide-qk": (12, 8, 10, 11)}
SHAPES["one"] = (1, 1, 1, 1)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("body", BODIES)
def test_bodies_against_float64(shape: tuple[int, int, int, int], body: str) -> None:
    d, e, n, m = shape
    heads = (2, 3)
    if body.startswith("grouped"):
        heads, n = (1, 1), n + (n % 2 != (body == "grouped_odd"))
    rng = np.random.default_rng(2)
    q, k, v = (rng.standard_normal((*heads, *size)) * 1.5 for size in ((d, n), (d, m), (e, m)))
    logits = np.swapaxes(q, 2, 3) @ k * 0.7
    weights = np.exp(logits - logits.max(3, keepdims=True))
    expected = v @ np.swapaxes(weights / weights.sum(3, keepdims=True), 2, 3)
    model = attach(single((d, e, n, m), heads=heads), FUNCTION, body)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {name: x.astype(np.float32) for name, x in (("q", q), ("k", k), ("v", v))})
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("opset", OPSETS)
def test_bodies_use_the_operators_of_their_opset(opset: int) -> None:
    function = self_attention_function(opset)
    for body in function.bodies:
        proto = function.proto(body)
        assert [(item.domain, item.version) for item in proto.opset_import] == [("", opset)]
        for node in proto.node:
            schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
            assert not schema.deprecated and schema.since_version <= opset
            assert {attribute.name for attribute in node.attribute} <= set(schema.attributes)
        for dtype in ("float32", "float16", "bfloat16"):
            shape = (8, 64, 78, 77) if body == "grouped" else SHAPES["published"]
            onnx.checker.check_model(attach(single(shape, opset, dtype, heads=(1, 1)), function, body), full_check=True)
    model = attach(single(SHAPES["pooled"], opset), function, "padded")
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].shape == [2, 3, 16, 65]


def test_opsets_without_bodies_are_refused() -> None:
    for opset in (17, 24):
        with pytest.raises(InvalidInput, match=f"opset 18 to 23, not for {opset}"):
            self_attention_function(opset)
    with pytest.raises(InvalidInput, match="the model is opset 19: make the function for opset 19"):
        attach(single(SHAPES["one"], 19), FUNCTION)


def shapes(d: int, e: int, n: int, m: int) -> tuple[tuple[int, ...], ...]:
    return (1, 1, d, n), (1, 1, d, m), (1, 1, e, m)


@pytest.mark.parametrize(
    ("body", "shape", "dtype", "text"),
    [
        ("plain", (8, 64, 8192, 8192), "float32", ""),
        ("plain", (8, 64, 32768, 32768), "float16", "32768 queries x 32768 keys take 8.00 GiB, above 1.00 GiB"),
        ("padded", (8, 64, 32768, 32768), "float16", ""),
        ("padded", (8, 64, 128, 128), "float16", "a single head of so few pairs"),
        ("grouped", (8, 64, 128, 70000), "float16", ""),
        ("grouped", (65, 20, 128, 9), "bfloat16", ""),
        ("grouped", (8, 64, 129, 9), "float16", "an even number of queries; here are 129"),
        ("grouped_odd", (8, 64, 129, 9), "float16", ""),
        ("grouped_odd", (8, 64, 1, 1), "float16", "an odd number of queries; here are 1"),
        ("padded", (8, 64, 128, 128), "float32", "not in float32"),
        ("grouped", (64, 512, 128, 128), "float16", "at most 256 channels per head; here are 512"),
    ],
)
def test_bodies_are_refused_with_a_reason(body: str, shape: tuple[int, int, int, int], dtype: str, text: str) -> None:
    found = refusal(body, shapes(*shape), dtype)
    assert (text in found) if text else found == ""


def test_refusal_of_wrong_questions_and_its_limit() -> None:
    assert refusal("plain", shapes(8, 64, 32768, 32768), "float16", memory_bytes=8 << 30) == ""
    with pytest.raises(InvalidInput, match="no body 'mha'; its bodies: grouped, grouped_odd, padded, plain"):
        refusal("mha", shapes(8, 64, 4, 4), "float16")
    with pytest.raises(InvalidInput, match="three inputs of rank 4"):
        refusal("plain", [(1, 8, 4)] * 3, "float16")


class Attend(nn.Module):
    """Attention on its own: two heads, twice as many keys as queries."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Conv2d(3, c, 1) for c in (8, 8, channels))

    def forward_native(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (conv(x).reshape(1, 2, conv.out_channels // 2, -1) for conv in (self.query, self.key, self.value))
        return self_attention(q[..., ::2], k, v, 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_native(x)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_standard_graph_holds_no_more_logits_than_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str) -> None:
    """Two heads of 3072 queries and 6144 keys, 500 queries at a time."""
    limit, made = 2 * 6144 * 500 + 99, Attend().eval()
    with torch.inference_mode():
        expected = made(torch.from_numpy(image())).numpy()
    monkeypatch.setattr(chunked, "GRAPH_ELEMENTS", limit)
    export_onnx(made, SIZE, tmp_path / "a.onnx")
    model = onnx.load(tmp_path / "a.onnx")
    assert sum(node.op_type == "Softmax" for node in model.graph.node) == 7
    assert max(matrix_products(model)) == 2 * 6144 * 500
    assert_same(run(model, runtime), expected, 1e-4)


def sizes_of(model: onnx.ModelProto) -> dict[str, int]:
    """Return the number of elements of every value."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    known = (*inferred.value_info, *inferred.output)
    return {info.name: prod(dim.dim_value for dim in info.type.tensor_type.shape.dim) for info in known}


def matrix_products(model: onnx.ModelProto) -> list[int]:
    """Return the number of elements of every MatMul's output."""
    sizes = sizes_of(model)
    return [sizes[node.output[0]] for node in model.graph.node if node.op_type == "MatMul"]


def test_a_bundles_graph_is_bounded_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, with_nodes, whole = files("edge-a")
    limit, needed, largest = 300, 0, 0
    for node in nodes_of(with_nodes, FUNCTION):
        heads, queries, keys = node.inputs[0].shape[1], node.inputs[0].shape[3], node.inputs[1].shape[3]
        needed += -(-queries // (limit // (heads * keys)))
        largest = max(largest, prod(node.outputs[0].shape))
    monkeypatch.setattr(chunked, "GRAPH_ELEMENTS", limit)
    export_onnx(network(name), SIZE, tmp_path / "chunked.onnx")
    small = onnx.load(tmp_path / "chunked.onnx")
    softmaxes = [node.input[0] for node in small.graph.node if node.op_type == "Softmax"]
    assert len(softmaxes) == needed > count(name)
    assert max(sizes_of(small)[value] for value in softmaxes) <= limit
    assert max(matrix_products(small)) <= max(limit, largest), "beside the logits only the output itself"
    assert {node.domain for node in small.graph.node} <= {"", "ai.onnx"} and not small.functions
    expected = run(whole)
    assert_same(run(small), expected)
    assert_same(run(small, "openvino"), expected, 1e-4)


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
def test_nodes_need_static_shapes() -> None:
    size = torch.export.Dim("height", min=4, max=64)
    with nodes():
        program = torch.onnx.export(
            Attend().eval(), (torch.zeros(1, 3, 8, 8),), dynamo=True, dynamic_shapes=[{2: size}], verbose=False, opset_version=18
        )
    assert program is not None
    with pytest.raises(InvalidInput, match=r"no static shape at .*: bodies and plugins are chosen by shape; export with"):
        nodes_of(program.model_proto, FUNCTION)


def test_nodes_check_what_they_are_given() -> None:
    class Wrong(nn.Module):
        def forward_native(self, x: torch.Tensor) -> torch.Tensor:
            return self_attention(x, x[:, :2], x)

    with nodes(), pytest.raises(InvalidInput, match="q and k must not differ in heads"):
        export_onnx(Wrong(), (8, 8), Path("never.onnx"), functions=[FUNCTION])
    assert not Path("never.onnx").exists()

"""Converting fp32 models to fp16: types, kept operators, checked files, and errors against ONNX Runtime in fp32."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from export.errors import InvalidInput, Unavailable
from export.onnx.exporter import export_modules
from export.onnx.precision import ERROR_BOUND, OPSETS, _converter, converted, opset
from hyctas.arch.operators import Conv, DownUp, FeatureFusion, SelfAttention
from hyctas.cost.workloads import build_block

ort = pytest.importorskip("onnxruntime")
BLOCKS = {
    "conv": Conv((16,), 24).key([(16, 9, 11)]),
    "downup": DownUp((24, 16), 16, depth=2).key([(24, 8, 8), (16, 16, 16)]),
    "attention": SelfAttention((24,), 24, qk_channels=8).key([(24, 12, 10)]),
    "fusion": FeatureFusion((24, 24), 24).key([(24, 8, 8), (24, 16, 16)]),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, onnx.ModelProto]:
    folder = tmp_path_factory.mktemp("onnx")
    modules: list[tuple[nn.Module, tuple[torch.Tensor, ...]]] = []
    from hyctas.arch.operators import from_key

    torch.manual_seed(1)
    for key in BLOCKS.values():
        inputs = tuple(torch.randn(1, *shape) for shape in from_key(key)[1])
        modules.append((build_block(key).eval(), inputs))
    paths = export_modules(modules, folder, list(BLOCKS))
    return {path.stem: onnx.load(path) for path in paths}


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    typed = {i.name: feeds[i.name].astype(np.float16 if "16" in i.type else np.float32) for i in session.get_inputs()}
    return np.asarray(session.run(None, typed)[0], np.float32)


def feeds_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("keep_io", [True, False])
def test_half_computes_the_same_within_the_stated_bound(models: dict[str, onnx.ModelProto], name: str, keep_io: bool) -> None:
    model, before = models[name], models[name].SerializeToString(deterministic=True)
    half = converted(model, "fp16", keep_io=keep_io)
    assert model.SerializeToString(deterministic=True) == before
    kinds = {info.type.tensor_type.elem_type for info in (*half.graph.input, *half.graph.output)}
    assert kinds == {onnx.TensorProto.FLOAT if keep_io else onnx.TensorProto.FLOAT16}
    weights = {t.data_type for t in half.graph.initializer if len(t.dims) == 4}
    assert weights == {onnx.TensorProto.FLOAT16}
    want, got = run(model, feeds_of(model)), run(half, feeds_of(model))
    assert np.max(np.abs(got - want)) <= ERROR_BOUND * np.max(np.abs(want))


def test_softmax_and_global_average_stay_in_fp32(models: dict[str, onnx.ModelProto]) -> None:
    for name, kept in (("attention", "Softmax"), ("fusion", "ReduceMean")):
        half = onnx.shape_inference.infer_shapes(converted(models[name], "fp16", keep_io=False))
        types = {info.name: info.type.tensor_type.elem_type for info in half.graph.value_info}
        (node,) = [node for node in half.graph.node if node.op_type == kept]
        casts = {out for n in half.graph.node if n.op_type == "Cast" for out in n.output}
        assert node.input[0] in casts and types[node.input[0]] == onnx.TensorProto.FLOAT
    everything = converted(models["attention"], "fp16", keep_io=False, keep=())
    assert "Cast" not in {node.op_type for node in everything.graph.node}
    one = next(node.name for node in models["conv"].graph.node if node.op_type == "Conv")
    assert "Cast" in {n.op_type for n in converted(models["conv"], "fp16", keep_io=False, keep_nodes=[one]).graph.node}


def test_opsets_and_what_is_refused(models: dict[str, onnx.ModelProto], monkeypatch: pytest.MonkeyPatch) -> None:
    assert (opset("fp32"), opset("fp16"), opset("bf16"), OPSETS["fp8"]) == (18, 18, 22, 19)
    assert converted(models["conv"], "fp32", keep_io=False) is models["conv"]
    with pytest.raises(Unavailable, match="fp16 or fp32"):
        converted(models["conv"], "bf16", keep_io=False)
    with pytest.raises(InvalidInput, match="known: fp32"):
        converted(models["conv"], "fp12", keep_io=False)
    _converter.cache_clear()
    monkeypatch.setitem(sys.modules, "onnxruntime.transformers", None)
    with pytest.raises(Unavailable) as found:
        converted(models["conv"], "fp16", keep_io=False)
    assert found.value.install == "pip install 'onnxruntime>=1.22'" and found.value.exit_code == 3
    monkeypatch.undo()
    _converter.cache_clear()

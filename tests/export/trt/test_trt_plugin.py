"""The attention plugin: what NVIDIA's own classes make of it, which kernel is taken, what is refused, and the ONNX nodes."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

from export.errors import InvalidInput, Unavailable
from export.onnx.functions import OnnxFunction
from export.plugin_kernel import PTX_OF_CUDA, newest_ptx, parameters
from export.trt.cuda.guard import Gpu
from export.trt.engine_precision import check_graph, tensor_types
from export.trt.plugin import NAMESPACE, Plugins, refusal, with_plugins
from hyctas.attention.onnx.bodies import self_attention_function
from hyctas.attention.triton.tiles import shipped
from tests.export.trt import attention_plugin as made
from tests.export.trt.bindings import Bindings
from tests.export.trt.fakes_version import fake_tensorrt

MODULE = "tests.export.trt.attention_plugin"
GPU = Gpu("Fake A100", (8, 0), 40 << 30, 108, (12, 8))
KIND = {"float16": onnx.TensorProto.FLOAT16, "bfloat16": onnx.TensorProto.BFLOAT16, "float32": onnx.TensorProto.FLOAT}


def launches(bindings: Bindings, register: str) -> dict[str, Any]:
    """Return what a build would launch, by dtype."""
    plugin, inputs = made.ACCEPTED[register]
    found = bindings.evaluate_launch(f"{MODULE}:{register}", plugin, inputs)
    (shape, kind) = found["outputs"][0]
    assert shape == [*inputs[2][0][:3], inputs[0][0][3]] and kind == inputs[2][1]
    assert all(set(launch["formats"]) == {"LINEAR"} and len(set(launch["types"])) == 1 for launch in found["launches"])
    assert found["found_by_parser"] and found["attributes"] == []  # TensorRT 10.16 under NumPy 2.4 can make none that has any
    return {launch["types"][0]: launch for launch in found["launches"]}


def test_launch_of_several_multiples(plugin_bindings: Bindings) -> None:
    (half,) = launches(plugin_bindings, "small").values()
    # 2700 is a multiple of 4, not of 16: of the three kernels for fp16 the middle one is the best that can
    assert half["kernel"] == "attend_float16_4_4" and half["code"] == made.PTX.format(symbol="attend_float16_4_4")
    assert (half["grid"], half["block"], half["shared_bytes"]) == ([43, 1, 2], [128, 1, 1], 24576)
    assert half["scalars"] == [2700, 2700] and half["types"] == ["HALF"] * 4


def test_only_the_tensors_own_dtype_is_tried(plugin_bindings: Bindings) -> None:
    """A kernel of another dtype is known, which cannot compute these sizes: asking for its launch would end the build."""
    (launch,) = launches(plugin_bindings, "other_dtype").values()
    assert (launch["kernel"], launch["grid"], launch["types"]) == ("attend_bfloat16_1_1", [22, 1, 2], ["BF16"] * 4)


def test_launch_over_blocks_of_channels_and_heads(plugin_bindings: Bindings) -> None:
    (launch,) = launches(plugin_bindings, "wide").values()
    assert launch["grid"] == list(made.kernel(64, 512, "bfloat16").grid(1, 3, 96, 16)) == [2, 2, 3]
    assert launch["scalars"] == [96, 16]


def test_registering_twice_adds_kernels(plugin_bindings: Bindings) -> None:
    found = launches(plugin_bindings, "twice")
    assert set(found) == {"FLOAT"} and found["FLOAT"]["grid"] == [2, 1, 1]


@pytest.mark.parametrize(
    ("keys", "kind", "reason"),
    [
        (61, "HALF", r"InvalidInput: plugin SelfAttention_d8_e64 has no kernel for q .*61\) and k .*: .*multiples of 16"),
        (64, "FLOAT", "InvalidInput: it has no kernel for float32, but for float16"),
    ],
)
def test_what_fails_inside_tensorrt_is_told(plugin_bindings: Bindings, keys: int, kind: str, reason: str) -> None:
    """NVIDIA's classes only print exceptions of a plugin's functions; a failing build shows what is among the messages."""
    (message,) = plugin_bindings.call(f"{MODULE}:messages_of_a_failure", keys, kind)
    assert re.match(f"error: plugin hyctas::SelfAttention_d8_e64: {reason}", message)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"), reason="Triton's interpreter stands in for it")
def test_launch_of_what_triton_compiles(plugin_bindings: Bindings) -> None:
    plugin, inputs = made.ACCEPTED["small"]
    (launch,) = plugin_bindings.evaluate_launch(f"{MODULE}:compiled", plugin, inputs)["launches"]
    (tile,) = {shipped(80, "forward", 64)}
    assert tile is not None and launch["kernel"] == "plugin_kernel" and launch["scalars"] == [2700, 2700]
    assert launch["grid"] == [-(-2700 // tile.rows), 1, 2] and launch["block"] == [32 * tile.warps, 1, 1]
    assert parameters(launch["code"], launch["kernel"]) == ("u64", "u64", "u64", "u32", "u32", "u64")


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> Plugins:
    """Give a registry whose functions go nowhere."""
    monkeypatch.setattr("export.trt.plugin._declare", lambda label, name, owner: declared.append(label))
    declared: list[str] = []
    found = Plugins()
    found.declared = declared  # type: ignore[attr-defined]
    return found


def test_kernels_are_found_by_what_they_are_made_for(plugins: Plugins) -> None:
    trt = fake_tensorrt("10.16.1")
    first = [made.kernel(), made.kernel(query_multiple=16, key_multiple=64), made.kernel(dtype="float32")]
    plugins.register(first, trt)
    newer = replace(first[0], threads=256)
    plugins.register([newer, made.kernel(16, 128)], trt)
    assert plugins.declared == ["hyctas::SelfAttention_d8_e64", "hyctas::SelfAttention_d16_e128"]  # type: ignore[attr-defined]
    name = first[0].name
    assert plugins.dtypes(name) == ["float16", "float32"]
    assert plugins.kernel(name, "float16", (1, 1, 8, 64), (1, 1, 8, 64)) is first[1]
    assert plugins.kernel(name, "float16", (1, 1, 8, 64), (1, 1, 8, 32)) is newer, "the last one registered"
    with pytest.raises(InvalidInput, match="none is for bfloat16 and 8 channels"):
        plugins.kernel(name, "bfloat16", (1, 1, 8, 64), (1, 1, 8, 64))
    with pytest.raises(InvalidInput, match=r"no kernel for q .*: all sizes are above 0"):
        plugins.kernel(name, "float32", (1, 0, 8, 64), (1, 0, 8, 64))
    with pytest.raises(InvalidInput, match=r"several pairs of channels: \[\(8, 64\), \(8, 128\)\]"):
        plugins.register([made.kernel(8, 128, name=name)], trt)


@pytest.mark.parametrize("version", ["10.3.0", "10.15.0"])
def test_old_tensorrt_is_refused(plugins: Plugins, version: str) -> None:
    with pytest.raises(Unavailable, match=rf"they need TensorRT 10\.16, and here is {version}"):
        plugins.register([made.kernel()], fake_tensorrt(version))
    assert "need TensorRT 10.16" in refusal(made.kernel(), fake_tensorrt(version), GPU, SHAPES)
    assert plugins.declared == []  # type: ignore[attr-defined]


def test_tensorrt_without_its_package_for_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt", "tensorrt.plugin"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(Unavailable, match=r"tensorrt\.plugin cannot be imported \("):
        Plugins().register([made.kernel()], fake_tensorrt("11.4.0"))


SHAPES = ((1, 1, 8, 64), (1, 1, 8, 64), (1, 1, 64, 64))


def _ptx(version: str) -> str:
    return made.PTX.format(symbol="attend_float16_1_1").replace(".version 8.7", f".version {version}")


@pytest.mark.parametrize(
    ("changes", "gpu", "shapes", "reason"),
    [
        ({}, {}, SHAPES, ""),
        ({}, {"capability": (8, 6)}, SHAPES, "compiled for sm_80, and this GPU is sm_86"),
        ({}, {"driver_cuda": (12, 6)}, SHAPES, r"PTX 8\.7, newer than what this driver \(CUDA 12\.6\) reads"),
        ({}, {"driver_cuda": (11, 4)}, SHAPES, "newer than what this driver"),
        ({"ptx": _ptx("8.6")}, {"driver_cuda": (12, 6)}, SHAPES, r"PTX 8\.6, newer than"),
        ({"ptx": _ptx("8.5")}, {"driver_cuda": (12, 6)}, SHAPES, ""),
        ({"ptx": _ptx("9.9")}, {"driver_cuda": max(PTX_OF_CUDA)}, SHAPES, "newer than"),
        ({"ptx": _ptx("9.9")}, {"driver_cuda": (14, 0)}, SHAPES, ""),
        ({"query_multiple": 16}, {}, ((1, 1, 8, 61), *SHAPES[1:]), "multiples of 16 queries; there are 61"),
        ({}, {}, ((1, 1, 4, 64), (1, 1, 4, 64), SHAPES[2]), "for 8 and 64 channels, not 4 and 64"),
        ({}, {}, ((1, 70000, 8, 64), (1, 70000, 8, 64), (1, 70000, 64, 64)), "a launch has at most"),
    ],
)
def test_refusals(changes: dict[str, Any], gpu: dict[str, Any], shapes: Any, reason: str) -> None:
    found = refusal(made.kernel(**changes), fake_tensorrt("11.4.0"), replace(GPU, **gpu), shapes)
    assert re.search(reason, found) if reason else found == ""


def test_ptx_of_drivers() -> None:
    assert [newest_ptx(cuda) for cuda in ((10, 2), (12, 4), (12, 6), (12, 7), (13, 1), (13, 4), (14, 0))] == [
        (0, 0), (8, 4), (8, 5), (8, 6), (9, 1), (9, 4), (9, 4),
    ]  # fmt: skip
    assert list(PTX_OF_CUDA) == sorted(PTX_OF_CUDA) and list(PTX_OF_CUDA.values()) == sorted(PTX_OF_CUDA.values())


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_triton_writes_the_same_ptx_for_the_same_cuda() -> None:
    from triton.backends.nvidia.compiler import ptx_get_version

    assert {cuda: divmod(ptx_get_version(f"{cuda[0]}.{cuda[1]}"), 10) for cuda in PTX_OF_CUDA} == PTX_OF_CUDA


def graph(scales: tuple[float, ...], dtype: str = "float16", typed: bool = False) -> tuple[onnx.ModelProto, OnnxFunction]:
    """Return a chain of attentions, and their function."""
    function, kind = self_attention_function(), KIND[dtype]
    values = {"q": (1, 1, 8, 32), "k": (1, 1, 8, 32), "v": (1, 1, 64, 32)}
    nodes, last = [], "v"
    for index, scale in enumerate(scales):
        padding = [0, 0, 0, 0, 0, 0, 56, 0]
        inputs, output = ["q", "k", last], f"o{index}"
        fields: dict[str, Any] = {"scale": scale, "padding": padding, "value_padding": [0] * 8, "channels": [64]}
        nodes.append(onnx.helper.make_node("SelfAttention", inputs, [output], name=f"a{index}", domain="hyctas", **fields))
        last = output
    nodes.append(onnx.helper.make_node("Relu", [last], ["y"], name="relu"))
    infos = [onnx.helper.make_tensor_value_info(name, kind, shape) for name, shape in values.items()]
    made_graph = onnx.helper.make_graph(nodes, "g", infos, [onnx.helper.make_tensor_value_info("y", kind, values["v"])])
    if typed:
        made_graph.value_info.extend(onnx.helper.make_tensor_value_info(f"o{i}", kind, values["v"]) for i in range(len(scales)))
    imports = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("hyctas", 1)]
    return onnx.helper.make_model(made_graph, opset_imports=imports, ir_version=8), function


@pytest.mark.parametrize("dtype", KIND)
def test_nodes_become_plugin_nodes(dtype: str) -> None:
    model, function = graph((1.0, 0.25), dtype, typed=True)
    before = model.SerializeToString()
    kernel = made.kernel(dtype=dtype)
    found = with_plugins(model, function, {"a0": kernel, "a1": kernel})
    assert model.SerializeToString() == before
    onnx.checker.check_model(found, full_check=True)
    plain, scaling, scaled, relu = found.graph.node
    assert (plain.op_type, plain.domain, list(plain.input), plain.name) == (kernel.name, NAMESPACE, ["q", "k", "v"], "a0")
    for node in (plain, scaled):
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        assert attributes == {"plugin_namespace": b"hyctas", "plugin_version": b"1", "aot": 1}
    assert (scaling.op_type, scaling.domain, scaling.input[0]) == ("Mul", "", "q")
    assert list(scaled.input) == [scaling.output[0], "k", "o0"] and relu.input[0] == "o1"
    (constant,) = found.graph.initializer
    assert constant.data_type == KIND[dtype] and float(np.float32(onnx.numpy_helper.to_array(constant))) == 0.25
    assert set(tensor_types(found).values()) == {KIND[dtype]}
    assert check_graph(found, {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}[dtype])


def test_only_the_named_nodes_are_replaced() -> None:
    model, function = graph((1.0, 1.0), typed=True)
    found = with_plugins(model, function, {"a1": made.kernel()})
    assert [node.op_type for node in found.graph.node] == ["SelfAttention", "SelfAttention_d8_e64", "Relu"]
    assert with_plugins(model, function, {}).SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    ("kernels", "reason"),
    [
        (lambda: {"b": made.kernel()}, r"no hyctas::SelfAttention nodes \['b'\]; it has \['a0'\]"),
        (lambda: {"a0": made.kernel(dtype="float32")}, "is for float32, 8 and 64 channels; node a0 has float16"),
        (lambda: {"a0": made.kernel(16, 64)}, "is for float16, 16 and 64 channels"),
    ],
)
def test_kernels_that_do_not_fit_a_node(kernels: Callable[[], dict[str, Any]], reason: str) -> None:
    model, function = graph((1.0,), typed=True)
    with pytest.raises(InvalidInput, match=reason):
        with_plugins(model, function, kernels())

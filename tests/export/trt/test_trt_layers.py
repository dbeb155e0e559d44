"""Per-layer times and descriptions in trtexec's schemas, and the verdict on fused attention."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.errors import InvalidInput
from export.trt.layers import LayerTimes, fused_attention, layer_info, write_layer_info, write_profile
from export.trt.log import TensorRTFailed
from latency.trtexec_json import read_layers, read_profile
from tests.export.trt.fakes_gpu import FakeGpu
from tests.export.trt.fakes_run import SHAPE, VERSIONS, FakeTensorRT, Rig, make_rig

DETAILED = [
    {"Name": "conv1 + relu1", "LayerType": "CaskConvolution", "Inputs": [{"Name": "x"}], "Outputs": [{"Name": "t"}]},
    {"Name": "conv2", "LayerType": "CaskConvolution", "Inputs": [{"Name": "t"}], "Outputs": [{"Name": "y"}]},
]


@pytest.fixture(params=VERSIONS)
def rig(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Rig:
    return make_rig(monkeypatch, request.param)


def test_profile(rig: Rig, tmp_path: Path) -> None:
    with rig.session(layers=["conv", "relu", "conv"]) as session:
        x = np.ones(SHAPE, np.float32)
        session.bind({"x": x})
        before = session.step()
        times = session.time_layers(runs=4)
        assert list(times.times_ms) == [("conv", 0), ("relu", 0), ("conv", 1)], "two layers may have one name"
        assert [len(ms) for ms in times.times_ms.values()] == [4, 4, 4], "warming up is left out"
        write_profile(times, tmp_path / "p.json")
        assert session.step() == pytest.approx(before), "the session goes on as before"
        np.testing.assert_array_equal(session.results()[0], 2 * x)
    count, *rows = json.loads((tmp_path / "p.json").read_text())
    assert count == {"count": 4}
    assert [set(row) for row in rows] == [{"name", "timeMs", "averageMs", "medianMs", "percentage"}] * 3
    assert rows[2] == pytest.approx({"name": "conv", "timeMs": 0.12, "averageMs": 0.03, "medianMs": 0.03, "percentage": 50})
    assert sum(row["percentage"] for row in rows) == pytest.approx(100)
    assert [(layer.name, layer.ms) for layer in read_profile(tmp_path / "p.json")] == [
        ("conv", pytest.approx(0.01)),
        ("relu", pytest.approx(0.02)),
        ("conv", pytest.approx(0.03)),
    ]
    assert rig.gpu.leaks() == []


def test_a_profile_before_anything_is_bound(rig: Rig) -> None:
    with rig.session() as session:
        assert session.time_layers(1).runs == 1
        with pytest.raises(InvalidInput, match="at least 1 run, got 0"):
            session.time_layers(0)
        with pytest.raises(InvalidInput, match="call bind"):
            session.step()


def test_a_profile_uses_the_bound_inputs(rig: Rig) -> None:
    with rig.session() as session:
        x = np.ones(SHAPE, np.float32)
        session.bind({"x": x})
        session.run({"x": 5 * x})
        session.time_layers(1)
        np.testing.assert_array_equal(session.results()[0], 2 * x)


def test_profiles_that_say_nothing() -> None:
    times = LayerTimes()
    times.begin_run()
    with pytest.raises(InvalidInput, match="0 layers took 0 ms in 1 runs"):
        times.to_json()
    times.add("conv", 0.0)
    with pytest.raises(InvalidInput, match=r"1 layers took 0\.0 ms"):
        times.to_json()


def test_layer_info(rig: Rig, tmp_path: Path) -> None:
    with rig.session(layers=DETAILED) as session:
        info = session.layer_info()
    assert info["Layers"] == DETAILED
    if rig.trt.version.startswith("10"):
        assert info["Bindings"] == ["x", "y"] and "I/O Tensors" not in info
    else:
        assert [tensor["Name"] for tensor in info["I/O Tensors"]] == ["x", "y"] and "Bindings" not in info
    write_layer_info(info, tmp_path / "l.json")
    assert json.loads((tmp_path / "l.json").read_text()) == info
    assert dict(read_layers(tmp_path / "l.json", re.compile("x|y")).hints) == {"conv1 + relu1": ("", "x t"), "conv2": ("", "t y")}


def test_an_inspector_that_gives_nothing(rig: Rig) -> None:
    with rig.session() as session:
        rig.trt.fail["get_engine_information"] = "Internal error"
        with pytest.raises(TensorRTFailed, match=r"describing the engine's layers failed\.\n  TensorRT: error: Internal error"):
            session.layer_info()


class Described:
    """An engine, and its inspector, of which all that is known is the description."""

    def __init__(self, text: str) -> None:
        self.text = text

    def create_engine_inspector(self) -> Any:
        return self

    def get_engine_information(self, form: Any) -> str:
        return self.text


@pytest.mark.parametrize("text", ["no JSON", "[]", "{}", '{"Layers": 3}'])
def test_an_inspector_that_gives_something_else(text: str) -> None:
    with pytest.raises(InvalidInput, match="the engine's description"):
        layer_info(FakeTensorRT(FakeGpu()).module, Described(text))  # type: ignore[arg-type]


def test_separators_in_names_need_no_escapes() -> None:
    layer = {"Name": "a\x1fb", "Metadata": "[ONNX Layer: a]\x1e[ONNX Layer: b]"}  # how TensorRT joins the names of nodes
    text = json.dumps({"Layers": [layer]})
    for written in (text, text.replace("\\u001f", "\x1f").replace("\\u001e", "\x1e")):
        assert layer_info(FakeTensorRT(FakeGpu()).module, Described(written)) == {"Layers": [layer]}  # type: ignore[arg-type]


def detailed(name: str, **fields: str) -> dict[str, str]:
    return {"Name": name, "LayerType": "kgen", **fields}


WHOLE = "1 layers are shown as a whole; build the engine with detailed profiling verbosity"
VERDICTS: list[tuple[list[Any], str, list[str]]] = [
    # 1. fused kernels, as TensorRT names them
    (["conv", "_gemm_mha_v2_myl3_6", "relu"], "yes", ["_gemm_mha_v2_myl3_6"]),
    (["__mye8037_gemm_mha_v2"], "yes", ["__mye8037_gemm_mha_v2"]),
    (["_gemv_mha_v1_0"], "yes", ["_gemv_mha_v1_0"]),
    ([detailed("node_attention_myl1_2", TacticName="kgen_mha_fp16_sm86")], "yes", ["node_attention_myl1_2"]),
    (["__mye8037_fused_mha_v2"], "yes", ["__mye8037_fused_mha_v2"]),
    ([detailed("_gemm_mha_v2_myl0_17", TacticName="_gemm_mha_v2_0x957a2fe2")], "yes", ["_gemm_mha_v2_myl0_17"]),
    ([detailed("attn_myl3_1", TacticName="sm80_fmha_v2_flash_attention_fp16")], "yes", ["attn_myl3_1"]),
    # 2. a fused kernel names the softmax that it holds; so do layers that only move data
    ([detailed("/attn/Softmax + /attn/MatMul_1", TacticName="_gemm_mha_v2_sm89")], "yes", ["/attn/Softmax + /attn/MatMul_1"]),
    ([detailed("_gemm_mha_v2_myl0_3", Metadata="[ONNX Layer: /attn/Softmax]")], "yes", ["_gemm_mha_v2_myl0_3"]),
    (["Reformatting CopyNode for Input Tensor 0 to /attn/Softmax", "_gemm_mha_v2_0"], "yes", ["_gemm_mha_v2_0"]),
    # 3. our plugin, by its own name or one that is given
    ([{"Name": "attn0", "LayerType": "PluginV3", "PluginType": "self_attention"}], "yes", ["attn0"]),
    ([{"Name": "hyctas::SelfAttention_7", "LayerType": "PluginV3"}], "yes", ["hyctas::SelfAttention_7"]),
    ([{"Name": "special_3", "LayerType": "Plugin"}], "yes", ["special_3"]),
    # 4. a convolution that is called after attention is none
    ([detailed("/self_attention/conv + relu")], "unknown", ["none of 1 layers is attention or softmax by its name"]),
    (["/flash_attention/q/Conv + /flash_attention/act/Relu"], "unknown", ["none of 1 layers is attention or softmax by its name"]),
    (["special_3"], "unknown", ["none of 1 layers is attention or softmax by its name"]),
    # 5. a softmax of its own: decomposed
    (["/attn/MatMul", "/attn/Softmax", "/attn/MatMul_1"], "no", ["/attn/Softmax"]),
    (["__myl_MaxrSubExpSumDivMul_myl36_5"], "no", ["__myl_MaxrSubExpSumDivMul_myl36_5"]),
    (["__myl_bb1_3_MaxSubExpSumDivMul"], "no", ["__myl_bb1_3_MaxSubExpSumDivMul"]),
    (["/attn/MatMul_myl87_2", "__myl_MulMaxSubExpSum_myl87_3", "__myl_DivMulTra_myl87_4"], "no", ["__myl_MulMaxSubExpSum_myl87_3"]),
    ([detailed("/attn/Cast_1_myl0_11", TacticName="AddSelectCastMaxSubExpSumDiv")], "no", ["/attn/Cast_1_myl0_11"]),
    ([{"Name": "l5", "LayerType": "SoftMaxV2"}], "no", ["l5"]),
    # 6. one of two attentions is not fused
    (["_gemm_mha_v2_0", "/attn2/Softmax"], "no", ["/attn2/Softmax"]),
    # 7. a part of the graph that is shown as a whole may end in a softmax that is inside of a fused kernel, or hide one
    (["conv", "{ForeignNode[/attn/MatMul.../attn/Softmax]}"], "unknown", [WHOLE]),
    (["_gemm_mha_v2_0", "{ForeignNode[/a/Add.../b/Add]}"], "unknown", [WHOLE]),
    (["{ForeignNode[/a/Add.../b/Add]}", "/attn2/Softmax"], "no", ["/attn2/Softmax"]),
    # 8. nothing to go by
    (["conv"], "unknown", ["none of 1 layers is attention or softmax by its name"]),
    ([], "unknown", ["the engine was built without layer names; build it with detailed profiling verbosity"]),
]


@pytest.mark.parametrize(("layers", "verdict", "evidence"), VERDICTS)
def test_fused_attention(layers: list[Any], verdict: str, evidence: list[str]) -> None:
    found = fused_attention({"Layers": layers, "Bindings": []}, plugins=["special"])
    assert (found.verdict, list(found.evidence)) == (verdict, evidence)
    assert found.summary().startswith(f"fused attention: {verdict} ({evidence[0]}")


def test_tensorrts_own_layer_is_fused_whatever_it_is_called() -> None:
    unnamed = {"Layers": ["conv", "{ForeignNode[a...b]}"]}
    assert fused_attention(unnamed).verdict == "unknown"
    assert fused_attention(unnamed, native=True).verdict == "yes"
    assert fused_attention({"Layers": ["softmax_3"]}, native=True).verdict == "no", "one that is left says otherwise"
    found = fused_attention({"Layers": ["_gemm_mha_v2_1"]}, native=True)
    assert (found.verdict, found.evidence) == ("yes", ("_gemm_mha_v2_1",))


def test_summaries_are_short() -> None:
    found = fused_attention({"Layers": [f"_gemm_mha_v2_{i}" for i in range(5)]})
    assert found.summary() == "fused attention: yes (_gemm_mha_v2_0, _gemm_mha_v2_1, _gemm_mha_v2_2 and 2 more)"

"""Per-layer times and descriptions in trtexec's schemas, and the verdict on fused attention."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.errors import InvalidInput
from export.files import write_json
from export.trt.layers import Layer, LayerTimes, builder_layers, engine_layers, fused_attention, layer_info
from export.trt.log import TensorRTFailed
from latency.kit.trtexec_json import read_layers, read_profile
from tests.export.trt.fakes_gpu import FakeGpu
from tests.export.trt.fakes_run import SHAPE, VERSIONS, FakeTensorRT, Rig, make_rig

DETAILED = [
    {"Name": "conv1 + relu1", "LayerType": "CaskConvolution", "Inputs": [{"Name": "x"}], "Outputs": [{"Name": "t"}]},
    {"Name": "conv2", "LayerType": "CaskConvolution", "Inputs": [{"Name": "t"}], "Outputs": [{"Name": "y"}]},
]


@pytest.fixture(params=VERSIONS[1:])
def rig(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Rig:
    return make_rig(monkeypatch, request.param)


def test_profile(rig: Rig, tmp_path: Path) -> None:
    with rig.session(layers=["conv", "relu", "conv"]) as session:
        x = np.ones(SHAPE, np.float32)
        session.bind({"x": x})
        before = session.step()
        session.run({"x": 5 * x})
        times = session.time_layers(runs=4)
        assert list(times.times_ms) == [("conv", 0), ("relu", 0), ("conv", 1)], "two layers may have one name"
        assert [len(ms) for ms in times.times_ms.values()] == [4, 4, 4], "warming up is left out"
        write_json(tmp_path / "p.json", times.to_json())
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
    write_json(tmp_path / "l.json", info)
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


def layer(name: str, *nodes: str, tactic: str = "") -> Layer:
    return Layer(name, tactic, nodes)


@pytest.mark.parametrize(
    ("layers", "verdict", "evidence"),
    [
        ([layer("_gemm_mha_v2_myl3_6", "matmul", "s0", "s1")], "yes", ["_gemm_mha_v2_myl3_6"]),
        ([layer("/a + /b", "s0", "s1", tactic="_gemm_mha_v2_0x957a2fe2")], "yes", ["/a + /b"]),
        ([layer("_gemv_mha_v1_0", "s0"), layer("__myl_CastMaxrSubExpSum_myl0_4", "s1")], "no", ["_gemv_mha_v1_0", "__myl_Cast"]),
        ([layer("__myl_SlicSlicMaxSubExpSumAddDiv_myl0_4", "s0", "s1")], "no", ["__myl_Slic"]),
        ([layer("_gemm_mha_v2_0", "s0")], "no", ["_gemm_mha_v2_0"]),  # one is named nowhere
        ([layer("/flash_attention/conv", "conv")], "unknown", []),
        ([], "unknown", []),
    ],
)
def test_fused_attention(layers: list[Layer], verdict: str, evidence: list[str]) -> None:
    found = fused_attention(layers, ["s0", "s1"])
    assert found.verdict == verdict
    assert all(known.startswith(name) for known, name in zip(found.evidence, evidence, strict=True))
    assert found.summary().startswith(f"fused attention: {verdict} (")


def test_summaries_are_short() -> None:
    found = fused_attention([layer(f"_gemm_mha_v2_{i}", f"s{i}") for i in range(5)], [f"s{i}" for i in range(5)])
    assert found.summary() == "fused attention: yes (5 of 5; _gemm_mha_v2_0, _gemm_mha_v2_1, _gemm_mha_v2_2 and 2 more)"


def test_layers_of_an_inspector_and_of_a_builder() -> None:
    metadata = "[ONNX Layer: a]\x1e[ONNX Layer: b]"
    rows = [{"Name": "l0", "TacticName": "t0", "Metadata": metadata}, "l1"]
    assert engine_layers({"Layers": rows}) == (Layer("l0", "t0", ("a", "b")), Layer("l1", "", ()))
    tensors = "Inputs: [ { Name: q, Dimensions: [1,2] }], Constants: [], Outputs: [ { Name: o, Dimensions: [1,2] }]"
    text = f"Layers:\nName: l0, LayerType: kgen, {tensors}, TacticName: t0, StreamId: 0, Metadata: [ONNX Layer: a][ONNX Layer: b]\n"
    assert builder_layers(text) == (Layer("l0", "t0", ("a", "b")),)

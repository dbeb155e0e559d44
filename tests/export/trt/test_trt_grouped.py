"""Several operators in one engine: who shares one, whose time is what, and what a failure costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from export.errors import HyctasError, InvalidInput
from export.onnx.join import join
from export.runtime import OperatorRuntime, Session
from export.target import Target
from export.trt.attribution import Layer, attribute, inputs_outputs, layer_facts
from export.trt.cuda import guard
from export.trt.grouped import GROUP, MAX_RATIO, cost_ms, count_engines, estimate, planned
from export.trt.log import TensorRTFailed
from export.trt.tensorrt_runtime import TensorRTRuntime
from export.trt.timing_cache import default_folder
from tests.export.trt.fakes_engines import FakeBuilder
from tests.export.trt.fakes_gpu import CAPTURE_UNSUPPORTED
from tests.export.trt.fakes_run import Rig

torch = pytest.importorskip("torch")
FP16 = Target("tensorrt", "fp16")


def conv(channels: int = 4) -> Any:
    return torch.nn.Conv2d(channels, channels, 1).eval(), (torch.full((1, channels, 6, 8), 0.5),)


def pair() -> list[Any]:
    """Two operators: one node, and two nodes (a ReLU behind a convolution)."""
    module, inputs = conv()
    return [conv(), (torch.nn.Sequential(module, torch.nn.ReLU()).eval(), inputs)]


def opened(loaded: Sequence[Session | HyctasError]) -> list[Any]:
    assert not any(isinstance(one, HyctasError) for one in loaded), loaded
    return list(loaded)


def close(sessions: Sequence[Any]) -> None:
    for session in sessions:
        session.close()


def nodes(model: onnx.ModelProto, prefix: str) -> int:
    return sum(node.name.startswith(prefix) for node in model.graph.node)


class TestSharedEngine:
    """One engine, several operators."""

    def test_a_share_of_the_engines_time_each(self, rig: Rig, builder: FakeBuilder) -> None:
        runtime = TensorRTRuntime(FP16)
        assert isinstance(runtime, OperatorRuntime)
        first, second = opened(runtime.load_operators(pair()))
        (model,) = builder.graphs
        ours, theirs = nodes(model, "k0000_0_"), nodes(model, "k0001_0_")
        assert ours + theirs == len(model.graph.node) and 0 < ours < theirs
        times = [n + 1 for n in range(ours + theirs)]  # the fake's n-th layer takes n hundredths
        assert first.step() == pytest.approx(0.25 * sum(times[:ours]) / sum(times))
        assert first.step() + second.step() == pytest.approx(0.25), "together they take what the engine takes"
        close([first, second])
        assert rig.gpu.leaks() == []

    def test_each_has_its_own_inputs_and_outputs(self, rig: Rig, builder: FakeBuilder) -> None:
        first, second = opened(TensorRTRuntime(FP16).load_operators(pair()))
        for session in (first, second):
            specs = [(spec.name, spec.dtype, spec.shape) for spec in (*session.inputs, *session.outputs)]
            assert specs == [("x0", "float16", (1, 4, 6, 8)), ("y0", "float16", (1, 4, 6, 8))]
            assert session.metadata == {} and session.on_gpu and session.notes == []
        ones = np.ones((1, 4, 6, 8), np.float16)
        second.bind({"x0": 3 * ones})
        np.testing.assert_array_equal(first.run({"x0": 2 * ones})[0], 4 * ones)
        second.step()
        np.testing.assert_array_equal(second.results()[0], 6 * ones)
        np.testing.assert_array_equal(first.results()[0], ones)  # twice the example of its own, 0.5
        second.flush(1)
        with pytest.raises(InvalidInput, match="x0"):
            first.bind({"x0": ones[:, :2]})
        first.close()
        first.close()
        assert second.step() > 0, "the engine lives as long as one of them"
        with pytest.raises(InvalidInput, match="the session is closed"):
            first.step()
        with second:
            pass
        assert rig.gpu.leaks() == []

    def test_layers_that_convert_inputs_belong_to_nobody(self, builder: FakeBuilder) -> None:
        def layers(model: onnx.ModelProto) -> list[Any]:
            move = {"Name": "Reformatting CopyNode for Input Tensor 0", "Inputs": [{"Name": "k0000_0_x0"}], "Outputs": []}
            return [move, {"Name": "k0000_0_a"}, {"Name": "kernel", "Metadata": "[ONNX Layer: k0001_0_b]"}]

        builder.layers = layers
        sessions = opened(TensorRTRuntime(FP16).load_operators(pair()))
        assert [session.share for session in sessions] == pytest.approx([2 / 6, 3 / 6])
        close(sessions)

    def test_repeated_operators_are_built_apart_and_afresh(self, builder: FakeBuilder) -> None:
        told: list[str] = []
        runtime = TensorRTRuntime(FP16)
        runtime.on_status = told.append
        one, other = pair()
        sessions = opened(runtime.load_operators([one, one, other, one, other]))
        assert [len(model.graph.input) for model in builder.graphs] == [2, 2, 1], "builds of one operator never meet"
        assert builder.caches == [default_folder(), None, None], "from the cache a build would repeat the first one"
        assert len([text for text in told if "once more" in text]) == 2 and "the timing cache was new" in told
        assert len(sessions) == 5
        close(sessions)


REAL_LAYERS: list[tuple[str, str, list[str], str]] = [
    # as TensorRT 8.6 to 11 names layers: name, Metadata, tensors, and whose it is (x: converts an engine's input or output)
    ("k0000_0_conv + k0000_0_relu", "[ONNX Layer: k0000_0_conv]\x1e[ONNX Layer: k0000_0_relu]", [], "a"),
    ("PWN(PWN(k0001_0_sigmoid), k0001_0_mul)", "", [], "b"),
    ("k0001_0_left || k0001_0_right", "", [], "b"),
    ("reshape_before_k0000_0_matmul", "", [], "a"),
    ("k0001_0_concat_output_0 copy", "", [], "b"),
    ("__myl_ConvAddRelu_myl0_3", "[ONNX Layer: k0000_0_conv]\x1f[ONNX Layer: k0000_0_add]", [], "a"),
    ("{ForeignNode[k0000_0_first...k0000_0_last]}", "[ONNX Layer: k0000_0_first]\x1f[ONNX Layer: k0001_0_amid]", [], ""),
    ("__myl_Move_myl1_0", "", ["k0001_0_part", "__mye123"], "b"),
    ("(Unnamed Layer* 11) [Shuffle]", "", ["k0000_0_in", "k0001_0_in"], ""),
    ("Reformatting CopyNode for Input Tensor 0 to k0000_0_conv + k0000_0_relu", "", ["k0000_0_x0", "Reformatted Input"], "x"),
    ("Reformatting CopyNode for Output Tensor 0 to k0001_0_mul", "", ["Reformatted Output", "k0001_0_y1"], "x"),
    ("Reformatting CopyNode for Input Tensor 1 to k0001_0_add", "", ["k0001_0_hidden", "Reformatted Input"], "b"),
]


@pytest.mark.parametrize(("name", "metadata", "tensors", "owner"), REAL_LAYERS)
def test_layers_under_real_names(name: str, metadata: str, tensors: list[str], owner: str) -> None:
    described = [{"Name": name, "Metadata": metadata, "Inputs": [{"Name": tensor} for tensor in tensors], "Outputs": []}]
    info = layer_facts([*described, "a name alone"], inputs_outputs(["k0000", "k0001"]))
    known = [Layer("k0000_0_conv", 1.0), Layer("k0001_0_conv", 1.0)]
    shares = attribute([Layer(name, 2.0), *known], ["k0000", "k0001"], info)
    expected = {"a": (3, 1), "b": (1, 3), "x": (1, 1), "": (2, 2)}[owner]  # what is nobody's is shared out
    assert [4 * shares.of[prefix] for prefix in ("k0000", "k0001")] == pytest.approx(expected)
    assert (4 * shares.conversions, 4 * shares.shared) == pytest.approx((2 * (owner == "x"), 2 * (owner == "")))


class TestFailure:
    """What fails alone costs nobody else; what fails together is tried alone."""

    def test_only_the_operator_at_fault_is_an_error(self, rig: Rig, builder: FakeBuilder) -> None:
        builder.fails = lambda model: any(tensor.dims[:2] == [6, 6] for tensor in model.graph.initializer)
        told: list[str] = []
        runtime = TensorRTRuntime(FP16)
        runtime.on_status = told.append
        first, failed, third = runtime.load_operators([conv(4), conv(6), conv(4)])
        assert isinstance(failed, TensorRTFailed) and "could not find any implementation" in str(failed)
        assert len(builder.graphs) == 4, "one for all, and one for each"
        assert any("an engine of 3 operators gives each one of its own: building the engine failed" in text for text in told)
        assert not isinstance(first, HyctasError) and not isinstance(third, HyctasError)
        assert first.step() == third.step() == pytest.approx(0.25)
        close([first, third])
        assert rig.gpu.leaks() == []

    def test_profiles_that_name_nobody(self, builder: FakeBuilder) -> None:
        builder.layers = lambda model: ["kernel a", "kernel b"]
        sessions = opened(TensorRTRuntime(FP16).load_operators(pair()))
        assert [len(model.graph.input) for model in builder.graphs] == [2, 1, 1]
        assert [session.share for session in sessions] == [1, 1], "alone, everything is the operator's"
        close(sessions)

    def test_an_operator_without_layers(self, builder: FakeBuilder) -> None:
        builder.layers = lambda model: [node.name for node in model.graph.node if node.name.startswith("k0000")]
        close(opened(TensorRTRuntime(FP16).load_operators(pair())))
        assert len(builder.graphs) == 3
        builder.layers = lambda model: []
        first, second = TensorRTRuntime(FP16).load_operators(pair())
        assert isinstance(first, InvalidInput) and isinstance(second, InvalidInput) and "reports no layer" in str(first)

    def test_graphs_that_do_not_fit_the_precision(self, builder: FakeBuilder) -> None:
        for failed in TensorRTRuntime(Target("tensorrt", "fp8")).load_operators(pair()):
            assert isinstance(failed, InvalidInput) and "has no QuantizeLinear" in str(failed)
        assert builder.graphs == []

    def test_int8_operators_are_quantised_with_random_data(self, builder: FakeBuilder) -> None:
        close(opened(TensorRTRuntime(Target("tensorrt", "int8")).load_operators(pair())))
        for graph in builder.graphs:
            ends = [info.type.tensor_type.elem_type for info in (*graph.graph.input, *graph.graph.output)]
            assert set(ends) == {onnx.TensorProto.INT8}, "as parts of networks have them"

    def test_without_a_cuda_graph_there_are_no_rows(self, rig: Rig, builder: FakeBuilder) -> None:
        rig.gpu.fail["end_capture"] = (CAPTURE_UNSUPPORTED, "operation not permitted")
        for failed in TensorRTRuntime(FP16).load_operators(pair()):
            assert isinstance(failed, InvalidInput) and "required here" in str(failed)
        del rig.gpu.fail["end_capture"]
        assert rig.gpu.leaks() == []

    def test_an_interruption_closes_what_is_open(self, rig: Rig, builder: FakeBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("export.trt.grouped.GROUP", 1)

        def interrupted(model: onnx.ModelProto) -> bool:
            if len(builder.graphs) == 2:
                raise KeyboardInterrupt
            return False

        builder.fails = interrupted
        with pytest.raises(KeyboardInterrupt):
            TensorRTRuntime(FP16).load_operators(pair())
        assert rig.gpu.leaks() == []


def test_who_shares_an_engine() -> None:
    assert planned([], [], 4) == []
    assert planned([3, 1, 2, 1], [False] * 4, 2) == [[1, 3], [2, 0]]
    assert planned([1, 1, 1], [False, True, False], 4) == [[0, 2], [1]], "attention stands alone"
    assert planned([1, MAX_RATIO, MAX_RATIO + 1], [False] * 3, 4) == [[0, 1], [2]]
    assert planned([1, 1], [False] * 2, 1) == [[0], [1]]


def test_attention_gets_an_engine_of_its_own(builder: FakeBuilder) -> None:
    one, other = pair()
    with_softmax = (torch.nn.Sequential(one[0], torch.nn.Softmax(1)).eval(), one[1])
    close(opened(TensorRTRuntime(FP16).load_operators([one, with_softmax, other])))
    assert [len(model.graph.input) for model in builder.graphs] == [2, 1]


def test_cost_follows_work() -> None:
    def model(kind: str, first: list[int], second: list[int]) -> onnx.ModelProto:
        ends = [helper.make_tensor_value_info("x0", TensorProto.FLOAT, first)]
        weight = helper.make_tensor("w", TensorProto.FLOAT, second, np.zeros(math.prod(second)).tolist())
        out = helper.make_tensor_value_info("y0", TensorProto.FLOAT, None)
        graph = helper.make_graph([helper.make_node(kind, ["x0", "w"], ["y0"])], "g", ends, [out], [weight])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)

    def macs(*arguments: Any) -> float:
        made = model(*arguments)
        elements = math.prod(arguments[1]) + math.prod(arguments[2])
        inferred = onnx.shape_inference.infer_shapes(made).graph.output[0].type.tensor_type.shape.dim
        return (cost_ms(made) - 0.005 - (elements + math.prod(d.dim_value for d in inferred)) / 2.5e8) * 2e10

    assert macs("Conv", [1, 8, 10, 12], [16, 8, 1, 1]) == pytest.approx(10 * 12 * 16 * 8, rel=1e-6)
    assert macs("ConvTranspose", [1, 8, 10, 12], [8, 4, 2, 2]) == pytest.approx(10 * 12 * 8 * 4 * 4, rel=1e-6)
    assert macs("MatMul", [1, 20, 30], [30, 40]) == pytest.approx(20 * 30 * 40, rel=1e-6)
    assert macs("Add", [1, 20, 30], [30]) == pytest.approx(0, abs=1)


def test_the_estimate_says_what_it_is() -> None:
    batches = [([1.0, 1.0, 2.0], [False, True, False]), ([1.0] * 30, [False] * 30)]
    assert GROUP == 20 and count_engines(batches) == 2 + 2
    assert estimate(799, 106, 3) == (
        "about 318 engines to build: 799 operators in 106, times 3 builds; at 10 s each 53 min (estimated, not run)"
    )


def test_models_that_are_too_large_together(monkeypatch: pytest.MonkeyPatch) -> None:
    from export.onnx import join as onnx_join

    monkeypatch.setattr(onnx_join, "MAX_BYTES", 10)
    with pytest.raises(InvalidInput, match="2 models side by side would exceed 2 GiB"):
        join([("a_", onnx.ModelProto(producer_name="x" * 20)), ("b_", onnx.ModelProto())])


@pytest.mark.gpu
def test_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if (why := guard.unavailable_reason()) is not None:
        pytest.skip("; ".join(why))
    runtime = TensorRTRuntime(FP16)
    modules = pair()
    sessions = opened(runtime.load_operators([*modules, *modules]))
    for session, (module, inputs) in zip(sessions, [*modules, *modules], strict=True):
        array = inputs[0].numpy().astype(np.float16)
        np.testing.assert_allclose(session.run({"x0": array})[0], module(*inputs).detach().numpy(), atol=1e-2)
        session.bind({"x0": array})
        assert 0 < min(session.step() for _ in range(20)) < 10
    assert all(0 < session.share < 1 for session in sessions), "two operators in each engine, as the layers' names tell"
    close(sessions)
    assert list(tmp_path.iterdir())

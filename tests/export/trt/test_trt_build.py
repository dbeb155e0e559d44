"""Builds with NVIDIA's real parser and builder (TensorRT-RTX): failures, shapes, progress and Ctrl-C."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import threading
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from export.errors import InvalidInput, Unavailable
from export.trt import build as build_module
from export.trt.build import BuildResult, build_engine
from export.trt.engine_file import Machine
from export.trt.log import MESSAGES, TensorRTFailed
from export.trt.options import BuildOptions
from tests.export import foreign_files as foreign
from tests.export.trt.rtx_builds import graph, module, needs_rtx, options

pytestmark = needs_rtx
MACHINE = Machine("1.7.1", "13.0", "580.1", "Some GPU", (8, 9), "Linux-x86_64", "tensorrt-rtx")
FP16 = options()


def build(data: bytes | Path | None = None, wanted: BuildOptions = FP16, **arguments: Any) -> BuildResult:
    return build_engine(graph() if data is None else data, wanted, machine=MACHINE, **arguments)


def test_an_engine_and_what_is_known_of_it(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(graph(nodes=3))
    result = build(file)
    assert result.graph_sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (result.layers >= 3, result.options) == (True, FP16)
    assert result.sha256 == hashlib.sha256(result.plan).hexdigest() and result.seconds > 0
    assert result.notices == () and "plan" not in repr(result)
    assert {name for layer in result.engine_layers for name in layer.nodes} == {"conv0", "conv1", "conv2"}
    assert build(file, options(detailed=False)).engine_layers == ()


def test_what_the_options_become(monkeypatch: pytest.MonkeyPatch) -> None:
    trt, seen = module(), list[Any]()

    def built(builder: Any, network: Any, config: Any, *rest: Any) -> bytes:
        verbosity, pool = str(config.profiling_verbosity).rpartition(".")[2], trt.MemoryPoolType.WORKSPACE
        numbers = [int(config.get_compute_capability(index)) for index in range(config.num_compute_capabilities)]
        facts = config.builder_optimization_level, config.avg_timing_iterations, verbosity, config.get_flag(trt.BuilderFlag.TF32)
        seen.append((*facts, numbers, config.get_memory_pool_limit(pool)))
        return b"engine"

    monkeypatch.setattr(build_module, "_built", built)
    build(graph(TensorProto.FLOAT), options("fp32"))
    more = options("fp32", tf32=True, level=1, timing_iterations=2, workspace_mib=256, detailed=False, capabilities=(86, 120))
    build(graph(TensorProto.FLOAT), more)
    assert seen[0][:5] == (3, 8, "DETAILED", False, [89])
    assert seen[1] == (1, 2, "LAYER_NAMES_ONLY", True, [86, 120], 256 << 20)


def test_presets_and_their_json() -> None:
    search, release = BuildOptions.search("fp16"), BuildOptions.release("int8", workspace_mib=512)
    assert (search.level, search.max_aux_streams, release.level, release.max_aux_streams) == (2, 0, 5, None)
    for made in (search, release, BuildOptions.release("fp16", capabilities=(86, 89))):
        assert BuildOptions.from_json(made.to_json()) == made
    with pytest.raises(InvalidInput, match=r"unknown build options \['speed'\]; known: \['capabilities'"):
        BuildOptions.from_json({"precision": "fp16", "speed": 1})
    with pytest.raises(InvalidInput, match="not usable"):
        BuildOptions.from_json({"level": 3})


    with pytest.raises(InvalidInput, match="precision is 'fp12'"):
        BuildOptions(precision="fp12")


NOTHING = "Nothing"


def test_refused_nodes_are_listed_by_name() -> None:
    with pytest.raises(TensorRTFailed) as found:
        build(graph(nodes=2, name=NOTHING))
    assert found.value.what == "parsing the ONNX graph" and found.value.advice == ""
    first = found.value.lines[0]
    assert first.startswith("node 'conv0' (Nothing): INVALID_NODE: ") and "Plugin not found" in first
    assert str(found.value).startswith("parsing the ONNX graph failed.\n  TensorRT: node 'conv0'")


def test_a_node_that_is_refused_inside_a_function_is_told_with_the_node_that_calls_it() -> None:
    model = onnx.ModelProto.FromString(graph())
    inner = helper.make_node(NOTHING, ["x"], ["y"], name="inner")
    model.functions.append(helper.make_function("mine", "Twice", ["x"], ["y"], [inner], [helper.make_opsetid("", 18)]))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    model.graph.node[0].output[0] = "y_"
    model.graph.node.append(helper.make_node("Twice", ["y_"], ["y0"], name="call", domain="mine"))
    with pytest.raises(TensorRTFailed) as found:
        build(model.SerializeToString())
    assert found.value.lines[0].startswith("node 'inner' (Nothing) of call (Twice): ")


def test_a_failed_build_is_told_in_the_builders_own_words() -> None:
    """ONNX's operator Attention builds only where a kernel exists that computes all of it: one head has none."""
    heads = [foreign.info(name, [1, 1, 96, 32], TensorProto.FLOAT16) for name in "qkvo"]
    node = helper.make_node("Attention", ["q", "k", "v"], ["o"], name="attention", scale=1.0)
    model = foreign.model([node], heads[:3], heads[3:], opset=23)
    with pytest.raises(TensorRTFailed, match="dedicated kernel") as found:
        build(model.SerializeToString())
    assert found.value.what == "building the engine"


@pytest.mark.parametrize(
    ("said", "workspace", "advice"),
    [
        ("[buffer.cpp] Error Code 2: OutOfMemory", None, r"memory ran out.*lower workspace_mib.*\(it is not limited\)"),
        ("Cuda Runtime (out of memory)", 4096, r"\(it is 4096 MiB\)"),
        ("Could not find any implementation for node conv0.", 16, "No kernel fits into workspace_mib=16"),
        ("Could not find any implementation for node conv0.", None, "No kernel exists for these types and shapes"),
        ("API Usage Error (Target GPU SM 70 is not supported by this TensorRT release.)", None, "not for this GPU: a newer"),
        ("[caskUtils.cpp::trtSmToCask::147] Error Code 1: Internal Error (Unsupported SM: 0x809)", None, "not for this GPU"),
        ("CUDA driver version is insufficient for CUDA runtime version", None, "does not fit this GPU or driver"),
        ("No space left on device", None, "The disk is full"),
        ("Something else", None, "^$"),
    ],
)
def test_what_to_try_depends_on_what_tensorrt_said(said: str, workspace: int | None, advice: str) -> None:
    assert re.search(advice, build_module._advice([f"error: {said}"], options(workspace_mib=workspace)))


def test_an_operator_set_that_is_too_new_is_named() -> None:
    trt = Named("10.3.0")
    found = [build_module._opset_advice(trt, graph(opset=opset)) for opset in (18, 21, 22)]
    assert found[0] == "" and "take fp16 instead of bf16" in found[2]
    assert "set 21; TensorRT 10.3.0 is documented for 20 at least. Export the graph with that, or take a newer" in found[1]
    assert build_module._opset_advice(Named("11.4.0"), graph(opset=22)) == ""
    assert build_module._opset_advice(module(), graph(opset=27)) == ""


class Named:
    """A TensorRT of which nothing but the version is asked."""

    def __init__(self, version: str) -> None:
        self.__version__ = version


def test_files_and_bytes_that_are_no_graph(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no such file"):
        build(tmp_path / "absent.onnx")
    for data in (b"\x08", b"", b"no graph"):
        with pytest.raises(InvalidInput, match=r"no ONNX graph|has no nodes"):
            build(data)


def test_a_graph_that_does_not_fit_the_precision_never_reaches_tensorrt() -> None:
    with pytest.raises(InvalidInput, match=r"for fp16, but the graph has 1 of 1 .* another type \(first: 'conv0'\): 1 in fp32"):
        build(graph(TensorProto.FLOAT), trt=object())


def test_dynamic_shapes_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"'image' has the dynamic shape \(1, 3, -1, 8\)"):
        build(graph(height="h"))


def test_progress_names_phases_from_the_outermost() -> None:
    seen: list[tuple[str, int, int]] = []
    build(progress=lambda *state: seen.append(state))
    names = {text for text, _, _ in seen}
    assert any(" > " in text for text in names) and any(" > " not in text for text in names)
    assert all(0 <= done <= total for _, done, total in seen if total)


def test_what_progress_raises_ends_the_build_and_arrives() -> None:
    class Mine(BaseException):
        pass

    def progress(text: str, done: int, total: int) -> None:
        calls.append(text)
        if len(calls) == 3:
            raise Mine

    calls: list[str] = []
    with pytest.raises(Mine):
        build(progress=progress)
    assert len(calls) == 3, "after it, nothing is reported"


def test_ctrl_c_ends_the_build_and_the_handler_is_back(usual_signals: None) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        build(progress=lambda *state: os.kill(os.getpid(), signal.SIGINT))
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_in_a_call_before_the_build_is_not_lost(monkeypatch: pytest.MonkeyPatch, usual_signals: None) -> None:
    """TensorRT logs from all its calls, and what is raised in a logger is lost."""
    monkeypatch.setattr(MESSAGES, "listener", lambda _severity, text: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        build()


def test_a_process_that_ignores_ctrl_c_goes_on_ignoring_it() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert build(progress=lambda *state: os.kill(os.getpid(), signal.SIGINT)).plan
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_builds_run_in_other_threads_too() -> None:
    results: list[BuildResult] = []
    thread = threading.Thread(target=lambda: results.append(build()))
    thread.start()
    thread.join()
    assert len(results) == 1


def test_the_manifest_holds_what_was_built(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(graph(TensorProto.FLOAT))
    result = build()
    manifest = result.manifest(MACHINE, file, "rebuild it", parity={"passed": True}, latency={"median_ms": 1.5})
    assert manifest.engine_sha256 == result.sha256 and manifest.size_bytes == len(result.plan)
    assert (manifest.onnx, manifest.onnx_sha256) == ("model.onnx", hashlib.sha256(file.read_bytes()).hexdigest())
    assert manifest.graph_sha256 == result.graph_sha256 != manifest.onnx_sha256
    assert BuildOptions.from_json(manifest.options) == FP16 and manifest.target == "tensorrt-rtx:fp16"
    assert (manifest.attention, manifest.parity, manifest.latency) == ({}, {"passed": True}, {"median_ms": 1.5})


def test_without_a_gpu_nothing_is_built_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable() -> None:
        raise Unavailable("tensorrt", "no GPU", "buy one")

    monkeypatch.setattr(build_module, "import_tensorrt", unavailable)
    with pytest.raises(Unavailable, match="no GPU"):
        build_engine(graph(), BuildOptions(precision="fp16"))
    with pytest.raises(InvalidInput, match="only tensorrt-rtx builds for GPUs that are named"):
        build_engine(graph(), FP16, trt=Named("11.4.0"))

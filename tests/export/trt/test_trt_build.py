"""Builds against fakes of both majors: what reaches TensorRT, every way to fail, timing caches, progress and Ctrl-C."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import os
import re
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from export.errors import InvalidInput, Unavailable
from export.trt import api_build
from export.trt import build as build_module
from export.trt.build import BuildResult, build_engine
from export.trt.engine_file import Machine
from export.trt.log import MESSAGES, TensorRTFailed
from export.trt.options import BuildOptions, ShapeRange
from export.trt.timing_cache import cache_path
from tests.export.trt import fakes_build
from tests.export.trt.bindings import Bindings
from tests.export.trt.fakes_build import STEPS, cache_file, fake_tensorrt, plan_of

BOTH = ["10.3.0", "11.4.0"]
MACHINE = Machine("10.3.0", "12.6.77", "565.57.01", "Fake GPU", (8, 6), "Linux-x86_64")
FP16, FP32 = BuildOptions(precision="fp16"), BuildOptions(precision="fp32")


def graph(kind: int = TensorProto.FLOAT16, *, opset: int = 18, height: int | str = 8, nodes: int = 1) -> bytes:
    """Return a chain of convolutions over `image` (1, 3, height, 8), computing in a type."""
    weight = np.ones((3, 3, 1, 1), np.float16 if kind == TensorProto.FLOAT16 else np.float32)
    names = ["image", *(f"y{index}" for index in range(nodes))]
    made = [helper.make_node("Conv", [names[i], "w"], [names[i + 1]], name=f"conv{i}") for i in range(nodes)]
    shape = [1, 3, height, 8]
    ends = [helper.make_tensor_value_info(name, kind, shape) for name in (names[0], names[-1])]
    body = helper.make_graph(made, "chain", ends[:1], ends[1:], [onnx.numpy_helper.from_array(weight, "w")])
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)])
    return bytes(model.SerializeToString())


def build(trt: Any, options: BuildOptions = FP16, data: bytes | Path | None = None, **arguments: Any) -> BuildResult:
    return build_engine(graph() if data is None else data, options, trt=trt, machine=MACHINE, **arguments)


@pytest.mark.parametrize("version", BOTH)
def test_one_code_path_builds_strongly_typed_engines_on_both_majors(version: str, tmp_path: Path) -> None:
    trt, file = fake_tensorrt(version), tmp_path / "model.onnx"
    file.write_bytes(graph(nodes=3))
    result = build(trt, data=file)
    assert trt.record.flags == 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    told = plan_of(result.plan)
    assert told["version"] == version and told["graph"] == result.graph_sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (result.layers, result.computed, result.options) == (3, {"fp16": 3}, FP16)
    assert result.sha256 == hashlib.sha256(result.plan).hexdigest() and result.seconds > 0
    assert result.lines == ("warning: a warning of the build",) and result.notices == ()
    assert "plan" not in repr(result)


@pytest.mark.parametrize("version", BOTH)
def test_what_the_options_become(version: str) -> None:
    default = plan_of(build(fake_tensorrt(version), FP32, graph(TensorProto.FLOAT)).plan)["config"]
    assert default == {
        "tf32": False, "flags": [], "level": 3, "iterations": 8, "streams": -1, "verbosity": "DETAILED", "pools": {}, "profiles": []
    }  # fmt: skip
    options = BuildOptions(precision="fp32", tf32=True, level=1, timing_iterations=2, workspace_mib=256, max_aux_streams=0)
    options = dataclasses.replace(options, detailed=False)
    told = plan_of(build(fake_tensorrt(version), options, graph(TensorProto.FLOAT)).plan)["config"]
    assert told["tf32"] and told["flags"] == ["TF32"]
    assert (told["level"], told["iterations"], told["streams"], told["pools"]) == (1, 2, 0, {"WORKSPACE": 256 << 20})
    assert told["verbosity"] == "LAYER_NAMES_ONLY"


def test_plugins_are_asked_for_by_name() -> None:
    trt = fake_tensorrt("11.4.0")
    build(trt, BuildOptions(precision="fp16", plugins=True))
    assert trt.record.flags == 0b101


def test_presets_and_their_json() -> None:
    search, release = BuildOptions.search("fp16"), BuildOptions.release("int8", workspace_mib=512)
    assert (search.level, search.max_aux_streams, release.level, release.max_aux_streams) == (2, 0, 5, None)
    ranged = BuildOptions.release("fp16", shapes=(ShapeRange("image", (1, 3, 8, 8), (1, 3, 16, 8), (1, 3, 32, 8)),))
    for options in (search, release, ranged):
        assert BuildOptions.from_json(options.to_json()) == options
    with pytest.raises(InvalidInput, match=r"unknown build options \['speed'\]; known: \['detailed'"):
        BuildOptions.from_json({"precision": "fp16", "speed": 1})
    with pytest.raises(InvalidInput, match="not usable"):
        BuildOptions.from_json({"level": 3})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"precision": "fp12"}, "precision is 'fp12'; allowed: one of fp32, fp16, bf16, mixed, int8, fp8"),
        ({"level": 6}, "level is 6; allowed: 0 to 5"),
        ({"timing_iterations": 0}, "timing_iterations is 0; allowed: 1 to 100"),
        ({"workspace_mib": 0}, "workspace_mib is 0; allowed: None, or at least 1"),
        ({"max_aux_streams": -1}, "max_aux_streams is -1"),
        ({"shapes": (ShapeRange("x", (1,), (1,), (1,)),) * 2}, "one range per input"),
    ],
)
def test_options_that_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        BuildOptions(**{"precision": "fp16", **values})


@pytest.mark.parametrize(
    "shapes", [((1, 3), (1, 3), (1,)), ((2,), (1,), (3,)), ((1,), (3,), (2,)), ((0,), (1,), (2,)), ((), (), ())]
)
def test_ranges_that_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(InvalidInput, match="must be of one length with 1 <= min <= opt <= max"):
        ShapeRange("image", *shapes)


@pytest.mark.parametrize("version", BOTH)
@pytest.mark.parametrize(
    ("step", "what"),
    [
        ("builder", "creating TensorRT's builder"),
        ("network", "creating a strongly typed network"),
        ("parser", "creating TensorRT's ONNX parser"),
        ("parse", "parsing the ONNX graph"),
        ("config", "creating a build configuration"),
        ("configure", "configuring the build"),
        ("profile", "creating an optimisation profile"),
        ("shape", "setting the shapes of 'image'"),
        ("ranges", "adding the optimisation profile"),
        ("cache", "reading the timing cache"),
        ("attach", "using the timing cache"),
        ("build", "building the engine"),
    ],
)
def test_every_failure_says_what_failed_with_tensorrts_own_words(version: str, step: str, what: str, tmp_path: Path) -> None:
    options = BuildOptions(precision="fp16", shapes=(ShapeRange("image", (1, 3, 4, 8), (1, 3, 8, 8), (1, 3, 9, 8)),))
    trt = fake_tensorrt(version, fails=[step], logs={step: "the very reason"})
    with pytest.raises(TensorRTFailed) as found:
        build(trt, options, graph(height="h"), timing_cache=tmp_path)
    assert found.value.what == what and "error: the very reason" in found.value.lines
    assert str(found.value).startswith(f"{what} failed.\n") and "TensorRT: error: the very reason" in str(found.value)
    assert trt.record.calls[-1] == step, "nothing was tried after it"


def test_refused_nodes_are_listed_by_name() -> None:
    trt = fake_tensorrt("10.16.1", refused={"conv1": "no importer", "conv2": "no kernel"})
    with pytest.raises(TensorRTFailed) as found:
        build(trt, data=graph(nodes=3))
    assert found.value.lines == [
        "node 'conv1' (Conv): UNSUPPORTED_NODE: no importer",
        "node 'conv2' (Conv): UNSUPPORTED_NODE: no kernel",
    ]
    assert found.value.advice == ""
    trt = fake_tensorrt("10.16.1", refused={f"conv{index}": "no importer" for index in range(9)})
    with pytest.raises(TensorRTFailed, match="and 4 more nodes") as found:
        build(trt, data=graph(nodes=9))
    assert len(found.value.lines) == 6


def test_a_node_that_is_refused_inside_a_function_is_told_with_the_node_that_calls_it() -> None:
    model = onnx.ModelProto.FromString(graph())
    inner = helper.make_node("Relu", ["x"], ["y"], name="inner")
    model.functions.append(helper.make_function("mine", "Twice", ["x"], ["y"], [inner], [helper.make_opsetid("", 18)]))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    calls = [helper.make_node("Twice", [f"y{i}"], [f"y{i + 1}"], name=f"call{i}", domain="mine") for i in (0, 1)]
    model.graph.node[0].output[0] = "y0"
    model.graph.node.extend(calls)
    model.graph.output[0].name = "y2"
    with pytest.raises(TensorRTFailed) as found:
        build(fake_tensorrt("10.3.0", refused={"inner": "no importer"}), data=model.SerializeToString())
    assert found.value.lines == [f"node 'inner' (Relu) of call{index} (Twice): UNSUPPORTED_NODE: no importer" for index in (0, 1)]


@pytest.mark.parametrize(
    ("version", "opset", "advice"),
    [
        ("10.3.0", 18, ""),
        ("10.3.0", 21, "set 21; TensorRT 10.3.0 is documented for 20 at least. Export the graph with that, or take a newer"),
        ("10.3.0", 22, "take fp16 instead of bf16"),
        ("11.4.0", 22, ""),
    ],
)
def test_an_operator_set_that_is_too_new_is_named(version: str, opset: int, advice: str) -> None:
    trt = fake_tensorrt(version, refused={"conv0": "unknown attribute"})
    with pytest.raises(TensorRTFailed) as found:
        build(trt, data=graph(opset=opset))
    assert advice in found.value.advice and bool(advice) == bool(found.value.advice)


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
    trt = fake_tensorrt("11.4.0", fails=["build"], logs={"build": said})
    with pytest.raises(TensorRTFailed) as found:
        build(trt, BuildOptions(precision="fp16", workspace_mib=workspace))
    assert re.search(advice, found.value.advice) and f"error: {said}" in found.value.lines


def test_a_driver_that_is_too_old_is_named_when_no_builder_can_be_made() -> None:
    said = "CUDA initialization failure with error: 35. Please check your CUDA installation"
    with pytest.raises(TensorRTFailed) as found:
        build(fake_tensorrt("11.4.0", fails=["builder"], logs={"builder": said}))
    assert "update the driver" in found.value.advice and f"error: {said}" in found.value.lines


@pytest.mark.parametrize("version", BOTH)
def test_a_limit_of_the_workspace_that_tensorrt_does_not_take(version: str) -> None:
    trt = fake_tensorrt(version)
    with pytest.raises(TensorRTFailed, match=r"workspace_mib is 9000, more than .* own limit is 8192$") as found:
        build(trt, BuildOptions(precision="fp16", workspace_mib=9000))
    assert found.value.lines == ["error: a limit of 9437184000 bytes is above the device's memory"]
    told = plan_of(build(fake_tensorrt(version), BuildOptions(precision="fp16", workspace_mib=8192)).plan)["config"]
    assert told["pools"] == {"WORKSPACE": 8192 << 20}


def test_files_and_bytes_that_are_no_graph(tmp_path: Path) -> None:
    trt = fake_tensorrt("10.3.0")
    with pytest.raises(InvalidInput, match="no such file"):
        build(trt, data=tmp_path / "absent.onnx")
    for data in (b"\x08", b"", b"no graph"):
        with pytest.raises(InvalidInput, match=r"no ONNX graph|has no nodes"):
            build(trt, data=data)
    assert trt.record.calls == [], "nothing of TensorRT is made for a graph that is refused"


def test_a_graph_that_does_not_fit_the_precision_never_reaches_tensorrt() -> None:
    trt = fake_tensorrt("11.4.0")
    with pytest.raises(InvalidInput, match=r"for fp16, but the graph has 1 of 1 .* another type \(first: 'conv0'\): 1 in fp32"):
        build(trt, FP16, graph(TensorProto.FLOAT))
    assert trt.record.calls == []


def test_dynamic_shapes_need_a_range_that_fits() -> None:
    data = graph(height="h")
    low, mid, high = (1, 3, 4, 8), (1, 3, 8, 8), (1, 3, 16, 8)
    with pytest.raises(InvalidInput, match=r"'image' has the dynamic shape \(1, 3, -1, 8\); give its range"):
        build(fake_tensorrt("10.3.0"), data=data)
    wrong = {
        r"shapes are given for \['picture'\], but the inputs are \['image'\]": ShapeRange("picture", low, mid, high),
        r"does not fit its shape \(1, 3, -1, 8\)": ShapeRange("image", low, (1, 3, 8, 9), (1, 3, 8, 9)),
        r"range \(1, 3\) to \(1, 3\) of input 'image' does not fit": ShapeRange("image", (1, 3), (1, 3), (1, 3)),
    }
    for message, entry in wrong.items():
        with pytest.raises(InvalidInput, match=message):
            build(fake_tensorrt("10.3.0"), BuildOptions(precision="fp16", shapes=(entry,)), data)
    result = build(fake_tensorrt("10.3.0"), BuildOptions(precision="fp16", shapes=(ShapeRange("image", low, mid, high),)), data)
    assert plan_of(result.plan)["config"]["profiles"] == [{"image": [list(low), list(mid), list(high)]}]


KERNELS = [f"kernel {step}" for step in range(STEPS)]


def test_a_timing_cache_is_written_for_this_machine_and_used_again(tmp_path: Path) -> None:
    path = cache_path(tmp_path, MACHINE)
    assert path.name == "trt-10.3.0_fake-gpu_sm86_driver-565.57.01.timing"
    assert build(fake_tensorrt("10.3.0"), timing_cache=tmp_path).notices == ()
    assert path.read_bytes() == cache_file("10.3.0", "Fake GPU", *KERNELS)
    path.write_bytes(cache_file("10.3.0", "Fake GPU", "kernel of an earlier build"))
    build(fake_tensorrt("10.3.0"), timing_cache=tmp_path)
    assert path.read_bytes() == cache_file("10.3.0", "Fake GPU", "kernel of an earlier build", *KERNELS)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{ truncated", r"reading the timing cache failed: error: the serialized cache is corrupt"),
        (cache_file("10.3.0", "Another GPU", "foreign"), r"using the timing cache failed: error: the cache is of Another GPU"),
    ],
)
def test_an_unusable_timing_cache_is_moved_aside_with_a_notice(content: bytes, reason: str, tmp_path: Path) -> None:
    path = cache_path(tmp_path, MACHINE)
    path.write_bytes(content)
    (notice,) = build(fake_tensorrt("10.3.0"), timing_cache=tmp_path).notices
    assert notice == f"the timing cache {path.name} cannot be used here and was moved to {path.name}.unusable ({reason})"
    assert path.with_name(f"{path.name}.unusable").read_bytes() == content
    assert path.read_bytes() == cache_file("10.3.0", "Fake GPU", *KERNELS)


def test_what_another_process_wrote_meanwhile_is_kept(tmp_path: Path) -> None:
    path = cache_path(tmp_path, MACHINE)
    for before in (None, cache_file("10.3.0", "Fake GPU", "old")):
        path.unlink(missing_ok=True) if before is None else path.write_bytes(before)
        trt = fake_tensorrt("10.3.0")
        trt.record.while_building = lambda: path.write_bytes(cache_file("10.3.0", "Fake GPU", "theirs"))
        assert build(trt, timing_cache=tmp_path).notices == ()
        old = [] if before is None else ["old"]
        assert path.read_bytes() == cache_file("10.3.0", "Fake GPU", "theirs", *old, *KERNELS)
    trt = fake_tensorrt("10.3.0", fails=["combine"])
    trt.record.while_building = lambda: path.write_bytes(cache_file("10.3.0", "Fake GPU", "theirs"))
    (notice,) = build(trt, timing_cache=tmp_path).notices
    assert "combining two timing caches failed" in notice and path.with_name(f"{path.name}.unusable").exists()


def test_an_engine_is_not_lost_to_its_timing_cache(tmp_path: Path) -> None:
    path = cache_path(tmp_path, MACHINE)
    (notice,) = build(fake_tensorrt("10.3.0", fails=["serialize"], logs={"serialize": "why"}), timing_cache=tmp_path).notices
    assert notice.startswith(f"the timing cache {path.name} was not written: writing the timing cache failed") and "why" in notice
    trt = fake_tensorrt("10.3.0")
    trt.record.while_building = lambda: path.mkdir()
    (notice,) = build(trt, timing_cache=tmp_path).notices
    assert "was not written" in notice and "directory" in notice


def test_progress_names_phases_from_the_outermost(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    build(fake_tensorrt("10.3.0"), progress=lambda *state: seen.append(state))
    inner = [("Building > Timing kernels", done, STEPS) for done in range(STEPS + 1)]
    assert seen == [("Building", 0, 1), *inner, ("Building", 1, 1)]


@pytest.mark.parametrize("version", BOTH)
def test_what_progress_raises_ends_the_build_and_arrives(version: str, tmp_path: Path) -> None:
    class Mine(BaseException):
        pass

    def progress(text: str, done: int, total: int) -> None:
        calls.append(done)
        if done == 2:
            raise Mine

    calls: list[int] = []
    trt = fake_tensorrt(version)
    with pytest.raises(Mine):
        build(trt, timing_cache=tmp_path, progress=progress)
    assert calls == [0, 0, 1, 2], "after it, nothing is reported"
    assert cache_path(tmp_path, MACHINE).read_bytes() == cache_file(version, "Fake GPU", *KERNELS[:2]), "what was timed is kept"


def test_ctrl_c_ends_the_build_and_the_handler_is_back(tmp_path: Path, usual_signals: None) -> None:
    before = signal.getsignal(signal.SIGINT)
    trt = fake_tensorrt("10.3.0")
    trt.record.while_building = lambda: os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        build(trt, timing_cache=tmp_path)
    assert signal.getsignal(signal.SIGINT) is before
    kept = cache_path(tmp_path, MACHINE).read_bytes()
    assert kept == cache_file("10.3.0", "Fake GPU", *KERNELS[: STEPS // 2 + 1]), "the step at hand was the last"


@pytest.mark.parametrize("step", ["builder", "parse", "serialize"])
@pytest.mark.parametrize("fails", [False, True])
def test_ctrl_c_is_not_lost_before_and_after_the_build(
    step: str, fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, usual_signals: None
) -> None:
    """TensorRT logs from all its calls, and what is raised in a logger is lost."""

    def heard(_severity: str, text: str) -> None:
        if text.startswith(step):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(MESSAGES, "listener", heard)
    trt = fake_tensorrt("10.3.0", fails=[step] if fails else [], logs={step: f"{step} failed"})
    with pytest.raises(KeyboardInterrupt):
        build(trt, timing_cache=tmp_path)


def test_a_cancelled_build_is_still_cancelled_when_its_cache_cannot_be_written(tmp_path: Path, usual_signals: None) -> None:
    trt = fake_tensorrt("10.3.0", fails=["serialize"])
    trt.record.while_building = lambda: os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        build(trt, timing_cache=tmp_path)
    assert trt.record.calls[-1] == "serialize"


def test_a_process_that_ignores_ctrl_c_goes_on_ignoring_it() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        trt = fake_tensorrt("10.3.0")
        trt.record.while_building = lambda: os.kill(os.getpid(), signal.SIGINT)
        assert build(trt).plan
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_builds_run_in_other_threads_too() -> None:
    results: list[BuildResult] = []
    thread = threading.Thread(target=lambda: results.append(build(fake_tensorrt("11.4.0"))))
    thread.start()
    thread.join()
    assert len(results) == 1


def test_the_manifest_holds_what_was_built(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(graph(TensorProto.FLOAT))
    result = build(fake_tensorrt("10.3.0"))
    manifest = result.manifest(MACHINE, file, "rebuild it", parity={"passed": True}, latency={"median_ms": 1.5})
    assert manifest.engine_sha256 == result.sha256 and manifest.size_bytes == len(result.plan)
    assert (manifest.onnx, manifest.onnx_sha256) == ("model.onnx", hashlib.sha256(file.read_bytes()).hexdigest())
    assert manifest.graph_sha256 == result.graph_sha256 != manifest.onnx_sha256
    assert BuildOptions.from_json(manifest.options) == FP16 and manifest.precision == "fp16"
    assert (manifest.attention, manifest.parity, manifest.latency) == ({}, {"passed": True}, {"median_ms": 1.5})


def test_without_a_gpu_nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable() -> None:
        raise Unavailable("tensorrt", "no GPU", "buy one")

    monkeypatch.setattr(build_module, "import_tensorrt", unavailable)
    with pytest.raises(Unavailable, match="no GPU"):
        build_engine(graph(), FP16)


OTHER_NAMES = {"MonitorLike": "IProgressMonitor", "ParserLike": "OnnxParser", "ProfileLike": "OptimizationProfile"}


@pytest.mark.parametrize("protocol", api_build.REAL)
def test_fakes_have_what_the_protocols_ask_for(protocol: str) -> None:
    fake = OTHER_NAMES.get(protocol, protocol.removesuffix("Like"))
    wanted, made = getattr(api_build, protocol), getattr(fakes_build, fake)
    names = {name for name in (*vars(wanted), *wanted.__annotations__) if not name.startswith("_")}
    assert names
    for name in names:
        ours = vars(wanted).get(name)
        if not inspect.isfunction(ours):
            assert hasattr(made, name) or f"self.{name}" in inspect.getsource(made), f"{fake} has no {name}"
            continue
        count = len(inspect.signature(ours).parameters)
        inspect.signature(getattr(made, name)).bind(*range(count))  # raises TypeError where arguments do not fit


def test_our_subclasses_and_the_fakes_numbers_are_right_under_the_real_bindings(bindings: Bindings) -> None:
    """What runs inside TensorRT's own classes, in a process of its own, on every release that we hold code against."""
    found = bindings.call("tests.export.trt.fakes_build:facts")
    assert found["is_logger"] and found["is_monitor"]
    assert found["lines"] == ["internal error: said INTERNAL_ERROR", "error: said ERROR", "warning: said WARNING"]
    assert found["seen"] == [["outer", 0, 2], ["outer > inner", 0, 3], ["outer > inner", 1, 3]] and found["going"] == [True, False]
    fake: Any = fake_tensorrt(bindings.release.version)
    assert found["network_flags"] == {"10.3.0": [2], "10.16.1": [2, 10], "11.4.0": [1, 5]}[bindings.release.version]
    for name in ("NetworkDefinitionCreationFlag", "BuilderFlag", "MemoryPoolType", "ProfilingVerbosity", "ErrorCode"):
        numbers = {member: int(value) for member, value in getattr(fake, name).__members__.items()}
        assert numbers.items() <= found[name].items(), name
    assert set(fake.NetworkDefinitionCreationFlag.__members__) == set(found["NetworkDefinitionCreationFlag"])
    assert ("FP16" in found["BuilderFlag"]) == ("FP16" in fake.BuilderFlag.__members__)
    assert found["code"] == str(fake.ErrorCode.UNSUPPORTED_NODE)

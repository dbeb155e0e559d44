"""NVIDIA's parser and builder take what we write (TensorRT-RTX, no GPU): cases of the matrix that `make tensorrt` builds whole.

Each case is built in a process of its own: a failed build can change what the next one gives.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks.tensorrt_case import Built, build_all, build_one
from benchmarks.tensorrt_matrix import BODIES, alone, chosen, graphs, in_types, matrix_table, networks, with_attention
from export.errors import CheckFailed, CorruptFile, InvalidInput, Unavailable
from export.runtimes import available_targets
from export.target import Target
from export.trt import engine_precision as precision
from export.trt import rtx, versions
from export.trt.attention_case import AttentionCase
from export.trt.build import build_engine
from export.trt.cuda import guard
from export.trt.engine_file import (
    UNPROVEN,
    EngineRefused,
    Machine,
    named_machine,
    needs_rebuild,
    read_engine,
    read_manifest,
    save_engine,
)
from export.trt.from_onnx import main as from_onnx
from export.trt.log import TensorRTFailed
from export.trt.options import BuildOptions
from export.trt.proof import is_proven, prove
from tests.export import foreign_files as foreign
from tests.export.trt.rtx_builds import CAPABILITY, graph, module, needs_rtx, options

SIZE = (96, 128)
CHOSEN: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "edge:lite0-16": (["standard"], ["fp32", "fp16", "bf16", "mixed"]),
    "edge:resnet-w50": (["standard"], ["fp32"]),
    "edge:plain-w75": (["standard"], ["fp16"]),
    "edge:two-branch-w50": (["standard"], ["bf16"]),
    "edge:hyctas-w50": (["chosen"], ["fp16", "mixed"]),
    "edge:lite0-16-attention-w50": (["chosen"], ["bf16"]),
    "published:S": (["chosen"], ["fp16"]),
    "tiny sample 194": (["standard"], ["fp32", "bf16"]),
}
"""Network: with which attention, in which precisions. All of them, and M and L, are in the matrix."""
SINGLE = AttentionCase(1, 1, 16, 32, 345, 345, "float16", 0.5)


@pytest.mark.slow
@needs_rtx
@pytest.mark.parametrize("name", CHOSEN)
def test_networks_are_parsed_and_built(name: str, tmp_path: Path) -> None:
    bodies, precisions = CHOSEN[name]
    cases = list(graphs(networks()[name], SIZE, tmp_path, bodies, precisions))
    assert len(cases) == len(precisions)
    for (kind, body, _), made in zip(cases, built(cases), strict=True):
        assert made.error == "" and made.size_bytes > 0 and made.layers > 0
        half = kind != "fp32" and body == "chosen" and name != "published:S"  # S has a head of 427 channels
        assert made.fused <= made.softmaxes and (not half or made.fused == made.softmaxes > 0)


def built(cases: Sequence[tuple[str, str, Path]]) -> list[Built]:
    return build_all([(file, {"precision": kind, "capabilities": [CAPABILITY]}) for kind, _, file in cases])


@needs_rtx
@pytest.mark.parametrize("wanted", ["fp32", "fp16", "bf16"])
def test_attention_in_every_form_is_built(wanted: str, tmp_path: Path) -> None:
    """Alone, with an odd number of queries; of one head `padded` stays in pieces, `grouped` is one kernel."""
    kind = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[wanted]
    cases = []
    for body in ("plain", "padded", "grouped", "chunked"):
        found = with_attention(alone(AttentionCase(1, 1, 16, 32, 345, 345, kind, 0.5)), body)
        assert found is not None and body in BODIES
        onnx.save(found, tmp_path / f"{body}.onnx")
        cases.append((wanted, body, tmp_path / f"{body}.onnx"))
    fused = {body: made.fused for (_, body, _), made in zip(cases, built(cases), strict=True) if not made.error}
    assert fused == {"plain": 0, "padded": 0, "grouped": int(wanted != "fp32"), "chunked": 0}


@needs_rtx
def test_refusals_are_the_builders_own(tmp_path: Path) -> None:
    file = tmp_path / "plugin.onnx"
    file.write_bytes(graph(name="SelfAttention_d8_e64"))
    assert "Plugin not found" in build_one(file, options().to_json()).error
    onnx.save(with_attention(alone(AttentionCase(1, 1, 16, 32, 64, 64, "float32", 0.5)), "plain"), file)
    turing = options("fp32", capabilities=(75,)).to_json()
    assert "computes no attention in fp32 on sm_75" in build_one(file, turing).error, "said before the build"
    assert "FP32 GEMM is not supported" in build_one(file, turing, checked=False).error


@needs_rtx
def test_quantised_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Symmetric, without a quantised bias: our own check says so first, and the parser agrees."""
    assert build_engine(quantised(False, 0), options("int8")).plan
    for data, ours, theirs in (
        (quantised(True, 0), "to another type than int8", "has type Int32 but must have type"),
        (quantised(False, 3), "zero point other than 0", "Non-zero zero point is not supported"),
    ):
        with pytest.raises(InvalidInput, match=ours):
            build_engine(data, options("int8"))
        with monkeypatch.context() as patch:
            patch.setattr(precision, "check_graph", lambda model, wanted: {})
            with pytest.raises(TensorRTFailed, match=theirs):
                build_engine(data, options("int8"))


def quantised(bias: bool, zero: int) -> bytes:
    """Return a convolution with quantised inputs."""
    constants = {"s": np.float32(0.1), "z": np.int8(zero), "w": np.ones((4, 3, 1, 1), np.int8), "b": np.ones(4, np.int32)}
    constants |= {"bz": np.int32(0)}
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["x"]),
        helper.make_node("DequantizeLinear", ["w", "s"], ["v"]),
        helper.make_node("DequantizeLinear", ["b", "s", "bz"], ["c"]),
        helper.make_node("Conv", ["x", "v", "c"] if bias else ["x", "v"], ["y"]),
    ]
    if not bias:
        del nodes[3], constants["b"], constants["bz"]
    image, y = foreign.info("image", [1, 3, 8, 8]), foreign.info("y", [1, 4, 8, 8])
    held = {name: np.array(value) for name, value in constants.items()}
    return bytes(foreign.model(nodes, [image], [y], held).SerializeToString())


@needs_rtx
@pytest.mark.parametrize(
    ("case", "implementation"),
    [
        (SINGLE, "grouped"),
        (AttentionCase(1, 1, 16, 32, 2760, 24, "bfloat16", 0.5), "grouped"),  # few keys: the kernels have other names
        (AttentionCase(1, 2, 4, 6, 300, 75, "float16", 1.0), "fused"),
        (AttentionCase(1, 1, 16, 64, 10800, 2700, "float16", 1.0), "fused"),
        (AttentionCase(1, 1, 16, 300, 64, 64, "float16", 1.0), "decomposed"),
        (AttentionCase(1, 1, 16, 32, 64, 64, "float32", 1.0), "decomposed"),
    ],
)
def test_the_builder_is_asked_which_attention_it_fuses(case: AttentionCase, implementation: str) -> None:
    found, reason, refused = chosen(case)
    assert found == implementation and (reason == "nothing is fused into one kernel") == (implementation == "decomposed")
    if implementation == "decomposed":
        assert {"fused", "grouped"} <= set(refused)


def test_the_matrix_is_a_table() -> None:
    rows = [
        {"network": "n", "precision": "fp16", "attention": "chosen", **asdict(Built(error="", softmaxes=3, fused=2))},
        {"network": "n", "precision": "fp16", "attention": "plain", **asdict(Built(error="no"))},
        {"network": "n", "precision": "fp32", "attention": "plain", **asdict(Built(error=""))},
    ]
    lines = matrix_table(rows).splitlines()
    assert lines[0] == "| network | precision | chosen | plain |"
    assert lines[2:] == ["| n | fp16 | built 2/3 | refused |", "| n | fp32 |  | built |"]


def test_capabilities() -> None:
    assert rtx.capabilities("sm_120,sm_86, SM89") == (86, 89, 120)
    for text, words in {"sm_90": "'sm_90' is no compute capability that TensorRT-RTX builds for; it has sm_75", "": "''",
                        "sm_86,sm_86": "twice", "8.6": "'8.6'"}.items():  # fmt: skip
        with pytest.raises(InvalidInput, match=words):
            rtx.capabilities(text)
    for wanted, words in {
        BuildOptions(precision="fp16"): "the GPUs that the engine is for are not named",
        BuildOptions(precision="bf16", capabilities=(75,)): "sm_75 has no bf16",
        BuildOptions(precision="fp32", capabilities=(75, 86)): "no attention in fp32 on sm_75",
    }.items():  # fmt: skip
        with pytest.raises(InvalidInput, match=words):
            rtx.check_buildable(wanted, attention=True)
    rtx.check_buildable(BuildOptions(precision="fp32", capabilities=(75,)), attention=False)
    rtx.check_gpu((8, 9))
    with pytest.raises(Unavailable, match="here is sm_90"):
        rtx.check_gpu((9, 0))


@needs_rtx
def test_its_numbers_are_not_compared_with_tensorrts() -> None:
    trt = module()
    assert versions.is_rtx(trt) and versions.version_of(trt)[0] == 1 and not versions.has_plugins(trt)
    assert versions.newest_opset(trt) == versions.RTX_OPSET
    for name in ("create_runtime_cache", "set_runtime_cache"):
        assert hasattr(trt.IRuntimeConfig, name)
    assert {"serialize", "deserialize"} <= set(dir(trt.IRuntimeCache)) and hasattr(trt.ICudaEngine, "create_runtime_config")


@needs_rtx
def test_without_a_gpu_the_target_says_that_it_builds_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_gpu(index: int = 0) -> None:
        raise Unavailable("tensorrt", "NVIDIA's driver is not there", "a GPU")

    monkeypatch.setattr(guard, "require_gpu", no_gpu)
    found = next(state for state in available_targets() if state.target == "tensorrt-rtx:fp16")
    assert not found.ok and "its builder is here, and builds engines for other machines" in found.reason
    assert "exported here, for tensorrt-rtx:fp16" in found.install


def test_where_it_is_not_installed_the_install_line_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtx, "MODULES", ("tensorrt_rtx_that_is_not_there",))
    with pytest.raises(Unavailable, match="tensorrt-rtx is not installed") as found:
        rtx.import_rtx()
    assert "tensorrt-rtx-cu13-libs==" in found.value.install or "no wheels for" in found.value.install


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """Build an engine for GPUs that are not here, from its ONNX file, as a device's user does."""
    onnx_file = tmp_path / "model.onnx"
    onnx_file.write_bytes(graph(TensorProto.FLOAT))
    assert from_onnx([str(onnx_file), "--precision", "fp16", "--gpu", "sm_86,sm_89"]) == 0
    return tmp_path / "model.engine"


HERE = Machine("1.7.1.116", "13.0", "580.1", "GeForce RTX 4090", (8, 9), "Linux-x86_64", "tensorrt-rtx")


@needs_rtx
def test_an_engine_for_other_machines_and_its_manifest(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert UNPROVEN["reason"] == "parity not proven: not run on a GPU"
    manifest = read_manifest(engine)
    assert manifest is not None and manifest.target == "tensorrt-rtx:fp16" and manifest.parity == UNPROVEN
    assert json.loads(engine.with_name("model.engine.json").read_text())["machine"]["capability"] == "8.6,8.9"
    here = Machine(manifest.machine.tensorrt, *(getattr(HERE, name) for name in ("cuda", "driver", "gpu", "capability")),
                   manifest.machine.system, "tensorrt-rtx")  # fmt: skip
    assert read_engine(engine, here).manifest == manifest and not is_proven(manifest, here)
    others: dict[str, dict[str, Any]] = {
        "capability": {"capability": (12, 0)}, "runtime": {"runtime": "tensorrt"}, "tensorrt": {"tensorrt": "1.8.0.1"},
        "system": {"system": "Windows-AMD64"},
    }  # fmt: skip
    for field, change in others.items():
        with pytest.raises(EngineRefused) as found:
            read_engine(engine, Machine(**{**asdict(here), **change}))
        assert found.value.field == field
    assert needs_rebuild(engine, named_machine(module(), (86, 89))) is None
    assert from_onnx([str(engine)]) == 0 and "fits this machine; nothing to do" in capsys.readouterr().out
    engine.write_bytes(b"damaged")
    assert from_onnx([str(engine)]) == 0 and read_manifest(engine) == manifest


@needs_rtx
def test_parity_is_proven_where_the_engine_first_runs(engine: Path) -> None:
    """The session stands in for the engine's: ONNX Runtime's on the same file, right and wrong."""
    from export.backends.onnxruntime_session import OnnxRuntime

    manifest = read_manifest(engine)
    assert manifest is not None
    source = engine.with_name("model.onnx")
    with OnnxRuntime(Target("onnxruntime-cpu", "fp32")).load_file(source) as session:
        proven = prove(session, engine, manifest, HERE)
        assert proven == read_manifest(engine) and is_proven(proven, HERE)
        assert proven.parity is not None and proven.parity["gpu"] == HERE.gpu and proven.parity["driver"] == "580.1"
        assert not is_proven(proven, Machine(**{**asdict(HERE), "gpu": "GeForce RTX 3090"})), "proven per GPU"
        run = session.run
        session.run = lambda feeds: [output * 2 for output in run(feeds)]  # type: ignore[method-assign]
        with pytest.raises(CheckFailed, match=r"is not what model\.onnx computes on this GPU"):
            prove(session, engine, manifest, HERE)
        source.write_bytes(b"another")
        with pytest.raises(EngineRefused, match="which would prove it, is another file now"):
            prove(session, engine, manifest, HERE)


@needs_rtx
def test_a_damaged_manifest_and_a_plan_that_is_another(engine: Path) -> None:
    manifest = read_manifest(engine)
    assert manifest is not None
    with pytest.raises(InvalidInput, match="names another engine"):
        save_engine(engine, b"other", manifest)
    engine.with_name("model.engine.json").write_text("{}")
    with pytest.raises(CorruptFile):
        read_manifest(engine)


class FakeCache:
    """A runtime cache: loading one needs a GPU."""

    def __init__(self) -> None:
        self.data = b""

    def deserialize(self, data: bytes) -> bool:
        self.data = data
        return data.startswith(b"good")

    def serialize(self) -> bytes:
        return b"good kernels"


class FakeEngine:
    """Both the engine and its runtime configuration."""

    def create_runtime_config(self) -> FakeEngine:
        return self

    def create_runtime_cache(self) -> FakeCache:
        return FakeCache()

    def set_runtime_cache(self, cache: FakeCache) -> bool:
        return True


def test_the_runtime_cache_is_one_per_gpu_and_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = rtx.own_cache_path(SimpleNamespace(__name__="tensorrt_rtx"), HERE)
    assert path is not None and rtx.own_cache_path(SimpleNamespace(__name__="tensorrt"), HERE) is None
    assert path.name == "rtx-1.7.1.116_geforce-rtx-4090_sm89_driver-580.1.jit"
    first = rtx.RuntimeCache(FakeEngine(), path)
    assert not first.loaded and first.store() == "" and rtx.RuntimeCache(FakeEngine(), path).loaded
    path.write_bytes(b"foreign")
    again = rtx.RuntimeCache(FakeEngine(), path)
    assert not again.loaded and again.store() == "" and path.read_bytes() == b"good kernels"
    path.unlink()
    path.mkdir()
    path.joinpath("x").touch()
    assert "was not written" in rtx.RuntimeCache(FakeEngine(), path).store()
    assert in_types(onnx.ModelProto.FromString(graph(TensorProto.FLOAT)), "mixed").graph.node

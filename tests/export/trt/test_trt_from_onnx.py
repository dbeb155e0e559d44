"""`python -m export.trt.from_onnx`: engines from ONNX files, and engines built anew, with ONNX Runtime as the judge."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from export.bundle.manifest import read_manifest as read_bundle_manifest
from export.bundle.manifest import verify, write_manifest
from export.files import sha256
from export.trt import from_onnx
from export.trt.cuda import guard
from export.trt.engine_file import EngineManifest, manifest_path, read_manifest
from export.trt.from_onnx import Shown, main
from export.trt.options import BuildOptions
from export.trt.runner import open_engine
from tests.export import foreign_files as foreign
from tests.export.trt.a_device import BECOME
from tests.export.trt.fakes_engines import FakeBuilder
from tests.export.trt.fakes_run import SHAPE, Rig, make_rig
from tests.export.trt.test_trt_torch_free import python_3_10_errors

pytest.importorskip("onnxruntime")
ROOT = Path(__file__).parents[3]
DOUBLING = np.full((3, 1, 1, 1), 2, np.float32)


def write_network(path: Path, weights: np.ndarray = DOUBLING) -> Path:
    """Write a convolution of each channel by itself, which doubles its input: what the fake TensorRT's engines compute."""
    conv = helper.make_node("Conv", ["image", "w"], ["native"], name="conv", group=3)
    return foreign.save(path, [conv], [foreign.info("image", SHAPE)], [foreign.info("native", SHAPE)], {"w": weights})


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    """Give a machine with a fake TensorRT, where every engine doubles its input."""
    made = make_rig(monkeypatch, "11.4.0")
    monkeypatch.setattr(from_onnx, "open_backend", lambda name: made.backend)
    monkeypatch.setattr(from_onnx, "SECONDS", 0.01)
    monkeypatch.setattr("export.trt.run.WARM_UP_S", 0.0)
    return made


@pytest.fixture
def builder(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> FakeBuilder:
    made = FakeBuilder(rig)
    monkeypatch.setattr(from_onnx, "build_engine", made)
    return made


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return write_network(tmp_path / "model.onnx")


def without_times(engine: Path) -> EngineManifest:
    """Return an engine's manifest without what differs from run to run."""
    manifest = read_manifest(engine)
    assert manifest is not None and manifest.latency is not None
    return replace(manifest, latency=None)


@pytest.mark.parametrize("precision", [None, "fp32", "fp16", "bf16", "mixed"])
def test_an_engine_and_its_manifest(
    network: Path, rig: Rig, builder: FakeBuilder, precision: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if precision == "bf16":  # the exporter writes such graphs in operator set 22 from the first
        model = onnx.load(network)
        model.opset_import[0].version = 22
        onnx.save(model, network)
    assert main([str(network), *(["--precision", precision] if precision else [])]) == 0
    engine = network.with_suffix(".engine")
    manifest = read_manifest(engine)
    assert manifest is not None and manifest.precision == (precision or "fp16") and manifest.engine_sha256 == sha256(engine)
    assert (manifest.onnx, manifest.onnx_sha256) == ("model.onnx", sha256(network))
    assert manifest.options == BuildOptions.release(precision or "fp16").to_json()
    assert manifest.parity is not None and manifest.parity["passed"] and manifest.parity["against"] == "model.onnx"
    assert manifest.latency is not None and manifest.latency["median_ms"] == 0.25
    assert manifest.command == "python3 -m export.trt.from_onnx model.engine"
    told = capsys.readouterr().out
    assert f"build model.engine: {precision or 'fp16'}" in told and f"wrote {engine} and model.engine.json" in told
    assert f"next: python3 -m export.trt.run {engine}" in told and "note: the timing cache was new" in told
    stored = {tensor.data_type for tensor in builder.graphs[0].graph.initializer}
    assert stored == {{"fp32": TensorProto.FLOAT, "bf16": TensorProto.BFLOAT16}.get(precision or "fp16", TensorProto.FLOAT16)}
    assert rig.gpu.leaks() == []


def test_an_engine_that_is_wrong_is_not_written(
    tmp_path: Path, rig: Rig, builder: FakeBuilder, capsys: pytest.CaptureFixture[str]
) -> None:
    network = write_network(tmp_path / "model.onnx", DOUBLING * 1.5)
    assert main([str(network)]) == 1
    told = capsys.readouterr().err
    assert "the engine is not written: parity of 'native'" in told and told.rstrip().endswith("take mixed, bf16 or fp32")
    assert os.listdir(tmp_path) == ["model.onnx"] and builder.graphs and rig.gpu.leaks() == []


def test_an_engine_is_built_anew_where_it_does_not_fit(
    network: Path, rig: Rig, builder: FakeBuilder, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = network.with_suffix(".engine")
    assert main([str(network), "--precision", "fp32", "--preset", "search", "--workspace-mib", "64"]) == 0
    first = read_manifest(engine)
    assert first is not None
    capsys.readouterr()
    assert main([str(engine)]) == 0
    assert "model.engine fits this machine; nothing to do" in capsys.readouterr().out and len(builder.graphs) == 1

    beside = json.loads(manifest_path(engine).read_text())
    beside["machine"]["gpu"] = "NVIDIA Orin"
    beside["options"]["plugins"] = True  # of an engine that hyctas-export built
    manifest_path(engine).write_text(json.dumps(beside))
    assert main([str(engine)]) == 0
    told = capsys.readouterr().out
    assert "model.engine: it was built for GPU NVIDIA Orin, and here is GPU" in told and len(builder.graphs) == 2
    assert without_times(engine) == replace(first, latency=None) and first.options["workspace_mib"] == 64

    engine.write_bytes(b"broken")
    assert main([str(engine)]) == 0 and "its content (sha256" in capsys.readouterr().out
    engine.unlink()
    assert main([str(engine)]) == 0 and "no such engine" in capsys.readouterr().out
    assert without_times(engine) == replace(first, latency=None) and rig.gpu.leaks() == []


def test_the_manifest_of_a_bundle_lists_what_is_built_in_it(network: Path, builder: FakeBuilder) -> None:
    bundle = network.parent
    write_manifest(bundle, target="tensorrt:fp16", size=(4, 6), output="native", extra={})

    def listed() -> set[str]:
        manifest = read_bundle_manifest(bundle)
        verify(bundle, manifest)
        return set(manifest.files)

    whole = {"model.onnx", "model.engine", "model.engine.json"}
    assert main([str(network)]) == 0 and listed() == whole
    network.with_suffix(".engine").unlink()
    assert main([str(network.with_suffix(".engine"))]) == 0 and listed() == whole
    assert main([str(network), "--precision", "fp32"]) == 0 and listed() == whole
    (bundle / "manifest.json").write_text('{"name": "of something else"}')
    assert main([str(network)]) == 0 and (bundle / "manifest.json").read_text() == '{"name": "of something else"}'


def test_what_it_refuses(network: Path, builder: FakeBuilder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: object) -> str:
        assert main([*map(str, arguments)]) == 2
        return capsys.readouterr().err

    engine = network.with_suffix(".engine")
    assert "no such file" in refused(tmp_path / "none.onnx")
    assert "give an .onnx file to build from, or an .engine file" in refused(tmp_path / "model.pt2")
    assert f"no such engine: {engine}, and no manifest of one (model.engine.json)" in refused(engine)
    engine.write_bytes(b"mine")
    assert "it has no manifest (model.engine.json)" in refused(engine)
    assert "model.engine exists and was not written by this command" in refused(network)
    assert engine.read_bytes() == b"mine" and builder.graphs == []
    engine.unlink()
    assert main([str(network)]) == 0
    assert "is rebuilt as its manifest says; leave out --precision" in refused(engine, "--precision", "fp16")
    beside = json.loads(manifest_path(engine).read_text())
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"precision": "fp32"}, "says fp16, and fp32"), ({"level": 9}, "level is 9"), ({"odd": 1}, "unknown"),
        ({"workspace_mib": 1.5}, "workspace_mib is 1.5; allowed: an integer"),
        ({"tf32": "yes"}, "tf32 is 'yes'; allowed: true or false"),
    )  # fmt: skip
    for options, reason in wrong:
        changed = {**beside, "options": {**beside["options"], **options}, "machine": {**beside["machine"], "gpu": "other"}}
        manifest_path(engine).write_text(json.dumps(changed))
        assert reason in refused(engine)
    for text, reason in (("{", "not valid JSON"), ("[" * 100_000, "model.engine.json"), ("9" * 5000, "model.engine.json")):
        manifest_path(engine).write_text(text)
        assert reason in refused(engine)
    assert "(no model.engine.json beside it that can be read)" in refused(network)
    engine.unlink()
    manifest_path(engine).unlink()
    network.write_bytes(b"no onnx")
    assert "model.onnx" in refused(network)


@pytest.mark.parametrize(
    ("inputs", "output", "nodes"),
    [
        ({"a": TensorProto.FLOAT, "b": TensorProto.FLOAT}, (TensorProto.FLOAT, SHAPE), [("Add", ["a", "b"], {})]),
        ({"a": TensorProto.FLOAT16}, (TensorProto.FLOAT16, SHAPE), [("Relu", ["a"], {})]),
        ({"a": TensorProto.UINT8}, (TensorProto.FLOAT, SHAPE), [("Cast", ["a"], {"to": 1})]),
        ({"a": TensorProto.FLOAT}, (TensorProto.BOOL, SHAPE), [("Cast", ["a"], {"to": 9})]),
        ({"a": TensorProto.FLOAT}, (TensorProto.FLOAT, ()), [("ReduceSum", ["a"], {"keepdims": 0})]),
    ],
)
@pytest.mark.parametrize("precision", ["fp16", "mixed"])
def test_what_parity_cannot_judge_is_refused_before_it_is_built(
    tmp_path: Path, builder: FakeBuilder, capsys: pytest.CaptureFixture[str], precision: str,
    inputs: dict[str, int], output: tuple[int, tuple[int, ...]], nodes: list[Any],
) -> None:  # fmt: skip
    made = [helper.make_node(kind, names, ["y"], **attributes) for kind, names, attributes in nodes]
    given = [foreign.info(name, SHAPE, kind) for name, kind in inputs.items()]
    foreign.save(tmp_path / "m.onnx", made, given, [foreign.info("y", output[1], output[0])])
    assert main([str(tmp_path / "m.onnx"), "--precision", precision]) == 2
    assert "parity needs one float32 input, and one output of floats" in capsys.readouterr().err
    assert builder.graphs == []


def test_a_folder_that_is_not_writable_is_refused_before_anything_is_built(
    network: Path, builder: FakeBuilder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != network.parent)
    assert main([str(network)]) == main([str(network.with_suffix(".engine"))]) == 2
    assert "you may not write there" in capsys.readouterr().err and builder.graphs == []


def test_a_full_disk_keeps_what_was_there(
    network: Path, builder: FakeBuilder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = network.with_suffix(".engine")
    assert main([str(network)]) == 0
    before = {path.name: path.read_bytes() for path in network.parent.iterdir()}

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(engine))

    monkeypatch.setattr(os, "fsync", full)
    assert main([str(network), "--precision", "fp32"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in network.parent.iterdir()} == before


def test_ctrl_c_and_failures_of_the_builder(
    network: Path, builder: FakeBuilder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    builder.fails = lambda model: True
    assert main([str(network)]) == 2
    assert "could not find any implementation" in capsys.readouterr().err

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(from_onnx, "build_engine", interrupted)
    assert main([str(network)]) == 130
    assert "stopped; nothing was written" in capsys.readouterr().err and os.listdir(network.parent) == ["model.onnx"]


def test_progress_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Shown()
    for done in range(3):
        shown("Building > Tactics", done, 3)
    shown("Writing", 0, 1)
    assert capsys.readouterr().err.splitlines() == ["Building", "Writing"]


ABSENT = ("torch", "onnxscript", "PIL", "tyro", "rich", "pycuda", "hyctas", "latency", "pytest", "sympy")
"""What a device does not have, or does not need."""
ON_A_DEVICE = f"""{BECOME}
from export.trt import from_onnx
from tests.export.trt.fakes_engines import FakeBuilder

from_onnx.build_engine, from_onnx.SECONDS = FakeBuilder(Rig(gpu, trt, None)), 0.01
tell(from_onnx.main([sys.argv[2]]))
"""


def test_it_runs_without_what_a_device_lacks_and_is_python_3_10(network: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", ON_A_DEVICE, json.dumps(ABSENT), str(network)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["code"], found["leaks"], found["present"]) == (0, [], [])
    assert read_manifest(network.with_suffix(".engine")) is not None
    assert {"export.trt.from_onnx", "export.trt.engine_precision", "export.parity"} <= set(found["modules"])
    assert python_3_10_errors(tmp_path, [*found["modules"], "export.trt.mixed"]) == []


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_on_a_gpu(network: Path, precision: str, capsys: pytest.CaptureFixture[str]) -> None:
    if (why := guard.unavailable_reason()) is not None:
        pytest.skip("; ".join(why))
    engine = network.with_suffix(".engine")
    assert main([str(network), "--precision", precision, "--preset", "search"]) == 0, capsys.readouterr().err
    beside = json.loads(manifest_path(engine).read_text())
    beside["machine"]["gpu"] = "another"
    manifest_path(engine).write_text(json.dumps(beside))
    assert main([str(engine)]) == 0, capsys.readouterr().err
    assert "it was built for GPU another" in capsys.readouterr().out
    with open_engine(engine) as session:
        x = np.random.default_rng(0).standard_normal(SHAPE, np.float32)
        np.testing.assert_allclose(session.run({"image": x})[0], 2 * x, atol=1e-2)

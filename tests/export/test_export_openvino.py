"""OpenVINO on the CPU: fp32 and bf16 against PyTorch, settings read back, refusals. Skips where openvino is not installed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from export import check_parity, export_onnx
from export.backends import openvino_session
from export.backends.openvino_session import OpenVinoRuntime, unavailable_reason
from export.errors import InvalidInput, Unavailable
from export.onnx.exporter import export_modules
from export.runtimes import open_runtime
from export.target import Target
from hyctas.network import build
from hyctas.space import tiny
from tests.export import foreign_files as foreign
from tests.export.test_export_sessions import block

pytestmark = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="the package openvino is not installed")
ROOT = Path(__file__).parents[2]
FP32, BF16 = Target("openvino-cpu", "fp32"), Target("openvino-cpu", "bf16")
BF16_TOLERANCE = 0.15
"""Of the standard deviation; the worst of eight random networks was 0.07."""


def need(target: Target) -> None:
    if (why := unavailable_reason(target)) is not None:
        pytest.skip(why[0])


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[nn.Module, Path]]:
    """Two random networks, one of them with labels as its output."""
    found, folder = [], tmp_path_factory.mktemp("networks")
    for seed, output in ((353, "native"), (333, "labels")):
        torch.manual_seed(seed)
        network = build(tiny().sample(np.random.default_rng(seed)), 5).eval()
        found.append((network, export_onnx(network, (64, 96), folder / f"{output}.onnx", output=output).path))
    return found


@pytest.mark.parametrize(("target", "tolerance", "agreement"), [(FP32, 1e-3, 0.999), (BF16, BF16_TOLERANCE, 0.9)], ids=str)
def test_parity_of_tiny_networks(
    networks: list[tuple[nn.Module, Path]], target: Target, tolerance: float, agreement: float
) -> None:
    need(target)
    for network, path in networks:
        with OpenVinoRuntime(target).load_file(path) as session:
            report = check_parity(network, session, count=1, tolerance=tolerance, min_agreement=agreement)
            assert report.passed, report.summary()


@pytest.mark.parametrize("target", [FP32, BF16], ids=str)
def test_computes_in_the_precision_asked_for(target: Target, tmp_path: Path) -> None:
    """Left alone, OpenVINO takes bf16 on every CPU that can."""
    need(target)
    (path,) = export_modules([block()], tmp_path, ["m"])
    with OpenVinoRuntime(target).load_file(path) as session:
        nodes = session._compiled.get_runtime_model().get_ordered_ops()
        infos = [{name: node.get_rt_info()[name].astype(str) for name in ("layerType", "runtimePrecision")} for node in nodes]
        found = Counter(info["runtimePrecision"] for info in infos if info["layerType"] == "Convolution")
        assert found == {"f32" if target is FP32 else "bf16": 2}
        asked = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
        assert {name: session._compiled.get_property(name) for name in asked} == asked


def test_another_precision_than_asked_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = export_modules([block()], tmp_path, ["m"])
    runtime = OpenVinoRuntime(FP32)
    kept = runtime._core.compile_model

    def ignoring(model: Any, device: str, settings: dict[str, Any]) -> Any:
        return kept(model, device, settings | {"INFERENCE_PRECISION_HINT": "bf16"})

    monkeypatch.setattr(runtime, "_core", SimpleNamespace(compile_model=ignoring, read_model=runtime._core.read_model))
    if unavailable_reason(BF16) is None:
        with pytest.raises(Unavailable, match="took bf16 where f32 was asked for"):
            runtime.load_file(path)


def test_fewer_threads_than_asked_is_an_error(tmp_path: Path) -> None:
    (path,) = export_modules([block()], tmp_path, ["m"])
    with pytest.raises(InvalidInput, match=r"INFERENCE_NUM_THREADS \d+ where 4096 was asked for"):
        OpenVinoRuntime(FP32, 4096).load_file(path)
    with pytest.raises(InvalidInput, match="threads must be at least 1"):
        OpenVinoRuntime(FP32, 0)


def test_metadata_and_cache(tmp_path: Path) -> None:
    network = build(tiny().smallest(), 5).eval()
    export_onnx(network, (64, 96), tmp_path / "n.onnx", metadata={"size": "64x96", "labels": "[1]"})
    with OpenVinoRuntime(FP32).load_file(tmp_path / "n.onnx") as session:
        assert session.metadata == {"size": "64x96", "labels": "[1]"}
        assert (session.inputs[0].name, session.outputs[0].name) == ("image", "native")
    runtime = OpenVinoRuntime(FP32, cache=tmp_path / "cache")
    for _ in range(2):
        for opened in runtime.load_modules([block(), block()]):
            opened.close()
        assert len(list((tmp_path / "cache").glob("*.onnx"))) == 1


def test_an_output_whose_shape_depends_on_the_values(tmp_path: Path) -> None:
    path = tmp_path / "nonzero.onnx"
    node = onnx.helper.make_node("NonZero", ["x"], ["y"])
    foreign.save(path, [node], [foreign.info("x", [2, 3])], [foreign.info("y", [2, "n"], onnx.TensorProto.INT64)])
    with OpenVinoRuntime(FP32).load_file(path) as session:
        assert session.outputs[0].shape == (2, 6) and session.outputs[0].dtype == "int64"


def test_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = {"OPTIMIZATION_CAPABILITIES": ["FP32", "INT8"], "FULL_DEVICE_NAME": "Old CPU"}
    core = SimpleNamespace(available_devices=["CPU"], get_property=lambda device, name: properties[name])
    monkeypatch.setattr(openvino_session, "_openvino", lambda: SimpleNamespace(Core=lambda: core, __version__="2026"))
    assert unavailable_reason(FP32) is None
    with pytest.raises(Unavailable, match=r"does not compute in bf16 on this CPU \(Old CPU\), only in FP32, INT8"):
        OpenVinoRuntime(BF16)
    core.available_devices = ["GPU.0"]
    with pytest.raises(Unavailable, match=r"finds no CPU device here, only: GPU\.0"):
        OpenVinoRuntime(FP32)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(Unavailable, match="openvino cannot be imported") as caught:
        open_runtime(FP32, 1)
    assert caught.value.install == "pip install 'openvino>=2025.0'"


def test_no_telemetry(tmp_path: Path) -> None:
    """OpenVINO's own import tells Google Analytics, and writes into the home folder."""
    code = (
        "import sys, warnings; warnings.simplefilter('error')\n"
        "from export.backends.openvino_session import OpenVinoRuntime; from export.target import Target\n"
        "OpenVinoRuntime(Target.parse('openvino-cpu:fp32'))\n"
        "assert 'openvino' in sys.modules and 'openvino_telemetry' not in sys.modules and 'torch' not in sys.modules\n"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("CI", "TF_BUILD", "JENKINS_URL")}
    environment |= {"HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert not done.stdout and not done.stderr and not list(tmp_path.iterdir())

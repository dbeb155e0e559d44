"""`TensorRTRuntime`: what it loads and what it has built, on a fake TensorRT; with a GPU, `test_on_a_gpu` does it for real."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from export.errors import CorruptFile, InvalidInput, Unavailable
from export.runtime import Runtime
from export.target import Target
from export.trt import build
from export.trt import tensorrt_runtime as runtime
from export.trt.cuda import device_pycuda, guard
from export.trt.cuda.device import BACKENDS
from export.trt.engine_file import machine_of, save_engine
from export.trt.log import TensorRTFailed
from export.trt.onnx_metadata import onnx_metadata
from export.trt.options import BuildOptions
from export.trt.tensorrt_runtime import TensorRTRuntime
from export.trt.timing_cache import default_folder
from tests.export import foreign_files as foreign
from tests.export.trt.fakes_cuda import fake_pycuda
from tests.export.trt.fakes_engines import FakeBuilder
from tests.export.trt.fakes_gpu import CAPTURE_UNSUPPORTED
from tests.export.trt.fakes_run import SHAPE, Rig, plan, save

X = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
FP32 = Target("tensorrt", "fp32")


def write_onnx(path: Path, metadata: dict[str, str], kind: int = TensorProto.FLOAT, names: Sequence[str] = ("x", "y")) -> Path:
    """Write a network that doubles its input."""
    x, y = (foreign.info(name, SHAPE, kind) for name in names)
    return foreign.save(path, [helper.make_node("Add", [names[0], names[0]], [names[1]])], [x], [y], metadata=metadata)


def test_metadata_of_onnx_files(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx", {"a": "1", "long": "x" * 1000, "empty": ""})
    assert onnx_metadata(path) == {"a": "1", "long": "x" * 1000, "empty": ""}
    whole = path.read_bytes()
    for data in (whole[:-1], whole[:-900], b"\xff", b"\x0f"):
        path.write_bytes(data)
        with pytest.raises(CorruptFile, match="not a whole ONNX file"):
            onnx_metadata(path)


class TestRuntime:
    """What it builds, loads and refuses, with a builder that notes what it is asked for."""

    def test_files(self, rig: Rig, builder: FakeBuilder, tmp_path: Path) -> None:
        opened = TensorRTRuntime(FP32)
        assert isinstance(opened, Runtime)
        path = write_onnx(tmp_path / "m.onnx", {"preprocessing": "{}"})
        with opened.load_file(path) as session:
            np.testing.assert_array_equal(session.run({"x": X})[0], 2 * X)
            assert session.metadata == {"preprocessing": "{}"} and session.notes == ["the timing cache was new"]
        assert (builder.options, builder.caches) == ([BuildOptions(precision="fp32")], [default_folder()])
        with opened.load_file(save(tmp_path / "m.engine", rig.trt, plan(version=rig.trt.version))) as session:
            np.testing.assert_array_equal(session.run({"x": X})[0], 2 * X)

    @pytest.mark.parametrize(("precision", "kind"), [("fp16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16)])
    def test_graphs_get_the_targets_precision(
        self, rig: Rig, builder: FakeBuilder, tmp_path: Path, precision: str, kind: int
    ) -> None:
        opened = TensorRTRuntime(Target("tensorrt", precision))
        with opened.load_file(write_onnx(tmp_path / "m.onnx", {})) as session:
            assert session.inputs[0].dtype == "float32"
        (model,) = builder.graphs
        assert (builder.options[0].precision, builder.caches[0]) == (precision, default_folder())
        assert any(a.i == kind for node in model.graph.node for a in node.attribute if a.name == "to")
        with opened.load_file(write_onnx(tmp_path / "half.onnx", {}, kind)) as session:
            assert builder.graphs[1] == onnx.load(tmp_path / "half.onnx"), "it is in half precision already"

    @pytest.fixture
    def modules(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        """Return one module twice; exporting is other tests' matter."""
        torch = pytest.importorskip("torch")
        onnx_file = importlib.import_module("export.onnx.exporter")

        def export_modules(modules: Sequence[Any], folder: Path, names: Sequence[str], **_: Any) -> list[Path]:
            return [write_onnx(folder / f"{name}.onnx", {}, names=("x0", "y0")) for name in names]

        monkeypatch.setattr(onnx_file, "export_modules", export_modules)
        return [(torch.nn.ReLU(), (torch.ones(SHAPE),))] * 2

    def test_modules(self, rig: Rig, builder: FakeBuilder, modules: list[Any], tmp_path: Path) -> None:
        opened = TensorRTRuntime(Target("tensorrt", "fp16"), cache=tmp_path)
        first, second = opened.load_modules(modules)
        assert len(builder.graphs) == 2, "two builds of one module may differ"
        assert builder.options[0] == BuildOptions.search("fp16")
        for session in (first, second):
            specs = [(spec.name, spec.dtype) for spec in (*session.inputs, *session.outputs)]
            assert specs == [("x0", "float32"), ("y0", "float32")]
        assert opened.versions()["inputs_outputs"] == "fp32"
        first.bind({"x0": X})
        assert first.step() == pytest.approx(0.25)
        first.close()
        second.close()
        assert rig.gpu.leaks() == []

    def test_a_module_that_fails_closes_those_before_it(self, rig: Rig, builder: FakeBuilder, modules: list[Any]) -> None:
        builder.fails = lambda model: len(builder.graphs) == 2
        with pytest.raises(TensorRTFailed, match="could not find any implementation"):
            TensorRTRuntime(FP32).load_modules(modules)
        assert rig.gpu.leaks() == []

    def test_tables_take_no_times_without_graphs(self, rig: Rig, builder: FakeBuilder, modules: list[Any]) -> None:
        rig.gpu.fail["end_capture"] = (CAPTURE_UNSUPPORTED, "operation not permitted")
        for session in TensorRTRuntime(FP32).load_modules(modules):
            with session, pytest.raises(InvalidInput, match="required here"):
                session.bind({"x0": X})

    def test_versions(self, rig: Rig, builder: FakeBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = {
            "tensorrt": rig.trt.version, "cuda": "12.8.90", "driver": "570.86.15", "gpu0": "Fake RTX, compute capability 8.6",
            "cuda_graph": "on", "inputs_outputs": "fp32",
        }  # fmt: skip
        assert TensorRTRuntime(FP32).versions() == expected
        monkeypatch.setattr(runtime, "open_backend", lambda name=None: device_pycuda.PycudaBackend(fake_pycuda(rig.gpu)))
        assert TensorRTRuntime(FP32).versions() == expected | {"cuda_graph": "off"}

    def test_engines_of_another_precision(self, rig: Rig, builder: FakeBuilder, tmp_path: Path) -> None:
        path = save(tmp_path / "m.engine", rig.trt, plan(version=rig.trt.version), precision="mixed")
        with pytest.raises(InvalidInput, match=r"m\.engine computes in mixed; open it with the target tensorrt:fp16"):
            TensorRTRuntime(FP32).load_file(path)
        assert rig.gpu.leaks() == []
        TensorRTRuntime(Target("tensorrt", "fp16")).load_file(path).close()

    def test_what_it_refuses(self, rig: Rig, builder: FakeBuilder, tmp_path: Path) -> None:
        (tmp_path / "m.pt2").write_bytes(b"")
        for name, message in (("none.engine", "no such file"), ("m.pt2", "runs .engine and .plan files, and builds .onnx files")):
            with pytest.raises(InvalidInput, match=message):
                TensorRTRuntime(FP32).load_file(tmp_path / name)
        with pytest.raises(InvalidInput, match="not torch-cpu:fp32"):
            TensorRTRuntime(Target("torch-cpu", "fp32"))
        with pytest.raises(InvalidInput, match="threads"):
            TensorRTRuntime(FP32, threads=0)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", BACKENDS)
def test_on_a_gpu(tmp_path: Path, backend: str) -> None:
    if (why := guard.unavailable_reason()) is not None:
        pytest.skip("; ".join(why))
    try:
        opened = TensorRTRuntime(FP32, backend=backend)
    except Unavailable as error:
        pytest.skip(str(error))
    onnx_path = write_onnx(tmp_path / "model.onnx", {"preprocessing": "{}"})
    result = build.build_engine(onnx_path, BuildOptions(precision="fp32"))
    machine = machine_of(guard.import_tensorrt())
    save_engine(tmp_path / "model.engine", result.plan, result.manifest(machine, onnx_path, "none"))
    for path in (tmp_path / "model.engine", onnx_path):
        with opened.load_file(path) as session:
            assert session.metadata == {"preprocessing": "{}"}
            np.testing.assert_array_equal(session.run({"x": X})[0], 2 * X)
            session.bind({"x": X + 1})
            assert 0 < min(session.step() for _ in range(5)) < 100
            session.flush(8)
            assert session.step() > 0
            np.testing.assert_array_equal(session.results()[0], 2 * (X + 1))
            assert session.notes == [] or backend == "pycuda"
            assert sum(sum(times) for times in session.time_layers(3).times_ms.values()) > 0
            assert session.layer_info()["Layers"]

"""Sessions over engines, on a fake TensorRT of both majors that computes on a fake GPU.

`test_trt_runtime.py` builds and runs a real engine where there is a GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.errors import InvalidInput, Unavailable
from export.runtime import Session
from export.target import Target
from export.trt.cuda import device_pycuda, device_torch
from export.trt.cuda.device import CudaFailed, DeviceBackend
from export.trt.engine_file import EngineRefused, manifest_path
from export.trt.log import TensorRTFailed
from export.trt.runner import EngineSession, open_engine
from export.trt.tensorrt_runtime import TensorRTRuntime
from tests.export.trt.fakes_cuda import fake_pycuda, fake_torch
from tests.export.trt.fakes_gpu import CAPTURE_UNSUPPORTED, OUT_OF_MEMORY
from tests.export.trt.fakes_run import SHAPE, Rig, Severity, plan, save
from tests.export.trt.test_trt_runtime import write_onnx

X = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
FP32 = Target("tensorrt", "fp32")


@pytest.mark.parametrize("name", ["torch", "cuda-bindings", "pycuda"])
def test_a_session(rig: Rig, name: str) -> None:
    backends: dict[str, Callable[[], DeviceBackend]] = {
        "torch": lambda: device_torch.TorchBackend(fake_torch(rig.gpu)),
        "cuda-bindings": lambda: rig.backend,
        "pycuda": lambda: device_pycuda.PycudaBackend(fake_pycuda(rig.gpu)),
    }
    with rig.session(backend=backends[name]()) as session:
        assert isinstance(session, Session)
        assert [(spec.name, spec.shape, spec.dtype) for spec in (*session.inputs, *session.outputs)] == [
            ("x", SHAPE, "float32"),
            ("y", SHAPE, "float32"),
        ]
        with pytest.raises(InvalidInput, match=r"call bind\(feeds\)"):
            session.step()
        session.bind({"x": X})
        assert session.step() == pytest.approx(0.25)
        np.testing.assert_array_equal(session.results()[0], 2 * X)
        other = session.run({"x": -X})[0]
        np.testing.assert_array_equal(other, -2 * X)
        np.testing.assert_array_equal(session.results()[0], -2 * X)
        session.step()
        np.testing.assert_array_equal(session.results()[0], 2 * X)  # the bound inputs are back
        session.bind({"x": X + 1})
        session.step()
        np.testing.assert_array_equal(session.results()[0], 2 * (X + 1))
        assert bool(session.notes) == (name == "pycuda")
    assert rig.gpu.leaks() == []


def test_bound_arrays_may_change_afterwards(rig: Rig) -> None:
    with rig.session() as session:
        mine = X.copy()
        session.bind({"x": mine})
        mine[:] = 0
        session.run({"x": -X})
        session.step()
        np.testing.assert_array_equal(session.results()[0], 2 * X)


@pytest.mark.parametrize(
    "feeds", [{}, {"z": X}, {"x": X, "z": X}, {"x": X.astype(np.float64)}, {"x": X[:, :, :-1]}], ids=lambda f: ",".join(f) or "none"
)
def test_wrong_feeds(rig: Rig, feeds: dict[str, np.ndarray]) -> None:
    with rig.session() as session:
        session.bind({"x": X})
        for call in (session.run, session.bind):
            with pytest.raises(InvalidInput, match="x"):
                call(feeds)
        session.step()
        np.testing.assert_array_equal(session.results()[0], 2 * X)


class TestTiming:
    """What is enqueued, captured and waited for."""

    def test_one_run_comes_before_the_capture_and_inputs_before_both(self, rig: Rig) -> None:
        with rig.session() as session:
            rig.gpu.calls.clear()
            session.bind({"x": X})
            told = [call for call in rig.gpu.calls if call != "wait_stream"]
            captured = ["begin_capture", "captured enqueue", "end_capture", "instantiate", "free_graph"]
            assert told == ["upload", "enqueue", *captured]
            session.bind({"x": X})
            assert rig.gpu.calls[-2:] == ["upload", "wait_stream"], "the graph stays"

    def test_short_graphs_are_launched_once_before_the_timed_one(self, rig: Rig) -> None:
        for ms, launches in ((0.25, 2), (3.0, 2), (30.0, 1)):
            with rig.session(ms=ms) as session:
                session.bind({"x": X})
                session.step()  # the first does not know yet how long it takes
                rig.gpu.calls.clear()
                assert session.step() == pytest.approx(ms)
                told = [call for call in rig.gpu.calls if call not in ("wait_stream", "wait_event", "elapsed")]
                assert told == ["launch"] * (launches - 1) + ["record", "launch", "record"]
                assert "upload" not in told and "download" not in told

    def test_after_a_flush_nothing_warms_the_caches(self, rig: Rig) -> None:
        with rig.session() as session:
            session.bind({"x": X})
            session.step()
            for mib, size in ((0.5, 1 << 19), (0.5, 1 << 19), (0.25, 1 << 18)):
                rig.gpu.calls.clear()
                session.flush(mib)
                assert size in {data.size for data in rig.gpu.memory.values()}
                assert session.step() == pytest.approx(0.25), "flushing is not timed"
                assert [call for call in rig.gpu.calls if call in ("fill", "launch")] == ["fill", "launch"]
            assert 1 << 19 not in {data.size for data in rig.gpu.memory.values()}, "one buffer at a time"

    def test_without_a_graph(self, rig: Rig) -> None:
        with rig.session(cuda_graph="off") as session:
            session.bind({"x": X})
            assert session.step() == pytest.approx(0.25)
            assert "begin_capture" not in rig.gpu.calls and session.notes == []
            rig.gpu.calls.clear()
            session.step()
            assert rig.gpu.calls.count("enqueue") == 2

    @pytest.mark.parametrize("cause", ["begin", "end", "enqueue"])
    def test_a_capture_that_fails_is_told(self, rig: Rig, cause: str) -> None:
        if cause == "enqueue":
            rig.trt.fail["execute_async_v3 in a capture"] = "operation not permitted when stream is capturing"
        else:
            rig.gpu.fail[f"{cause}_capture"] = (CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing")
        with rig.session() as session:
            session.bind({"x": X})
            (note,) = session.notes
            assert note.startswith("no CUDA graph, so times include launching every kernel: ")
            assert "operation not permitted" in note and "\n" not in note
            assert session.step() == pytest.approx(0.25)
            np.testing.assert_array_equal(session.results()[0], 2 * X)
            np.testing.assert_array_equal(session.run({"x": -X})[0], -2 * X)
        assert rig.gpu.leaks() == []

    def test_a_capture_that_is_required(self, rig: Rig) -> None:
        rig.gpu.fail["end_capture"] = (CAPTURE_UNSUPPORTED, "operation not permitted")
        with rig.session(cuda_graph="require") as session:
            with pytest.raises(InvalidInput, match=r"cannot be captured in a CUDA graph, which is required here: .*not permitted"):
                session.bind({"x": X})
            with pytest.raises(InvalidInput, match="call bind"):
                session.step()

    def test_wrong_settings(self, rig: Rig) -> None:
        with pytest.raises(InvalidInput, match="cuda_graph"):
            rig.session(cuda_graph=True)
        assert rig.trt.made == []


class TestTensors:
    """Types, shapes and formats of inputs and outputs."""

    @pytest.mark.parametrize(
        ("kind", "dtype"),
        [("HALF", "float16"), ("BF16", "bfloat16"), ("FP8", "float8_e4m3fn"), ("INT32", "int32"), ("UINT8", "uint8")],
    )
    def test_types(self, rig: Rig, kind: str, dtype: str) -> None:
        with rig.session({"x": [kind, 2, 3]}, {"y": [kind, 2, 3], "z": ["FLOAT", 2, 3]}) as session:
            assert [spec.dtype for spec in (*session.inputs, *session.outputs)] == [dtype, dtype, "float32"]
            x = np.arange(6).reshape(2, 3).astype(dtype)
            y, z = session.run({"x": x})
            assert y.dtype == x.dtype
            np.testing.assert_array_equal(y.astype(np.float32), 2 * x.astype(np.float32))
            np.testing.assert_array_equal(z, 2 * x.astype(np.float32))

    def test_bits_where_ml_dtypes_is_missing(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "ml_dtypes", None)
        with rig.session({"x": ["BF16", 2]}, {"y": ["BF16", 2]}) as session:
            assert [spec.dtype for spec in (*session.inputs, *session.outputs)] == ["uint16", "uint16"]
            assert session.notes[0] == "'x' is BF16, seen as the bits of uint16 for want of ml_dtypes (pip install ml_dtypes)"
            one, two, four = 0x3F80, 0x4000, 0x4080
            assert session.run({"x": np.array([one, two], np.uint16)})[0].tolist() == [two, four]

    def test_types_that_no_array_holds(self, rig: Rig) -> None:
        with pytest.raises(InvalidInput, match="'x' is of type INT4, which no array can hold; a session knows FLOAT, HALF"):
            rig.session({"x": ["INT4", 2]})

    def test_several_inputs_keep_the_engines_order(self, rig: Rig) -> None:
        with rig.session({"b": ["FLOAT", 2], "a": ["INT32", 3]}, {"p": ["FLOAT", 2], "q": ["INT32", 3]}) as session:
            assert [spec.name for spec in session.inputs] == ["b", "a"]
            p, q = session.run({"a": np.array([1, 2, 3], np.int32), "b": np.array([0.5, 1], np.float32)})
            assert (p.tolist(), q.tolist()) == ([1.0, 2.0], [2, 4, 6])

    PROFILE = ([1, 3, 2, 2], [1, 3, 4, 6], [1, 3, 8, 8])

    def dynamic(self, rig: Rig, **named: Any) -> EngineSession:
        shape = ["FLOAT", 1, 3, -1, -1]
        return rig.session({"x": shape}, {"y": shape}, profile={"x": self.PROFILE}, **named)

    def test_an_engine_of_dynamic_shape_runs_at_the_shape_it_was_tuned_for(self, rig: Rig) -> None:
        with self.dynamic(rig) as session:
            assert session.inputs[0].shape == session.outputs[0].shape == (1, 3, 4, 6)
            x = np.ones((1, 3, 4, 6), np.float32)
            np.testing.assert_array_equal(session.run({"x": x})[0], 2 * x)
            assert "'x' is dynamic, (1, 3, 2, 2) to (1, 3, 8, 8); it runs at (1, 3, 4, 6)" in session.notes[0]
            session.time_layers(2)  # in a second context, which has no profile of its own

    @pytest.mark.parametrize(
        ("named", "message"),
        [
            ({"formats": {"x": "HWC8"}}, "'x' has the format .*; build the engine with linear"),
            ({"shape_tensors": ["x"]}, "'x' holds a shape, not data"),
            ({"outputs": {"y": ["FLOAT", -1]}}, r"'y' has the shape \(-1,\); .*may depend on the data"),
            ({"outputs": {"y": ["FLOAT", 0]}}, r"'y' has the shape \(0,\)"),
        ],
    )
    def test_tensors_that_a_session_does_not_run(self, rig: Rig, named: dict[str, Any], message: str) -> None:
        with pytest.raises(InvalidInput, match=message):
            rig.session(**named)
        assert rig.gpu.leaks() == []


class TestFailures:
    """TensorRT's None and False, CUDA's errors, and what must not happen before a GPU is proven."""

    def test_nothing_is_made_without_a_gpu(self, rig: Rig, tmp_path: Path) -> None:
        path = save(tmp_path / "m.engine", rig.trt, plan(version=rig.trt.version))
        rig.trt.gpu = None
        calls: list[Callable[[], object]] = [
            rig.session, lambda: open_engine(path, backend=rig.backend), lambda: TensorRTRuntime(FP32)
        ]  # fmt: skip
        rig.gpu.calls.clear()
        for call in calls:
            with pytest.raises(Unavailable, match="CUDA_ERROR_NO_DEVICE"):
                call()
        assert rig.trt.made == [] and rig.gpu.calls == []

    @pytest.mark.parametrize("severity", [Severity.ERROR, Severity.WARNING])
    def test_a_runtime_with_complaints_is_not_used(self, rig: Rig, monkeypatch: pytest.MonkeyPatch, severity: Severity) -> None:
        log = rig.trt.log
        monkeypatch.setattr(rig.trt, "log", lambda text: log(text, severity))
        rig.trt.fail["Runtime"] = "CUDA initialization failure with error: 35"
        with pytest.raises(TensorRTFailed, match=rf"runtime failed\.\n  TensorRT: {severity.name.lower()}: CUDA initialization"):
            rig.session()
        assert rig.trt.made == ["runtime"]

    def test_plans_that_are_refused(self, rig: Rig) -> None:
        for data, words in ((b"no plan", "stdVersionRead"), (plan(version="10.9.0"), "not compatible with this version")):
            with pytest.raises(TensorRTFailed, match=rf"loading the engine failed\.\n  TensorRT: error: .*{words}") as caught:
                EngineSession(data, backend=rig.backend)
            assert "build it here from its ONNX file" in str(caught.value)
        assert rig.gpu.leaks() == []

    @pytest.mark.parametrize("call", ["create_execution_context", "set_tensor_address"])
    def test_loading(self, rig: Rig, call: str) -> None:
        rig.trt.fail[call] = "Requested amount of GPU memory could not be allocated"
        with pytest.raises(TensorRTFailed, match=r"failed\.\n  TensorRT: error: Requested amount of GPU memory"):
            rig.session()
        assert rig.gpu.leaks() == []

    def test_running(self, rig: Rig) -> None:
        with rig.session(cuda_graph="off") as session:
            session.bind({"x": X})
            rig.trt.fail["execute_async_v3"] = "Error Code 1: Cuda Runtime (an illegal memory access was encountered)"
            with pytest.raises(TensorRTFailed, match=r"running the engine failed\.\n  TensorRT: error: Error Code 1"):
                session.step()
            del rig.trt.fail["execute_async_v3"]
            assert session.step() == pytest.approx(0.25)
        assert rig.gpu.leaks() == []

    def test_old_warnings_are_not_blamed_on_later_failures(self, rig: Rig) -> None:
        with rig.session(cuda_graph="off") as session:
            rig.trt.log("an old story", Severity.WARNING)
            rig.trt.fail["execute_async_v3"] = "the reason"
            with pytest.raises(TensorRTFailed) as caught:
                session.run({"x": X})
            assert caught.value.lines == ["error: the reason"]

    def test_memory(self, rig: Rig) -> None:
        rig.gpu.fail["allocate"] = (OUT_OF_MEMORY, "out of memory")
        with pytest.raises(CudaFailed, match="cudaMalloc failed: error 2, out of memory"):
            rig.session()
        assert rig.gpu.leaks() == []

    def test_a_closed_session(self, rig: Rig) -> None:
        session = rig.session()
        session.bind({"x": X})
        session.close()
        session.close()
        calls: list[Callable[[], object]] = [
            session.step, session.results, session.time_layers, session.layer_info, lambda: session.flush(1),
            lambda: session.run({"x": X}), lambda: session.bind({"x": X}),
        ]  # fmt: skip
        for call in calls:
            with pytest.raises(InvalidInput, match="the session is closed"):
                call()


class TestFiles:
    """`open_engine`: the manifest is checked before anything is deserialised."""

    @pytest.fixture
    def path(self, rig: Rig, tmp_path: Path) -> Path:
        return save(tmp_path / "model.engine", rig.trt, plan(version=rig.trt.version))

    def test_one_that_fits(self, rig: Rig, path: Path) -> None:
        with open_engine(path, backend=rig.backend) as session:
            assert session.manifest is not None and session.manifest.precision == "fp32"
            np.testing.assert_array_equal(session.run({"x": X})[0], 2 * X)
            assert session.notes == [] and session.metadata == {}

    @pytest.mark.parametrize("wrong", ["gpu", "engine_sha256"])
    def test_what_does_not_fit_is_not_deserialised(self, rig: Rig, tmp_path: Path, wrong: str) -> None:
        facts = {"gpu": "Orin"} if wrong == "gpu" else {}
        path = save(tmp_path / "m.engine", rig.trt, plan(version=rig.trt.version), **facts)
        path.write_bytes(path.read_bytes() + b" ")
        with pytest.raises(EngineRefused) as caught:
            open_engine(path, trust=bool(facts), backend=rig.backend)
        assert caught.value.field == wrong and rig.trt.made == []

    def test_one_without_a_manifest(self, rig: Rig, path: Path) -> None:
        manifest_path(path).unlink()
        with pytest.raises(EngineRefused, match="has no manifest"):
            open_engine(path, backend=rig.backend)
        assert rig.trt.made == []
        with open_engine(path, backend=rig.backend, trust=True) as session:
            assert session.manifest is None
            assert "was trusted" in session.notes[0]

    def test_metadata_comes_from_the_onnx_file(self, rig: Rig, tmp_path: Path) -> None:
        write_onnx(tmp_path / "model.onnx", {"preprocessing": "{}", "labels": "grün"})
        path = save(tmp_path / "model.engine", rig.trt, plan(version=rig.trt.version))
        with open_engine(path, backend=rig.backend) as session:
            assert session.metadata == {"preprocessing": "{}", "labels": "grün"} and session.notes == []
        (tmp_path / "model.onnx").write_bytes(b"other")
        with open_engine(path, backend=rig.backend) as session:
            assert session.metadata == {} and "model.onnx changed since model.engine was built" in session.notes[0]
        (tmp_path / "model.onnx").write_bytes(b"\x0f")
        save(path, rig.trt, plan(version=rig.trt.version))
        with open_engine(path, backend=rig.backend) as session:
            assert session.metadata == {} and "not a whole ONNX file" in session.notes[0]

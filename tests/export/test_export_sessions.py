"""Sessions of ONNX Runtime and PyTorch against one another, and what they refuse.

The CUDA tests carry the marker `gpu` and skip without a device; everything else runs on any CPU.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as states
from torch import nn

from export.backends import onnxruntime_session
from export.backends.onnxruntime_session import OnnxRuntime
from export.backends.torch_session import TorchRuntime, TorchSession
from export.errors import CorruptFile, InvalidInput, Unavailable
from export.onnx.exporter import export_modules
from export.runtime import Runtime, Session
from export.runtimes import open_runtime
from export.target import Target
from tests.export import foreign_files as foreign

ORT = Target("onnxruntime-cpu", "fp32")
CUDA = Target("onnxruntime-cuda", "fp32")
TORCH = Target("torch-cpu", "fp32")


def block() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval(), (
        torch.randn(1, 3, 12, 10),
    )


def expected() -> tuple[np.ndarray, np.ndarray]:
    module, (x,) = block()
    with torch.no_grad():
        return x.numpy(), module(x).numpy()


def check_session(session: Session, tolerance: float, bound: bool = False) -> None:
    x, wanted = expected()
    assert isinstance(session, Session)
    with session:
        assert session.inputs[0].name == "x0" and session.inputs[0].shape == x.shape
        assert session.outputs[0].shape == wanted.shape
        if not bound:
            with pytest.raises(InvalidInput, match=r"call bind\(feeds\)"):
                session.step()
        session.bind({"x0": x})
        assert session.step() > 0
        np.testing.assert_allclose(session.results()[0], wanted, atol=tolerance)  # type: ignore[attr-defined]
        other = session.run({"x0": np.zeros_like(x)})[0]
        assert other.dtype == np.float32
        assert not np.allclose(other, wanted, atol=tolerance)
        session.step()
        np.testing.assert_allclose(session.results()[0], wanted, atol=tolerance)  # type: ignore[attr-defined]
        session.bind({"x0": np.zeros_like(x)})
        session.step()
        np.testing.assert_allclose(session.results()[0], other, atol=tolerance)  # type: ignore[attr-defined]
        for feeds in ({}, {"x1": x}, {"x0": x.astype(np.float64)}, {"x0": x[:, :, :-1]}):
            with pytest.raises(InvalidInput, match="x0"):
                session.run(feeds)
    session.close()
    for call in (session.step, lambda: session.run({}), lambda: session.bind({})):
        with pytest.raises(InvalidInput):
            call()


def opened(target: str, threads: int = 1) -> Runtime:
    """Open a runtime, or skip where it is not to be had."""
    try:
        return open_runtime(Target.parse(target), threads)
    except Unavailable as error:
        pytest.skip(error.reason)


@pytest.mark.parametrize(
    ("target", "tolerance"),
    [
        ("onnxruntime-cpu:fp32", 1e-5),
        ("torch-cpu:fp32", 1e-5),
        ("torch-cpu:bf16", 3e-2),
        ("openvino-cpu:fp32", 1e-5),
        ("openvino-cpu:bf16", 3e-2),
    ],
)
def test_sessions(target: str, tolerance: float) -> None:
    runtime = opened(target, 2)
    assert isinstance(runtime, Runtime)
    before = torch.get_num_threads()
    assert all(isinstance(value, str) for value in runtime.versions().values())
    (session,) = runtime.load_modules([block()])
    check_session(session, tolerance)
    assert torch.get_num_threads() == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("fp16", 1e-2), ("bf16", 3e-2)])
def test_torch_cuda(precision: str, tolerance: float) -> None:
    (session,) = TorchRuntime(Target("torch-cuda", precision)).load_modules([block()])
    check_session(session, tolerance)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_onnxruntime_cuda() -> None:
    if (why := onnxruntime_session.unavailable_reason(CUDA)) is not None:
        pytest.skip(why[0])
    for graph in (True, False):
        (session,) = OnnxRuntime(CUDA, cuda_graph=graph).load_modules([block()])
        check_session(session, 1e-5)


def test_torch_leaves_the_callers_module_alone() -> None:
    module, inputs = block()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    TorchRuntime(Target("torch-cpu", "bf16")).load_modules([(module, inputs)])
    for name, tensor in module.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])
    assert module[0].weight.is_contiguous()  # type: ignore[index,union-attr,operator]


def test_torch_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.pt2"
    module, inputs = block()
    torch.export.save(torch.export.export(module, inputs), path)
    x, wanted = expected()
    with TorchRuntime(TORCH).load_file(path) as session:
        np.testing.assert_allclose(session.run({session.inputs[0].name: x})[0], wanted, atol=1e-5)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CorruptFile, match=r"m\.pt2"):
        TorchRuntime(TORCH).load_file(path)
    assert "Traceback" not in capfd.readouterr().err
    with pytest.raises(InvalidInput, match="no such file"):
        TorchRuntime(TORCH).load_file(tmp_path / "none.pt2")
    (tmp_path / "m.onnx").write_bytes(b"x")
    with pytest.raises(InvalidInput, match="onnxruntime-cpu"):
        TorchRuntime(TORCH).load_file(tmp_path / "m.onnx")


@pytest.mark.parametrize("target", ["onnxruntime-cpu:fp32", "openvino-cpu:fp32"])
def test_broken_onnx_files(tmp_path: Path, target: str) -> None:
    runtime = opened(target)
    (path,) = export_modules([block()], tmp_path, ["m"])
    data = path.read_bytes()
    for cut in (1, len(data) // 3, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(CorruptFile, match=r"m\.onnx"):
            runtime.load_file(path)
    path.write_bytes(b"")
    with pytest.raises((CorruptFile, InvalidInput), match=r"m\.onnx"):
        runtime.load_file(path)
    with pytest.raises(InvalidInput, match="no such file"):
        runtime.load_file(tmp_path / "none.onnx")


@pytest.mark.parametrize("target", ["onnxruntime-cpu:fp32", "openvino-cpu:fp32"])
def test_unknown_operator_and_dynamic_shape(tmp_path: Path, target: str) -> None:
    def save(name: str, op: str, domain: str, shape: list[int | str]) -> Path:
        node = onnx.helper.make_node(op, ["x"], ["y"], domain=domain)
        made = foreign.model([node], [foreign.info("x", shape)], [foreign.info("y", shape)])
        made.opset_import.append(onnx.helper.make_opsetid("mine", 1))
        onnx.save(made, tmp_path / name)
        return tmp_path / name

    with pytest.raises(InvalidInput, match="does not run it"):
        opened(target).load_file(save("custom.onnx", "Mine", "mine", [1, 2]))
    with pytest.raises(InvalidInput, match="dynamic shape"):
        opened(target).load_file(save("dynamic.onnx", "Relu", "", ["N", 2]))


def test_unavailable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(Unavailable, match="no CUDAExecutionProvider") as caught:
            OnnxRuntime(CUDA)
        assert "onnxruntime-gpu" in caught.value.install
    if not torch.cuda.is_available():
        with pytest.raises(Unavailable, match="no CUDA device"):
            TorchRuntime(Target("torch-cuda", "fp16"))
    with pytest.raises(InvalidInput, match="threads"):
        OnnxRuntime(ORT, 0)
    with pytest.raises(InvalidInput, match="threads"):
        TorchRuntime(TORCH, 0)
    (path,) = export_modules([block()], tmp_path, ["m"])
    runtime = OnnxRuntime(ORT)
    whole = onnxruntime.InferenceSession
    monkeypatch.setitem(onnxruntime_session.PROVIDERS, "onnxruntime-cpu", "CUDAExecutionProvider")
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda path, *rest, **more: whole(path))  # falls back, as it does
    with pytest.raises(Unavailable, match="on CPUExecutionProvider instead of CUDAExecutionProvider"):
        runtime.load_file(path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(Unavailable, match="pip install onnxruntime"):
        OnnxRuntime(ORT)


class FakeCuda:
    """ONNX Runtime as with a GPU: the CPU computes, and a run without `gpu_graph_id` -1 captures a graph and replays it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.whole, self.value = onnxruntime.InferenceSession, onnxruntime.OrtValue
        self.providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        self.said, self.opens, self.captures = "", Exception(), Exception()  # plain ones: nothing is raised
        self.options: dict[str, str] = {}
        self.fallback: object = None
        self.runs: list[str] = []
        monkeypatch.setattr(onnxruntime, "InferenceSession", self.open)
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: self.providers)
        monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print(self.said), raising=False)
        monkeypatch.setattr(onnxruntime, "OrtValue", self)
        monkeypatch.setattr(onnxruntime_session, "nvidia_driver", lambda: True)

    def ortvalue_from_numpy(self, array: np.ndarray, device: str, index: int) -> Any:
        assert device == "cuda"
        return self.value.ortvalue_from_numpy(array, "cpu", index)

    def ortvalue_from_shape_and_type(self, shape: Any, kind: Any, device: str, index: int) -> Any:
        assert device == "cuda"
        return self.value.ortvalue_from_shape_and_type(shape, kind, "cpu", index)

    def open(self, path: str, options: Any, providers: Any, enable_fallback: int) -> FakeCuda:
        ((name, self.options),) = providers
        assert name == "CUDAExecutionProvider"
        self.fallback = enable_fallback
        if type(self.opens) is not Exception:
            raise self.opens
        self.session = self.whole(path, options, providers=["CPUExecutionProvider"])
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def get_providers(self) -> list[str]:
        return self.providers

    def run(self, names: Any, feeds: Any, options: Any) -> Any:
        self.runs.append("run " + (options.get_run_config_entry("gpu_graph_id") if options else "graph"))
        return self.session.run(names, feeds)

    def run_with_iobinding(self, binding: Any, options: Any = None) -> None:
        self.runs.append("bound " + (options.get_run_config_entry("gpu_graph_id") if options else "graph"))
        if options is None and type(self.captures) is not Exception:
            raise self.captures
        self.session.run_with_iobinding(binding)


def test_cuda_graph_with_a_fake(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda(monkeypatch)
    runtime = OnnxRuntime(CUDA)
    assert runtime.versions()["cuda_graph"] == "on"
    (session,) = runtime.load_modules([block()])
    assert fake.options == {"use_tf32": "0", "enable_cuda_graph": "1"} and fake.fallback == 0
    assert fake.runs == []
    places = []
    for _ in range(2):
        session.bind({"x0": expected()[0]})
        places.append(session._values[0].data_ptr())  # type: ignore[attr-defined]
    assert fake.runs == ["bound -1", "bound graph"]  # once to warm up, once to capture, although bound twice ...
    assert places[0] == places[1]  # ... in the same memory
    check_session(session, 1e-5, bound=True)
    assert set(fake.runs[2:]) == {"bound graph", "run -1"}  # replays, and runs that leave the graph alone

    plain = OnnxRuntime(CUDA, cuda_graph=False)
    assert plain.versions()["cuda_graph"] == "off"
    fake.runs.clear()
    (session,) = plain.load_modules([block()])
    check_session(session, 1e-5)
    assert fake.options["enable_cuda_graph"] == "0" and set(fake.runs) == {"bound graph", "run graph"}
    assert "cuda_graph" not in OnnxRuntime(ORT).versions()


def test_cuda_fails_loudly_with_a_fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = export_modules([block()], tmp_path, ["m"])
    fake = FakeCuda(monkeypatch)
    runtime = OnnxRuntime(CUDA)
    fake.captures = states.Fail("operation not permitted when stream is capturing")
    with runtime.load_file(path) as session, pytest.raises(InvalidInput, match=r"cannot be captured: .* is capturing"):
        session.bind({"x0": expected()[0]})
    fake.opens = states.Fail("This session cannot use the graph capture feature as requested by the user as ...")
    with pytest.raises(InvalidInput, match=r"m\.onnx: .* cuda_graph=False"):
        runtime.load_file(path)
    fake.opens = states.InvalidGraph("no such operator")
    with pytest.raises(InvalidInput, match="does not run it: no such operator"):
        runtime.load_file(path)
    fake.opens = states.RuntimeException("CUDA failure 100: no CUDA-capable device is detected ; GPU=0")
    with pytest.raises(Unavailable, match="CUDA does not start: CUDA failure 100") as caught:
        runtime.load_file(path)
    assert caught.value.exit_code == 3
    fake.opens, fake.said = Exception(), "Failed to load libcublas.so.13: libcublas.so.13: cannot open shared object file"
    fake.providers = ["CPUExecutionProvider"]
    with pytest.raises(Unavailable, match=r"on CPUExecutionProvider instead of CUDA.*\(libcublas\.so\.13: cannot open"):
        runtime.load_file(path)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(onnxruntime_session, "nvidia_driver", lambda: False)
    fake.providers = ["CUDAExecutionProvider"]  # the GPU wheel lists it on every machine
    with pytest.raises(Unavailable, match="no NVIDIA driver is found"):
        OnnxRuntime(CUDA)


def test_torch_on_cuda_replays_a_graph_between_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be seen without a device: folded BN, channels-last, and a step that is one replay between two events."""
    done: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            done.append("record")

        def synchronize(self) -> None:
            done.append("synchronize")

        def elapsed_time(self, end: Event) -> float:
            return 1.5

    folded = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    module, inputs = block()
    module.folded = lambda: folded  # type: ignore[assignment]
    (session,) = TorchRuntime(TORCH).load_modules([(module, inputs)])
    assert session._module[0].weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[attr-defined]
    assert not any(isinstance(part, nn.BatchNorm2d) for part in session._module.modules())  # type: ignore[attr-defined]
    assert session._static[0].is_contiguous(memory_format=torch.channels_last)  # type: ignore[attr-defined]
    session.bind({"x0": inputs[0].numpy()})
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(session, "_graph", SimpleNamespace(replay=lambda: done.append("replay")))
    assert session.step() == 1.5
    assert done == ["record", "replay", "record", "synchronize"]


def test_flushing_overwrites_a_buffer_of_the_size_asked_for() -> None:
    module = nn.Conv2d(2, 2, 1).eval()
    session = TorchRuntime(Target("torch-cpu", "fp32")).load_modules([(module, (torch.zeros(1, 2, 4, 4),))])[0]
    assert isinstance(session, TorchSession)
    session.flush(0.5)
    session.flush(0.5)
    assert session._flushed is not None and session._flushed.numel() == 2**17 and session._flushed[0] == 2
    session.close()
    assert session._flushed is None

"""Sessions of ONNX Runtime and PyTorch against one another, and what they refuse.

The CUDA tests carry the marker `gpu` and skip without a device; everything else runs on any CPU.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from export import onnxruntime_session
from export.errors import CorruptFile, InvalidInput, Unavailable
from export.onnx_file import export_modules
from export.onnxruntime_session import OnnxRuntime
from export.runtime import Runtime, Session
from export.target import Target
from export.torch_session import TorchRuntime

ORT = Target("onnxruntime-cpu", "fp32")
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


def check_session(session: Session, tolerance: float) -> None:
    x, wanted = expected()
    assert isinstance(session, Session)
    with session:
        assert session.inputs[0].shape == x.shape
        assert session.outputs[0].shape == wanted.shape
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
        for feeds in ({}, {"x1": x}, {"x0": x.astype(np.float64)}, {"x0": x[:, :, :-1]}):
            with pytest.raises(InvalidInput, match="x0"):
                session.run(feeds)


@pytest.mark.parametrize(
    ("runtime", "tolerance"),
    [(OnnxRuntime(ORT, 2), 1e-5), (TorchRuntime(TORCH, 2), 1e-5), (TorchRuntime(Target("torch-cpu", "bf16")), 3e-2)],
    ids=["onnxruntime", "torch-fp32", "torch-bf16"],
)
def test_sessions(runtime: Runtime, tolerance: float) -> None:
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
    target = Target("onnxruntime-cuda", "fp32")
    if (why := onnxruntime_session.unavailable_reason(target)) is not None:
        pytest.skip(why[0])
    (session,) = OnnxRuntime(target).load_modules([block()])
    check_session(session, 1e-5)


def test_torch_leaves_the_callers_module_alone() -> None:
    module, inputs = block()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    TorchRuntime(Target("torch-cpu", "bf16")).load_modules([(module, inputs)])
    for name, tensor in module.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])
    assert module[0].weight.is_contiguous()  # type: ignore[index,union-attr,operator]


def test_torch_files(tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    module, inputs = block()
    torch.export.save(torch.export.export(module, inputs), path)
    x, wanted = expected()
    with TorchRuntime(TORCH).load_file(path) as session:
        np.testing.assert_allclose(session.run({session.inputs[0].name: x})[0], wanted, atol=1e-5)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CorruptFile, match=r"m\.pt2"):
        TorchRuntime(TORCH).load_file(path)
    with pytest.raises(InvalidInput, match="no such file"):
        TorchRuntime(TORCH).load_file(tmp_path / "none.pt2")
    (tmp_path / "m.onnx").write_bytes(b"x")
    with pytest.raises(InvalidInput, match="onnxruntime-cpu"):
        TorchRuntime(TORCH).load_file(tmp_path / "m.onnx")


def test_broken_onnx_files(tmp_path: Path) -> None:
    (path,) = export_modules([block()], tmp_path, ["m"])
    data = path.read_bytes()
    runtime = OnnxRuntime(ORT)
    for cut in (1, len(data) // 3, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(CorruptFile, match=r"m\.onnx"):
            runtime.load_file(path)
    path.write_bytes(b"")
    with pytest.raises((CorruptFile, InvalidInput), match=r"m\.onnx"):
        runtime.load_file(path)
    with pytest.raises(InvalidInput, match="no such file"):
        runtime.load_file(tmp_path / "none.onnx")


def test_unknown_operator_and_dynamic_shape(tmp_path: Path) -> None:
    def save(name: str, op: str, domain: str, shape: list[int | str]) -> Path:
        infos = [onnx.helper.make_tensor_value_info(key, onnx.TensorProto.FLOAT, shape) for key in ("x", "y")]
        node = onnx.helper.make_node(op, ["x"], ["y"], domain=domain)
        graph = onnx.helper.make_graph([node], "g", infos[:1], infos[1:])
        opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("mine", 1)]
        onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / name)
        return tmp_path / name

    with pytest.raises(InvalidInput, match="does not run it"):
        OnnxRuntime(ORT).load_file(save("custom.onnx", "Mine", "mine", [1, 2]))
    with pytest.raises(InvalidInput, match="dynamic shape"):
        OnnxRuntime(ORT).load_file(save("dynamic.onnx", "Relu", "", ["N", 2]))


def test_unavailable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="int8 is not built"):
        OnnxRuntime(Target("onnxruntime-cpu", "int8"))
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(Unavailable, match="no CUDAExecutionProvider") as caught:
            OnnxRuntime(Target("onnxruntime-cuda", "fp32"))
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


def test_close_is_final() -> None:
    for runtime in (OnnxRuntime(ORT), TorchRuntime(TORCH)):
        (session,) = runtime.load_modules([block()])
        session.close()
        session.close()
        with pytest.raises(InvalidInput):
            session.step()

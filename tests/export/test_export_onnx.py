"""Export of one network: outputs, determinism, cleanliness, refusals, a full disk."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

import export
from export.bundle.manifest import OUTPUTS
from export.errors import InvalidInput
from export.onnx import tracing as onnx_trace
from export.onnx.exporter import export_onnx


class Net(nn.Module):
    """Five classes at stride 2; any size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 5, 1)

    def forward_native(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.stem(x))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.interpolate(self.forward_native(x), scale_factor=2.0, mode="bilinear", align_corners=False)
        return y[..., : x.shape[2], : x.shape[3]]


@pytest.fixture()
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.mark.parametrize(
    ("output", "shape", "dtype"),
    [("native", (1, 5, 17, 25), "float32"), ("logits", (1, 5, 33, 49), "float32"), ("labels", (1, 33, 49), "uint8")],
)
def test_outputs(net: Net, tmp_path: Path, output: str, shape: tuple[int, ...], dtype: str) -> None:
    report = export_onnx(net, (33, 49), tmp_path / "sub" / "m.onnx", output, {"size": "33x49"})
    assert (report.output.name, report.output.shape, report.output.dtype) == (output, shape, dtype)
    assert (report.input.name, report.input.shape) == ("image", (1, 3, 33, 49))
    assert net.training, "the caller's training flag is restored"
    model = onnx.load(report.path)
    assert {p.key: p.value for p in model.metadata_props} == {"size": "33x49"}
    assert {(o.domain, o.version) for o in model.opset_import} == {("", 18)}
    assert report.size_bytes == report.path.stat().st_size
    assert "BatchNormalization" not in report.operators
    json.dumps(report.to_json(), allow_nan=False)
    assert export.check_parity(net, report.path, size=(33, 49)).passed


def test_equal_input_gives_equal_bytes_without_machine_paths(net: Net, tmp_path: Path) -> None:
    first = export_onnx(net, (16, 16), tmp_path / "a.onnx")
    second = export_onnx(net, (16, 16), tmp_path / "b.onnx")
    assert first.sha256 == second.sha256
    data = first.path.read_bytes()
    for trace in (b"stack_trace", b"/tmp", b".py", b"site-packages"):
        assert trace not in data


def test_the_registry_of_operators_is_built_once_per_opset(net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Building it takes longer than exporting a single operator."""
    built: list[int] = []
    build = onnx_trace.ONNXRegistry.from_torchlib

    def noted(opset_version: int) -> Any:
        built.append(opset_version)
        return build(opset_version)

    monkeypatch.setattr(onnx_trace, "_registries", {})
    monkeypatch.setattr(onnx_trace.ONNXRegistry, "from_torchlib", staticmethod(noted))
    first, second = (export_onnx(net, (16, 16), tmp_path / f"{name}.onnx").sha256 for name in "ab")
    assert built == [18] and first == second


def test_many_classes_become_int32(tmp_path: Path) -> None:
    report = export_onnx(nn.Conv2d(3, 300, 1), (4, 4), tmp_path / "m.onnx", "labels")
    assert report.output.dtype == "int32"


def test_folded_copy_is_preferred(tmp_path: Path) -> None:
    class Foldable(nn.Conv2d):
        def folded(self) -> nn.Module:
            return nn.Sequential(nn.ReLU(), nn.ReLU6()).eval()

    report = export_onnx(Foldable(3, 3, 1), (4, 4), tmp_path / "m.onnx", "logits")
    assert "Conv" not in report.operators


def test_refusals(net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    with pytest.raises(InvalidInput, match="native, logits, labels"):
        export_onnx(net, (8, 8), path, "mask")
    with pytest.raises(InvalidInput, match="no forward_native"):
        export_onnx(nn.Conv2d(3, 4, 1), (8, 8), path)
    with pytest.raises(InvalidInput, match="text only"):
        export_onnx(net, (8, 8), path, metadata={"size": 3})  # type: ignore[dict-item]
    monkeypatch.setattr(onnx_trace, "MAX_BYTES", 2**20)
    with pytest.raises(InvalidInput, match="less than 2 GiB"):
        export_onnx(net, (8, 8), path)
    assert not path.exists()


def test_module_that_cannot_be_exported_is_named_with_the_reason(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum().item() > 0 else -x

    with pytest.raises(InvalidInput, match="cannot be exported to ONNX: "):
        export_onnx(Branching(), (4, 4), tmp_path / "m.onnx", "logits")


def test_full_disk_keeps_the_old_file(net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        export_onnx(net, (8, 8), path)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.onnx"]


def test_lazy_names() -> None:
    assert export.export_onnx is export_onnx
    assert OUTPUTS == ("native", "logits", "labels", "panoptic")
    with pytest.raises(AttributeError):
        export.nothing  # noqa: B018

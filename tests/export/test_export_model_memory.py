"""The memory of models, in real child processes: more for a larger image, and errors that come back."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from export.bench_models import BenchModel
from export.errors import CorruptFile, InvalidInput
from export.model_memory import ModelMemory, measure_memory
from export.onnx.exporter import export_onnx
from export.target import Target
from tests.export import foreign_files as foreign

ORT = Target("onnxruntime-cpu", "fp32")


def test_memory_holds_at_least_the_activations(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 5, 1))
    export_onnx(module, (512, 512), tmp_path / "m.onnx", "logits")
    small = measure_memory(BenchModel("s", foreign.classes(tmp_path / "s.onnx")), ORT, 1)
    large = measure_memory(BenchModel("m", tmp_path / "m.onnx"), ORT, 1)
    activations = 4 * (3 + 32 + 5) * 512**2 / 2**20
    assert activations <= large.peak_mib < 6 * activations, "40 MiB are alive at once"
    assert small.peak_mib < 8 and small.device_mib is None
    assert small.runtime_mib == pytest.approx(large.runtime_mib, rel=0.2), "the runtime alone"


def test_what_cannot_be_measured(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="memory is measured of files and bundles"):
        measure_memory(BenchModel("m", module=nn.Conv2d(3, 5, 1), size=(8, 8)), ORT, 1)
    (tmp_path / "m.onnx").write_bytes(b"none")
    with pytest.raises((CorruptFile, InvalidInput), match=r"m\.onnx"):
        measure_memory(BenchModel("m", tmp_path / "m.onnx"), ORT, 1)


def test_text() -> None:
    assert str(ModelMemory(12.34, 71.4)) == "12.3 MiB beyond the 71 MiB of a process with the runtime alone"
    assert "and 80 MiB of GPU memory" in str(ModelMemory(12.34, 71.4, 80.2))

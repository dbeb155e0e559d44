"""The bench: our models and foreign ones, interleaving, reports."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from export import bench_timing as bench_module
from export.bench_models import BenchModel
from export.bench_report import summarise
from export.bench_timing import bench
from export.bundle.imaging import Preprocessing, decode, overlay
from export.errors import CorruptFile, InvalidInput, Unavailable
from export.onnx.exporter import export_onnx
from export.prediction.segment import synthetic_jpeg
from export.target import Target
from tests.export import foreign_files as foreign

ORT = Target("onnxruntime-cpu", "fp32")
QUICK = {"seconds": 0.05, "warmup_s": 0.0}


@pytest.fixture(autouse=True)
def short_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_module, "SLICE_S", 0.002)


@pytest.mark.parametrize("mode", ["model", "labels", "end-to-end"])
def test_ours_against_a_foreign_one(tmp_path: Path, mode: str) -> None:
    size = (16, 24)
    metadata = {"preprocessing": json.dumps(Preprocessing(mean=(0.5, 0.5, 0.5)).to_json())}
    export_onnx(nn.Conv2d(3, 5, 3, 1, 1), size, tmp_path / "ours.onnx", "labels", metadata)
    foreign.classes(tmp_path / "theirs.onnx", ["N", 3, "H", "W"])
    models = [
        BenchModel("ours", tmp_path / "ours.onnx"),
        BenchModel("the|irs <b>", tmp_path / "theirs.onnx", size=size),
        BenchModel("as module", module=nn.Conv2d(3, 5, 1), size=size),
    ]
    seen: list[tuple[int, int]] = []
    report = bench(models, ORT, 1, mode=mode, progress=lambda *state: seen.append(state), **QUICK)
    assert seen[-1] == (100, 100)
    ours, theirs, module = report.models
    assert (ours.ratio_median, ours.file, ours.size, ours.notes) == (None, "ours.onnx", "16x24", ())
    assert "fixed to (1, 3, 16, 24)" in theirs.notes[0] and "scaled to 0..1" in theirs.notes[1]
    assert "as a module" in module.notes[0]
    for result in report.models:
        assert result.min_ms <= result.median_ms <= result.p90_ms <= result.p95_ms <= result.p99_ms
        assert result.fps == pytest.approx(1000 / result.median_ms)
        assert result.rounds >= bench_module.MIN_ROUNDS
    assert theirs.ratio_median is not None and theirs.ratio_p10 is not None and theirs.ratio_p90 is not None
    assert theirs.ratio_p10 <= theirs.ratio_median <= theirs.ratio_p90
    assert not list(tmp_path.glob("static-*")), "temporary copies stay out of the user's folder"
    json.dumps(report.to_json(), allow_nan=False)
    assert "the\\|irs &lt;b>" in report.to_markdown()
    page = report.to_html()
    assert "the|irs &lt;b&gt;" in page and "<b>" not in page and "http" not in page


def test_torch_target_times_modules() -> None:
    class Net(nn.Conv2d):
        def forward_native(self, x: torch.Tensor) -> torch.Tensor:
            return self(x)[:, :, ::2, ::2]

    report = bench([BenchModel("a", module=Net(3, 5, 1), size=(8, 8))], Target("torch-cpu", "fp32"), 1, mode="labels", **QUICK)
    assert "(1, 5, 4, 4)" in report.models[0].output
    assert "torch" in report.versions


def test_refusals(tmp_path: Path) -> None:
    def run(path: Path, **more: object) -> None:
        bench([BenchModel("m", path, **more)], ORT, 1, **QUICK)  # type: ignore[arg-type]

    good = foreign.classes(tmp_path / "good.onnx", [1, 3, 8, 8])
    with pytest.raises(InvalidInput, match="made for 8x8; asked for 16x16"):
        run(good, size=(16, 16))
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(CorruptFile, match="no ONNX graph"):
        run(tmp_path / "empty.onnx")
    for models, reason in (([], "at least one"), ([BenchModel("m", good)] * 2, "different names")):
        with pytest.raises(InvalidInput, match=reason):
            bench(models, ORT, 1, **QUICK)
    with pytest.raises(InvalidInput, match="end-to-end"):
        bench([BenchModel("m", good)], ORT, 1, mode="all", **QUICK)
    with pytest.raises(InvalidInput, match="seconds"):
        bench([BenchModel("m", good)], ORT, 1, seconds=0)
    with pytest.raises(Unavailable):
        bench([BenchModel("m", good)], Target.parse("tensorrt:fp16"), 1)
    with pytest.raises(InvalidInput, match="either a path or a module"):
        BenchModel("m")
    with pytest.raises(InvalidInput, match="needs a size"):
        BenchModel("m", module=nn.Conv2d(3, 5, 1))


def test_paired_ratio_cancels_drift() -> None:
    """The second model takes twice as long; the machine slows down threefold from round to round."""
    drift = np.linspace(1, 3, 20)
    numbers = summarise(list(drift * 2), list(drift * 2), list(drift))
    assert numbers["ratio_p10"] == numbers["ratio_median"] == numbers["ratio_p90"] == 2.0
    assert numbers["cv"] > 0.2


def test_images() -> None:
    image = decode(synthetic_jpeg((20, 30), seed=1))
    assert image.size == (30, 20)
    assert synthetic_jpeg((20, 30), seed=1) == synthetic_jpeg((20, 30), seed=1)
    tensor = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)).apply(image, (20, 30))
    assert tensor.shape == (1, 3, 20, 30) and tensor.dtype == np.float32
    np.testing.assert_allclose(tensor[0, 0], np.asarray(image)[..., 0] / 127.5 - 1, atol=1e-5)
    grey = np.full((2, 2, 3), 100, np.uint8)
    drawn = overlay(grey, np.array([[0, 1], [255, 0]]), [[200, 0, 0], [0, 0, 0]])
    assert drawn[0, 0].tolist() == [150, 50, 50] and drawn[1, 0].tolist() == [100, 100, 100]

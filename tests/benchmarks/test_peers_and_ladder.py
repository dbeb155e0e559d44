"""Benchmarks of other people's files, of ladders and of memory: what they choose, leave out, count and write."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import ladder, memory_fidelity, peers
from benchmarks.memory_fidelity import Measured, fitted, held_out
from export import bench_timing
from export.errors import InvalidInput
from export.paced import pace
from export.runtimes import open_runtime
from export.target import Target
from hyctas.cost.memory import MemoryFit
from tests.export import foreign_files as foreign

ORT = Target("onnxruntime-cpu", "fp32")


@pytest.fixture(autouse=True)
def short_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_timing, "SLICE_S", 0.002)


def test_peers_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ours", "theirs"):
        Path(name).mkdir()
    foreign.classes(Path("ours/m.onnx"))
    foreign.classes(Path("theirs/m.onnx"))
    foreign.classes(Path("theirs/dynamic.onnx"), (1, 3, "height", "width"))
    Path("theirs/broken.onnx").write_bytes(b"none")
    Path("theirs/notes.txt").write_text("none")
    arguments = ["theirs", "--ours", "ours", "--seconds", "0.05", "--out", "r.json"]
    for more, names, reasons in (
        ([], ["ours/m.onnx", "theirs/m.onnx"], ["broken.onnx", "dynamic.onnx"]),
        (["--size", "8x12"], ["ours/m.onnx", "dynamic.onnx", "theirs/m.onnx"], ["broken.onnx"]),
    ):
        peers.main([*arguments, *more])
        report = json.loads(Path("r.json").read_text())
        assert [model["name"] for model in report["models"]] == names
        assert report["models"][0]["ratio_median"] is None and "time by first" in Path("r.html").read_text()
        left_out = [warning for warning in report["warnings"] if "is left out" in warning]
        assert [reason in found for reason, found in zip(reasons, left_out, strict=True)] == [True] * len(reasons)
    for wrong, reason in ((["none", "--ours", "ours"], "no such file"), (["theirs", "--ours", "."], "neither ONNX files"),
                          (["theirs", "--ours", "theirs/broken.onnx"], "one model of ours")):  # fmt: skip
        with pytest.raises(InvalidInput, match=reason):
            peers.main([*wrong, "--out", "other.json"])


def test_a_ladder_is_judged_over_all_rounds(tmp_path: Path) -> None:
    models = [peers.BenchModel(name, foreign.classes(tmp_path / f"{name}.onnx")) for name in ("alone", "ladder")]
    report = pace(models, open_runtime(ORT, 1), 100, 0.1)
    missed = ladder.judged([report, report])
    assert set(missed) == {"alone", "ladder"} and all(0 <= share <= 1 for share in missed.values())
    assert missed["alone"] == report.models[0].missed_share
    ladder.write(tmp_path / "l.json", [report], 9.0, "goal missed", {"missed": missed, "reached": False})
    assert json.loads((tmp_path / "l.json").read_text())["median_ms"] == 9.0
    assert "goal missed" in (tmp_path / "l.md").read_text() and "<svg" in (tmp_path / "l.html").read_text()


def test_a_core_is_kept_busy_and_let_go() -> None:
    before = ladder.multiprocessing.active_children()
    with ladder.busy_core(None):
        (child,) = set(ladder.multiprocessing.active_children()) - set(before)
        assert child.is_alive()
    assert not child.is_alive()


def test_memory_is_fitted_without_the_network_that_is_predicted() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.uniform(5, 50, (20, 2))
    networks = [Measured(str(i), "64x64", w, a, 7 + 3 * w + 2 * a) for i, (w, a) in enumerate(sizes.tolist())]
    assert fitted(networks) == pytest.approx([7, 3, 2])
    assert max(network.error for network in held_out(networks)) < 1e-9
    odd = [*networks[:-1], Measured("odd", "64x64", 10, 10, 500.0)]
    assert held_out(odd)[-1].error > 0.5, "its own fold does not see it"
    fit = MemoryFit(7.0, 3.0, 2.0, 20, 0.05, 0.1, {"onnxruntime": "1"})
    text = memory_fidelity.report(ORT, held_out(networks), fit, "python -m benchmarks.memory_fidelity")
    assert "mean error 5.0%, largest 10.0%" in text and text.count("| 64x64 |") == 20

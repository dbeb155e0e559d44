"""hyctas-bench: what it times, where, and the report it leaves."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image

import latency.lock
from export import bench_timing as bench_module
from export.bench_report import BenchReport
from export.bundle.imaging import decode
from export.errors import InvalidInput, Unavailable
from hyctas.artifacts.bundling import bundle_network, load_trained
from hyctas.cli import bench as cli
from hyctas.commands import bench as bench_command
from hyctas.commands import chosen_target, model_files, sample_images
from hyctas.data import Labels, default_colours
from hyctas.network import build, save_weights
from hyctas.space import tiny

SIZE = (64, 64)
LABELS = Labels(tuple("abcde"), default_colours(5))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Time for milliseconds, in an empty folder."""
    monkeypatch.setattr(bench_module, "SLICE_S", 0.002)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "one"
    folder.mkdir()
    genotype = tiny().sample(np.random.default_rng(16))
    torch.manual_seed(0)
    save_weights(build(genotype, 5), folder / "network.safetensors", {"genotype": genotype.id})
    (folder / "genotype.json").write_text(genotype.to_json())
    (folder / "labels.json").write_text(json.dumps(LABELS.to_json()))
    return folder


@pytest.fixture(scope="module")
def bundle(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "b"
    bundle_network(load_trained(run_folder), folder, SIZE)
    return folder


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 1x1 convolution to 5 channels as other exporters write it: own names, no metadata, dynamic size."""
    shape = [1, 3, "height", "width"]
    inputs = [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1, 5, "height", "width"])]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [5, 3, 1, 1], np.linspace(-1, 1, 15).tolist())
    graph = helper.make_graph([helper.make_node("Conv", ["pixels", "w"], ["mask"])], "g", inputs, outputs, [weight])
    path = tmp_path_factory.mktemp("foreign") / "theirs.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


@pytest.fixture(scope="module")
def pt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pt2") / "m.pt2"
    module = torch.nn.Conv2d(3, 5, 3, 8, 1).eval()
    torch.export.save(torch.export.export(module, (torch.zeros(1, 3, *SIZE),)), path)
    return path


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """Run the command in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["/x/hyctas-bench", *map(str, arguments), "--seconds", "0.05"])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_help_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        assert name.partition('.')[0] not in ('torch', 'onnx', 'onnxruntime'), name\n"
        "sys.meta_path.insert(0, Block())\n"
        "sys.argv = ['hyctas-bench', '--help']\n"
        "from hyctas.cli.bench import main; main()"
    )
    root, wide = Path(__file__).parents[3], os.environ | {"COLUMNS": "120"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=wide, cwd=root)
    assert done.returncode == 0, done.stderr
    flags = "MODEL --target --threads --seconds --mode --size --out --data --run".split()
    assert all(flag in done.stdout for flag in flags)


def test_ours_against_a_foreign_one(
    bundle: Path, foreign: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held: list[int] = []
    original = bench_module.bench

    def watched(*arguments: Any, **named: Any) -> BenchReport:
        held.extend(latency.lock._held.values())
        return original(*arguments, **named)

    monkeypatch.setattr(bench_command, "bench", watched)
    assert call(monkeypatch, bundle, foreign, bundle, "--size", "64x64", "--out", "deep/r.json") == 0
    assert held == [1] and not latency.lock._held
    out = capsys.readouterr().out
    assert "target: onnxruntime-cpu:fp32, 1 thread; mode model; 3 models" in out
    for text in ("median ms", "p90", "p95", "p99", "CV", "FPS", "time by first", "theirs.onnx", "fixed to (1, 3, 64, 64)"):
        assert text in out
    report = json.loads(Path("deep/r.json").read_text())
    names = [model["name"] for model in report["models"]]
    assert names == [f"{bundle} (1)", "theirs.onnx", f"{bundle} (2)"]
    assert report["models"][0]["ratio_median"] is None and report["models"][1]["ratio_median"] > 0
    assert report["command_line"][0] == "hyctas-bench" and report["command_line"][-1] == "0.05"
    assert "theirs.onnx" in Path("deep/r.md").read_text() and "theirs.onnx" in Path("deep/r.html").read_text()
    assert call(monkeypatch, foreign, "--size", "32x40", "--out", "deep/r.json") == 0  # its own report may be replaced
    assert json.loads(Path("deep/r.json").read_text())["models"][0]["size"] == "32x40"


def test_paced(bundle: Path, foreign: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, bundle, foreign, "--size", "64x64", "--pace", "400") == 0
    out = capsys.readouterr().out
    assert all(text in out for text in ("400 frames per second", "missed", "dropped", "age p99 ms", "wrote paced.html"))
    report = json.loads(Path("paced.json").read_text())
    assert [(model["name"], model["frames"]) for model in report["models"]] == [("b", 20), ("theirs.onnx", 20)]
    assert call(monkeypatch, bundle, "--pace", "10") == 2 and "take more --seconds" in capsys.readouterr().err
    assert call(monkeypatch, bundle, "--pace", "10", "--kit", "kit") == 2 and "leave --pace out" in capsys.readouterr().err


def test_end_to_end_paints_a_street(bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Any] = []
    original = bench_module.bench

    def watched(*arguments: Any, **named: Any) -> BenchReport:
        seen.extend(named["images"])
        return original(*arguments, **named)

    monkeypatch.setattr(bench_command, "bench", watched)
    assert call(monkeypatch, bundle, "--mode", "end-to-end") == 0
    assert [decode(image).size for image in seen] == [(64, 64)] * 4
    assert "images: 4 from a generated street scene" in capsys.readouterr().out
    assert json.loads(Path("bench.json").read_text())["mode"] == "end-to-end"


def test_run_folder_and_bundle_on_torch(
    run_folder: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run's network needs no export; on torch a bundle is built from its genotype and weights."""
    shutil.copytree(run_folder, tmp_path / "r")
    arguments = ("--run", tmp_path / "r", "--target", "torch-cpu:fp32")
    assert call(monkeypatch, *arguments) == 2
    assert "give --size" in capsys.readouterr().err
    assert call(monkeypatch, *arguments, "--size", "64x64", "--mode", "labels") == 0
    assert json.loads((tmp_path / "r" / "fps.json").read_text())["models"][0]["size"] == "64x64"
    assert call(monkeypatch, bundle, "--target", "torch-cpu:fp32", "--size", "32x32") == 2
    assert "is made for 64x64" in capsys.readouterr().err
    assert call(monkeypatch, bundle, *arguments) == 0
    assert "b: run as a module" in capsys.readouterr().out


def test_no_code_of_a_pt2_file_runs_unconfirmed(pt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch unpickles the examples in it, whatever they are."""
    victim, path = tmp_path / "victim", tmp_path / "THEIRS.PT2"

    class Planted:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (victim,)

    with zipfile.ZipFile(pt2) as sound, zipfile.ZipFile(path, "w") as changed:
        for name in sound.namelist():
            data = io.BytesIO(sound.read(name))
            if "sample_inputs" in name:
                torch.save(Planted(), data := io.BytesIO())
            changed.writestr(name, data.getvalue())
    assert call(monkeypatch, path) == 2 and not victim.exists()
    assert call(monkeypatch, path, "--trust") == 2 and victim.exists()


def test_pt2_takes_torch(pt2: Path, foreign: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, pt2, "--trust") == 0
    assert "target: torch-c" in capsys.readouterr().out
    refused: list[tuple[tuple[str | Path, ...], str]] = [
        ((pt2, foreign), "no target runs both"),
        ((pt2, "--target", "onnxruntime-cpu:fp32"), "does not run"),
        ((pt2, "--size", "64x64"), "has a fixed size"),
        ((pt2,), "executes code that stands in it"),
    ]
    for arguments, reason in refused:
        assert call(monkeypatch, *arguments) == 2
        assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("{onnx}", "--target", "tensorrt:fp16"), 3, "tensorrt:fp16 is unavailable"),
        (("{onnx}", "--target", "onnxruntime-cuda:fp32"), 3, "onnxruntime-cuda:fp32 is unavailable"),
        (("{onnx}", "--target", "nothing:fp32"), 2, "unknown runtime"),
        (("{onnx}", "--target", "torch-cpu:fp32"), 2, "take onnxruntime-cpu:fp32"),
        (("{onnx}",), 2, "give a size"),
        (("{onnx}", "--size", "16x16"), 2, "too small"),
        (("{onnx}", "--size", "64x64", "--threads", "0"), 2, "threads is 0; allowed"),
        (("{onnx}", "--size", "64x64", "--mode", "fast"), 2, ""),
        (("{onnx}", "--size", "64x64", "--data", "nowhere"), 2, "nowhere"),
        (("{onnx}", "--out", "report.txt"), 2, "ends in .json"),
        (("{onnx}", "--out", "theirs.json"), 2, "is no report of hyctas-bench"),
        (("{onnx}", "--out", "other.json"), 2, "other.md exists"),
        (("{onnx}", "--out", "theirs.json/r.json"), 2, "it is no folder"),
        ((), 2, "nothing to time"),
        (("missing.onnx",), 2, "no such file or folder"),
        (("folder",), 2, "is no bundle"),
        (("theirs.json",), 2, "suffix '.json' is unknown"),
        (("m.engine",), 3, "tensorrt:fp16 is unavailable: "),
        (("broken.onnx",), 2, "broken.onnx: is not a whole ONNX file"),
        (("broken.pt2", "--trust"), 2, "broken.pt2: is not a readable .pt2 file"),
        (("tampered",), 2, "genotype.json: differs from the manifest"),
    ],
)
def test_refused(
    bundle: Path, foreign: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...], code: int, reason: str,
) -> None:  # fmt: skip
    Path("folder").mkdir()
    Path("theirs.json").write_text('{"mine": 1}')
    Path("other.md").write_text("mine")
    Path("m.engine").write_bytes(b"")
    Path("broken.onnx").write_bytes((bundle / "model.onnx").read_bytes()[:-1000])
    Path("broken.pt2").write_bytes(b"PK")
    shutil.copytree(bundle, "tampered")
    Path("tampered/genotype.json").write_text("{}")
    assert call(monkeypatch, *(argument.format(onnx=foreign) for argument in arguments)) == code
    assert reason in capsys.readouterr().err
    assert Path("theirs.json").read_text() == '{"mine": 1}' and Path("other.md").read_text() == "mine"
    assert not Path("bench.json").exists() and not Path("report.txt").exists()


def _pictures(folder: Path) -> str:
    for i in range(20):
        Image.fromarray(np.full((8, 10, 3), i, np.uint8)).save(folder / f"{i:02d}.jpg")
    return str(folder)


def _one_png(folder: Path) -> str:
    Image.fromarray(np.zeros((8, 10, 3), np.uint8)).save(folder / "a.png")
    (folder / "notes.txt").write_text("no image")
    return str(folder)


def _scenes(folder: Path) -> str:
    return "scenes:train=4,val=3,size=32x40"


@pytest.mark.parametrize(("make", "count", "size"), [(_pictures, 16, (10, 8)), (_one_png, 1, (10, 8)), (_scenes, 3, (40, 32))])
def test_images(tmp_path: Path, make: Callable[[Path], str], count: int, size: tuple[int, int]) -> None:
    (tmp_path / "images").mkdir()
    images = sample_images.load_images(make(tmp_path / "images"))
    assert len(images) == count and {decode(image).size for image in images} == {size}
    assert all(image[:2] == b"\xff\xd8" for image in images)


def test_unusable_images(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(InvalidInput, match=r"a\.jpg"):
        sample_images.load_images(str(tmp_path))
    with pytest.raises(InvalidInput, match="no images"):
        sample_images.load_images("scenes:val=0")


def test_names_differ(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "m.onnx", tmp_path / "b" / "m.onnx", tmp_path / "c.onnx", tmp_path / "b" / "m.onnx"]
    a, b, c, again = model_files.names(paths)
    assert (a, b, c, again) == (str(paths[0]), f"{paths[1]} (1)", "c.onnx", f"{paths[1]} (2)")
    assert model_files.names([Path("."), tmp_path])[0] == Path.cwd().name


def test_default_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with a GPU whose ONNX Runtime has no CUDA, an ONNX file stays on the CPU and a bundle goes to torch."""
    from export import runtimes

    able = {"torch-cuda:fp32", "onnxruntime-cpu:fp32", "torch-cpu:fp32"}

    def states() -> list[runtimes.Availability]:
        return [runtimes.Availability(name, name in able, "why", "how") for name in runtimes.PREFERRED]

    monkeypatch.setattr(chosen_target, "available_targets", states)
    bundle, file, program = (Path("b"), "bundle"), (Path("m.onnx"), ".onnx"), (Path("m.pt2"), ".pt2")
    assert str(model_files.choose_target(None, [bundle])) == "torch-cuda:fp32"
    assert str(model_files.choose_target(None, [bundle, file])) == "onnxruntime-cpu:fp32"
    assert str(model_files.choose_target(None, [program, bundle])) == "torch-cuda:fp32"
    able.clear()
    with pytest.raises(Unavailable, match=r"onnxruntime-cpu:fp32 is unavailable: why"):
        model_files.choose_target(None, [file])
    with pytest.raises(Unavailable, match="torch-cpu:fp32"):
        chosen_target.best_target(("torch-",))


def test_bar_draws_only_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from hyctas.cli import show

    console = Console(force_terminal=True, width=100)
    monkeypatch.setattr(show, "console", console)
    with console.capture() as capture, show.still_bar("time models") as progress:
        progress(50, 100)
        progress(100, 100)
    assert "100%" in capture.get()

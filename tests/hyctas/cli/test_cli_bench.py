"""hyctas-bench: what it times, where, and the report it leaves."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import latency.lock
from export import bench_timing as bench_module
from export.bench_report import BenchReport
from export.bundle.imaging import decode
from export.errors import InvalidInput, Unavailable
from export.prediction.opencv import VideoFile
from hyctas.commands import bench as work
from hyctas.commands import chosen_target, model_files, sample_images
from tests.export import foreign_files
from tests.hyctas.cli.conftest import SIZE, Command, expect, write_run


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Time for milliseconds, in an empty folder."""
    monkeypatch.setattr(bench_module, "SLICE_S", 0.002)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 1x1 convolution to 5 channels as other exporters write it: own names, no metadata, dynamic size."""
    return foreign_files.classes(tmp_path_factory.mktemp("foreign") / "theirs.onnx", (1, 3, "height", "width"))


@pytest.fixture(scope="module")
def pt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pt2") / "m.pt2"
    module = torch.nn.Conv2d(3, 5, 3, 8, 1).eval()
    torch.export.save(torch.export.export(module, (torch.zeros(1, 3, *SIZE),)), path)
    return path


@pytest.fixture
def call(command: Command) -> Command:
    """Run hyctas-bench for a twentieth of a second."""
    return lambda *arguments: command("bench", *arguments, "--seconds", "0.05")


def test_ours_against_a_foreign_one(call: Command, bundle: Path, foreign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    original = work.bench

    def watched(*arguments: Any, **named: Any) -> BenchReport:
        held.extend(latency.lock._held.values())
        return original(*arguments, **named)

    monkeypatch.setattr(work, "bench", watched)
    code, out = call(bundle, foreign, bundle, "--size", "64x64", "--out", "deep/r.json")
    assert code == 0 and held == [1] and not latency.lock._held
    assert "target: onnxruntime-cpu:fp32, 1 thread; mode model; 3 models" in out
    for text in ("median ms", "p90", "p95", "p99", "CV", "FPS", "time by first", "theirs.onnx", "fixed to (1, 3, 64, 64)"):
        assert text in out
    report = json.loads(Path("deep/r.json").read_text())
    names = [model["name"] for model in report["models"]]
    assert names == [f"{bundle} (1)", "theirs.onnx", f"{bundle} (2)"]
    assert report["models"][0]["ratio_median"] is None and report["models"][1]["ratio_median"] > 0
    assert report["command_line"][0] == "hyctas-bench" and report["command_line"][-1] == "0.05"
    assert "theirs.onnx" in Path("deep/r.md").read_text() and "theirs.onnx" in Path("deep/r.html").read_text()
    assert call(foreign, "--size", "32x40", "--out", "deep/r.json")[0] == 0  # its own report may be replaced
    assert json.loads(Path("deep/r.json").read_text())["models"][0]["size"] == "32x40"


def test_paced(call: Command, bundle: Path, foreign: Path) -> None:
    out = expect(call(bundle, foreign, "--size", "64x64", "--pace", "400"), 0)
    assert all(text in out for text in ("400 frames per second", "missed", "dropped", "age p99 ms", "wrote paced.html"))
    report = json.loads(Path("paced.json").read_text())
    assert [(model["name"], model["frames"]) for model in report["models"]] == [("b", 20), ("theirs.onnx", 20)]
    assert "less than 10 frames" in call(bundle, "--pace", "10")[1]
    assert "leave --pace out" in call(bundle, "--pace", "10", "--kit", "kit")[1]


def test_paced_by_images_and_a_video(call: Command, bundle: Path) -> None:
    video = VideoFile(Path("clip.mp4"), 10)
    for level in range(0, 250, 50):
        video.write(np.full((16, 24, 3), level, np.uint8))
    video.close()
    Image.new("RGB", (20, 30)).save("a.png")
    for data, said in (("clip.mp4", "frames: clip.mp4"), ("a.png", "frames: 1 image in memory")):
        expect(call(bundle, "--pace", "400", "--data", data, "--mode", "end-to-end"), 0, said)
        assert json.loads(Path("paced.json").read_text())["models"][0]["frames"] >= 20
    Path("torn.mp4").write_bytes(Path("clip.mp4").read_bytes()[:-300])
    Path("empty").mkdir()
    Path("t.txt").write_text("none")
    refused = [
        ("--data clip.mp4", 2, "arrive by the clock"), ("--data torn.mp4 --pace 400", 2, "cannot be read as a video"),
        ("--data camera:99 --pace 400", 3, "camera:99 is unavailable"), ("--data empty --pace 400", 2, "empty"),
        ("--data t.txt --pace 400", 2, "suffix '.txt' is unknown"), ("--pace 0", 2, "above 0"),
        ("--sustained 10", 2, "'10' is not a number with s, m or h"), ("--sustained 1s", 2, "from 2s to 24h"),
        ("--sustained 10m --kit kit", 2, "leave --sustained out"),
        ("--memory --kit kit", 2, "leave --memory out"), ("--sustained 2s --pace 4", 2, "less than 10 frames"),
    ]  # fmt: skip
    for arguments, code, reason in refused:
        expect(call(bundle, *arguments.split()), code, reason)


def test_memory(call: Command, bundle: Path, foreign: Path) -> None:
    out = expect(call(bundle, foreign, "--size", "64x64", "--memory"), 0, "memory MiB", "memory of b: ")
    report = json.loads(Path("bench.json").read_text())
    assert all(model["memory_mib"] > 0 for model in report["models"]) and "GPU memory" not in out
    expect(call(bundle, "--memory", "--target", "torch-cpu:fp32"), 0, "memory of b: not measured, the target runs it as a module")
    assert "memory_mib" not in json.loads(Path("bench.json").read_text())["models"][0]
    expect(call(bundle, "--pace", "400", "--memory"), 0, "b: it takes ")


def test_sustained(call: Command, bundle: Path) -> None:
    expect(call(bundle, "--sustained", "2s", "--pace", "50"), 0, "last by first", "wrote sustained.html", "mode model, 50 frames")
    report = json.loads(Path("sustained.json").read_text())
    (model,) = report["models"]
    assert report["state"] == "done" and sum(interval["frames"] for interval in model["intervals"]) == 100


def test_end_to_end_paints_a_street(call: Command, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    original = work.bench

    def watched(*arguments: Any, **named: Any) -> BenchReport:
        seen.extend(named["images"])
        return original(*arguments, **named)

    monkeypatch.setattr(work, "bench", watched)
    expect(call(bundle, "--mode", "end-to-end"), 0, "images: 4 from a generated street scene")
    assert [decode(image).size for image in seen] == [(64, 64)] * 4
    assert json.loads(Path("bench.json").read_text())["mode"] == "end-to-end"


def test_run_folder_and_bundle_on_torch(call: Command, bundle: Path, tmp_path: Path) -> None:
    """A run's network needs no export; on torch a bundle is built from its genotype and weights."""
    write_run(tmp_path / "r")
    arguments = ("--run", tmp_path / "r", "--target", "torch-cpu:fp32")
    expect(call(*arguments), 2, "give --size")
    assert call(*arguments, "--size", "64x64", "--mode", "labels")[0] == 0
    assert json.loads((tmp_path / "r" / "fps.json").read_text())["models"][0]["size"] == "64x64"
    expect(call(bundle, "--target", "torch-cpu:fp32", "--size", "32x32"), 2, "is made for 64x64")
    expect(call(bundle, *arguments), 0, "b: run as a module")


def test_no_code_of_a_pt2_file_runs_unconfirmed(call: Command, pt2: Path, tmp_path: Path) -> None:
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
    assert call(path)[0] == 2 and not victim.exists()
    assert call(path, "--trust")[0] == 2 and victim.exists()


def test_pt2_takes_torch(call: Command, pt2: Path, foreign: Path) -> None:
    expect(call(pt2, "--trust"), 0, "target: torch-c")
    refused: list[tuple[tuple[str | Path, ...], str]] = [
        ((pt2, foreign), "no target runs both"),
        ((pt2, "--target", "onnxruntime-cpu:fp32"), "does not run"),
        ((pt2, "--size", "64x64"), "has a fixed size"),
        ((pt2,), "executes code that stands in it"),
    ]
    for arguments, reason in refused:
        expect(call(*arguments), 2, reason)


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("{onnx}", "--target", "tensorrt:fp16"), 3, "tensorrt:fp16 is unavailable"),
        (("{onnx}", "--target", "torch-cpu:fp32"), 2, "take onnxruntime-cpu:fp32"),
        (("{onnx}",), 2, "give a size"),
        (("{onnx}", "--size", "16x16"), 2, "too small"),
        (("{onnx}", "--size", "64x64", "--data", "nowhere"), 2, "nowhere"),
        (("{onnx}", "--out", "report.txt"), 2, "ends in .json"),
        (("{onnx}", "--out", "theirs.json"), 2, "is no report of hyctas-bench"),
        (("{onnx}", "--out", "other.json"), 2, "other.md exists"),
        (("{onnx}", "--out", "theirs.json/r.json"), 2, "it is no folder"),
        ((), 2, "no model is named, and no folder models/balanced is here"),
        (("missing.onnx",), 2, "no such file or folder"),
        (("folder",), 2, "is no bundle"),
        (("theirs.json",), 2, "suffix '.json' is unknown"),
        (("m.engine",), 3, "tensorrt:fp16 is unavailable: "),
        (("broken.onnx",), 2, "broken.onnx: is not a whole ONNX file"),
        (("broken.pt2", "--trust"), 2, "broken.pt2: is not a readable .pt2 file"),
        (("tampered",), 2, "genotype.json: differs from the manifest"),
    ],
)
def test_refused(call: Command, bundle: Path, foreign: Path, arguments: tuple[str, ...], code: int, reason: str) -> None:
    Path("folder").mkdir()
    Path("theirs.json").write_text('{"mine": 1}')
    Path("other.md").write_text("mine")
    Path("m.engine").write_bytes(b"")
    Path("broken.onnx").write_bytes((bundle / "model.onnx").read_bytes()[:-1000])
    Path("broken.pt2").write_bytes(b"PK")
    shutil.copytree(bundle, "tampered")
    Path("tampered/genotype.json").write_text("{}")
    expect(call(*(argument.format(onnx=foreign) for argument in arguments)), code, reason)
    assert Path("theirs.json").read_text() == '{"mine": 1}' and Path("other.md").read_text() == "mine"
    assert not Path("bench.json").exists() and not Path("report.txt").exists()


@pytest.mark.parametrize(("pictures", "count"), [([f"{i:02d}.jpg" for i in range(20)], 16), (["a.png"], 1)])
def test_images(tmp_path: Path, pictures: list[str], count: int) -> None:
    for level, name in enumerate(pictures):
        Image.fromarray(np.full((8, 10, 3), level, np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    for source, number, size in ((str(tmp_path), count, (10, 8)), ("scenes:train=4,val=3,size=32x40", 3, (40, 32))):
        images = sample_images.load_images(source)
        assert len(images) == number and {decode(image).size for image in images} == {size}
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


def test_default_target(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with a GPU whose ONNX Runtime has no CUDA, an ONNX file stays on the CPU and a bundle goes to torch."""
    from export import runtimes

    able = {"torch-cuda:fp32", "onnxruntime-cpu:fp32", "torch-cpu:fp32"}

    def states() -> list[runtimes.Availability]:
        return [runtimes.Availability(name, name in able, "why", "how") for name in runtimes.PREFERRED]

    monkeypatch.setattr(chosen_target, "available_targets", states)
    folder, file, program = (Path("b"), "bundle"), (bundle / "model.onnx", ".onnx"), (Path("m.pt2"), ".pt2")
    assert str(model_files.choose_target(None, [folder])) == "torch-cuda:fp32"
    assert str(model_files.choose_target(None, [folder, file])) == "onnxruntime-cpu:fp32"
    assert str(model_files.choose_target(None, [program, folder])) == "torch-cuda:fp32"
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

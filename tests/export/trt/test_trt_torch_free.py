"""`python -m export.trt.run`, and that it runs on a device: Python 3.10 with numpy, tensorrt and cuda-bindings alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.trt import run
from export.trt.engine_file import manifest_path
from export.trt.run import main
from tests.export.trt.a_device import BECOME
from tests.export.trt.fakes_cuda import fake_cuda_bindings, module
from tests.export.trt.fakes_gpu import FakeGpu
from tests.export.trt.fakes_run import SHAPE, FakeTensorRT, install, plan, save
from tests.export.trt.test_trt_runtime import write_onnx

ROOT = Path(__file__).parents[3]
ABSENT = ("torch", "onnx", "onnxruntime", "onnxscript", "PIL", "tyro", "rich", "ml_dtypes", "pycuda", "hyctas", "latency", "pytest")
"""What a device does not have, or does not need."""
ON_A_DEVICE = f"""{BECOME}
from pathlib import Path
from export.trt.run import main

folder = sys.argv[2]
path = save(Path(folder) / "model.engine", trt, plan(version="10.3.0"))
tell(main([str(path), "--seconds", "0.05", "--layers", folder, "--outputs", str(Path(folder) / "y.npz")]))
"""


@pytest.fixture(scope="module")
def on_a_device(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run an engine in a fresh process without the packages that a device lacks, and return what it found."""
    return run_on_a_device(sys.executable, tmp_path_factory.mktemp("device"))


def run_on_a_device(python: str, folder: Path) -> dict[str, Any]:
    """Run an engine in a process of this Python; return what the fixture does."""
    command = [python, "-W", "error", "-c", ON_A_DEVICE, json.dumps(ABSENT), str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    *shown, last = done.stdout.splitlines()
    found: dict[str, Any] = json.loads(last)
    return {**found, "shown": shown, "errors": done.stderr, "files": {path.name for path in folder.iterdir()}, "folder": folder}


def test_it_runs_without_what_a_device_lacks(on_a_device: dict[str, Any]) -> None:
    assert (on_a_device["code"], on_a_device["errors"], on_a_device["leaks"]) == (0, "", [])
    assert on_a_device["present"] == [], "imported in spite of all"
    first, second, *notes = on_a_device["shown"]
    assert first == "model.engine on Fake RTX, TensorRT 10.3.0, cuda-bindings"
    assert second.startswith("median 0.250 ms, p90 0.250 ms, p99 0.250 ms, 4000.0 FPS (n = ")
    assert notes == ["note: layers that are attention in one kernel: 0"]
    made = {"model.engine.times.json", "layers_model.json", "profile_model.json", "y.npz"}
    assert made <= on_a_device["files"]
    with np.load(on_a_device["folder"] / "y.npz") as outputs:
        x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
        np.testing.assert_array_equal(outputs["y"], 2 * x)


def test_it_runs_on_python_3_10(tmp_path: Path) -> None:
    python = shutil.which("python3.10")
    if python is None or subprocess.run([python, "-c", "import numpy"], capture_output=True).returncode:
        pytest.skip("there is no python3.10 with numpy")
    found = run_on_a_device(python, tmp_path)
    assert (found["code"], found["errors"], found["leaks"]) == (0, "", [])


def test_its_modules_are_python_3_10(on_a_device: dict[str, Any], tmp_path: Path) -> None:
    """By the standard library's stubs: syntax, names, methods and arguments; what is newer is found."""
    names = {*on_a_device["modules"], "export.trt.cuda.device_torch", "export.trt.cuda.device_pycuda"}
    assert {"export.trt.run", "export.trt.runner", "export.trt.cuda.device_cuda_bindings", "export.trt.cuda.guard"} <= names
    newer = tmp_path / "newer.py"
    newer.write_text(NEWER_CODE)
    found = python_3_10_errors(tmp_path, [*names, newer])
    for name in ("tomllib", "Self", "UTC", "file_digest", "walk", "add_note", "newline"):
        assert any(f'"{name}"' in line for line in found), (name, found)
    assert [line for line in found if "newer.py" not in line] == []


MYPY = """
[mypy]
python_version = 3.10
follow_imports = silent
[mypy-numpy.*,torch.*,onnx.*,onnxruntime.*,openvino.*,tensorrt.*,cuda.*,pycuda.*,PIL.*]
ignore_missing_imports = true
follow_imports = skip
"""
NEWER_CODE = """
from pathlib import Path
from typing import Self
import datetime, hashlib, tomllib

datetime.UTC, hashlib.file_digest, Path().walk, ValueError().add_note
Path().read_text(newline="")
"""


def python_3_10_errors(folder: Path, modules: Iterable[str | Path]) -> list[str]:
    """Check modules and files as Python 3.10; they are given as files."""
    files = []
    for name in {*modules}:
        path = name if isinstance(name, Path) else ROOT / name.replace(".", "/")
        files.append(str(path / "__init__.py" if path.is_dir() else path.with_suffix(".py")))
    (folder / "mypy.ini").write_text(MYPY)
    options = [f"--config-file={folder / 'mypy.ini'}", f"--cache-dir={folder / 'cache'}", "--no-error-summary"]
    done = subprocess.run([sys.executable, "-m", "mypy", *options, *files], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if ": error: " in line]


def test_help_needs_nothing() -> None:
    code = f"import sys; sys.modules.update(dict.fromkeys({[*ABSENT, 'tensorrt', 'cuda']!r})); "
    code += "import export.trt.run as r; r.main(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "usage: python -m export.trt.run" in done.stdout and "--cuda-backend {torch,cuda-bindings,pycuda}" in done.stdout


class TestCommand:
    """What the command reads, writes and refuses."""

    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(run, "WARM_UP_S", 0.0)

    @pytest.fixture
    def trt(self, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
        gpu = FakeGpu()
        fake = FakeTensorRT(gpu, "11.4.0")
        install(monkeypatch, fake)
        for made in (module("cuda"), module("cuda.bindings"), fake_cuda_bindings(gpu)):
            monkeypatch.setitem(sys.modules, made.__name__, made)
        return fake

    @pytest.fixture
    def engine(self, trt: FakeTensorRT, tmp_path: Path) -> Path:
        return save(tmp_path / "model.engine", trt, plan(version=trt.version))

    def call(self, engine: Path, *arguments: object) -> int:
        backend = ["--cuda-backend", "cuda-bindings"]
        return main([str(engine), "--seconds", "0.01", *backend, *map(str, arguments)])

    def outputs(self, engine: Path, *arguments: object) -> np.ndarray:
        """Return the output for an input, halved: the input that the engine got."""
        target = engine.with_name("out.npz")
        assert self.call(engine, *arguments, "--outputs", target) == 0
        with np.load(target) as found:
            return np.asarray(found["y"] / 2)

    def test_the_report(self, engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.call(engine, "--json", tmp_path / "r.json") == 0
        report = json.loads((tmp_path / "r.json").read_text())
        assert [report["times_ms"][key] for key in ("median", "p90", "p99", "min")] == pytest.approx([0.25] * 4)
        assert report["times_ms"]["fps"] == pytest.approx(4000) and report["times_ms"]["n"] == len(report["samples_ms"]) >= 10
        assert report["times_ms"]["cv"] == pytest.approx(0, abs=1e-6)
        assert report["with_transfers_ms"] > 0
        assert report["versions"]["tensorrt"] == "11.4.0" and report["versions"]["cuda_runtime"] == "12.8"
        assert (report["gpu"], report["cuda_backend"], report["engine"]) == ("Fake RTX", "cuda-bindings", "model.engine")
        assert report["inputs"] == [{"name": "x", "shape": list(SHAPE), "dtype": "float32"}]
        assert report["notes"] == [] and "note" not in capsys.readouterr().out

    def test_noise_is_told(self, engine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr(run, "measure", lambda session, seconds: [1.0, 1.1] * 10)
        assert self.call(engine) == 0
        assert "note: noisy: the coefficient of variation is 4.8%" in capsys.readouterr().out

    def test_an_array(self, engine: Path, tmp_path: Path) -> None:
        x = np.arange(72, dtype=np.float32).reshape(SHAPE)
        np.save(tmp_path / "x.npy", x)
        np.testing.assert_array_equal(self.outputs(engine, "--image", tmp_path / "x.npy"), x)

    def pixels(self) -> np.ndarray:
        return np.random.default_rng(1).integers(0, 256, (SHAPE[2], SHAPE[3], 3), dtype=np.uint8)

    @pytest.mark.parametrize("suffix", ["ppm", "png"])
    @pytest.mark.parametrize("normalised", [False, True])
    def test_an_image(self, trt: FakeTensorRT, tmp_path: Path, suffix: str, normalised: bool, capsys: Any) -> None:
        from PIL import Image

        mean, std = ([0.5, 0.4, 0.3], [0.2, 0.25, 0.5]) if normalised else ([0, 0, 0], [1, 1, 1])
        metadata = {"preprocessing": json.dumps({"mean": mean, "std": std, "layout": "NCHW"})} if normalised else {}
        write_onnx(tmp_path / "model.onnx", metadata)
        engine = save(tmp_path / "model.engine", trt, plan(version=trt.version))
        Image.fromarray(self.pixels()).save(tmp_path / f"image.{suffix}")
        expected = ((self.pixels() / 255 - mean) / std).transpose(2, 0, 1)[None]
        np.testing.assert_allclose(self.outputs(engine, "--image", tmp_path / f"image.{suffix}"), expected, atol=1e-5)
        assert ("no preprocessing is known" in capsys.readouterr().out) != normalised

    def test_pillow_resizes(self, engine: Path, tmp_path: Path) -> None:
        from PIL import Image

        Image.new("L", (20, 10), 255).save(tmp_path / "white.png")
        np.testing.assert_allclose(self.outputs(engine, "--image", tmp_path / "white.png"), np.ones(SHAPE))

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("none.png", None, "no such file"),
            ("text.png", b"no image", "text.png is no image that Pillow reads"),
            ("x.ppm", b"P6\n5 4\n255\n" + bytes(60), "x.ppm is 4x5; the engine takes 4x6, and only Pillow resizes"),
            ("x.ppm", b"P6\n6 4\n255\n" + bytes(71), "holds 71 of 72 bytes"),
            ("x.ppm", b"P6\n6 4\n65535\n" + bytes(144), "no PPM image with 8 bits"),
            ("x.jpg", b"", "pip install pillow, or write it as .ppm (P6) of 4x6"),
            ("x.npy", np.zeros((3, 4, 6)), "x.npy has the shape (3, 4, 6); input 'x' takes (1, 3, 4, 6)"),
        ],
    )
    def test_wrong_images(self, engine: Path, name: str, content: Any, message: str, monkeypatch: Any, capsys: Any) -> None:
        path = engine.with_name(name)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            np.save(path, content)
        if path.suffix == ".jpg":
            monkeypatch.setitem(sys.modules, "PIL", None)
        assert self.call(engine, "--image", path) == 2
        assert message in capsys.readouterr().err
        assert not engine.with_name("model.engine.times.json").exists()

    def test_engines_that_take_no_image(self, trt: FakeTensorRT, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "x.png").write_bytes(b"")
        two = plan({"a": ["FLOAT", 2], "b": ["FLOAT", 2]}, {"y": ["FLOAT", 2]}, version=trt.version)
        flat = plan({"a": ["FLOAT", 2]}, {"y": ["FLOAT", 2]}, version=trt.version)
        for data, message in ((two, "an engine with one input"), (flat, "needs an input (1, 3, H, W); 'a' takes (2,)")):
            assert self.call(save(tmp_path / "m.engine", trt, data), "--image", tmp_path / "x.png") == 2
            assert message in capsys.readouterr().err

    def test_refusals(self, trt: FakeTensorRT, engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        manifest_path(engine).unlink()
        assert self.call(engine) == 2
        assert "model.engine is refused: it has no manifest" in capsys.readouterr().err
        assert self.call(engine, "--trust") == 0
        assert "note: model.engine has no manifest and was trusted" in capsys.readouterr().out
        assert self.call(tmp_path / "none.engine") == 2
        assert self.call(engine, "--seconds", "0") == 2
        assert "--seconds must be positive" in capsys.readouterr().err
        trt.gpu = None
        assert self.call(engine) == 3
        assert "CUDA_ERROR_NO_DEVICE" in capsys.readouterr().err

    def test_a_backend_that_is_not_there(
        self, engine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setitem(sys.modules, "pycuda.driver", None)
        assert main([str(engine), "--cuda-backend", "pycuda"]) == 3
        assert "the CUDA backend pycuda is unavailable" in capsys.readouterr().err

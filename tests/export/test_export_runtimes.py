"""Which targets run here, and what importing this package costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from export import machine, runtimes
from export.errors import Unavailable
from export.machine import fingerprint
from export.platform import KINDS, install_line, platform_kind
from export.runtime import Runtime
from export.target import RUNTIMES, Target
from export.trt.cuda import guard

ROOT = Path(__file__).parents[2]


def test_every_target_is_answered() -> None:
    states = {state.target: state for state in runtimes.available_targets()}
    assert set(states) == {f"{name}:{precision}" for name, precisions in RUNTIMES.items() for precision in precisions}
    assert states["onnxruntime-cpu:fp32"].ok
    assert states["torch-cpu:bf16"].ok
    for state in states.values():
        assert state.ok == (not state.reason) == (not state.install)
        assert set(state.to_json()) == {"target", "ok", "reason", "install"}


def test_no_advertised_target_is_unbuilt() -> None:
    assert not [state for state in runtimes.available_targets() if "not built" in state.reason]


def test_tensorrt_is_answered_by_its_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver(**kind: str) -> None:
        raise Unavailable("tensorrt", "the driver's cuInit failed with error 100 (CUDA_ERROR_NO_DEVICE)", "plug one in")

    monkeypatch.setattr(guard, "import_tensorrt", no_driver)
    with pytest.raises(Unavailable, match=r"tensorrt:fp16 is unavailable: the driver's cuInit failed.*\n.*plug one in") as caught:
        runtimes.open_runtime(Target.parse("tensorrt:fp16"), 1, trust=True)
    assert caught.value.target == "tensorrt:fp16"
    opened: list[tuple[object, ...]] = []
    monkeypatch.setattr(guard, "import_tensorrt", lambda **kind: None)
    monkeypatch.setattr("export.trt.tensorrt_runtime.TensorRTRuntime", lambda *given, **named: opened.append((*given, named)))
    runtimes.open_runtime(Target.parse("tensorrt:fp16"), 2, Path("cache"), trust=True)
    assert opened == [(Target("tensorrt", "fp16"), 2, Path("cache"), {"trust": True})]
    assert all(state.ok for state in runtimes.available_targets() if state.target.startswith("tensorrt:"))


def test_open_runtime() -> None:
    for text in ("onnxruntime-cpu:fp32", "onnxruntime-cpu:int8", "torch-cpu:fp32", "torch-cpu:bf16", "aotinductor-cpu:bf16"):
        runtime = runtimes.open_runtime(Target.parse(text), 1)
        assert isinstance(runtime, Runtime)
        assert str(runtime.target) == text


def test_default_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "gpus", lambda: [])
    assert str(runtimes.default_target()) == "onnxruntime-cpu:fp32"
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert str(runtimes.default_target()) == "torch-cpu:fp32"
    monkeypatch.setattr(runtimes, "_installed", lambda package: False)
    with pytest.raises(Unavailable, match="torch is not installed"):
        runtimes.default_target()
    monkeypatch.setattr("export.trt.cuda.guard.unavailable_reason", lambda runtime: None)
    assert str(runtimes.default_target()) == "tensorrt:fp16", "where a GPU and TensorRT are proven"


def test_light_modules_import_neither_torch_nor_runtimes() -> None:
    code = (
        "import sys, warnings; warnings.simplefilter('error')\n"
        "for name in ('torch', 'rich', 'tyro', 'pymoo', 'matplotlib'): sys.modules[name] = None\n"
        "import export, export.errors, export.target, export.files, export.runtime, export.bundle.bundle, export.bundle.manifest\n"
        "import export.bench_timing, export.runtimes, export.machine, export.bundle.imaging, export.platform\n"
        "import export.backends.onnxruntime_session, export.backends.openvino_session\n"
        "assert not {'onnxruntime', 'onnx', 'openvino'} & set(sys.modules)\n"
        "states = {s.target: s for s in export.runtimes.available_targets()}\n"
        "assert states['onnxruntime-cpu:fp32'].ok and not states['torch-cpu:fp32'].ok\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_fingerprint_is_stable_and_names_no_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = fingerprint()
    assert found == fingerprint()
    assert found["cpu"]
    assert found["cores"] >= found["usable_cores"] >= 1
    text = str(found)
    assert __import__("platform").node() not in text or not __import__("platform").node()
    assert "/home" not in text
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'NVIDIA H200, 570.1, 143771 MiB'\n")
    smi.chmod(0o755)
    monkeypatch.setattr(machine.shutil, "which", lambda name: str(smi))
    assert machine.gpus() == [{"name": "NVIDIA H200", "driver": "570.1", "memory": "143771 MiB"}]
    smi.write_text("#!/bin/sh\necho broken driver; exit 9\n")
    assert machine.gpus() == []


def test_arm_boards(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel\t: 2\nFeatures\t: fp asimd asimdhp\nModel\t\t: Raspberry Pi 5\n")
    assert machine._cpu(info)[1] == {"fp", "asimd", "asimdhp"}
    (tmp_path / "model").write_text("NVIDIA Jetson Orin Nano\0")
    (tmp_path / "release").write_text("# R36 (release), REVISION: 4.3\n")
    (board,) = machine._jetson(tmp_path / "model", tmp_path / "release")
    assert board["name"] == "NVIDIA Jetson Orin Nano"
    assert machine._jetson(tmp_path / "none", tmp_path / "release") == []


def test_platform_kinds(tmp_path: Path) -> None:
    def kind(system: str, architecture: str = "x86_64", kernel: str = "6.1.0", driver: bool = False) -> str:
        return platform_kind(tmp_path, system, architecture, kernel, driver)

    assert kind("Linux") == "linux"
    assert kind("Linux", driver=True) == "linux-nvidia"
    assert kind("Linux", "aarch64") == "linux"
    assert kind("Linux", "aarch64", "5.15.148-tegra") == "jetson"
    assert kind("Darwin", "arm64", driver=True) == "macos"
    assert kind("Windows", "AMD64") == "windows"
    assert kind("Windows", "AMD64", driver=True) == "windows-nvidia"
    board = tmp_path / "proc/device-tree/model"
    board.parent.mkdir(parents=True)
    board.write_text("Raspberry Pi 5\0")
    assert kind("Linux", "aarch64") == "linux"
    board.write_text("NVIDIA Jetson Orin Nano Developer Kit\0")
    assert kind("Linux", "aarch64") == kind("Linux", "aarch64", driver=True) == "jetson"
    board.unlink()
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text("# R36 (release)")
    assert kind("Linux", "aarch64", "custom") == "jetson"
    assert platform_kind() in KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_install_lines(kind: str) -> None:
    lines = {runtime: install_line(runtime, kind) for runtime in RUNTIMES}
    assert lines["onnxruntime-cpu"] == "pip install onnxruntime"
    assert lines["openvino-cpu"] == "pip install 'openvino>=2025.0'"
    assert lines["torch-cpu"] == lines["aotinductor-cpu"] == "pip install torch"
    on_gpu = {runtime: line for runtime, line in lines.items() if not runtime.endswith("-cpu")}
    if kind == "jetson":
        assert not any("pip install" in line for line in on_gpu.values())
        assert "comes with JetPack" in lines["tensorrt"] and "--system-site-packages" in lines["tensorrt"]
        assert all("NVIDIA's" in line and "JetPack" in line for name, line in on_gpu.items() if name != "tensorrt")
    elif kind == "macos":
        assert all(line.startswith("nothing: there is no ") and "take onnxruntime-cpu:fp32" in line for line in on_gpu.values())
    else:
        assert "pip install 'tensorrt" in lines["tensorrt"] and "onnxruntime-gpu[cuda,cudnn]" in lines["onnxruntime-cuda"]
        needed = "a machine with an NVIDIA GPU and its driver; on it: "
        assert all(line.startswith(needed) == (kind in ("linux", "windows")) for line in on_gpu.values())

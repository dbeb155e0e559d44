"""The GPU guard against a fake driver, what differs between versions, and how TensorRT's messages become exceptions."""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from export.errors import Unavailable
from export.trt import versions
from export.trt.cuda import guard
from export.trt.cuda.guard import Gpu, cuda_runtime_version, driver_version, import_tensorrt, require_gpu, unavailable_reason
from export.trt.log import KEPT, MESSAGES, Messages, TensorRTFailed, attempted, checked, logger_of
from tests.export.trt.fakes_version import Severity, fake_tensorrt

KERNEL = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  565.57.01  Release Build\nGCC version:  gcc version 12.3.0\n"
TEGRA = "# R36 (release), REVISION: 4.7, GCID: 42, BOARD: generic, EABI: aarch64, DATE: Thu\n"


class Driver:
    """NVIDIA's driver with two GPUs, as ctypes would reach it; functions named in `errors` return that error."""

    def __init__(self, count: int = 2, **errors: int) -> None:
        self.count, self.errors, self.calls = count, errors, list[str]()

    def __getattr__(self, name: str) -> Any:
        def function(*arguments: Any) -> int:
            self.calls.append(name)
            if name in self.errors:
                return self.errors[name]
            getattr(self, f"_{name}", lambda *_: None)(*arguments)
            return 0

        if name.startswith("_"):
            raise AttributeError(name)
        return function

    def _cuDeviceGetCount(self, count: Any) -> None:
        count._obj.value = self.count

    def _cuDriverGetVersion(self, version: Any) -> None:
        version._obj.value = 12060

    def _cuDeviceGet(self, device: Any, index: int) -> None:
        device._obj.value = index + 40

    def _cuDeviceGetName(self, name: Any, length: int, device: Any) -> None:
        name.value = f"GPU {device - 40} of {length}".encode()

    def _cuDeviceTotalMem_v2(self, memory: Any, device: Any) -> None:
        memory._obj.value = 8 << 30

    def _cuDeviceGetAttribute(self, value: Any, number: int, device: Any) -> None:
        value._obj.value = {75: 8, 76: 7, 16: 14}[number]

    def _cuGetErrorName(self, code: int, name: Any) -> None:
        name._obj.value = {100: b"CUDA_ERROR_NO_DEVICE", 803: b"CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"}.get(code)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver()
    monkeypatch.setattr(guard, "_driver", lambda: made)
    return made


@pytest.fixture
def installed(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes `import tensorrt` give a module, or raise."""

    def install(found: ModuleType | Exception) -> None:
        def load(name: str) -> ModuleType:
            assert name == "tensorrt" and driver.calls, "the GPU comes first"
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(guard.importlib.util, "find_spec", lambda name: object())
        monkeypatch.setattr(guard.importlib, "import_module", load)

    return install


def test_the_gpu_is_what_the_driver_says(driver: Driver) -> None:
    assert require_gpu(1) == Gpu("GPU 1 of 256", (8, 7), 8 << 30, 14, (12, 6))
    assert driver.calls[0] == "cuInit"


@pytest.mark.parametrize(
    ("made", "index", "reason"),
    [
        (Driver(cuInit=100), 0, r"cuInit failed with error 100 \(CUDA_ERROR_NO_DEVICE\)"),
        (Driver(cuInit=803), 0, r"error 803 \(CUDA_ERROR_SYSTEM_DRIVER_MISMATCH\)"),
        (Driver(cuInit=999), 0, r"cuInit failed with error 999$"),
        (Driver(cuDeviceTotalMem_v2=1, cuGetErrorName=1), 0, r"cuDeviceTotalMem_v2 failed with error 1$"),
        (Driver(count=0), 0, r"CUDA sees 0 GPUs, and GPU 0 was asked for"),
        (Driver(count=2), 2, r"CUDA sees 2 GPUs, and GPU 2 was asked for \(CUDA_VISIBLE_DEVICES"),
        (Driver(count=2), -1, r"CUDA sees 2 GPUs"),
    ],
)
def test_why_there_is_no_gpu(made: Driver, index: int, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_driver", lambda: made)
    with pytest.raises(Unavailable) as found:
        require_gpu(index)
    assert found.value.target == "tensorrt" and found.value.exit_code == 3 and found.value.install
    assert re.search(reason, found.value.reason)


def test_no_driver_is_said_before_anything_of_tensorrt_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(guard.ctypes, "CDLL", missing)
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    monkeypatch.setattr(guard.importlib, "import_module", lambda name: pytest.fail("imported without a GPU"))
    reason = unavailable_reason()
    assert reason is not None and reason[0].startswith("NVIDIA's driver is not there (")


def test_import_gives_the_module_once_a_gpu_is_proven(installed: Any) -> None:
    fake = fake_tensorrt("11.4.0")
    installed(fake)
    assert import_tensorrt() is fake and unavailable_reason() is None


def test_import_says_what_is_wrong_with_the_package(installed: Any, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(OSError("libnvinfer.so.10: cannot open shared object file"))
    with pytest.raises(Unavailable, match=r"cannot be imported: libnvinfer.so.10"):
        import_tensorrt()
    folder = ModuleType("tensorrt")
    folder.__path__ = ["/somewhere/tensorrt"]
    installed(folder)
    with pytest.raises(Unavailable, match=r"finds /somewhere/tensorrt, which is not TensorRT; rename"):
        import_tensorrt()
    installed(fake_tensorrt("9.3.0"))
    with pytest.raises(Unavailable, match=r"version 9\.3\.0 is not one of 10\.3 to 11\.x"):
        import_tensorrt()
    monkeypatch.setattr(guard.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match="the package tensorrt is not installed"):
        import_tensorrt()


def test_a_tensorrt_for_a_newer_cuda_than_the_driver_is_not_touched(installed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_tensorrt("11.4.0")
    installed(fake)
    packages = {"tensorrt-cu12-bindings": "11.4.0.106"}
    monkeypatch.setattr(guard, "_version", packages.get)
    assert import_tensorrt() is fake, "the driver is for CUDA 12.6"
    packages["tensorrt-cu13-bindings"] = "11.4.0.106"
    monkeypatch.setattr(guard.importlib, "import_module", lambda name: pytest.fail("imported"))
    with pytest.raises(Unavailable, match=r"is made for CUDA 13, and the driver supports CUDA 12\.6 at most") as found:
        import_tensorrt()
    assert "update NVIDIA's driver" in found.value.install and "tensorrt-cu12" in found.value.install


@pytest.mark.parametrize("text", ["8.6.2", "10.2.0", "10.0.1.6", "12.0.0"])
def test_versions_that_this_code_is_not_for(text: str) -> None:
    with pytest.raises(Unavailable, match=r"10\.3 to 11\.x"):
        versions.check_supported(fake_tensorrt(text))


@pytest.mark.parametrize("text", ["10.3.0", "10.9.0.34", "10.16.1.11", "11.4.0.106", "11.20.0"])
def test_versions_that_it_is_for(text: str) -> None:
    versions.check_supported(fake_tensorrt(text))


def test_arrays_are_refused_where_they_are_corrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    versions.check_arrays(fake_tensorrt("10.16.1"))
    assert np.__version__.startswith("2")
    for text in ("10.3.0", "10.15.1"):
        with pytest.raises(Unavailable, match=f"TensorRT {text} returns wrong arrays under NumPy {np.__version__}"):
            versions.check_arrays(fake_tensorrt(text))
    monkeypatch.setattr(np, "__version__", "1.26.4")
    versions.check_arrays(fake_tensorrt("10.9.0"))


def test_version_differences() -> None:
    old, new = fake_tensorrt("10.16.1.11"), fake_tensorrt("11.4.0.106")
    assert (versions.version_of(old), versions.version_of(new)) == ((10, 16, 1), (11, 4, 0))
    assert [versions.network_flags(trt, plugins=False) for trt in (old, new)] == [0b0010, 0b001]
    assert [versions.network_flags(trt, plugins=True) for trt in (old, new)] == [0b1010, 0b101]
    assert [versions.has_plugins(trt) for trt in (fake_tensorrt("10.15.1"), old, new)] == [False, True, True]
    found = [versions.newest_opset(fake_tensorrt(text)) for text in ("10.3.0", "10.14.1", "10.15.0", "11.4.0", "11.5.0")]
    assert found == [20, 20, 24, 24, 25]


def test_driver_version_from_kernel_tegra_and_management_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Management:
        @staticmethod
        def nvmlInit_v2() -> int:
            return 0

        @staticmethod
        def nvmlSystemGetDriverVersion(text: Any, length: int) -> int:
            text.value = b"571.96"
            return 0

    def nothing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(guard.ctypes, "CDLL", nothing)
    assert driver_version(tmp_path) == "unknown"
    monkeypatch.setattr(guard.ctypes, "CDLL", lambda name: Management)
    assert driver_version(tmp_path) == "571.96"
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text(TEGRA)
    assert driver_version(tmp_path) == "L4T 36.4.7"
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text(KERNEL)
    assert driver_version(tmp_path) == "565.57.01"


def test_cuda_runtime_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package == "nvidia-cuda-runtime-cu12":
            return "12.6.77"
        raise importlib.metadata.PackageNotFoundError(package)

    def none(package: str) -> str:
        if package == "nvidia-cuda-runtime-cu13":  # a placeholder; CUDA 13 is in nvidia-cuda-runtime
            return "0.0.1"
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(guard.importlib.metadata, "version", version)
    assert cuda_runtime_version(tmp_path) == "12.6.77"
    monkeypatch.setattr(guard.importlib.metadata, "version", none)
    assert cuda_runtime_version(tmp_path) == "unknown"
    file = tmp_path / "usr/local/cuda/version.json"
    file.parent.mkdir(parents=True)
    file.write_text("not JSON")
    assert cuda_runtime_version(tmp_path) == "unknown"
    file.write_text(json.dumps({"cuda": {"name": "CUDA SDK", "version": "12.6.68"}}))
    assert cuda_runtime_version(tmp_path) == "12.6.68"
    file.unlink()
    monkeypatch.setattr(guard, "_version", {"tensorrt-cu13-bindings": "11.4.0.106"}.get)
    assert cuda_runtime_version(tmp_path) == "13"


def test_messages_keep_errors_and_warnings_and_are_bounded() -> None:
    messages, heard = Messages(), list[tuple[str, str]]()
    messages.listener = lambda severity, text: heard.append((severity, text))
    for severity in ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"):
        messages.add(severity, severity.lower())
    assert messages.take() == ["internal error: internal_error", "error: error", "warning: warning"]
    assert messages.take() == [] and len(heard) == 5
    for number in range(KEPT + 7):
        messages.add("ERROR", str(number))
    assert len(lines := messages.take()) == KEPT and lines[-1] == f"error: {KEPT + 6}"


def test_one_logger_per_module_whose_messages_are_collected() -> None:
    trt = fake_tensorrt("10.3.0")
    logger = logger_of(trt)
    assert logger_of(trt) is logger and logger.made, "the base class must be constructed"
    MESSAGES.take()
    logger.log(Severity.VERBOSE, "a")
    logger.log(Severity.WARNING, "b")
    threads = [threading.Thread(target=logger.log, args=(Severity.ERROR, "c")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert MESSAGES.take() == ["warning: b", *["error: c"] * 4]


def test_none_and_false_become_exceptions_with_the_lines_of_their_call() -> None:
    def failing(result: object) -> Any:
        MESSAGES.add("ERROR", "what went wrong")
        return result

    MESSAGES.add("ERROR", "of an earlier call")
    for result in (None, False):
        with pytest.raises(TensorRTFailed) as found:
            checked("trying", lambda result=result: failing(result), "Do this next.")  # type: ignore[misc]
        assert found.value.lines == ["error: what went wrong"] and found.value.what == "trying"
        assert str(found.value) == "trying failed.\n  TensorRT: error: what went wrong\nDo this next."
    assert [checked("trying", lambda value=value: value) for value in (0, "", 5)] == [0, "", 5]  # type: ignore[misc]
    with pytest.raises(TensorRTFailed, match="TensorRT logged nothing"):
        checked("trying", lambda: None)


def test_exceptions_of_pybind11_carry_the_lines_too() -> None:
    def raising() -> None:
        MESSAGES.add("WARNING", "before it")
        raise TypeError("factory function returned nullptr")

    for call in (checked, attempted):
        with pytest.raises(TensorRTFailed) as found:
            call("trying", raising, lambda lines: f"seen {len(lines)}")
        assert found.value.lines == ["warning: before it", "TypeError: factory function returned nullptr"]
        assert found.value.advice == "seen 2" and isinstance(found.value.__cause__, TypeError)
    assert attempted("trying", lambda: None) is None

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checked("trying", interrupted)

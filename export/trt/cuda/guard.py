"""Prove that a GPU can be used before TensorRT is touched, and say what the machine is.

Without a usable GPU `tensorrt.Runtime(...)` returns an object whose first use ends the process with a segmentation fault, so
nothing of TensorRT is constructed before `require_gpu` returned. It asks the driver itself, through its library. A process that
has asked must not fork and use CUDA in the child: start such children afresh (`spawn`).
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
import json
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from export.errors import Unavailable
from export.platform import install_line, platform_kind
from export.trt import rtx
from export.trt.versions import check_supported

_ATTRIBUTES = (75, 76, 16)
"""Compute capability (major, minor) and multiprocessors: `CUdevice_attribute` numbers (CUDA driver API)."""
UNKNOWN = "unknown"
"""A fact that this machine does not tell."""
_DRIVER_FILE, _TEGRA_FILE = "proc/driver/nvidia/version", "etc/nv_tegra_release"
_CUDA_FILE = "usr/local/cuda/version.json"
_CUDA_PACKAGES = ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12", "nvidia-cuda-runtime-cu11")
"""From CUDA 13 on the name has no suffix; what the package index has as `-cu13` is an empty placeholder."""
_MADE_FOR = {major: f"tensorrt-cu{major}-bindings" for major in (12, 13)}
"""By major version of CUDA: the package of the TensorRT that is made for it. TensorRT of a system is not among them."""


@dataclass(frozen=True)
class Gpu:
    """What the driver says of one GPU."""

    name: str
    capability: tuple[int, int]
    """Compute capability (major, minor)."""
    memory_bytes: int
    multiprocessors: int
    driver_cuda: tuple[int, int]
    """Newest CUDA version that the driver supports (major, minor)."""


def require_gpu(index: int = 0) -> Gpu:
    """Return the GPU that TensorRT is to use.

    Raises:
        Unavailable: no driver, no GPU, or none of this index; with the driver's own error.
    """
    driver = _driver()
    _call(driver, "cuInit", 0)
    count = _number(driver, "cuDeviceGetCount")
    if not 0 <= index < count:
        raise _unavailable(f"CUDA sees {count} GPUs, and GPU {index} was asked for (CUDA_VISIBLE_DEVICES may hide some)")
    version, device = _number(driver, "cuDriverGetVersion"), _number(driver, "cuDeviceGet", index)
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    _call(driver, "cuDeviceGetName", name, 256, device)
    _call(driver, "cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    major, minor, count = (_number(driver, "cuDeviceGetAttribute", number, device) for number in _ATTRIBUTES)
    return Gpu(name.value.decode(errors="replace"), (major, minor), memory.value, count, (version // 1000, version % 1000 // 10))


def import_tensorrt(index: int = 0, runtime: str = "tensorrt") -> ModuleType:
    """Return the module `tensorrt`, or that of TensorRT-RTX, once a GPU is proven.

    Raises:
        Unavailable: no usable GPU, TensorRT not installed, of a version that this code is not for, made for a newer CUDA than the
            driver, or its libraries cannot be loaded (with the loader's words).
    """
    if runtime == rtx.RUNTIME:
        return _import_rtx(index)
    gpu = require_gpu(index)
    if importlib.util.find_spec("tensorrt") is None:
        raise _unavailable("the package tensorrt is not installed")
    newest, minor = gpu.driver_cuda
    for major, package in _MADE_FOR.items():  # no object of one that is made for a later CUDA could be used
        if major > newest and _version(package) is not None:
            reason = f"the installed TensorRT is made for CUDA {major}, and the driver supports CUDA {newest}.{minor} at most"
            advice = f"update NVIDIA's driver, or replace TensorRT by the one for CUDA {newest} (pip install tensorrt-cu{newest})"
            raise Unavailable("tensorrt", reason, advice)
    try:
        module = importlib.import_module("tensorrt")
    except (ImportError, OSError, RuntimeError) as error:
        raise _unavailable(f"tensorrt cannot be imported: {error}") from error
    if not hasattr(module, "__version__"):  # a folder of that name is a package to Python, an empty one
        where = ", ".join(getattr(module, "__path__", ())) or UNKNOWN
        raise _unavailable(f"`import tensorrt` finds {where}, which is not TensorRT; rename that folder or run elsewhere")
    check_supported(module)
    return module


def unavailable_reason(runtime: str = "tensorrt") -> tuple[str, str] | None:
    """Say why TensorRT, or TensorRT-RTX, cannot run engines here, with the install line; None when it can."""
    try:
        import_tensorrt(runtime=runtime)
    except Unavailable as error:
        return error.reason, error.install
    return None


def _import_rtx(index: int) -> ModuleType:
    module = rtx.import_rtx()  # loads without a GPU, and is told of first: it is of use without one
    try:
        gpu = require_gpu(index)
    except Unavailable as error:
        reason = f"{error.reason}; its builder is here, and builds engines for other machines"
        raise Unavailable(rtx.RUNTIME, reason, rtx.BUILD_LINE) from None
    rtx.check_gpu(gpu.capability)
    return module


def driver_version(root: Path = Path("/")) -> str:
    """Return the version of NVIDIA's driver, on a Jetson that of L4T; `unknown` where neither the driver nor a file tells."""
    kernel = re.search(r"\b\d{3,}\.\d+(\.\d+)*\b", _text(root / _DRIVER_FILE))
    tegra = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", _text(root / _TEGRA_FILE))
    if kernel:
        return kernel[0]
    return f"L4T {tegra[1]}.{tegra[2]}" if tegra else _nvml_driver()


def cuda_runtime_version(root: Path = Path("/")) -> str:
    """Return the version of CUDA's runtime that Python packages brought, or that is installed.

    TensorRT's wheels bring no runtime of their own: without another it is their CUDA's major version, and without such wheels
    `unknown`.
    """
    for package in _CUDA_PACKAGES:
        if (version := _version(package)) is not None:
            return version
    try:
        return str(json.loads(_text(root / _CUDA_FILE))["cuda"]["version"])
    except (ValueError, KeyError, TypeError):
        return next((str(major) for major, package in _MADE_FOR.items() if _version(package) is not None), UNKNOWN)


def _version(package: str) -> str | None:
    """Return the version of an installed package; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _nvml_driver() -> str:
    """Ask the management library, which Windows and containers have without the kernel's files."""
    name = "nvml.dll" if platform.system() == "Windows" else "libnvidia-ml.so.1"
    text = ctypes.create_string_buffer(96)
    try:
        library = ctypes.CDLL(name)
        if library.nvmlInit_v2() or library.nvmlSystemGetDriverVersion(text, 96):
            return UNKNOWN
    except (OSError, AttributeError):
        return UNKNOWN
    return text.value.decode(errors="replace")


def _driver() -> ctypes.CDLL:
    name = "nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1"
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise _unavailable(f"NVIDIA's driver is not there ({error})") from None


def _number(driver: ctypes.CDLL, function: str, *arguments: object) -> int:
    """Return the integer that a function of the driver writes to its first argument."""
    value = ctypes.c_int()
    _call(driver, function, ctypes.byref(value), *arguments)
    return value.value


def _call(driver: ctypes.CDLL, function: str, *arguments: object) -> None:
    code: int = getattr(driver, function)(*arguments)
    if code:
        name = ctypes.c_char_p()
        named = driver.cuGetErrorName(code, ctypes.byref(name)) == 0 and name.value
        said = f"{code} ({name.value.decode()})" if named and name.value else f"{code}"
        raise _unavailable(f"the driver's {function} failed with error {said}")


def _unavailable(reason: str) -> Unavailable:
    return Unavailable("tensorrt", reason, install_line("tensorrt", platform_kind()))

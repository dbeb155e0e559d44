"""Say what kind of machine this is, and what makes a runtime available on such a machine.

The facts stand in `_LINES`; everything that names an installation reads them, so that a Jetson is never told to take a wheel
from PyPI that does not use its GPU.
"""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path

KINDS = ("jetson", "linux-nvidia", "linux", "windows-nvidia", "windows", "macos")
"""What `platform_kind` tells apart; `-nvidia` where NVIDIA's driver is installed."""

_ORT_CUDA = "pip uninstall -y onnxruntime; pip install 'onnxruntime-gpu[cuda,cudnn]' (both wheels fill the same folder)"
_CUDA_TORCH = "a CUDA build of PyTorch: choose CUDA at https://pytorch.org/get-started/locally and run the line it shows"
_JETSON_TORCH = "NVIDIA's PyTorch wheel for your JetPack (the one on PyPI does not use Tegra's GPU)"
RTX_WHEELS = "pip install --no-deps tensorrt-rtx-cu13-libs==1.7.1.116 tensorrt-rtx-cu13-bindings==1.7.1.116"
"""TensorRT-RTX for Linux x86-64: 95 MB, under NVIDIA's licence."""
_LINES: dict[str, dict[str, str]] = {
    "onnxruntime-cpu": {"": "pip install onnxruntime"},
    "onnxruntime-cuda": {
        "": _ORT_CUDA,
        "jetson": "NVIDIA's onnxruntime-gpu wheel for your JetPack (the one on PyPI is not for Tegra)",
    },
    "openvino-cpu": {"": "pip install 'openvino>=2025.0'"},
    "torch-cpu": {"": "pip install torch"},
    "torch-cuda": {"": _CUDA_TORCH, "jetson": _JETSON_TORCH},
    "aotinductor-cpu": {"": "pip install torch"},
    "aotinductor-cuda": {"": _CUDA_TORCH, "jetson": _JETSON_TORCH},
    "tensorrt": {
        "": "pip install 'tensorrt-cu13<12' 'cuda-bindings==13.*'; where nvidia-smi shows CUDA 12, a PyTorch for CUDA 12 first and "
        "then pip install 'tensorrt-cu12<12' 'cuda-bindings==12.9.*' (docs/tensorrt.md lists sets that fit together)",
        "jetson": "TensorRT comes with JetPack (sudo apt-get install tensorrt); let the virtual environment see it: "
        "python3 -m venv --system-site-packages .venv",
    },
    "tensorrt-rtx": {
        "": "a GeForce or RTX PRO card of sm_75 or later, and: " + RTX_WHEELS,
        "jetson": "nothing: NVIDIA's TensorRT-RTX is not for Jetson; JetPack has TensorRT, take tensorrt:fp16",
    },
}
"""Per runtime the line for each kind of machine; the key "" holds for every kind that is not named."""


def platform_kind(
    root: Path = Path("/"),
    system: str | None = None,
    architecture: str | None = None,
    kernel: str | None = None,
    driver: bool | None = None,
) -> str:
    """Return one of `KINDS`. Every argument but `root` is asked of this machine where it is None.

    Args:
        root: where the files of a Jetson are looked for.
        system: as `platform.system()`.
        architecture: as `platform.machine()`.
        kernel: as `platform.release()`.
        driver: whether NVIDIA's driver is there.
    """
    system = platform.system() if system is None else system
    if system == "Darwin":
        return "macos"
    if system != "Windows" and _is_jetson(root, architecture or platform.machine(), kernel or platform.release()):
        return "jetson"
    name = "windows" if system == "Windows" else "linux"
    return f"{name}-nvidia" if (nvidia_driver() if driver is None else driver) else name


def install_line(runtime: str, kind: str) -> str:
    """Return what makes a runtime of `export.target.RUNTIMES` available on a kind of machine."""
    lines = _LINES[runtime]
    line = lines.get(kind, lines[""])
    if runtime.endswith("-cpu"):
        return line
    if kind == "macos":
        name = "TensorRT" if runtime.startswith("tensorrt") else "CUDA"
        return f"nothing: there is no {name} for macOS; take onnxruntime-cpu:fp32 or torch-cpu:fp32"
    if kind in ("linux", "windows"):
        return f"a machine with an NVIDIA GPU and its driver; on it: {line}"
    return line


def nvidia_driver() -> bool:
    """Say whether the library of NVIDIA's driver can be loaded; no device is touched, so a process may still fork."""
    try:
        ctypes.CDLL("nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1")
    except OSError:
        return False
    return True


def _is_jetson(root: Path, architecture: str, kernel: str) -> bool:
    """Recognise a Jetson by its release file, by its board's name, or by a Tegra kernel on aarch64."""
    if (root / "etc/nv_tegra_release").exists():
        return True
    try:
        board = (root / "proc/device-tree/model").read_text(errors="replace")
    except OSError:
        board = ""
    return "Jetson" in board or (architecture == "aarch64" and "tegra" in kernel)

"""Open the runtime of a target, and say of every target whether it can run here, why not, and what would help."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.errors import Unavailable
from export.machine import gpus
from export.platform import install_line, platform_kind
from export.runtime import Runtime
from export.target import RUNTIMES, TENSORRT, Target

PREFERRED = ("tensorrt:fp16", "onnxruntime-cuda:fp32", "torch-cuda:fp32", "onnxruntime-cpu:fp32", "torch-cpu:fp32")
"""What `default_target` tries, best first."""


@dataclass(frozen=True)
class Availability:
    """Whether one target can run on this machine."""

    target: str
    ok: bool
    reason: str
    """Why not; empty where it can."""
    install: str
    """What makes it available; empty where it can."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"target": self.target, "ok": self.ok, "reason": self.reason, "install": self.install}


def open_runtime(target: Target, threads: int, cache: Path | None = None, **tensorrt: Any) -> Runtime:
    """Open the runtime of a target; never another one in its place.

    Args:
        target: what to run on.
        threads: threads inside one operator.
        cache: where exported modules are kept between runs, for runtimes that export.
        tensorrt: more arguments of `export.trt.tensorrt_runtime.TensorRTRuntime`; other targets ignore them.

    Raises:
        Unavailable: it cannot run here, with the reason and the install line.
    """
    state = _check(target)
    if not state.ok:
        raise Unavailable(state.target, state.reason, state.install)
    if target.precision == "int8" and target.device == "cpu":
        from export.backends.int8_runtimes import Int8OnnxRuntime, Int8OpenVinoRuntime

        return (Int8OpenVinoRuntime if target.runtime == "openvino-cpu" else Int8OnnxRuntime)(target, threads, cache)
    if target.runtime.startswith("onnxruntime-"):
        from export.backends.onnxruntime_session import OnnxRuntime

        return OnnxRuntime(target, threads, cache)
    if target.runtime == "openvino-cpu":
        from export.backends.openvino_session import OpenVinoRuntime

        return OpenVinoRuntime(target, threads, cache)
    if target.runtime in TENSORRT:
        from export.trt.tensorrt_runtime import TensorRTRuntime

        return TensorRTRuntime(target, threads, cache, **tensorrt)
    if target.runtime.startswith("aotinductor-"):
        from export.backends.aotinductor_session import AOTInductorRuntime

        return AOTInductorRuntime(target, threads)
    from export.backends.torch_session import TorchRuntime

    return TorchRuntime(target, threads)


def available_targets() -> list[Availability]:
    """Check every runtime with every precision that it knows; imports torch only where a GPU is present."""
    devices = bool(gpus())
    targets = [Target(name, precision) for name, precisions in RUNTIMES.items() for precision in precisions]
    return [_check(target, devices) for target in targets]


def default_target() -> Target:
    """Return the best target that runs here.

    That is `tensorrt:fp16` where a GPU and TensorRT are proven, `onnxruntime-cpu:fp32` without
    a GPU, `torch-cpu:fp32` as the last resort.

    Raises:
        Unavailable: not even PyTorch can be imported.
    """
    devices = bool(gpus())
    states = [_check(Target.parse(text), devices) for text in PREFERRED]
    for state in states:
        if state.ok:
            return Target.parse(state.target)
    raise Unavailable(states[-1].target, states[-1].reason, states[-1].install)


def _check(target: Target, has_gpu: bool | None = None) -> Availability:
    why = _unavailable_reason(target, has_gpu)
    return Availability(str(target), why is None, *(why or ("", "")))


def _unavailable_reason(target: Target, has_gpu: bool | None) -> tuple[str, str] | None:
    if target.runtime.startswith("onnxruntime-"):
        from export.backends import onnxruntime_session

        return onnxruntime_session.unavailable_reason(target)
    if target.runtime == "openvino-cpu":
        from export.backends import openvino_session

        return openvino_session.unavailable_reason(target)
    if target.runtime in TENSORRT:
        from export.trt.cuda import guard

        return guard.unavailable_reason(target.runtime)  # asks the driver itself: a Jetson may have no nvidia-smi
    return _torch_reason(target, has_gpu)


def _torch_reason(target: Target, has_gpu: bool | None) -> tuple[str, str] | None:
    if not _installed("torch"):
        return "the package torch is not installed", install_line(target.runtime, platform_kind())
    if target.device == "cpu":
        return None
    if has_gpu is False:  # spares the import of torch
        return "nvidia-smi finds no NVIDIA GPU", install_line(target.runtime, platform_kind(driver=False))
    from export.backends import torch_session

    return torch_session.unavailable_reason(target)  # AOTInductor is part of PyTorch


def _installed(package: str) -> bool:
    """Tell whether a package can be found, without importing it (a blocked import counts as missing)."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False

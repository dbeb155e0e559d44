"""Say how engines are built from networks, and loaded to be timed, as plain data that a TOML file fills."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from export.errors import InvalidInput
from export.ranges import OneOf, Range, Settings
from export.trt.options import PRESETS, BuildOptions

PRECISIONS = ("fp32", "fp16", "bf16")
"""Of engines that are built from a network alone; int8 is quantised with images first, fp8 by other tools."""

Backend = Annotated[str, OneOf(("torch", "cuda-bindings", "pycuda"))]


@dataclass(frozen=True, kw_only=True)
class EngineSettings(Settings):
    """What a TOML file may set of an engine's build."""

    preset: Annotated[str, OneOf(PRESETS)] = "release"
    """release: every kernel is tried, which takes minutes; search: a quick build, for a first look."""
    workspace_mib: Annotated[int, Range(1, 2**20)] | None = None
    """Most scratch memory of one layer in MiB, for small devices; default: what the GPU has."""
    tf32: bool = False
    """Let fp32 convolutions round their inputs to TF32."""
    mixed: bool = False
    """With fp16: keep as many nodes in fp32 as parity needs, found by trying them on the CPU."""
    measure_attention: bool = True
    """Measure the implementations of attention; without it the first that may work is taken."""
    cuda_backend: Backend | None = None
    """Who talks to CUDA: torch, cuda-bindings or pycuda; default: the first that works."""
    timing_cache: str | None = None
    """Folder of timing caches; default: hyctas/tensorrt in the user's cache."""

    def options(self, precision: str, **changes: Any) -> BuildOptions:
        """Return how TensorRT is to build; `InvalidInput`: a value that is not allowed."""
        return BuildOptions.of_preset(self.preset, precision, workspace_mib=self.workspace_mib, tf32=self.tf32, **changes)

    def cache(self) -> Path:
        """Return the folder of timing caches."""
        from export.trt.timing_cache import default_folder

        return Path(self.timing_cache).expanduser() if self.timing_cache is not None else default_folder()


@dataclass(frozen=True, kw_only=True)
class LoadSettings(Settings):
    """What a TOML file may set of how engines are loaded to be timed."""

    trust: bool = False
    """Load engines without a manifest, or changed since it was written: executes code in them."""
    cuda_backend: Backend | None = None
    """Who talks to CUDA: torch, cuda-bindings or pycuda; default: the first that works."""

    def arguments(self) -> dict[str, Any]:
        """Return them as `export.trt.tensorrt_runtime.TensorRTRuntime` takes them."""
        return {"trust": self.trust, "backend": self.cuda_backend}


def built_precision(precision: str, settings: EngineSettings) -> str:
    """Return the precision of `BuildOptions` for a target's.

    Raises:
        InvalidInput: engines in it are not built from a network alone, or it does not go with the settings.
    """
    if precision not in (*PRECISIONS, "int8"):
        raise InvalidInput(
            f"an engine in {precision} needs a graph that was quantised with images: write an .onnx file, quantise it (NVIDIA "
            f"ModelOpt), and build that: python -m export.trt.from_onnx FILE.onnx --precision {precision}; "
            f"here take {', '.join(PRECISIONS)} or int8"
        )
    if settings.mixed and precision != "fp16":
        raise InvalidInput(f"mixed keeps parts of an fp16 engine in fp32; it does not go with {precision}")
    return "mixed" if settings.mixed else precision

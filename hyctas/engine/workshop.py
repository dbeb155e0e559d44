"""Gather what building engines needs of a machine: TensorRT, the GPU, and a lab for small engines. No torch here."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export.plugin_kernel import PluginKernel
    from export.trt.attention_case import AttentionCase
    from export.trt.attention_trial import Lab
    from export.trt.build import BuildResult
    from export.trt.engine_file import Machine
    from export.trt.guard import Gpu
    from export.trt.options import BuildOptions
    from export.trt.progress import Progress
    from export.trt.runner import EngineSession
    from hyctas.engine.settings import EngineSettings


@dataclass(frozen=True)
class Workshop:
    """What building needs of this machine; tests put other things in its place."""

    trt: Any
    """The module `tensorrt`."""
    gpu: Gpu
    machine: Machine
    lab: Lab
    """Builds and runs the small engines that attention is chosen by."""
    build: Callable[[bytes, BuildOptions, Progress | None], BuildResult]
    open: Callable[[bytes], EngineSession]
    compile: Callable[[AttentionCase, Gpu, int | None], PluginKernel]
    """Compiles the plugin's kernel for a shape, a GPU and its driver, and the shared memory that a block may take."""


def open_workshop(settings: EngineSettings, count: Callable[[float], None] | None = None) -> Workshop:
    """Return the one of this machine.

    Args:
        settings: how engines are built.
        count: is told of every engine that the lab built, with the seconds that it took.

    Raises:
        Unavailable: no usable GPU, TensorRT or CUDA backend.
    """
    from export.trt.attention_trial import EngineLab
    from export.trt.build import build_engine
    from export.trt.device import open_backend
    from export.trt.engine_file import machine_of
    from export.trt.guard import import_tensorrt, require_gpu
    from export.trt.runner import EngineSession

    trt, gpu = import_tensorrt(), require_gpu()
    machine, backend, cache = machine_of(trt), open_backend(settings.cuda_backend), settings.cache()
    level = settings.options("fp32").level
    values = {"workspace_mib": settings.workspace_mib, "tf32": settings.tf32, "level": level}
    lab = EngineLab(trt, machine, backend, cache, values, count or (lambda seconds: None))

    def build(graph: bytes, options: BuildOptions, progress: Progress | None) -> BuildResult:
        return build_engine(graph, options, timing_cache=cache, machine=machine, trt=trt, progress=progress)

    return Workshop(trt, gpu, machine, lab, build, lambda plan: EngineSession(plan, backend=backend), compiled_kernel)


@functools.cache
def compiled_kernel(case: AttentionCase, gpu: Gpu, most_shared_bytes: int | None = None) -> PluginKernel:
    """Compile the plugin's kernel for a shape, with Triton.

    Raises:
        HyctasError: it cannot be: no Triton, no such architecture, too old a driver, no tile that holds.
    """
    from hyctas.attention.plugin import plugin_kernel

    (major, minor), channels = gpu.capability, (case.qk_channels, case.value_channels)
    return plugin_kernel(
        major * 10 + minor, *channels, case.dtype, queries=case.queries, keys=case.keys, driver_cuda=gpu.driver_cuda,
        most_shared_bytes=most_shared_bytes,
    )  # fmt: skip

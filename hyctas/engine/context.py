"""Gather what building engines needs: TensorRT and the GPU that is here, or TensorRT-RTX for GPUs elsewhere."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from export.errors import Give, InvalidInput
from export.trt.choose import ask_builder, take_first

if TYPE_CHECKING:
    from export.plugin_kernel import PluginKernel
    from export.trt.attention_case import AttentionCase
    from export.trt.build import BuildResult
    from export.trt.choose import Judge
    from export.trt.cuda.guard import Gpu
    from export.trt.engine_file import Machine
    from export.trt.options import BuildOptions
    from export.trt.progress import Progress
    from export.trt.runner import EngineSession
    from hyctas.engine.settings import EngineSettings


@dataclass(frozen=True)
class BuildContext:
    """Where and with what engines are built; tests put other things in its place."""

    trt: Any
    """The module `tensorrt`, or TensorRT-RTX."""
    machine: Machine
    """What the engines depend on."""
    judge: Judge
    """Chooses the implementation of each attention."""
    build: Callable[[bytes, BuildOptions, Progress | None], BuildResult]
    gpu: Gpu | None = None
    """None where engines are built for GPUs elsewhere: then none is run."""
    open: Callable[[bytes], EngineSession] | None = None
    """Loads an engine; None where none is run."""
    compile: Callable[[AttentionCase, Gpu], PluginKernel] | None = None
    """Compiles the plugin's kernel for a shape and a GPU; None where plugins are not used."""


def open_context(
    settings: EngineSettings, count: Callable[[float], None] | None = None, runtime: str = "tensorrt", lean: bool = False
) -> BuildContext:
    """Return the context of this machine's GPU; `Unavailable` where GPU, TensorRT or CUDA backend is missing.

    `count` is told of every engine that attention was chosen by, with the seconds that building it took; `lean` chooses among few
    implementations, see `export.trt.attention_benchmark.Benchmarks`.
    """
    from export.trt.attention_benchmark import Benchmarks, EngineBackend
    from export.trt.build import build_engine
    from export.trt.cuda.device import open_backend
    from export.trt.cuda.guard import import_tensorrt, require_gpu
    from export.trt.engine_file import machine_of
    from export.trt.plugin import PLUGINS
    from export.trt.runner import EngineSession
    from export.trt.versions import is_rtx, number_of

    trt, gpu = import_tensorrt(runtime=runtime), require_gpu()
    machine, backend, cache = machine_of(trt), open_backend(settings.cuda_backend), settings.cache()
    kept = settings.options("fp32")
    values: dict[str, Any] = {"workspace_mib": kept.workspace_mib, "tf32": kept.tf32, "level": kept.level}
    if is_rtx(trt):
        values["capabilities"] = (number_of(gpu.capability),)
    engines = EngineBackend(trt, machine, backend, cache, values, count or (lambda seconds: None))

    def build(graph: bytes, options: BuildOptions, progress: Progress | None) -> BuildResult:
        return build_engine(graph, options, timing_cache=cache, machine=machine, trt=trt, progress=progress)

    judge: Judge = Benchmarks(engines, lean=lean) if settings.measure_attention else take_first
    def compile_kernel(case: AttentionCase, gpu: Gpu) -> PluginKernel:
        kernel = compiled(case, gpu)
        PLUGINS.register([kernel], trt)  # before any engine is built with it
        return kernel

    opened = lambda plan: EngineSession(plan, backend=backend, trt=trt)  # noqa: E731
    return BuildContext(trt, machine, judge, build, gpu, opened, None if is_rtx(trt) else compile_kernel)


def named_context(capabilities: Sequence[int]) -> BuildContext:
    """Return the context of TensorRT-RTX, where it is installed, for GPUs that are named, on any machine; at least one must be."""
    from export.trt.build import build_engine
    from export.trt.engine_file import named_machine
    from export.trt.rtx import import_rtx

    if not capabilities:
        raise InvalidInput("the GPUs that the engine is for are not named", Give("gpu", "sm_86,sm_89,sm_120"))
    trt = import_rtx()

    def build(graph: bytes, options: BuildOptions, progress: Progress | None) -> BuildResult:
        return build_engine(graph, options, trt=trt, progress=progress)

    judge = functools.partial(ask_builder, capability=max(capabilities), trt=trt)
    return BuildContext(trt, named_machine(trt, capabilities), judge, build)


@functools.cache
def compiled(case: AttentionCase, gpu: Gpu) -> PluginKernel:
    """Compile the plugin's kernel for a shape, with Triton, within the shared memory that needs no asking for.

    Raises:
        HyctasError: it cannot be: no Triton, no such architecture, too old a driver, no tile that holds.
    """
    from export.trt.plugin import PLAIN_SHARED_BYTES
    from export.trt.versions import number_of
    from hyctas.attention.triton.plugin_compile import plugin_kernel

    channels = case.qk_channels, case.value_channels
    return plugin_kernel(
        number_of(gpu.capability), *channels, case.dtype, queries=case.queries, keys=case.keys, driver_cuda=gpu.driver_cuda,
        most_shared_bytes=PLAIN_SHARED_BYTES,
    )  # fmt: skip

"""Reach CUDA through NVIDIA's cuda-bindings, which needs nothing else.

Every function of `cuda.bindings.runtime` returns a tuple with CUDA's error first. Where the driver or one of its functions is
missing some versions raise a RuntimeError instead: 12.8 for every call where there is no driver.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any, NamedTuple

import numpy as np

from export.errors import Unavailable
from export.trt.cuda.device import CudaFailed, DeviceBackend

INSTALL = "pip install 'cuda-bindings==12.9.*', or 'cuda-bindings==13.*' where TensorRT is for CUDA 13 (JetPack 6 is CUDA 12)"


class Item(NamedTuple):
    """Memory, a stream, an event or a graph, with the names of CUDA's functions for it."""

    held: Any
    destroy: str
    wait: str = ""


def open_backend() -> CudaBindingsBackend:
    """Open it; `Unavailable` where cuda-bindings is not installed, or CUDA does not start."""
    target = "the CUDA backend cuda-bindings"
    try:
        runtime = importlib.import_module("cuda.bindings.runtime")
    except (ImportError, OSError) as error:
        raise Unavailable(target, f"cuda.bindings.runtime cannot be imported ({error})", INSTALL) from None
    try:
        return CudaBindingsBackend(runtime)
    except CudaFailed as error:
        raise Unavailable(target, str(error), "a driver and a GPU that this version of cuda-bindings fits") from error


class CudaBindingsBackend(DeviceBackend):
    """See `DeviceBackend`; `runtime` is the module `cuda.bindings.runtime`. `CudaFailed` where no GPU is usable."""

    name = "cuda-bindings"

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self._call("cudaSetDevice", 0)

    def versions(self) -> dict[str, str]:
        number = int(self._call("cudaRuntimeGetVersion"))
        try:
            package = importlib.metadata.version("cuda-bindings")
        except importlib.metadata.PackageNotFoundError:  # a system package
            package = "unknown"
        return {"cuda_bindings": package, "cuda_runtime": f"{number // 1000}.{number % 1000 // 10}"}

    def allocate(self, size_bytes: int) -> Item:
        return Item(self._call("cudaMalloc", size_bytes), "cudaFree")

    def make_stream(self) -> Item:
        held = self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking)
        return Item(held, "cudaStreamDestroy", "cudaStreamSynchronize")

    def make_event(self) -> Item:  # without the flag for blocking, CUDA spins while it waits
        held = self._call("cudaEventCreateWithFlags", self._runtime.cudaEventDefault)
        return Item(held, "cudaEventDestroy", "cudaEventSynchronize")

    def number(self, item: Item) -> int:
        return int(item.held)

    def free(self, item: Item) -> None:
        self._call(item.destroy, item.held)

    def copy_in(self, memory: Item, data: np.ndarray, stream: Item) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", memory.held, data.ctypes.data, data.size, kind, stream.held)

    def copy_out(self, memory: Item, data: np.ndarray, stream: Item) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", data.ctypes.data, memory.held, data.size, kind, stream.held)

    def fill(self, memory: Item, size_bytes: int, stream: Item) -> None:
        self._call("cudaMemsetAsync", memory.held, 0, size_bytes, stream.held)

    def record(self, event: Item, stream: Item) -> None:
        self._call("cudaEventRecord", event.held, stream.held)

    def wait(self, item: Item) -> None:
        self._call(item.wait, item.held)

    def elapsed_ms(self, first: Item, last: Item) -> float:
        return float(self._call("cudaEventElapsedTime", first.held, last.held))

    def synchronize(self) -> None:
        self._call("cudaDeviceSynchronize")

    def begin_capture(self, stream: Item) -> None:
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream.held, mode)

    def end_capture(self, stream: Item) -> Item:
        graph = self._call("cudaStreamEndCapture", stream.held)
        try:
            return Item(self._call("cudaGraphInstantiate", graph, 0), "cudaGraphExecDestroy")
        finally:
            self._call("cudaGraphDestroy", graph)  # the instance is a copy

    def launch(self, graph: Item, stream: Item) -> None:
        self._call("cudaGraphLaunch", graph.held, stream.held)

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call a function of CUDA's runtime and return its value, None where it has none."""
        try:
            error, *values = getattr(self._runtime, name)(*arguments)
            if error == self._runtime.cudaError_t.cudaSuccess:
                return values[0] if values else None
            text = self._runtime.cudaGetErrorString(error)[1]
        except RuntimeError as raised:
            raise CudaFailed(name, str(raised)) from raised
        said = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
        raise CudaFailed(name, f"error {int(error)}, {said}")

"""Reach device memory, streams, events and CUDA graphs through NVIDIA's cuda-bindings, which needs nothing else. No torch here.

Every function of `cuda.bindings.runtime` returns a tuple with CUDA's error first. Where the driver or one of its functions is
missing some versions raise a RuntimeError instead: 12.8 for every call where there is no driver.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any

import numpy as np

from export.errors import Unavailable
from export.trt.device import CudaFailed

INSTALL = "pip install 'cuda-bindings==12.9.*', or 'cuda-bindings==13.*' where TensorRT is for CUDA 13 (JetPack 6 is CUDA 12)"


def open_backend() -> CudaBindingsBackend:
    """Open it.

    Raises:
        Unavailable: cuda-bindings is not installed, or CUDA does not start.
    """
    target = "the CUDA backend cuda-bindings"
    try:
        runtime = importlib.import_module("cuda.bindings.runtime")
    except (ImportError, OSError) as error:
        raise Unavailable(target, f"cuda.bindings.runtime cannot be imported ({error})", INSTALL) from None
    try:
        return CudaBindingsBackend(runtime)
    except CudaFailed as error:
        raise Unavailable(target, str(error), "a driver and a GPU that this version of cuda-bindings fits") from error


class CudaBindingsBackend:
    """See `export.trt.device.DeviceBackend`.

    Args:
        runtime: the module `cuda.bindings.runtime`.

    Raises:
        CudaFailed: no usable GPU.
    """

    name = "cuda-bindings"
    why_no_graphs = ""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self._success = runtime.cudaError_t.cudaSuccess
        self._to_device = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._to_host = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaSetDevice", 0)

    def versions(self) -> dict[str, str]:
        """Return the version of cuda-bindings and of the CUDA runtime inside it."""
        number = int(self._call("cudaRuntimeGetVersion"))
        try:
            package = importlib.metadata.version("cuda-bindings")
        except importlib.metadata.PackageNotFoundError:  # a system package
            package = "unknown"
        return {"cuda_bindings": package, "cuda_runtime": f"{number // 1000}.{number % 1000 // 10}"}

    def allocate(self, size_bytes: int) -> tuple[int, Any]:
        """Return the address twice: it is also the object."""
        address = int(self._call("cudaMalloc", size_bytes))
        return address, address

    def free(self, memory: Any) -> None:
        """Free it."""
        self._call("cudaFree", memory)

    def upload(self, memory: Any, data: np.ndarray, stream: Any) -> None:
        """Enqueue a copy to the device."""
        self._call("cudaMemcpyAsync", memory, data.ctypes.data, data.size, self._to_device, stream)

    def download(self, memory: Any, data: np.ndarray, stream: Any) -> None:
        """Enqueue a copy from the device."""
        self._call("cudaMemcpyAsync", data.ctypes.data, memory, data.size, self._to_host, stream)

    def fill(self, memory: Any, size_bytes: int, stream: Any) -> None:
        """Enqueue zeros."""
        self._call("cudaMemsetAsync", memory, 0, size_bytes, stream)

    def make_stream(self) -> tuple[int, Any]:
        """Return handle and stream; it does not wait for the legacy default stream."""
        stream = self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking)
        return int(stream), stream

    def wait_stream(self, stream: Any) -> None:
        """Wait for the stream."""
        self._call("cudaStreamSynchronize", stream)

    def free_stream(self, stream: Any) -> None:
        """Free it."""
        self._call("cudaStreamDestroy", stream)

    def make_event(self) -> Any:
        """Make an event; without the flag for blocking, CUDA spins while it waits."""
        return self._call("cudaEventCreateWithFlags", self._runtime.cudaEventDefault)

    def record(self, event: Any, stream: Any) -> None:
        """Enqueue the event."""
        self._call("cudaEventRecord", event, stream)

    def wait_event(self, event: Any) -> None:
        """Wait for the event."""
        self._call("cudaEventSynchronize", event)

    def elapsed_ms(self, first: Any, last: Any) -> float:
        """Return the milliseconds between two events."""
        return float(self._call("cudaEventElapsedTime", first, last))

    def free_event(self, event: Any) -> None:
        """Free it."""
        self._call("cudaEventDestroy", event)

    def begin_capture(self, stream: Any) -> None:
        """Begin; only this thread's forbidden calls disturb it, as in trtexec."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: Any) -> Any:
        """End, and return what can be launched."""
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)  # the instance is a copy

    def launch(self, graph: Any, stream: Any) -> None:
        """Enqueue the graph."""
        self._call("cudaGraphLaunch", graph, stream)

    def free_graph(self, graph: Any) -> None:
        """Free it."""
        self._call("cudaGraphExecDestroy", graph)

    def synchronize(self) -> None:
        """Wait for the GPU."""
        self._call("cudaDeviceSynchronize")

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call a function of CUDA's runtime and return its value, None where it has none."""
        try:
            error, *values = getattr(self._runtime, name)(*arguments)
            if error == self._success:
                return values[0] if values else None
            text = self._runtime.cudaGetErrorString(error)[1]
        except RuntimeError as raised:
            raise CudaFailed(name, str(raised)) from raised
        said = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
        raise CudaFailed(name, f"error {int(error)}, {said}")

"""Reach device memory, streams, events and CUDA graphs through pycuda. No torch here.

State: never run. It is held to the same contract as the other backends, by tests against a fake `pycuda.driver` that was written
from the sources of pycuda 2026.1; nobody has run it with the real one on a GPU yet. pycuda has no CUDA graphs, so every run
launches its kernels one by one, and times of small engines include that. Where you can, take cuda-bindings, as NVIDIA's own samples
do now.

The primary context is used (`pycuda.autoprimaryctx`), which TensorRT and PyTorch use as well. `pycuda.autoinit` makes a context of
its own, in which their memory does not exist: a program that imports it cannot use this backend.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from export.errors import Unavailable
from export.trt.device import CudaFailed

INSTALL = "pip install 'pycuda>=2025.1' (compiled here, so CUDA's toolkit and a C++ compiler are needed); cuda-bindings is easier"
_NON_BLOCKING = 1
"""`CU_STREAM_NON_BLOCKING`: the stream does not wait for the legacy default stream."""


def open_backend() -> PycudaBackend:
    """Open it, with the primary context.

    Raises:
        Unavailable: pycuda is not installed, CUDA does not start, or `pycuda.autoinit` was imported.
    """
    target = "the CUDA backend pycuda"
    if "pycuda.autoinit" in sys.modules:
        reason = "pycuda.autoinit was imported, whose context TensorRT does not use"
        raise Unavailable(target, reason, "import pycuda.autoprimaryctx in its place")
    try:
        driver = importlib.import_module("pycuda.driver")
    except (ImportError, OSError) as error:
        raise Unavailable(target, f"pycuda.driver cannot be imported ({error})", INSTALL) from None
    try:
        primary: Any = importlib.import_module("pycuda.autoprimaryctx")
    except (driver.Error, RuntimeError, ValueError) as error:  # ValueError: CUDA_DEVICE or ~/.cuda_device holds no number
        raise Unavailable(target, f"CUDA does not start ({error})", "a driver and a GPU that pycuda was built for") from error
    if primary.device != driver.Device(0):
        reason = "pycuda chose another GPU than the first, by CUDA_DEVICE or ~/.cuda_device"
        raise Unavailable(target, reason, "choose the GPU for all packages alike, by CUDA_VISIBLE_DEVICES, and remove the other")
    return PycudaBackend(driver)


class PycudaBackend:
    """See `export.trt.device.DeviceBackend`.

    Args:
        driver: the module `pycuda.driver`, with the primary context current.
    """

    name = "pycuda"
    why_no_graphs = "pycuda has none (seen up to 2026.1)"

    def __init__(self, driver: Any) -> None:
        self._driver = driver

    def versions(self) -> dict[str, str]:
        """Return the versions of pycuda and of the CUDA that it was built with."""
        package: Any = importlib.import_module("pycuda")
        return {"pycuda": str(package.VERSION_TEXT), "pycuda_cuda": ".".join(map(str, self._driver.get_version()[:2]))}

    def allocate(self, size_bytes: int) -> tuple[int, Any]:
        """Return address and allocation."""
        memory = self._call("mem_alloc", self._driver.mem_alloc, size_bytes)
        return int(memory), memory

    def free(self, memory: Any) -> None:
        """Free it."""
        self._call("DeviceAllocation.free", memory.free)

    def upload(self, memory: Any, data: np.ndarray, stream: Any) -> None:
        """Enqueue a copy to the device."""
        self._call("memcpy_htod_async", self._driver.memcpy_htod_async, memory, data, stream)

    def download(self, memory: Any, data: np.ndarray, stream: Any) -> None:
        """Enqueue a copy from the device."""
        self._call("memcpy_dtoh_async", self._driver.memcpy_dtoh_async, data, memory, stream)

    def fill(self, memory: Any, size_bytes: int, stream: Any) -> None:
        """Enqueue zeros."""
        self._call("memset_d8_async", self._driver.memset_d8_async, memory, 0, size_bytes, stream)

    def make_stream(self) -> tuple[int, Any]:
        """Return handle and stream."""
        stream = self._call("Stream", self._driver.Stream, _NON_BLOCKING)
        return int(stream.handle), stream

    def wait_stream(self, stream: Any) -> None:
        """Wait for the stream."""
        self._call("Stream.synchronize", stream.synchronize)

    def free_stream(self, stream: Any) -> None:
        """Do nothing: the stream goes with its last reference, which the caller dropped."""

    def make_event(self) -> Any:
        """Make an event; without the flag for blocking, CUDA spins while it waits."""
        return self._call("Event", self._driver.Event)

    def record(self, event: Any, stream: Any) -> None:
        """Enqueue the event."""
        self._call("Event.record", event.record, stream)

    def wait_event(self, event: Any) -> None:
        """Wait for the event."""
        self._call("Event.synchronize", event.synchronize)

    def elapsed_ms(self, first: Any, last: Any) -> float:
        """Return the milliseconds between two events."""
        return float(self._call("Event.time_till", first.time_till, last))

    def free_event(self, event: Any) -> None:
        """Do nothing: the event goes with its last reference."""

    def begin_capture(self, stream: Any) -> None:
        """Refuse."""
        raise self._no_graphs()

    def end_capture(self, stream: Any) -> Any:
        """Refuse."""
        raise self._no_graphs()

    def launch(self, graph: Any, stream: Any) -> None:
        """Refuse."""
        raise self._no_graphs()

    def free_graph(self, graph: Any) -> None:
        """Refuse."""
        raise self._no_graphs()

    def synchronize(self) -> None:
        """Wait for the GPU."""
        self._call("Context.synchronize", self._driver.Context.synchronize)

    def _no_graphs(self) -> CudaFailed:
        return CudaFailed("capturing a CUDA graph", self.why_no_graphs)

    def _call(self, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self._driver.Error as error:
            raise CudaFailed(f"pycuda's {what}", str(error) or type(error).__name__) from error

"""Reach CUDA through pycuda.

State: never run with the real one on a GPU; tests hold it to the contract of the other backends, over a fake `pycuda.driver` that
was written from the sources of pycuda 2026.1. pycuda has no CUDA graphs, so every run launches its kernels one by one, and times of
small engines include that. Where you can, take cuda-bindings.

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
from export.trt.cuda.device import CudaFailed, DeviceBackend

INSTALL = "pip install 'pycuda>=2025.1' (compiled here, so CUDA's toolkit and a C++ compiler are needed); cuda-bindings is easier"
_NON_BLOCKING = 1
"""`CU_STREAM_NON_BLOCKING`: the stream does not wait for the legacy default stream."""


def open_backend() -> PycudaBackend:
    """Open it, with the primary context; `Unavailable` where pycuda is missing, CUDA does not start, or `autoinit` was imported."""
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


class PycudaBackend(DeviceBackend):
    """See `DeviceBackend`; `driver` is the module `pycuda.driver`, with the primary context current."""

    name = "pycuda"
    why_no_graphs = "pycuda has none (seen up to 2026.1)"

    def __init__(self, driver: Any) -> None:
        self._driver = driver

    def versions(self) -> dict[str, str]:
        package: Any = importlib.import_module("pycuda")
        return {"pycuda": str(package.VERSION_TEXT), "pycuda_cuda": ".".join(map(str, self._driver.get_version()[:2]))}

    def allocate(self, size_bytes: int) -> Any:
        return self._call("mem_alloc", self._driver.mem_alloc, size_bytes)

    def make_stream(self) -> Any:
        return self._call("Stream", self._driver.Stream, _NON_BLOCKING)

    def make_event(self) -> Any:  # without the flag for blocking, CUDA spins while it waits
        return self._call("Event", self._driver.Event)

    def number(self, item: Any) -> int:
        return int(item.handle if isinstance(item, self._driver.Stream) else item)

    def free(self, item: Any) -> None:
        if isinstance(item, self._driver.DeviceAllocation):
            self._call("DeviceAllocation.free", item.free)

    def copy_in(self, memory: Any, data: np.ndarray, stream: Any) -> None:
        self._call("memcpy_htod_async", self._driver.memcpy_htod_async, memory, data, stream)

    def copy_out(self, memory: Any, data: np.ndarray, stream: Any) -> None:
        self._call("memcpy_dtoh_async", self._driver.memcpy_dtoh_async, data, memory, stream)

    def fill(self, memory: Any, size_bytes: int, stream: Any) -> None:
        self._call("memset_d8_async", self._driver.memset_d8_async, memory, 0, size_bytes, stream)

    def record(self, event: Any, stream: Any) -> None:
        self._call("Event.record", event.record, stream)

    def wait(self, item: Any) -> None:
        self._call("synchronize", item.synchronize)

    def elapsed_ms(self, first: Any, last: Any) -> float:
        return float(self._call("Event.time_till", first.time_till, last))

    def synchronize(self) -> None:
        self._call("Context.synchronize", self._driver.Context.synchronize)

    def _call(self, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self._driver.Error as error:
            raise CudaFailed(f"pycuda's {what}", str(error) or type(error).__name__) from error

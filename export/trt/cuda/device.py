"""Reach device memory, streams, events and CUDA graphs, whichever package talks to CUDA.

GPU 0 is used; `CUDA_VISIBLE_DEVICES` says which one that is.

| backend       | package                                                   | taken                     | CUDA graphs |
|---------------|-----------------------------------------------------------|---------------------------|-------------|
| torch         | torch with CUDA, 2.7 or newer                             | first                     | yes         |
| cuda-bindings | cuda-bindings, NVIDIA's own: all a device needs           | where torch has no CUDA   | yes         |
| pycuda        | pycuda, compiled on the machine; never run, see its file  | where neither is there    | no          |
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from export.errors import HyctasError, InvalidInput, Unavailable

_HOMES = {"torch": "device_torch", "cuda-bindings": "device_cuda_bindings", "pycuda": "device_pycuda"}
BACKENDS = tuple(_HOMES)
"""Names of the backends, in the order in which they are tried."""


class CudaFailed(HyctasError):
    """A call of CUDA failed.

    Attributes:
        what: the call.
        said: CUDA's, or the package's, own words.
    """

    def __init__(self, what: str, said: str) -> None:
        self.what, self.said = what, said
        super().__init__(f"{what} failed: {said}")


class DeviceBackend(Protocol):
    """What one package offers of CUDA. Every `Any` is the package's own object; every call may raise `CudaFailed`."""

    name: str
    """One of `BACKENDS`."""
    why_no_graphs: str = ""
    """Why this package cannot capture CUDA graphs; empty where it can."""

    def versions(self) -> dict[str, str]:
        """Name the package's version and its CUDA's."""
        ...

    def allocate(self, size_bytes: int) -> Any:
        """Return new device memory; its content is undefined."""
        ...

    def make_stream(self) -> Any:
        """Return a stream that does not wait for the default one."""
        ...

    def make_event(self) -> Any:
        """Return an event that takes the time, and is waited for by spinning."""
        ...

    def number(self, item: Any) -> int:
        """Return the address of memory, or a stream's handle, as TensorRT takes them."""
        ...

    def free(self, item: Any) -> None:
        """Free memory, a stream, an event or a graph, for those that their last reference does not free."""
        ...

    def copy_in(self, memory: Any, data: np.ndarray, stream: Any) -> None:
        """Enqueue a copy of `data` (1-D uint8, contiguous, writeable) to the device; the caller keeps it until that is done."""
        ...

    def copy_out(self, memory: Any, data: np.ndarray, stream: Any) -> None:
        """Enqueue a copy from the device over all of `data` (1-D uint8, contiguous)."""
        ...

    def fill(self, memory: Any, size_bytes: int, stream: Any) -> None:
        """Enqueue zeros over the first `size_bytes`."""
        ...

    def record(self, event: Any, stream: Any) -> None:
        """Enqueue an event; recording it again forgets its former time."""
        ...

    def wait(self, item: Any) -> None:
        """Wait until the device has done what stands in a stream, or has reached an event."""
        ...

    def elapsed_ms(self, first: Any, last: Any) -> float:
        """Return the milliseconds between two events of one stream, the later of which was waited for."""
        ...

    def synchronize(self) -> None:
        """Wait for everything on the GPU."""
        ...

    def begin_capture(self, stream: Any) -> None:
        """Begin; only this thread's forbidden calls disturb it, as in trtexec."""
        raise CudaFailed("capturing a CUDA graph", self.why_no_graphs)

    def end_capture(self, stream: Any) -> Any:
        """Return what was enqueued since `begin_capture`, ready to be launched."""
        raise CudaFailed("capturing a CUDA graph", self.why_no_graphs)

    def launch(self, graph: Any, stream: Any) -> None:
        """Enqueue a graph."""
        raise CudaFailed("launching a CUDA graph", self.why_no_graphs)

    def upload(self, memory: Any, array: np.ndarray, stream: Any) -> None:
        """Copy an array to the device; complete on return."""
        data = np.require(array, requirements=("C", "W")).reshape(-1).view(np.uint8)  # torch warns of arrays that are read-only
        self.copy_in(memory, data, stream)
        self.wait(stream)

    def download(self, memory: Any, shape: tuple[int, ...], dtype: np.dtype[Any], stream: Any) -> np.ndarray:
        """Copy device memory to a new array, after what stands in the stream; complete on return."""
        array = np.empty(shape, dtype)
        self.copy_out(memory, array.reshape(-1).view(np.uint8), stream)
        self.wait(stream)
        return array

    def capture(self, stream: Any, work: Callable[[], object]) -> Any:
        """Call `work`, and return what it enqueues on `stream` as a graph instead of having it done.

        Raises:
            CudaFailed: besides the usual, the backend has no graphs, or the work cannot be captured.
        """
        self.begin_capture(stream)
        try:
            work()
        except BaseException:
            with contextlib.suppress(CudaFailed):  # the first failure tells more than that of ending a broken capture
                self.free(self.end_capture(stream))
            raise
        return self.end_capture(stream)


def open_backend(name: str | None = None) -> DeviceBackend:
    """Open the backend of this name; without one the first of `BACKENDS` that works.

    Raises:
        InvalidInput: no backend has this name.
        Unavailable: it cannot be used here, with the reason of each that was tried.
    """
    if name is not None and name not in _HOMES:
        raise InvalidInput(f"unknown CUDA backend {name!r}; write one of {', '.join(BACKENDS)}, or leave it out")
    reasons = []
    for tried in BACKENDS if name is None else (name,):
        module = importlib.import_module(f"export.trt.cuda.{_HOMES[tried]}")
        try:
            backend: DeviceBackend = module.open_backend()
        except Unavailable as error:
            if name is not None:
                raise
            reasons.append(f"{tried}: {error.reason}")
        else:
            return backend
    smallest = importlib.import_module(f"export.trt.cuda.{_HOMES['cuda-bindings']}")
    raise Unavailable("a CUDA backend", "; ".join(reasons), smallest.INSTALL)

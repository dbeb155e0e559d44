"""Own device memory, streams, events and CUDA graphs, whichever package talks to CUDA. No torch here.

A `DeviceBackend` is a thin adapter without checks; a `Device` owns what it makes, checks the order of calls once for all
adapters, and frees everything when it is closed. GPU 0 is used; `CUDA_VISIBLE_DEVICES` says which one that is.

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
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from export.errors import HyctasError, InvalidInput, Unavailable

_HOMES = {"torch": "device_torch", "cuda-bindings": "device_cuda_bindings", "pycuda": "device_pycuda"}
BACKENDS = tuple(_HOMES)
"""Names of the backends, in the order in which they are tried."""
_DEFAULT_STREAMS = (0, 1, 2)
"""CUDA's handles of its default streams (null, legacy, per thread); none of them can be captured."""


class CudaFailed(HyctasError):
    """A call of CUDA failed.

    Attributes:
        what: the call.
        said: CUDA's, or the package's, own words.
    """

    def __init__(self, what: str, said: str) -> None:
        self.what, self.said = what, said
        super().__init__(f"{what} failed: {said}")


class Misused(RuntimeError):
    """A call that the state of its objects does not allow: a defect of the calling code, not of the machine."""


class DeviceBackend(Protocol):
    """What one package offers of CUDA. Every `Any` is the package's own object; every call may raise `CudaFailed`."""

    name: str
    """One of `BACKENDS`."""
    why_no_graphs: str
    """Why this installation cannot capture CUDA graphs; empty where it can."""

    def versions(self) -> dict[str, str]:
        """Name the package's version and its CUDA's."""
        ...

    def allocate(self, size_bytes: int) -> tuple[int, Any]:
        """Return the address of new device memory, and its object."""
        ...

    def free(self, memory: Any) -> None: ...

    def upload(self, memory: Any, data: np.ndarray, stream: Any) -> None:
        """Enqueue a copy of all of `data` (1-D uint8, contiguous, writeable) to the start of device memory.

        The caller keeps `data` until the copy is done; a copy of it made here would be gone too early.
        """
        ...

    def download(self, memory: Any, data: np.ndarray, stream: Any) -> None:
        """Enqueue a copy from the start of device memory over all of `data` (1-D uint8, contiguous)."""
        ...

    def fill(self, memory: Any, size_bytes: int, stream: Any) -> None:
        """Enqueue zeros over the first `size_bytes`."""
        ...

    def make_stream(self) -> tuple[int, Any]:
        """Return the handle (`cudaStream_t` as a number) of a new stream, and its object."""
        ...

    def wait_stream(self, stream: Any) -> None: ...

    def free_stream(self, stream: Any) -> None: ...

    def make_event(self) -> Any:
        """Return an event that takes the time, and is waited for by spinning."""
        ...

    def record(self, event: Any, stream: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def elapsed_ms(self, first: Any, last: Any) -> float: ...

    def free_event(self, event: Any) -> None: ...

    def begin_capture(self, stream: Any) -> None: ...

    def end_capture(self, stream: Any) -> Any:
        """Return what was enqueued since `begin_capture`, ready to be launched."""
        ...

    def launch(self, graph: Any, stream: Any) -> None: ...

    def free_graph(self, graph: Any) -> None: ...

    def synchronize(self) -> None:
        """Wait for everything on the GPU."""
        ...


@dataclass(eq=False)
class Memory:
    """Bytes on the device."""

    held: Any
    address: int
    size_bytes: int


@dataclass(eq=False)
class Stream:
    """A queue of the device, never one of CUDA's default streams."""

    held: Any
    handle: int
    """`cudaStream_t` as a number, as TensorRT takes it."""
    capturing: bool = False


@dataclass(eq=False)
class Event:
    """A point in a stream at which the device notes the time."""

    held: Any
    state: str = "new"
    """`new`, `recorded` (enqueued, perhaps not reached) or `reached`."""


@dataclass(eq=False)
class Graph:
    """Work that was captured on a stream, to be launched on the same."""

    held: Any
    stream: Stream


class Device:
    """Owns memory, streams, events and graphs of one backend. Not thread-safe. Leaving the context frees them all.

    Raises (any method):
        CudaFailed: CUDA refused.
        Misused: an object that was freed or belongs to another device, a copy of the wrong size, an elapsed time before its
            events were waited for, or a copy or wait inside a capture.
    """

    def __init__(self, backend: DeviceBackend) -> None:
        self.backend = backend
        self._owned: dict[Memory | Stream | Event | Graph, None] = {}  # in the order of making

    def allocate(self, size_bytes: int) -> Memory:
        """Allocate device memory; its content is undefined."""
        if size_bytes < 1:
            raise Misused(f"device memory must hold at least 1 byte, got {size_bytes}")
        address, held = self.backend.allocate(size_bytes)
        return self._own(Memory(held, address, size_bytes))

    def upload(self, memory: Memory, array: np.ndarray, stream: Stream) -> None:
        """Copy an array to the device; complete on return."""
        data = np.require(array, requirements=("C", "W"))  # torch warns of arrays that are read-only
        self._copy(self.backend.upload, "upload", memory, data.reshape(-1).view(np.uint8), stream)

    def download(self, memory: Memory, shape: tuple[int, ...], dtype: np.dtype[Any], stream: Stream) -> np.ndarray:
        """Copy device memory to a new array, after what stands in the stream; complete on return."""
        array = np.empty(shape, dtype)
        self._copy(self.backend.download, "download", memory, array.reshape(-1).view(np.uint8), stream)
        return array

    def fill(self, memory: Memory, stream: Stream) -> None:
        """Enqueue zeros over device memory."""
        self._check(memory, stream)
        self.backend.fill(memory.held, memory.size_bytes, stream.held)

    def stream(self) -> Stream:
        """Make a stream."""
        handle, held = self.backend.make_stream()
        stream = self._own(Stream(held, handle))
        if handle in _DEFAULT_STREAMS:
            raise Misused(f"{self.backend.name} gave CUDA's default stream ({handle}), which cannot be captured")
        return stream

    def wait(self, waited: Stream | Event) -> None:
        """Wait until the device has done what stands in a stream, or has reached an event."""
        self._check(waited)
        if isinstance(waited, Stream):
            self._check_not_capturing("wait for", waited)
            self.backend.wait_stream(waited.held)
            return
        if waited.state == "new":
            raise Misused("an event that was never recorded cannot be waited for")
        self.backend.wait_event(waited.held)
        waited.state = "reached"

    def event(self) -> Event:
        """Make an event."""
        return self._own(Event(self.backend.make_event()))

    def record(self, event: Event, stream: Stream) -> None:
        """Enqueue an event; recording it again forgets its former time."""
        self._check(event, stream)
        self._check_not_capturing("record an event on", stream)
        self.backend.record(event.held, stream.held)
        event.state = "recorded"

    def elapsed_ms(self, first: Event, last: Event) -> float:
        """Return the milliseconds between two events of one stream, the later of which was waited for."""
        self._check(first, last)
        if last.state != "reached" or first.state == "new":
            raise Misused(f"elapsed_ms needs a recorded event and one waited for; they are {first.state} and {last.state}")
        return float(self.backend.elapsed_ms(first.held, last.held))

    def capture(self, stream: Stream, work: Callable[[], object]) -> Graph:
        """Call `work`, and return what it enqueues on `stream` as a graph instead of having it done.

        Raises:
            CudaFailed: besides the usual, the backend has no graphs, or the work cannot be captured.
        """
        self._check(stream)
        self._check_not_capturing("capture", stream)
        if self.backend.why_no_graphs:
            raise CudaFailed("capturing a CUDA graph", self.backend.why_no_graphs)
        self.backend.begin_capture(stream.held)
        stream.capturing = True
        try:
            work()
        except BaseException:
            with contextlib.suppress(CudaFailed):  # the first failure tells more than that of ending a broken capture
                self.backend.free_graph(self.backend.end_capture(stream.held))
            raise
        finally:
            stream.capturing = False
        return self._own(Graph(self.backend.end_capture(stream.held), stream))

    def launch(self, graph: Graph) -> None:
        """Enqueue a graph on the stream that it was captured on."""
        self._check(graph, graph.stream)
        self._check_not_capturing("launch a graph on", graph.stream)
        self.backend.launch(graph.held, graph.stream.held)

    def free(self, item: Memory | Stream | Event | Graph) -> None:
        """Free one object, once the device is done with everything."""
        self._check(item)
        self.backend.synchronize()
        del self._owned[item]
        self._release(item)

    def close(self) -> None:
        """Wait for the device and free everything, the newest first; the first failure is raised once all were tried."""
        if not self._owned:
            return
        failed: CudaFailed | None = None
        calls: list[Callable[[], None]] = [self.backend.synchronize]
        calls += [lambda item=item: self._release(item) for item in reversed(self._owned)]  # type: ignore[misc]
        self._owned = {}
        for call in calls:
            try:
                call()
            except CudaFailed as error:
                failed = failed or error
        if failed is not None:
            raise failed

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _own(self, item: Any) -> Any:
        self._owned[item] = None
        return item

    def _release(self, item: Memory | Stream | Event | Graph) -> None:
        held, item.held = item.held, None
        if isinstance(item, Memory):
            self.backend.free(held)
        elif isinstance(item, Stream):
            self.backend.free_stream(held)
        elif isinstance(item, Event):
            self.backend.free_event(held)
        else:
            self.backend.free_graph(held)

    def _check(self, *items: Memory | Stream | Event | Graph) -> None:
        for item in items:
            if item not in self._owned:
                kind = type(item).__name__.lower()
                raise Misused(f"this {kind} was freed, or belongs to another device")

    def _check_not_capturing(self, verb: str, stream: Stream) -> None:
        if stream.capturing:
            raise Misused(f"cannot {verb} a stream while it is captured")

    def _copy(
        self, call: Callable[[Any, np.ndarray, Any], None], verb: str, memory: Memory, data: np.ndarray, stream: Stream
    ) -> None:
        self._check(memory, stream)
        self._check_not_capturing(f"{verb} through", stream)
        if data.size != memory.size_bytes:
            raise Misused(f"{verb}: the array has {data.size} bytes, the device memory {memory.size_bytes}")
        call(memory.held, data, stream.held)
        self.backend.wait_stream(stream.held)


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
        module = importlib.import_module(f"export.trt.{_HOMES[tried]}")
        try:
            backend: DeviceBackend = module.open_backend()
        except Unavailable as error:
            if name is not None:
                raise
            reasons.append(f"{tried}: {error.reason}")
        else:
            return backend
    smallest = importlib.import_module(f"export.trt.{_HOMES['cuda-bindings']}")
    raise Unavailable("a CUDA backend", "; ".join(reasons), smallest.INSTALL)

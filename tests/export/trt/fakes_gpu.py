"""A GPU of numpy arrays: memory, streams, events and graphs.

Work is done when somebody waits for it, not when it is enqueued, so that code which forgets to wait reads rubbish. Whatever CUDA
calls an error is one here: memory that was freed, copies beyond an allocation, times of events that were not reached, captures of
the default stream, calls that a capture forbids. `FakeGpu.fail` makes a call fail that would not.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

INVALID_VALUE, OUT_OF_MEMORY, NO_DEVICE, INVALID_HANDLE, NOT_READY, ILLEGAL_ADDRESS = 1, 2, 100, 400, 600, 700
CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED = 900, 901
Work = Callable[[], None]


class GpuError(Exception):
    """What a call of CUDA answers instead of success."""

    def __init__(self, code: int, text: str) -> None:
        self.code, self.text = code, text
        super().__init__(text)


@dataclass
class _Queue:
    work: list[tuple[Work, float]] = field(default_factory=list)
    captured: list[tuple[Work, float]] | None = None
    broken: bool = False


class FakeGpu:
    """Device memory, streams, events and graphs; every call is noted in `calls`."""

    def __init__(self) -> None:
        self.memory: dict[int, np.ndarray] = {}
        self.queues: dict[int, _Queue] = {0: _Queue()}
        self.events: dict[int, float | None] = {}
        self.graphs: dict[int, list[tuple[Work, float]]] = {}
        self.calls: list[str] = []
        self.fail: dict[str, tuple[int, str]] = {}
        self.clock_ms = 0.0
        self._next = 0x7F0000000000

    def leaks(self) -> list[str]:
        """Name what nobody freed."""
        counts = {"memory": len(self.memory), "stream": len(self.queues) - 1, "event": len(self.events), "graph": len(self.graphs)}
        return [name for name, count in counts.items() if count]

    def call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.fail:
            raise GpuError(*self.fail[name])

    def handle(self) -> int:
        self._next += 512
        return self._next

    def allocate(self, size: int) -> int:
        self.call("allocate")
        self._forbidden_in_captures()
        address = self._next
        self._next += -(-size // 512) * 512 + 512
        self.memory[address] = np.full(size, 0xCD, np.uint8)
        return address

    def free(self, address: int) -> None:
        self.call("free")
        if self.memory.pop(address, None) is None:
            raise GpuError(INVALID_VALUE, "invalid argument")

    def bytes_at(self, address: int, size: int) -> np.ndarray:
        """Return a view of device memory, which must lie within one allocation."""
        for start, data in self.memory.items():
            if start <= address and address + size <= start + data.size:
                return data[address - start : address - start + size]
        raise GpuError(ILLEGAL_ADDRESS, "an illegal memory access was encountered")

    def enqueue(self, handle: int, work: Work, ms: float = 0.0) -> None:
        queue = self._queue(handle)
        (queue.work if queue.captured is None else queue.captured).append((work, ms))

    def copy_in(self, address: int, data: np.ndarray, handle: int) -> None:
        self.call("upload")
        self.bytes_at(address, data.size)
        size, held = data.size, weakref.ref(data)  # a copy in a queue keeps nothing alive

        def work() -> None:
            source = held()
            assert source is not None, "the host's memory was freed before it was copied"
            self.bytes_at(address, size)[:] = source

        self.enqueue(handle, work, 0.01)

    def copy_out(self, address: int, data: np.ndarray, handle: int) -> None:
        self.call("download")
        self.bytes_at(address, data.size)
        self.enqueue(handle, lambda: data.__setitem__(slice(None), self.bytes_at(address, data.size)), 0.01)

    def fill(self, address: int, size: int, handle: int) -> None:
        self.call("fill")
        self.bytes_at(address, size)
        self.enqueue(handle, lambda: self.bytes_at(address, size).fill(0), 0.05)

    def make_stream(self) -> int:
        self.call("make_stream")
        handle = self.handle()
        self.queues[handle] = _Queue()
        return handle

    def free_stream(self, handle: int) -> None:
        self.call("free_stream")
        self._queue(handle)
        del self.queues[handle]

    def wait_stream(self, handle: int) -> None:
        self.call("wait_stream")
        queue = self._queue(handle)
        if queue.captured is not None:
            queue.broken = True
            raise GpuError(CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing")
        while queue.work:
            work, ms = queue.work.pop(0)
            self.clock_ms += ms
            work()

    def synchronize(self) -> None:
        self.call("synchronize")
        self._forbidden_in_captures()
        for handle in self.queues:
            self.wait_stream(handle)

    def make_event(self) -> int:
        self.call("make_event")
        handle = self.handle()
        self.events[handle] = None
        return handle

    def free_event(self, event: int) -> None:
        self.call("free_event")
        self._event(event)
        del self.events[event]

    def record(self, event: int, handle: int) -> None:
        self.call("record")
        self._event(event)
        self.events[event] = None
        self.enqueue(handle, lambda: self.events.__setitem__(event, self.clock_ms))

    def wait_event(self, event: int) -> None:
        self.call("wait_event")
        self._event(event)
        for handle in self.queues:
            self.wait_stream(handle)

    def elapsed_ms(self, first: int, last: int) -> float:
        self.call("elapsed")
        begin, end = self._event(first), self._event(last)
        if begin is None or end is None:
            raise GpuError(NOT_READY, "device not ready")
        return end - begin

    def begin_capture(self, handle: int) -> None:
        self.call("begin_capture")
        queue = self._queue(handle)
        if handle == 0 or queue.captured is not None:
            raise GpuError(CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing")
        queue.captured, queue.broken = [], False

    def end_capture(self, handle: int) -> int:
        queue = self._queue(handle)
        captured, queue.captured = queue.captured, None
        self.call("end_capture")
        if captured is None:
            raise GpuError(INVALID_VALUE, "invalid argument")
        if queue.broken:
            raise GpuError(CAPTURE_INVALIDATED, "operation failed due to a previous error during capture")
        graph = self.handle()
        self.graphs[graph] = captured
        return graph

    def launch(self, graph: int, handle: int) -> None:
        self.call("launch")
        for work, ms in self.graphs[self._graph(graph)]:
            self.enqueue(handle, work, ms)

    def free_graph(self, graph: int) -> None:
        self.call("free_graph")
        del self.graphs[self._graph(graph)]

    def _queue(self, handle: int) -> _Queue:
        if handle not in self.queues:
            raise GpuError(INVALID_HANDLE, "invalid resource handle")
        return self.queues[handle]

    def _event(self, event: int) -> float | None:
        if event not in self.events:
            raise GpuError(INVALID_HANDLE, "invalid resource handle")
        return self.events[event]

    def _graph(self, graph: int) -> int:
        if graph not in self.graphs:
            raise GpuError(INVALID_HANDLE, "invalid resource handle")
        return graph

    def _forbidden_in_captures(self) -> None:
        for queue in self.queues.values():
            if queue.captured is not None:
                queue.broken = True
                raise GpuError(CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing")

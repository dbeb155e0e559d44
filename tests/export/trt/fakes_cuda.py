"""Three packages that talk to `FakeGpu`: what `export.trt.device_*` uses of torch, cuda-bindings and pycuda."""

from __future__ import annotations

import ctypes
import importlib.machinery
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from tests.export.trt.fakes_gpu import (
    CAPTURE_INVALIDATED,
    CAPTURE_UNSUPPORTED,
    ILLEGAL_ADDRESS,
    INVALID_HANDLE,
    INVALID_VALUE,
    NO_DEVICE,
    NOT_READY,
    OUT_OF_MEMORY,
    FakeGpu,
    GpuError,
)  # fmt: skip


def module(name: str, **members: Any) -> ModuleType:
    """Make a module that `importlib` takes for an installed one."""
    made = ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None)
    made.__dict__.update(members)
    return made


def _raising(kind: type[Exception], text: str = "{}") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return what makes a function raise a package's own exception for CUDA's errors."""

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **named: Any) -> Any:
            try:
                return function(*arguments, **named)
            except GpuError as error:
                raise kind(text.format(error.text)) from None

        return called

    return wrap


def _stream_and_event(gpu: FakeGpu, raising: Callable[[Callable[..., Any]], Callable[..., Any]]) -> tuple[type, type]:
    """Return classes that have what both torch and pycuda call it; objects free themselves."""

    class Stream:
        @raising
        def __init__(self, flags: int = 1, device: str = "") -> None:
            assert flags == 1, "a stream that waits for the default stream"
            self.handle = self.cuda_stream = gpu.make_stream()

        def __del__(self) -> None:
            gpu.queues.pop(getattr(self, "handle", -1), None)

        @raising
        def synchronize(self) -> None:
            gpu.wait_stream(self.handle)

    class Event:
        @raising
        def __init__(self, enable_timing: bool = True) -> None:
            assert enable_timing
            self.handle = gpu.make_event()

        def __del__(self) -> None:
            gpu.events.pop(getattr(self, "handle", -1), None)

        @raising
        def record(self, stream: Stream) -> None:
            gpu.record(self.handle, stream.handle)

        @raising
        def synchronize(self) -> None:
            gpu.wait_event(self.handle)

        @raising
        def elapsed_time(self, other: Event) -> float:
            return gpu.elapsed_ms(self.handle, other.handle)

        time_till = elapsed_time

    return Stream, Event


def fake_torch(gpu: FakeGpu, available: bool = True, number: str = "2.11.0") -> ModuleType:
    """What `export.trt.cuda.device_torch` uses of torch; tensors are bytes, on the host or on the GPU."""
    raising = _raising(RuntimeError, "CUDA error: {}\nCUDA kernel errors might be reported later")
    Stream, Event = _stream_and_event(gpu, raising)
    current = [0]

    class Tensor:
        is_view = False

        def __init__(self, data: np.ndarray | None = None, size: int = 0) -> None:
            self.data, self.size = data, size
            self.address = 0 if data is not None else gpu.allocate(size)

        def __del__(self) -> None:
            if self.data is None and not self.is_view:
                gpu.memory.pop(getattr(self, "address", 0), None)

        def data_ptr(self) -> int:
            return self.address

        def __getitem__(self, part: slice) -> Tensor:
            view = object.__new__(Tensor)
            view.data, view.size, view.address, view.is_view = None, part.stop, self.address, True
            return view

        @raising
        def copy_(self, other: Tensor, non_blocking: bool = False) -> None:
            assert non_blocking, "torch would wait for the wrong stream"
            if self.data is None:
                assert other.data is not None and other.data.size == self.size, "torch copies between tensors of one size"
                gpu.copy_in(self.address, other.data, current[0])
            else:
                assert other.data is None and other.size == self.data.size
                gpu.copy_out(other.address, self.data, current[0])

        @raising
        def zero_(self) -> None:
            gpu.fill(self.address, self.size, current[0])

    class CUDAGraph:
        graph: int | None = None

        @raising
        def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
            gpu.begin_capture(current[0])

        @raising
        def capture_end(self) -> None:
            self.graph = gpu.end_capture(current[0])

        @raising
        def replay(self) -> None:
            assert self.graph is not None
            gpu.launch(self.graph, current[0])

        @raising
        def reset(self) -> None:
            if self.graph is not None:
                gpu.free_graph(self.graph)
                self.graph = None

    @contextmanager
    def on_stream(stream: Any) -> Iterator[None]:
        before, current[0] = current[0], stream.handle
        try:
            yield
        finally:
            current[0] = before

    def from_numpy(array: np.ndarray) -> Tensor:
        assert array.flags.writeable, "torch warns of arrays that are read-only"
        return Tensor(array)

    cuda = SimpleNamespace(
        is_available=lambda: available, Stream=Stream, Event=Event, CUDAGraph=CUDAGraph, stream=on_stream,
        synchronize=raising(gpu.synchronize),
    )  # fmt: skip
    empty = raising(lambda size, dtype, device: Tensor(size=size))
    version = SimpleNamespace(cuda="12.8")
    return module("torch", __version__=number, uint8="uint8", empty=empty, from_numpy=from_numpy, cuda=cuda, version=version)


_Error = IntEnum("_Error", {
    "cudaSuccess": 0, "cudaErrorInvalidValue": INVALID_VALUE, "cudaErrorInsufficientDriver": 35,
    "cudaErrorMemoryAllocation": OUT_OF_MEMORY, "cudaErrorNoDevice": NO_DEVICE, "cudaErrorInvalidResourceHandle": INVALID_HANDLE,
    "cudaErrorNotReady": NOT_READY, "cudaErrorIllegalAddress": ILLEGAL_ADDRESS,
    "cudaErrorStreamCaptureUnsupported": CAPTURE_UNSUPPORTED, "cudaErrorStreamCaptureInvalidated": CAPTURE_INVALIDATED,
})  # fmt: skip


def fake_cuda_bindings(gpu: FakeGpu) -> ModuleType:
    """What `export.trt.cuda.device_cuda_bindings` uses of `cuda.bindings.runtime`: every call returns (error, ...)."""
    to_device, to_host = "H2D", "D2H"
    texts: dict[int, str] = {}
    views: list[np.ndarray] = []
    """Of host memory, which the GPU wants to see alive; an address does not tell whether it is."""

    def returning(values: int, function: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
        def called(*arguments: Any) -> tuple[Any, ...]:
            try:
                value = function(*arguments)
            except GpuError as error:
                texts[error.code] = error.text
                return (_Error(error.code), *[None] * values)
            return (_Error.cudaSuccess, value) if values else (_Error.cudaSuccess,)

        return called

    def copy(target: int, source: int, size: int, kind: str, stream: int) -> None:
        address, host = (target, source) if kind == to_device else (source, target)
        data = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(host))
        views.append(data)
        (gpu.copy_in if kind == to_device else gpu.copy_out)(address, data, stream)

    def instantiate(graph: int, flags: int) -> int:
        gpu.call("instantiate")
        instance = gpu.handle()
        gpu.graphs[instance] = gpu.graphs[gpu._graph(graph)]
        return instance

    def nothing(*arguments: Any) -> None:
        gpu.call("set_device")

    functions: dict[str, tuple[int, Callable[..., Any]]] = {
        "cudaSetDevice": (0, nothing),
        "cudaRuntimeGetVersion": (1, lambda: 12080),
        "cudaGetErrorString": (1, lambda error: texts.get(int(error), "no error").encode()),
        "cudaMalloc": (1, gpu.allocate),
        "cudaFree": (0, gpu.free),
        "cudaMemcpyAsync": (0, copy),
        "cudaMemsetAsync": (0, lambda address, value, size, stream: gpu.fill(address, size, stream)),
        "cudaStreamCreateWithFlags": (1, lambda flags: gpu.make_stream()),
        "cudaStreamSynchronize": (0, gpu.wait_stream),
        "cudaStreamDestroy": (0, gpu.free_stream),
        "cudaEventCreateWithFlags": (1, lambda flags: gpu.make_event()),
        "cudaEventRecord": (0, gpu.record),
        "cudaEventSynchronize": (0, gpu.wait_event),
        "cudaEventElapsedTime": (1, gpu.elapsed_ms),
        "cudaEventDestroy": (0, gpu.free_event),
        "cudaStreamBeginCapture": (0, lambda stream, mode: gpu.begin_capture(stream)),
        "cudaStreamEndCapture": (1, gpu.end_capture),
        "cudaGraphInstantiate": (1, instantiate),
        "cudaGraphDestroy": (0, gpu.free_graph),
        "cudaGraphLaunch": (0, gpu.launch),
        "cudaGraphExecDestroy": (0, gpu.free_graph),
        "cudaDeviceSynchronize": (0, gpu.synchronize),
    }
    return module(
        "cuda.bindings.runtime",
        cudaError_t=_Error,
        cudaMemcpyKind=SimpleNamespace(cudaMemcpyHostToDevice=to_device, cudaMemcpyDeviceToHost=to_host),
        cudaStreamCaptureMode=SimpleNamespace(cudaStreamCaptureModeThreadLocal=1),
        cudaStreamNonBlocking=1,
        cudaEventDefault=0,
        **{name: returning(values, function) for name, (values, function) in functions.items()},
    )


def fake_pycuda(gpu: FakeGpu) -> ModuleType:
    """What `export.trt.cuda.device_pycuda` uses of `pycuda.driver`: objects that free themselves, and exceptions."""

    class Error(Exception):
        pass

    raising = _raising(Error)
    Stream, Event = _stream_and_event(gpu, raising)

    class DeviceAllocation:
        @raising
        def __init__(self, size: int) -> None:
            self.address = gpu.allocate(size)

        def __int__(self) -> int:
            return self.address

        @raising
        def free(self) -> None:
            gpu.free(self.address)

    return module(
        "pycuda.driver",
        Error=Error,
        Device=lambda number: f"GPU {number}",
        DeviceAllocation=DeviceAllocation,
        Stream=Stream,
        Event=Event,
        Context=SimpleNamespace(synchronize=raising(gpu.synchronize)),
        mem_alloc=DeviceAllocation,
        memcpy_htod_async=raising(lambda memory, data, stream: gpu.copy_in(memory.address, data, stream.handle)),
        memcpy_dtoh_async=raising(lambda data, memory, stream: gpu.copy_out(memory.address, data, stream.handle)),
        memset_d8_async=raising(lambda memory, value, size, stream: gpu.fill(memory.address, size, stream.handle)),
        get_version=lambda: (12, 8, 0),
    )

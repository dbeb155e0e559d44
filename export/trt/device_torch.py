"""Reach device memory, streams, events and CUDA graphs through PyTorch: where it is installed, it is there anyway.

Memory comes from PyTorch's caching allocator, so engines and modules of one process share what it holds.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from export.errors import Unavailable
from export.platform import install_line, platform_kind
from export.trt.device import CudaFailed

_DEVICE = "cuda:0"
_OLDEST = (2, 7)
"""Before it, PyTorch launches two kernels of its own with every CUDA graph (pytorch/pytorch#143572), which times would include."""


def open_backend() -> TorchBackend:
    """Open it.

    Raises:
        Unavailable: PyTorch is not installed, too old, or finds no CUDA device.
    """
    install = install_line("torch-cuda", platform_kind())
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        raise Unavailable("the CUDA backend torch", f"torch cannot be imported ({error})", install) from None
    version = re.match(r"(\d+)\.(\d+)", str(torch.__version__))
    if version is not None and (int(version[1]), int(version[2])) < _OLDEST:
        reason = f"PyTorch {torch.__version__} adds two kernels to every CUDA graph, so times would be wrong; 2.7 does not"
        raise Unavailable("the CUDA backend torch", reason, f"{install}; or take cuda-bindings")
    if not torch.cuda.is_available():
        raise Unavailable("the CUDA backend torch", f"PyTorch {torch.__version__} finds no CUDA device", install)
    return TorchBackend(torch)


class TorchBackend:
    """See `export.trt.device.DeviceBackend`.

    Args:
        torch: the module, with a usable CUDA device.
    """

    name = "torch"
    why_no_graphs = ""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._capturing: Any = None

    def versions(self) -> dict[str, str]:
        """Return the versions of PyTorch and of the CUDA that it was built with."""
        return {"torch": str(self._torch.__version__), "torch_cuda": str(self._torch.version.cuda)}

    def allocate(self, size_bytes: int) -> tuple[int, Any]:
        """Return address and tensor."""
        tensor = self._call("torch.empty", self._torch.empty, size_bytes, dtype=self._torch.uint8, device=_DEVICE)
        # the block may have been another stream's: what that one still has in its queue must not write into it
        self.synchronize()
        return tensor.data_ptr(), tensor

    def free(self, memory: Any) -> None:
        """Do nothing: the tensor goes with its last reference, which the caller dropped."""

    def upload(self, memory: Any, data: np.ndarray, stream: Any) -> None:
        """Enqueue a copy to the device."""
        self._on(stream, "an upload", memory.copy_, self._torch.from_numpy(data), non_blocking=True)

    def download(self, memory: Any, data: np.ndarray, stream: Any) -> None:
        """Enqueue a copy from the device."""
        self._on(stream, "a download", self._torch.from_numpy(data).copy_, memory, non_blocking=True)

    def fill(self, memory: Any, size_bytes: int, stream: Any) -> None:
        """Enqueue zeros."""
        self._on(stream, "a fill", memory[:size_bytes].zero_)

    def make_stream(self) -> tuple[int, Any]:
        """Return handle and stream."""
        stream = self._call("torch.cuda.Stream", self._torch.cuda.Stream, device=_DEVICE)
        return int(stream.cuda_stream), stream

    def wait_stream(self, stream: Any) -> None:
        """Wait for the stream."""
        self._call("waiting for a stream", stream.synchronize)

    def free_stream(self, stream: Any) -> None:
        """Do nothing: PyTorch's streams come from a pool."""

    def make_event(self) -> Any:
        """Make an event with timing; PyTorch's events spin unless told to block."""
        return self._call("torch.cuda.Event", self._torch.cuda.Event, enable_timing=True)

    def record(self, event: Any, stream: Any) -> None:
        """Enqueue the event."""
        self._call("recording an event", event.record, stream)

    def wait_event(self, event: Any) -> None:
        """Wait for the event."""
        self._call("waiting for an event", event.synchronize)

    def elapsed_ms(self, first: Any, last: Any) -> float:
        """Return the milliseconds between two events."""
        return float(self._call("elapsed_time", first.elapsed_time, last))

    def free_event(self, event: Any) -> None:
        """Do nothing: the event goes with its last reference."""

    def begin_capture(self, stream: Any) -> None:
        """Begin; only this thread's forbidden calls disturb it, as in trtexec."""
        graph = self._call("torch.cuda.CUDAGraph", self._torch.cuda.CUDAGraph)
        self._on(stream, "beginning a capture", graph.capture_begin, capture_error_mode="thread_local")
        self._capturing = graph

    def end_capture(self, stream: Any) -> Any:
        """End, and return the graph, which PyTorch has instantiated."""
        graph, self._capturing = self._capturing, None
        self._on(stream, "ending a capture", graph.capture_end)
        return graph

    def launch(self, graph: Any, stream: Any) -> None:
        """Enqueue the graph."""
        self._on(stream, "launching a graph", graph.replay)

    def free_graph(self, graph: Any) -> None:
        """Free it."""
        self._call("freeing a graph", graph.reset)

    def synchronize(self) -> None:
        """Wait for the GPU."""
        self._call("torch.cuda.synchronize", self._torch.cuda.synchronize)

    def _on(self, stream: Any, what: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        with self._torch.cuda.stream(stream):
            return self._call(what, function, *arguments, **named)

    def _call(self, what: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except RuntimeError as error:  # all of torch's CUDA errors derive from it
            raise CudaFailed(what, (str(error).splitlines() or [type(error).__name__])[0]) from error

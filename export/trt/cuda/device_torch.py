"""Reach CUDA through PyTorch: where it is installed, it is there anyway.

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
from export.trt.cuda.device import CudaFailed, DeviceBackend

_DEVICE = "cuda:0"
_OLDEST = (2, 7)
"""Before it, PyTorch launches two kernels of its own with every CUDA graph (pytorch/pytorch#143572), which times would include."""


def open_backend() -> TorchBackend:
    """Open it; `Unavailable` where PyTorch is not installed, too old, or finds no CUDA device."""
    target, install = "the CUDA backend torch", install_line("torch-cuda", platform_kind())
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        raise Unavailable(target, f"torch cannot be imported ({error})", install) from None
    version = re.match(r"(\d+)\.(\d+)", str(torch.__version__))
    if version is not None and (int(version[1]), int(version[2])) < _OLDEST:
        reason = f"PyTorch {torch.__version__} adds two kernels to every CUDA graph, so times would be wrong; 2.7 does not"
        raise Unavailable(target, reason, f"{install}; or take cuda-bindings")
    if not torch.cuda.is_available():
        raise Unavailable(target, f"PyTorch {torch.__version__} finds no CUDA device", install)
    return TorchBackend(torch)


class TorchBackend(DeviceBackend):
    """See `DeviceBackend`; `torch` is the module, with a usable CUDA device."""

    name = "torch"

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._capturing: Any = None

    def versions(self) -> dict[str, str]:
        return {"torch": str(self._torch.__version__), "torch_cuda": str(self._torch.version.cuda)}

    def allocate(self, size_bytes: int) -> Any:
        tensor = self._call("torch.empty", self._torch.empty, size_bytes, dtype=self._torch.uint8, device=_DEVICE)
        # the block may have been another stream's: what that one still has in its queue must not write into it
        self.synchronize()
        return tensor

    def make_stream(self) -> Any:
        return self._call("torch.cuda.Stream", self._torch.cuda.Stream, device=_DEVICE)

    def make_event(self) -> Any:
        return self._call("torch.cuda.Event", self._torch.cuda.Event, enable_timing=True)

    def number(self, item: Any) -> int:
        return int(item.cuda_stream if isinstance(item, self._torch.cuda.Stream) else item.data_ptr())

    def free(self, item: Any) -> None:
        if isinstance(item, self._torch.cuda.CUDAGraph):
            self._call("freeing a graph", item.reset)

    def copy_in(self, memory: Any, data: np.ndarray, stream: Any) -> None:
        self._on(stream, "an upload", memory.copy_, self._torch.from_numpy(data), non_blocking=True)

    def copy_out(self, memory: Any, data: np.ndarray, stream: Any) -> None:
        self._on(stream, "a download", self._torch.from_numpy(data).copy_, memory, non_blocking=True)

    def fill(self, memory: Any, size_bytes: int, stream: Any) -> None:
        self._on(stream, "a fill", memory[:size_bytes].zero_)

    def record(self, event: Any, stream: Any) -> None:
        self._call("recording an event", event.record, stream)

    def wait(self, item: Any) -> None:
        self._call("waiting for a stream or event", item.synchronize)

    def elapsed_ms(self, first: Any, last: Any) -> float:
        return float(self._call("elapsed_time", first.elapsed_time, last))

    def synchronize(self) -> None:
        self._call("torch.cuda.synchronize", self._torch.cuda.synchronize)

    def begin_capture(self, stream: Any) -> None:
        graph = self._call("torch.cuda.CUDAGraph", self._torch.cuda.CUDAGraph)
        self._on(stream, "beginning a capture", graph.capture_begin, capture_error_mode="thread_local")
        self._capturing = graph

    def end_capture(self, stream: Any) -> Any:
        graph, self._capturing = self._capturing, None
        self._on(stream, "ending a capture", graph.capture_end)
        return graph

    def launch(self, graph: Any, stream: Any) -> None:
        self._on(stream, "launching a graph", graph.replay)

    def _on(self, stream: Any, what: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        with self._torch.cuda.stream(stream):
            return self._call(what, function, *arguments, **named)

    def _call(self, what: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except RuntimeError as error:  # all of torch's CUDA errors derive from it
            raise CudaFailed(what, (str(error).splitlines() or [type(error).__name__])[0]) from error

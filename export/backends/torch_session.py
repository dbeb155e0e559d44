"""Run modules and `.pt2` files in PyTorch itself: eager on a CPU, a captured CUDA graph on a GPU.

No compiler is involved: BN folded where the module offers `folded()`, channels-last, inference mode. It always
runs on a CPU and is the reference that the other runtimes are compared with.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from export.errors import CorruptFile, InvalidInput, first_line
from export.feeds import check_feeds
from export.onnx.tracing import folded
from export.platform import install_line, platform_kind
from export.runtime import Session, TensorSpec, check_can_run
from export.target import Target

Call = Callable[..., Any]
_DTYPES = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}
METADATA = ("preprocessing", "labels", "genotype", "size", "output")
"""What a `.pt2` file of ours holds beside the program, as an ONNX file holds it in its metadata."""
_WARM_UP = 3
"""Runs before a CUDA graph is captured: cuDNN picks its algorithms and the allocator fills its pool."""


class TorchRuntime:
    """PyTorch on one target: `torch-cpu:fp32|bf16` or `torch-cuda:fp32|fp16|bf16`.

    Below fp32, convolutions and linear layers compute in the lower precision (autocast, weights converted once); inputs
    and outputs stay float32. fp32 on CUDA means without TF32.

    Raises:
        Unavailable: CUDA was asked for and PyTorch finds none.
    """

    def __init__(self, target: Target, threads: int = 1) -> None:
        check_can_run(target, threads, unavailable_reason(target))
        self.target, self.threads = target, threads

    def versions(self) -> dict[str, str]:
        """Return the versions of PyTorch and, on CUDA, of the toolkit, cuDNN and GPU."""
        versions = {"torch": str(torch.__version__)}
        if self.target.device == "cuda":
            versions["cuda"] = str(torch.version.cuda)
            versions["cudnn"] = str(torch.backends.cudnn.version())
            versions["gpu0"] = torch.cuda.get_device_name(0)
        return versions

    def load_file(self, path: Path) -> TorchSession:
        """Load a `.pt2` file written by `torch.export.save`, which executes code that stands in it.

        Raises:
            InvalidInput: no such file, or not a `.pt2` file by its name.
            CorruptFile: it cannot be read.
        """
        path = Path(path)
        if not path.is_file():
            raise InvalidInput(f"no such file: {path}")
        if path.suffix.lower() != ".pt2":
            hint = "; for .onnx take onnxruntime-cpu:fp32" if path.suffix.lower() == ".onnx" else ""
            raise InvalidInput(f"{self.target} runs .pt2 files (torch.export.save); got {path.name}{hint}")
        extra = dict.fromkeys(METADATA, "")
        try:
            logging.disable(logging.WARNING)  # torch logs the traceback of what it raises
            program = torch.export.load(path, extra_files=extra)
        except Exception as error:  # torch raises whatever its zip, JSON and pickle readers raise
            raise CorruptFile(path, f"is not a readable .pt2 file ({type(error).__name__})") from error
        finally:
            logging.disable(logging.NOTSET)
        names = list(map(str, program.graph_signature.user_inputs))
        values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
        examples = tuple(_example(path, name, values.get(name)) for name in names)
        try:
            session = TorchSession(program.module(), examples, names, self.target, self.threads)
        except (RuntimeError, TypeError, ValueError) as error:
            raise InvalidInput(f"{path}: PyTorch {torch.__version__} does not run it: {first_line(error)}") from None
        session.metadata = {name: text for name, text in extra.items() if text}
        return session

    def load_modules(self, modules: Sequence[tuple[nn.Module, tuple[torch.Tensor, ...]]]) -> list[Session]:
        """Load copies of modules; the session's inputs are named `x0, ...`, its outputs `y0, ...`."""
        sessions: list[Session] = []
        for module, inputs in modules:
            own = prepared(module, self.target.device)
            own = (copy.deepcopy(module) if own is module else own).eval()
            names = [f"x{i}" for i in range(len(inputs))]
            sessions.append(TorchSession(own, inputs, names, self.target, self.threads))
        return sessions


class TorchSession(Session):
    """One module on PyTorch; see `export.runtime.Session`."""

    def __init__(
        self, module: nn.Module, examples: tuple[torch.Tensor, ...], names: Sequence[str], target: Target, threads: int
    ) -> None:
        self.inputs = tuple(
            TensorSpec(name, tuple(x.shape), str(x.dtype).removeprefix("torch."))
            for name, x in zip(names, examples, strict=True)
        )
        self.metadata: dict[str, str] = {}
        self._dtype, self._threads, self._device = _DTYPES[target.precision], threads, target.device
        if self._dtype is not None:
            _convert_weights(module, self._dtype)
        self._module: Call | None = module.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._static = tuple(_placed(x, self._device) for x in examples)
        self._bound = False
        self._flushed: torch.Tensor | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        with self._context():
            self._results = self._capture() if self._device == "cuda" else self._forward(self._static)
        if not all(isinstance(y, torch.Tensor) for y in self._results):
            kinds = [type(y).__name__ for y in self._results]
            raise TypeError(f"its outputs are of the types {', '.join(kinds)}; tensors alone can be read")
        self.outputs = tuple(TensorSpec(f"y{i}", tuple(y.shape), str(to_numpy(y).dtype)) for i, y in enumerate(self._results))

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Compute the outputs; bound inputs stay bound."""
        tensors = [_placed(torch.from_numpy(array), self._device) for array in check_feeds(self.inputs, feeds)]
        with self._context():
            if self._graph is None:
                return [to_numpy(y) for y in self._forward(tensors)]
            kept = [x.clone() for x in self._static]
            self._fill(tensors)
            self._graph.replay()
            found = [to_numpy(y) for y in self._results]
            self._fill(kept)
            return found

    def bind(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Copy the inputs to the device in channels-last layout."""
        arrays = check_feeds(self.inputs, feeds)
        with torch.inference_mode():
            self._fill([torch.from_numpy(array) for array in arrays])
        self._bound = True

    def step(self) -> float:
        """Run once on the bound inputs and return milliseconds: wall-clock on a CPU, CUDA events on a GPU."""
        if not self._bound:
            raise InvalidInput("call bind(feeds) before step()")
        with self._context():
            if self._graph is not None:
                begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                begin.record()
                self._graph.replay()
                end.record()
                end.synchronize()
                return begin.elapsed_time(end)
            start = time.perf_counter_ns()
            self._results = self._forward(self._static)
            return (time.perf_counter_ns() - start) / 1e6

    def flush(self, mib: float) -> None:
        """Overwrite this much memory on the device, so that the next `step` finds its caches cold; not part of its time."""
        elements = max(1, round(mib * 2**20 / 4))
        if self._flushed is None or self._flushed.numel() != elements:
            self._flushed = torch.zeros(elements, device=self._device)
        self._flushed.add_(1.0)

    def results(self) -> list[np.ndarray]:
        """Copy out what the last `step` computed."""
        return [to_numpy(y) for y in self._results]

    def close(self) -> None:
        """Free the module, its buffers and its CUDA graph."""
        self._module, self._graph, self._flushed, self._bound = None, None, None, False
        self._static = self._results = ()

    def _forward(self, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        assert self._module is not None, "the session is closed"
        result = self._module(*tensors)
        if isinstance(result, torch.Tensor):
            return (result,)
        return tuple(result.values() if isinstance(result, Mapping) else result)

    def _fill(self, tensors: Sequence[torch.Tensor]) -> None:
        for target, tensor in zip(self._static, tensors, strict=True):
            target.copy_(tensor)

    def _capture(self) -> tuple[torch.Tensor, ...]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                self._forward(self._static)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            return self._forward(self._static)

    @contextmanager
    def _context(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(torch_threads(self._threads))
            stack.enter_context(torch.inference_mode())
            if self._device == "cuda" and self._dtype is None:
                stack.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=False))
            if self._dtype is not None:
                stack.enter_context(torch.autocast(self._device, self._dtype, cache_enabled=False))
            yield


def unavailable_reason(target: Target) -> tuple[str, str] | None:
    """Say why a target of PyTorch cannot run here, with the install line; None when it can."""
    if target.device == "cuda" and not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} finds no CUDA device", install_line(target.runtime, platform_kind())
    return None


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch compute with `count` threads inside, and with as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def prepared(module: nn.Module, device: str) -> nn.Module:
    """Return a module's copy for running only: with fused kernels on CUDA where it offers `fused()`, else with BN folded."""
    fuse = getattr(module, "fused", None)
    return fuse() if device == "cuda" and callable(fuse) else folded(module)


def _example(path: Path, name: str, value: object) -> torch.Tensor:
    """Make an input of an exported program.

    Raises:
        InvalidInput: it is no tensor, has a dynamic shape, or a type that numpy lacks.
    """
    if not isinstance(value, torch.Tensor):
        raise InvalidInput(f"{path}: input {name!r} is {type(value).__name__}; only tensors can be given")
    if not all(isinstance(extent, int) for extent in value.shape):
        shape = ", ".join(map(str, value.shape))
        raise InvalidInput(f"{path}: input {name!r} has the dynamic shape ({shape}); export it without dynamic_shapes")
    if value.dtype == torch.bfloat16:
        raise InvalidInput(f"{path}: input {name!r} is bfloat16, which numpy lacks; export it with a float32 input")
    return torch.zeros(tuple(value.shape), dtype=value.dtype)


def _convert_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Convert once what autocast would otherwise convert on every run, and every run would pay for."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear)
    for part in module.modules():
        if isinstance(part, kinds):
            part.to(dtype)


def _placed(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """Copy to the device, 4-D tensors as channels-last."""
    layout = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
    return tensor.detach().clone().to(device).contiguous(memory_format=layout)


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Copy a tensor out of its device; half precision becomes float32, which NumPy has."""
    tensor = tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
    return np.array(tensor.cpu().contiguous().numpy())

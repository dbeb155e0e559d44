"""Compile modules ahead of time with AOTInductor, and run `.pt2` packages that it made: on a CPU, and on CUDA.

A package holds a library that was compiled for the machine's instruction sets and one thread count's loops; loading it executes
that code. Making one takes a C++ compiler; running one does not. The compiler's work happens in a folder of its own, so that equal
programs are compiled once per process and nothing is left behind.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from export.backends.torch_session import METADATA, torch_threads
from export.errors import CorruptFile, InvalidInput, Unavailable, first_line
from export.feeds import check_feeds
from export.onnx.tracing import folded
from export.platform import install_line, platform_kind
from export.runtime import Session, TensorSpec, check_can_run
from export.target import Target

COMPILERS = ("g++", "clang++", "c++")
COMPILER_LINE = "sudo apt install g++ (Debian, Ubuntu), or your system's C++ compiler"
_LOWER = {"fp16": torch.float16, "bf16": torch.bfloat16}
_OURS = "hyctas_"
"""Begins the names of our entries in a package's metadata."""


class AOTInductorRuntime:
    """AOTInductor on one target: `aotinductor-cpu:fp32|bf16` or `aotinductor-cuda:fp32|fp16|bf16`.

    Below fp32, convolutions and products compute in the lower precision (autocast, traced into the program); inputs and outputs
    stay float32. fp32 on CUDA means without TF32.

    Raises:
        Unavailable: CUDA was asked for and PyTorch finds none.
    """

    def __init__(self, target: Target, threads: int = 1) -> None:
        check_can_run(target, threads, unavailable_reason(target))
        self.target, self.threads = target, threads

    def versions(self) -> dict[str, str]:
        """Return the version of PyTorch, which AOTInductor is part of, and on CUDA those of the toolkit and the GPU."""
        versions = {"torch": str(torch.__version__)}
        if self.target.device == "cuda":
            versions |= {"cuda": str(torch.version.cuda), "gpu0": torch.cuda.get_device_name(0)}
        return versions

    def load_file(self, path: Path) -> AOTInductorSession:
        """Load a package that was compiled for this device and precision, which executes code in it.

        Raises:
            InvalidInput: no such file, no `.pt2` file by its name, one that holds no compiled program (torch.export.save), or one
                for another target.
            CorruptFile: it cannot be read.
        """
        path = Path(path)
        if not path.is_file():
            raise InvalidInput(f"no such file: {path}")
        if path.suffix.lower() != ".pt2":
            raise InvalidInput(f"{self.target} runs .pt2 packages of AOTInductor; got {path.name}")
        try:
            with _quiet():
                model = torch._inductor.aoti_load_package(str(path), run_single_threaded=self.target.device == "cpu")
            noted = dict(model.loader.get_metadata())
        except RuntimeError as error:
            if _is_program(path):
                raise InvalidInput(f"{path} holds a program that is not compiled (torch.export.save); torch-cpu:fp32 runs it") from None
            raise CorruptFile(path, f"is not a readable package of AOTInductor ({first_line(error)})") from None
        made_for = noted.get(_OURS + "target", f"aotinductor-{noted.get('AOTI_DEVICE_KEY', '?')}:fp32")
        if made_for != str(self.target):
            raise InvalidInput(f"{path} is compiled for {made_for}, asked for {self.target}; compile it anew")
        shapes = noted.get(_OURS + "inputs")
        if shapes is None:
            raise InvalidInput(f"{path} does not say which inputs it takes: it was not written here")
        session = AOTInductorSession(model, _specs(path, shapes), self.target, self.threads)
        session.metadata = {name: noted[_OURS + name] for name in METADATA if noted.get(_OURS + name)}
        return session

    def load_modules(self, modules: Sequence[tuple[nn.Module, tuple[torch.Tensor, ...]]]) -> list[Session]:
        """Compile modules, and load them; the sessions' inputs are named `x0, ...`, their outputs `y0, ...`.

        Raises:
            Unavailable: no C++ compiler.
            InvalidInput: a module that cannot be exported or compiled.
        """
        sessions: list[Session] = []
        with tempfile.TemporaryDirectory(prefix="hyctas-aotinductor-") as temporary:
            for index, (module, inputs) in enumerate(modules):
                path = Path(temporary) / f"m{index}.pt2"
                compile_package(module, inputs, path, self.target, [f"x{i}" for i in range(len(inputs))])
                sessions.append(self.load_file(path))
        return sessions


class AOTInductorSession(Session):
    """One compiled model; see `export.runtime.Session`."""

    def __init__(self, model: Any, inputs: tuple[TensorSpec, ...], target: Target, threads: int) -> None:
        self.inputs = inputs
        self.notes: list[str] = []
        self.metadata: dict[str, str] = {}
        self._model, self._device, self._threads = model, target.device, threads
        self._static = [torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype), device=target.device) for spec in inputs]
        self._bound = False
        self._results = self._forward(self._static)
        self.outputs = tuple(TensorSpec(f"y{i}", tuple(y.shape), str(_numpy(y).dtype)) for i, y in enumerate(self._results))

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Compute the outputs; bound inputs stay bound."""
        tensors = [torch.from_numpy(array).to(self._device) for array in check_feeds(self.inputs, feeds)]
        return [_numpy(y) for y in self._forward(tensors)]

    def bind(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Copy the inputs to the device."""
        for target, array in zip(self._static, check_feeds(self.inputs, feeds), strict=True):
            target.copy_(torch.from_numpy(array))
        self._bound = True

    def step(self) -> float:
        """Run once on the bound inputs and return milliseconds: wall-clock on a CPU, CUDA events on a GPU."""
        if not self._bound:
            raise InvalidInput("call bind(feeds) before step()")
        if self._device == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            self._results = self._forward(self._static)
            end.record()
            end.synchronize()
            return begin.elapsed_time(end)
        with torch_threads(self._threads):
            start = time.perf_counter_ns()
            self._results = self._call(self._static)
            return (time.perf_counter_ns() - start) / 1e6

    def results(self) -> list[np.ndarray]:
        """Copy out what the last `step` computed."""
        return [_numpy(y) for y in self._results]

    def close(self) -> None:
        """Free the model and its buffers."""
        self._model, self._bound = None, False
        self._static, self._results = [], []

    def _forward(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        with torch_threads(self._threads):
            return self._call(tensors)

    def _call(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        if self._model is None:
            raise InvalidInput("the session is closed")
        found = self._model(*tensors)
        return [found] if isinstance(found, torch.Tensor) else list(found)


def compile_package(
    module: nn.Module, inputs: tuple[torch.Tensor, ...], path: Path, target: Target, names: Sequence[str],
    metadata: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Compile a module (eval mode, BN folded where it offers `folded()`) to a package for one target.

    Args:
        module: what is compiled; it stays as it is.
        inputs: examples; shapes are fixed to theirs.
        path: the package, which replaces what is there when everything succeeded.
        target: device and precision.
        names: of the inputs.
        metadata: text that the package carries; `AOTInductorSession.metadata` has it back.

    Raises:
        Unavailable: no C++ compiler.
        InvalidInput: the module cannot be exported or compiled.
    """
    if not any(map(shutil.which, COMPILERS)):
        tried = ", ".join(COMPILERS)
        raise Unavailable(str(target), f"AOTInductor compiles with a C++ compiler, and none is found ({tried})", COMPILER_LINE)
    own = _Lower(folded(module).eval(), target).to(target.device)
    examples = tuple(x.detach().to(target.device) for x in inputs)
    facts = {"target": str(target), "inputs": _written(names, examples), **(metadata or {})}
    settings = {"aot_inductor.metadata": {_OURS + key: value for key, value in facts.items()}}
    with tempfile.TemporaryDirectory(prefix="hyctas-aotinductor-") as temporary, torch.no_grad(), _quiet():
        made = Path(temporary) / "model.pt2"
        try:
            program = torch.export.export(own, examples)
            program = program.run_decompositions(_portable())
            torch._inductor.aoti_compile_and_package(program, package_path=str(made), inductor_configs=settings)
        except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as error:
            raise InvalidInput(f"AOTInductor {torch.__version__} does not compile it: {first_line(error)}") from None
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(made, path)


def unavailable_reason(target: Target) -> tuple[str, str] | None:
    """Say why a target of AOTInductor cannot run here, with the install line; None when it can. Compiling needs a compiler, too."""
    if target.device == "cuda" and not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} finds no CUDA device", install_line(target.runtime, platform_kind())
    return None


class _Lower(nn.Module):
    """Computes a module in a lower precision by autocast, with outputs in float32."""

    def __init__(self, module: nn.Module, target: Target) -> None:
        super().__init__()
        self.module, self.device, self.dtype = module, target.device, _LOWER.get(target.precision)

    def forward(self, *inputs: torch.Tensor) -> Any:
        if self.dtype is None:
            return self.module(*inputs)
        with torch.autocast(self.device, self.dtype, cache_enabled=False):
            found = self.module(*inputs)
        many = [found] if isinstance(found, torch.Tensor) else list(found)
        return tuple(y.float() if y.is_floating_point() else y for y in many)


def _portable() -> dict[Any, Any]:
    """Return decompositions of operators of packages that are loaded: a package must open without them."""
    from torch.export import default_decompositions

    return {} if not DECOMPOSED else {**{}, **DECOMPOSED} if default_decompositions else {}


DECOMPOSED: dict[Any, Any] = {}


def _written(names: Sequence[str], examples: Sequence[torch.Tensor]) -> str:
    dtypes = [str(x.dtype).removeprefix("torch.") for x in examples]
    return ";".join(f"{n}:{d}:{'x'.join(map(str, x.shape))}" for n, d, x in zip(names, dtypes, examples, strict=True))


def _specs(path: Path, text: str) -> tuple[TensorSpec, ...]:
    try:
        parts = [part.split(":") for part in text.split(";")]
        return tuple(TensorSpec(name, tuple(map(int, shape.split("x"))), dtype) for name, dtype, shape in parts)
    except ValueError:
        raise CorruptFile(path, f"says in no readable way which inputs it takes ({text[:80]!r})") from None


def _is_program(path: Path) -> bool:
    """Say whether a file is one of torch.export.save."""
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            return any("exported_program" in name or "/models/" in name for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch says of its own tools; what it raises still arrives."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return np.array(tensor.detach().cpu().contiguous().numpy())

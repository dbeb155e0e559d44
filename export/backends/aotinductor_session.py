"""Compile modules ahead of time with AOTInductor, and run `.pt2` packages that it made: on a CPU, and on CUDA.

A package holds a library that was compiled for one kind of device and this machine's instruction sets; loading it executes that
code. Making one takes a C++ compiler; running one does not.
"""

from __future__ import annotations

import contextlib
import logging
import platform
import shutil
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from export.backends.torch_session import METADATA, to_numpy, torch_threads, unavailable_reason
from export.errors import CorruptFile, InvalidInput, Unavailable, first_line
from export.feeds import check_feeds
from export.onnx.tracing import folded
from export.pt2_package import OURS, compiled_facts
from export.runtime import Session, TensorSpec, check_can_run
from export.target import Target

COMPILERS = ("g++", "clang++", "c++")
COMPILER_LINE = "sudo apt install g++ (Debian, Ubuntu), or your system's C++ compiler"
Decompositions = Mapping[Any, Callable[..., Any]]
_LOWER = {"fp16": torch.float16, "bf16": torch.bfloat16}


class AOTInductorRuntime:
    """AOTInductor on one target: `aotinductor-cpu:fp32|bf16` or `aotinductor-cuda:fp32|fp16|bf16`.

    Below fp32, convolutions and products compute in the lower precision (autocast, traced into the program); inputs and outputs
    stay float32. fp32 on CUDA means without TF32.

    Attributes:
        decompositions: as `compile_package` takes them, for modules.

    Raises:
        Unavailable: CUDA was asked for and PyTorch finds none.
    """

    def __init__(self, target: Target, threads: int = 1) -> None:
        check_can_run(target, threads, unavailable_reason(target))
        self.target, self.threads = target, threads
        self.decompositions: Decompositions = {}

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
        facts = compiled_facts(path)
        if facts is None and zipfile.is_zipfile(path):
            raise InvalidInput(f"{path} holds a program that is not compiled (torch.export.save); torch-cpu:fp32 runs it")
        if facts is not None:
            _check_fits(path, facts, self.target)
        try:
            with _quiet():
                model = torch._inductor.aoti_load_package(str(path), run_single_threaded=self.target.device == "cpu")
        except (RuntimeError, OSError) as error:
            raise CorruptFile(path, f"is not a readable package of AOTInductor ({first_line(error)})") from None
        assert facts is not None, "what is no package is not loaded"
        session = AOTInductorSession(model, _specs(path, facts[OURS + "inputs"]), self.target, self.threads)
        session.metadata = {name: facts[OURS + name] for name in METADATA if facts.get(OURS + name)}
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
                names = [f"x{i}" for i in range(len(inputs))]
                compile_package(module, inputs, path, self.target, names, decompositions=self.decompositions)
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
        self.outputs = tuple(TensorSpec(f"y{i}", tuple(y.shape), str(to_numpy(y).dtype)) for i, y in enumerate(self._results))

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Compute the outputs; bound inputs stay bound."""
        tensors = [torch.from_numpy(array).to(self._device) for array in check_feeds(self.inputs, feeds)]
        return [to_numpy(y) for y in self._forward(tensors)]

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
        return [to_numpy(y) for y in self._results]

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
    metadata: Mapping[str, str] | None = None, decompositions: Decompositions | None = None,
) -> None:  # fmt: skip
    """Compile a module (eval mode, BN folded where it offers `folded()`) to a package for one target.

    Args:
        module: what is compiled; it stays as it is.
        inputs: examples; shapes are fixed to theirs.
        path: the package, which replaces what is there when everything succeeded.
        target: device and precision.
        names: of the inputs.
        metadata: text that the package carries; `AOTInductorSession.metadata` has it back.
        decompositions: functions in the place of operators that torch itself does not have, so that the package opens without them.

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
    # loops take the thread count of the run, not that of the compilation
    settings: dict[str, Any] = {"aot_inductor.metadata": {OURS + key: value for key, value in facts.items()}}
    settings |= {"cpp.dynamic_threads": True, "aot_inductor.precompile_headers": False}  # slower for one file
    with tempfile.TemporaryDirectory(prefix="hyctas-aotinductor-") as temporary, torch.no_grad(), _quiet():
        made = Path(temporary) / "model.pt2"
        try:
            program = torch.export.export(own, examples)
            if decompositions:
                program = program.run_decompositions(dict(decompositions))
            torch._inductor.aoti_compile_and_package(program, package_path=str(made), inductor_configs=settings)
        except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as error:
            raise InvalidInput(f"AOTInductor {torch.__version__} does not compile it: {first_line(error)}") from None
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(made, path)


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


def _written(names: Sequence[str], examples: Sequence[torch.Tensor]) -> str:
    dtypes = [str(x.dtype).removeprefix("torch.") for x in examples]
    return ";".join(f"{n}:{d}:{'x'.join(map(str, x.shape))}" for n, d, x in zip(names, dtypes, examples, strict=True))


def _specs(path: Path, text: str) -> tuple[TensorSpec, ...]:
    try:
        parts = [part.split(":") for part in text.split(";")]
        return tuple(TensorSpec(name, tuple(map(int, shape.split("x"))), dtype) for name, dtype, shape in parts)
    except ValueError:
        raise CorruptFile(path, f"says in no readable way which inputs it takes ({text[:80]!r})") from None


def _check_fits(path: Path, facts: Mapping[str, str], target: Target) -> None:
    """Refuse a package for something else, before any code of it is executed."""
    made_for, machine = facts.get(OURS + "target"), facts.get("AOTI_MACHINE", platform.machine())
    if made_for is None or OURS + "inputs" not in facts:
        raise InvalidInput(f"{path} does not say which inputs it takes: it was not written by this package")
    if made_for != str(target):
        raise InvalidInput(f"{path} is compiled for {made_for}, asked for {target}; compile it anew")
    if machine != platform.machine():
        raise InvalidInput(f"{path} is compiled for {machine}, here is {platform.machine()}; compile it anew")


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

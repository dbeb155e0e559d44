"""Offer TensorRT behind `export.runtime.Runtime`: engines are checked and loaded, ONNX files and modules built.

Whole networks (`load_file`, `load_modules`) get an engine each, with fp32 inputs and outputs. Operators of a latency table
(`load_operators`) share engines, see `export.trt.grouped`; their inputs and outputs are of the target's precision, as parts of
networks have them. Attention in modules is what the runtime's `attention` makes of it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from export.errors import HyctasError, InvalidInput
from export.runtime import Session, check_can_run
from export.target import TENSORRT, Target
from export.trt.cuda.device import open_backend
from export.trt.cuda.guard import import_tensorrt, unavailable_reason
from export.trt.engine_file import machine_of
from export.trt.onnx_metadata import onnx_metadata
from export.trt.options import BuildOptions, target_precision
from export.trt.rtx import own_cache_path
from export.trt.runner import EngineSession, open_engine
from export.trt.timing_cache import default_folder
from export.trt.versions import is_rtx, number_of

if TYPE_CHECKING:
    import onnx
    import torch

    from export.onnx.functions import OnnxFunction
    from export.trt.build import BuildResult

    Modules = Sequence[tuple[torch.nn.Module, tuple[torch.Tensor, ...]]]

Loaded = TypeVar("Loaded")


class Attention(Protocol):
    """Gives attention in modules an implementation; see `export.trt.choose`."""

    label: str
    """How it chooses, for a table's identity."""

    def exporting(self) -> AbstractContextManager[object]:
        """Make ONNX exports inside write attention as nodes of the function."""
        ...

    def function(self, opset: int) -> OnnxFunction:
        """Return the function that the nodes are of."""
        ...

    def placed(self, graph: bytes) -> bytes:
        """Return a graph, in its precision already, with an implementation in every node's place.

        Raises:
            NoAttention: for some shape nothing works.
            CudaBroken: trying an implementation broke CUDA for this process.
        """
        ...


class TensorRTRuntime:
    """TensorRT or TensorRT-RTX on one target, for instance `tensorrt:fp16`: builds engines and runs them.

    Args:
        target: its precision is the graphs'; fp32 ones are converted to fp16 and bf16. For int8 and fp8 files come quantised;
            modules are quantised to int8 with random data, to be timed.
        threads: of the host; TensorRT takes none.
        cache: folder for exported modules; without it they are forgotten.
        backend: name of the CUDA backend, see `export.trt.cuda.device`; default the first that works.
        trust: load engine files without a manifest, or that differ from it. Code in them is executed.

    Attributes:
        attention: what makes attention of modules; None: it is exported as standard operators, as in a bundle's file.
        on_status: told of every engine that operators get; a caller may replace it.
        engines: how many of those, and of those that attention is chosen by, were built so far.
        building_s: what they took.

    Raises:
        InvalidInput: another target.
        Unavailable: no usable GPU, TensorRT or CUDA backend.
    """

    def __init__(
        self, target: Target, threads: int = 1, cache: Path | None = None, *, backend: str | None = None, trust: bool = False
    ) -> None:
        if target.runtime not in TENSORRT:
            raise InvalidInput(f"TensorRTRuntime is for targets tensorrt:<precision> and tensorrt-rtx:<precision>, not {target}")
        check_can_run(target, threads, unavailable_reason(target.runtime))
        self._trt = import_tensorrt(runtime=target.runtime)
        self._machine = machine_of(self._trt)
        self.target, self.threads, self._cache = target, threads, cache
        self._backend = open_backend(backend)
        self._trust, self._timing = trust, default_folder()  # whatever builds engines on this machine chooses the same kernels
        self.attention: Attention | None = None
        self.on_status: Callable[[str], None] = lambda text: None
        self.engines, self.building_s = 0, 0.0

    def versions(self) -> dict[str, str]:
        """Return the versions of TensorRT, CUDA and driver, the GPU, and what else of this runtime decides times."""
        machine = self._machine
        versions = {
            machine.runtime: machine.tensorrt,
            "cuda": machine.cuda,
            "driver": machine.driver,
            "gpu0": f"{machine.gpu}, compute capability {'.'.join(map(str, machine.capability))}",
            "cuda_graph": "on" if self._module_graph() == "require" else "off",
            "inputs_outputs": "fp32",
        }
        return versions | ({"attention": self.attention.label} if self.attention is not None else {})

    def operator_versions(self) -> dict[str, str]:
        """Return what else decides the times of operators: how they are built, and how many share an engine."""
        from export.trt.grouped import GROUP

        return {"build": _described(self._module_options()), "operators": f"at most {GROUP} per engine"}

    def load_file(self, path: Path) -> EngineSession:
        """Load an engine, checked against its manifest, or build one from an ONNX file of static shape.

        Raises:
            InvalidInput: no such file, neither an engine nor ONNX by its name, of another precision, or not fit to be built.
            EngineRefused: an engine that does not fit this machine or its manifest.
            CorruptFile: a manifest that cannot be read.
            TensorRTFailed: TensorRT failed, with its own words.
        """
        from export.onnx.foreign import whole_bytes
        from export.trt.prepare import in_precision

        path = Path(path)
        if not path.is_file():
            raise InvalidInput(f"no such file: {path}")
        if path.suffix.lower() == ".onnx":
            options = self._here(BuildOptions(precision=self.target.precision))
            return self._loaded(path, in_precision(whole_bytes(path), options.precision), options, "auto")
        if path.suffix.lower() not in (".engine", ".plan"):
            raise InvalidInput(f"{self.target} runs .engine and .plan files, and builds .onnx files; got {path.name}")
        session = open_engine(path, trust=self._trust, backend=self._backend, runtime=self.target.runtime)
        found = session.manifest.precision if session.manifest is not None else self.target.precision
        if target_precision(found) != self.target.precision:
            session.close()
            fitting = f"{self.target.runtime}:{target_precision(found)}"
            raise InvalidInput(f"{path.name} computes in {found}; open it with the target {fitting}")
        return session

    def load_modules(self, modules: Modules) -> list[Session]:
        """Export the modules, build an engine for each, and load them; inputs are named `x0, ...`, outputs `y0, ...`.

        A module that comes twice is built twice: TensorRT may choose other kernels.

        Raises:
            InvalidInput: a module cannot be exported or converted, or its engine not be captured in a CUDA graph (by `bind`).
            TensorRTFailed: TensorRT failed, with its own words.
        """
        opened: list[Session] = []

        def load(path: Path) -> Session:
            graph = self._placed(path, keep_io=True)
            opened.append(self._loaded(path, graph, self._options_for(graph), self._module_graph()))
            return opened[-1]

        try:
            return self._exported(modules, load)
        except BaseException:
            for session in opened:
                session.close()
            raise

    def load_operators(self, modules: Modules) -> list[Session | HyctasError]:
        """Export operators, and measure several in one engine; see `export.trt.grouped`.

        Returns:
            A session per operator, or why there is none: the graph cannot be converted (`InvalidInput`), or TensorRT or CUDA
            failed (`TensorRTFailed`, `CudaFailed`) for an engine that holds it alone.

        Raises:
            InvalidInput: an operator cannot be exported.
            Unavailable: the GPU is gone.
        """
        from export.trt.grouped import GROUP, Operator, load_operators

        keys = [(id(module), tuple(tuple(x.shape) for x in inputs)) for module, inputs in modules]
        first = {key: place for place, key in reversed(list(enumerate(keys)))}  # one that comes several times is exported once
        models = dict(zip(first, self._exported([modules[place] for place in first.values()], self._part), strict=True))
        found: dict[int, Session | HyctasError] = {}
        operators, seen = list[Operator](), Counter[object]()
        for place, (key, (_, inputs)) in enumerate(zip(keys, modules, strict=True)):
            if isinstance(model := models[key], HyctasError):
                found[place] = model
            else:
                operators.append(Operator(place, model, tuple(x.detach().cpu().numpy() for x in inputs), seen[key]))
                seen[key] += 1
        found |= load_operators(operators, self._open_operators, GROUP, self.on_status)
        return [found[place] for place in range(len(modules))]

    def count(self, seconds: float) -> None:
        """Take note of an engine that was built for operators."""
        self.engines, self.building_s = self.engines + 1, self.building_s + seconds

    def _exported(self, modules: Modules, load: Callable[[Path], Loaded]) -> list[Loaded]:
        """Export modules, and load each; attention is nodes of a function where something makes engines of them."""
        from export.backends.onnxruntime_session import load_exported
        from export.onnx.precision import opset

        if self.attention is None:
            return load_exported(modules, self._cache, load)
        version = opset("bf16" if self.target.precision == "bf16" else "fp32")
        with self.attention.exporting():
            return load_exported(modules, self._cache, load, [self.attention.function(version)], version)

    def _placed(self, path: Path, keep_io: bool) -> bytes:
        """Return a module's graph in the target's precision, with its attention in place; int8 is quantised with random data."""
        from export.trt.prepare import in_precision

        if self.target.precision == "int8":
            return _quantised(path, keep_io)
        graph = in_precision(path.read_bytes(), self._module_options().precision, keep_io=keep_io)
        return graph if self.attention is None else self.attention.placed(graph)

    def _part(self, path: Path) -> onnx.ModelProto | HyctasError:
        import onnx

        from export.trt.choose import NoAttention
        from export.trt.engine_precision import check_graph

        try:
            model = onnx.ModelProto.FromString(self._placed(path, keep_io=False))
            # before operators share an engine, where one would be everybody's failure
            check_graph(model, self._module_options().precision)
        except (InvalidInput, NoAttention) as error:
            return error
        return model

    def _open_operators(self, graph: bytes, cached: bool) -> EngineSession:
        start = time.monotonic()
        session, result = self._built(graph, self._options_for(graph), self._module_graph(), cached=cached)
        took_s = time.monotonic() - start
        self.count(took_s)
        again = "" if cached else ", once more"
        for line in (*result.notices, f"an engine of {result.layers} layers built{again} ({took_s:.0f} s)"):
            self.on_status(line)
        return session

    def _module_options(self) -> BuildOptions:
        return self._here(BuildOptions.search(self.target.precision))

    def _here(self, options: BuildOptions) -> BuildOptions:
        """Name this machine's GPU where the runtime builds for GPUs that are named."""
        return replace(options, capabilities=(number_of(self._machine.capability),)) if is_rtx(self._trt) else options

    def _options_for(self, graph: bytes) -> BuildOptions:
        """Return the options for a module's graph, which may hold plugin nodes where something made its attention."""
        if self.attention is None:
            return self._module_options()
        import onnx

        from export.trt.plugin import NAMESPACE

        plugins = any(node.domain == NAMESPACE for node in onnx.ModelProto.FromString(graph).graph.node)
        return replace(self._module_options(), plugins=plugins)

    def _module_graph(self) -> str:
        return "off" if self._backend.why_no_graphs else "require"

    def _loaded(self, path: Path, graph: bytes, options: BuildOptions, cuda_graph: str) -> EngineSession:
        session, result = self._built(graph, options, cuda_graph, onnx_metadata(path))
        session.notes[:0] = result.notices
        return session

    def _built(
        self, graph: bytes, options: BuildOptions, cuda_graph: str, metadata: Mapping[str, str] | None = None, cached: bool = True
    ) -> tuple[EngineSession, BuildResult]:
        from export.trt.build import build_engine

        timing = self._timing if cached else None
        result = build_engine(graph, options, timing_cache=timing, machine=self._machine, trt=self._trt)
        session = EngineSession(
            result.plan, backend=self._backend, cuda_graph=cuda_graph, metadata=metadata, trt=self._trt,
            runtime_cache=own_cache_path(self._trt, self._machine),
        )  # fmt: skip
        return session, result


def _quantised(path: Path, keep_io: bool) -> bytes:
    """Return a module's graph in int8, calibrated with one random input: good for timing alone."""
    from export.int8.quantise import quantised_at_random
    from export.int8.quantised_operator import quantised_operator
    from export.onnx.foreign import load_model

    model = load_model(path)
    made = quantised_at_random(model) if keep_io else quantised_operator(model)
    return made.SerializeToString()


def _described(options: BuildOptions) -> str:
    """Put what decides the speed of a build in a few words."""
    count = "any number of" if options.max_aux_streams is None else options.max_aux_streams
    workspace = f", workspace of {options.workspace_mib} MiB" if options.workspace_mib else ""
    tf32 = ", TF32" if options.tf32 else ""
    timings = f"{options.timing_iterations} timings"
    return f"{options.precision}, level {options.level}, {timings}, {count} auxiliary streams{workspace}{tf32}"

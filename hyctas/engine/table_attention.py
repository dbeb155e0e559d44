"""Give attention in what is only measured (operators of latency tables, whole networks) the implementation that is fastest here.

Tables and searches then see attention as the engine of the chosen network will compute it. What was chosen is kept beside the
timing caches, so that a table, the networks it is calibrated with and a stopped command's repetition agree. No torch here before it
is used.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from export.target import TENSORRT, Target
from hyctas.engine.settings import PRECISIONS, EngineSettings

if TYPE_CHECKING:
    from export.onnx.functions import OnnxFunction
    from export.runtime import Runtime
    from export.trt.attention_case import AttentionCase
    from hyctas.engine.context import BuildContext

TRIALS = 2
"""Engines that choosing builds for one shape, at most about."""


class MeasuredAttention:
    """A `export.trt.tensorrt_runtime.Attention` that chooses in a context, and tells what is being done."""

    label = "fastest per shape"

    def __init__(self, context: BuildContext, on_status: Callable[[str], None]) -> None:
        self._context, self._on_status = context, on_status
        self.taken: dict[AttentionCase, str] = {}
        """The implementation of every shape so far."""

    def exporting(self) -> AbstractContextManager[object]:
        """Make ONNX exports inside write attention as nodes of the function."""
        from hyctas.attention.onnx.nodes import nodes

        return nodes()

    def function(self, opset: int) -> OnnxFunction:
        """Return the function that the nodes are of."""
        from hyctas.attention.onnx.bodies import self_attention_function

        return self_attention_function(opset)

    def placed(self, graph: bytes) -> bytes:
        """Return a graph with an implementation in every attention node's place; raises what `choose_attention` does."""
        import onnx

        from export.onnx.functions import nodes_of
        from export.onnx.opset import standard_opset
        from hyctas.engine.attention_choice import choose

        model = onnx.ModelProto.FromString(graph)
        function = self.function(standard_opset(model))
        if not nodes_of(model, function):
            return graph
        chosen = choose(model, function, self._context, self._on_status)
        self.taken |= {choice.case: choice.implementation for choice in chosen.choices}
        return chosen.model.SerializeToString()

    def summary(self) -> str:
        """Say how many shapes have which implementation."""
        counts = Counter(self.taken.values())
        shapes = f"{len(self.taken)} shape{'s' * (len(self.taken) != 1)}"
        return f"attention of {shapes}: " + ", ".join(f"{name} for {count}" for name, count in counts.most_common())


def open_target(target: Target, threads: int, cache: Path | None = None, **more: object) -> Runtime:
    """Open the runtime of a target for networks and operators of ours; otherwise as `export.runtimes.open_runtime`."""
    from export.runtimes import open_runtime

    runtime = open_runtime(target, threads, cache, **more)
    if target.runtime in TENSORRT and target.precision in PRECISIONS:
        _attend(runtime, more.get("backend"))
    if target.runtime.startswith("aotinductor-"):
        from export.backends.aotinductor_session import AOTInductorRuntime
        from hyctas.attention import decompositions

        assert isinstance(runtime, AOTInductorRuntime), "open_runtime gives a target's own runtime"
        runtime.decompositions = decompositions()
    return runtime


def _attend(runtime: Runtime, backend: object) -> None:
    from export.trt.attention_benchmark import Benchmarks
    from export.trt.attention_memory import AttentionMemory
    from export.trt.tensorrt_runtime import TensorRTRuntime
    from export.trt.timing_cache import cache_path
    from hyctas.engine.context import open_context

    assert isinstance(runtime, TensorRTRuntime), "open_runtime gives a target's own runtime"
    settings = EngineSettings(preset="search", cuda_backend=str(backend) if backend is not None else None)
    context = open_context(settings, runtime.count, runtime.target.runtime, lean=True)
    options = settings.options("fp32").to_json()
    kept = {name: options[name] for name in ("level", "timing_iterations", "workspace_mib", "tf32")}
    conditions = {**kept, "kernels": _source_hash()}
    on_status = lambda text: runtime.on_status(text)  # noqa: E731  # whatever it is then
    assert isinstance(context.judge, Benchmarks), "these settings measure"
    file = cache_path(settings.cache(), context.machine).with_suffix(".attention.json")
    context.judge.memory = AttentionMemory(file, conditions, on_status)
    runtime.attention = MeasuredAttention(context, on_status)


def attention_shapes(keys: Iterable[str]) -> set[tuple[float, ...]]:
    """Return the distinct shapes of attention in keys of a latency table: what implementations are chosen for."""
    from hyctas.arch.operators import SelfAttention, from_key

    found = set[tuple[float, ...]]()
    for key in keys:
        operator, shapes = from_key(key)
        if isinstance(operator, SelfAttention):
            queries, values = (math.prod(operator.layer_sizes(*shapes[0][1:])[name]) for name in ("query", "value"))
            scale = 1.0 if operator.scale is None else operator.scale
            found.add((operator.heads, operator.qk_channels, operator.out, queries, values, scale))
    return found


def _source_hash() -> str:
    """Hash what the kernels and bodies of attention are made from."""
    digest = hashlib.sha256()
    for path in sorted((Path(__file__).parents[1] / "attention").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]

"""Measure several operators in one engine, each by its share of the engine's layers. No torch here.

Building takes seconds and running microseconds, so an engine per operator would spend hours on a space. An engine runs as a whole:
further execution contexts or optimisation profiles run the same layers again, and a conditional around each operator would keep
layers from being fused and CUDA graphs from being captured. So the operators stand side by side, with inputs and outputs of their
own, and an operator's time is its share of the layer profile times what the whole engine takes in a timing run without a profiler.
The device kit does the same with trtexec (`latency/kit/format.py`), and the attribution is the same code
(`export.trt.attribution`). Both leave out layers that only convert the engine's inputs and outputs to another layout, and both run
one layer at a time.

1. The profiler adds a little to every layer, which favours long ones: an engine holds operators of similar cost (`MAX_RATIO`).
2. Attention becomes one opaque layer that may swallow its neighbours: an operator with a softmax gets an engine of its own.
3. Where more than `MAX_SHARED` of a profile names no single operator, or an engine fails, its operators get engines of their own;
   what fails alone, too, is returned as its error, and costs no other operator its time.
4. An operator that is asked for several times is built as often, in different engines. The first build reads and writes the timing
   cache; the others measure every kernel anew, since from the same cache they would be the same engine, and their spread nothing.

Unlike the kit, short operators do not come several times over, and the optimisation level is that of `BuildOptions.search`: tables
of the two can be compared, and are never merged, since their identities differ.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from export.errors import HyctasError, InvalidInput
from export.feeds import check_feeds
from export.onnx.join import join
from export.runtime import Session, TensorSpec
from export.trt.attribution import MAX_SHARED, Layer, Shares, attribute, inputs_outputs, layer_facts
from export.trt.cuda.device import CudaFailed
from export.trt.log import TensorRTFailed
from export.trt.runner import EngineSession

GROUP = 20
"""Operators of an engine at most; the device kit's."""
MAX_RATIO = 6.0
"""Of the largest to the smallest estimated cost within an engine; the device kit's."""
PROFILE_RUNS = 50
SECONDS_PER_BUILD = 10.0
"""Guess of the mean over engines of 20 operators and of one, on a desktop GPU. Nobody has measured it."""
_LAUNCH_MS, _MACS_PER_MS, _ELEMENTS_PER_MS = 0.005, 2e10, 2.5e8
"""A desktop GPU's orders of magnitude. Only the ratio of two estimates is used."""

Open = Callable[[bytes, bool], EngineSession]
"""Builds an engine from a graph and opens it; true: from the timing cache."""


class NotAttributable(InvalidInput):
    """An engine's profile does not say what its operators take."""


@dataclass(frozen=True)
class Operator:
    """One operator to be measured."""

    index: int
    """Its place in the result."""
    model: onnx.ModelProto
    """Inputs `x0, ...`, outputs `y0, ...`, in the precision that is measured."""
    inputs: tuple[np.ndarray, ...]
    """Examples; they are what the layer profile is taken on."""
    build: int = 0
    """How often the same operator was asked for before."""


def load_operators(
    operators: Sequence[Operator], open_engine: Open, group: int, on_status: Callable[[str], None]
) -> dict[int, Session | HyctasError]:
    """Build engines for operators, at most `group` in each, and return each one's session, or why there is none, by index.

    `open_engine` builds and opens one engine; `on_status` is told of engines that failed.
    """
    found: dict[int, Session | HyctasError] = {}

    def load(members: Sequence[Operator]) -> None:
        try:
            sessions = _sessions(members, open_engine)
        except (TensorRTFailed, CudaFailed, InvalidInput) as error:
            if len(members) == 1:
                found[members[0].index] = error
                return
            on_status(f"an engine of {len(members)} operators gives each one of its own: {' '.join(str(error).split())}")
            for member in members:
                load([member])
        else:
            found.update(zip((member.index for member in members), sessions, strict=True))

    try:
        for build in sorted({operator.build for operator in operators}):
            mine = [operator for operator in operators if operator.build == build]
            alone = [_has_attention(operator.model) for operator in mine]
            for members in planned([cost_ms(operator.model) for operator in mine], alone, group):
                load([mine[place] for place in members])
    except BaseException:
        for session in found.values():
            if not isinstance(session, HyctasError):
                session.close()
        raise
    return found


def _sessions(members: Sequence[Operator], open_engine: Open) -> list[OperatorSession]:
    prefixes = [f"k{place:04d}" for place in range(len(members))]
    named = list(zip(prefixes, members, strict=True))
    graph = join([(f"{prefix}_0_", member.model) for prefix, member in named]).SerializeToString()
    engine = open_engine(graph, members[0].build == 0)
    try:
        kinds = {spec.name: np.dtype(spec.dtype) for spec in engine.inputs}
        examples = {f"{prefix}_0_x{n}": array for prefix, member in named for n, array in enumerate(member.inputs)}
        shared = _Shared(engine, {name: array.astype(kinds[name], copy=False) for name, array in examples.items()}, len(members))
        engine.bind(shared.feeds)
        shares = shares_of(engine, prefixes)
        return [OperatorSession(shared, f"{prefix}_0_", shares.of[prefix]) for prefix in prefixes]
    except BaseException:
        engine.close()
        raise


def shares_of(engine: EngineSession, prefixes: Sequence[str]) -> Shares:
    """Profile an engine on its bound inputs, and attribute its layers to its operators.

    Raises:
        NotAttributable: the profile does not say what each operator takes.
    """
    times = engine.time_layers(PROFILE_RUNS).times_ms
    layers = [Layer(name, statistics.median(ms)) for (name, _), ms in times.items()]
    if not sum(layer.ms for layer in layers) > 0:
        raise NotAttributable(f"TensorRT's profiler reports no layer that takes time, of {len(layers)}")
    shares = attribute(layers, prefixes, layer_facts(engine.layer_info()["Layers"], inputs_outputs(prefixes)))
    if shares.shared > MAX_SHARED:
        said = f"{shares.shared:.0%} of the profile names no single operator; at most {MAX_SHARED:.0%} can be shared out"
        raise NotAttributable(said)
    if lost := [prefix for prefix in prefixes if not shares.of[prefix] > 0]:
        raise NotAttributable(f"no layer of the profile is one of {len(lost)} of the {len(prefixes)} operators")
    return shares


@dataclass
class _Shared:
    """An engine and those who use it."""

    engine: EngineSession
    feeds: dict[str, np.ndarray]
    users: int
    stale: bool = False
    """Whether the device holds other inputs than `feeds`."""


class OperatorSession(Session):
    """One operator of an engine; see `export.runtime.Session`. The others run with it."""

    on_gpu = True

    def __init__(self, shared: _Shared, prefix: str, share: float) -> None:
        self._shared, self._prefix, self.share = shared, prefix, share
        engine = shared.engine
        self.inputs, _ = _own(engine.inputs, prefix)
        self.outputs, self._places = _own(engine.outputs, prefix)
        self._open = True
        self.metadata: dict[str, str] = {}

    @property
    def notes(self) -> list[str]:
        """What a user should know of the engine."""
        return self._shared.engine.notes

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Compute the outputs; bound inputs stay bound."""
        found = self._engine().run(self._shared.feeds | self._named(feeds))
        return [found[place] for place in self._places]

    def bind(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Keep the inputs; they are placed on the device together with those of the other operators."""
        self._engine()
        self._shared.feeds |= {name: array.copy() for name, array in self._named(feeds).items()}
        self._shared.stale = True

    def step(self) -> float:
        """Run the engine on the bound inputs, and return this operator's share of the milliseconds."""
        engine = self._engine()
        if self._shared.stale:
            engine.bind(self._shared.feeds)
            self._shared.stale = False
        return self.share * engine.step()

    def flush(self, mib: float) -> None:
        """Overwrite this much memory on the device; see `EngineSession.flush`."""
        self._engine().flush(mib)

    def results(self) -> list[np.ndarray]:
        """Copy out what the last `step` or `run` computed."""
        found = self._engine().results()
        return [found[place] for place in self._places]

    def close(self) -> None:
        """Leave the engine; the last operator to leave frees it."""
        if self._open:
            self._open = False
            self._shared.users -= 1
            if self._shared.users == 0:
                self._shared.engine.close()

    def _engine(self) -> EngineSession:
        if not self._open:
            raise InvalidInput("the session is closed; load the operator again")
        return self._shared.engine

    def _named(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        arrays = check_feeds(self.inputs, feeds)
        return {self._prefix + spec.name: array for spec, array in zip(self.inputs, arrays, strict=True)}


def _own(specs: Sequence[TensorSpec], prefix: str) -> tuple[tuple[TensorSpec, ...], list[int]]:
    """Return an operator's inputs or outputs without the prefix, as the operator numbers them, and their places in the engine."""
    mine = [(place, spec.name.removeprefix(prefix)) for place, spec in enumerate(specs) if spec.name.startswith(prefix)]
    mine.sort(key=lambda item: int(item[1][1:]))
    return tuple(replace(specs[place], name=name) for place, name in mine), [place for place, _ in mine]


def planned(costs: Sequence[float], alone: Sequence[bool], group: int) -> list[list[int]]:
    """Share operators out to engines, similar costs together; return the places of each engine's members."""
    groups: list[list[int]] = []
    for place in sorted(range(len(costs)), key=lambda place: (alone[place], costs[place], place)):
        last = groups[-1] if groups else []
        if last and len(last) < group and not alone[place] and costs[place] <= MAX_RATIO * costs[last[0]]:
            last.append(place)
        else:
            groups.append([place])
    return groups


def cost_ms(model: onnx.ModelProto) -> float:
    """Estimate an operator's time, only to tell similar operators from different ones."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    infos = (*graph.input, *graph.value_info, *graph.output)
    shapes = {info.name: tuple(dim.dim_value for dim in info.type.tensor_type.shape.dim) for info in infos}
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    macs = sum(_macs(node.op_type, *(shapes.get(name, ()) for name in (*node.input[:2], *node.output[:1]))) for node in graph.node)
    moved = sum(sizes.get(name, 0) for node in graph.node for name in (*node.input, *node.output))
    return rough_ms(macs, moved)


def rough_ms(macs: float, elements: float) -> float:
    """Return what so much work takes on a desktop GPU, roughly: multiply-accumulates, and elements read and written."""
    return _LAUNCH_MS + macs / _MACS_PER_MS + elements / _ELEMENTS_PER_MS


def _macs(kind: str, *shapes: tuple[int, ...]) -> float:
    if kind not in ("Conv", "ConvTranspose", "MatMul", "Gemm") or not all(shapes):
        return 0
    first, second, made = shapes
    if kind in ("MatMul", "Gemm"):
        return math.prod(made) * first[-1]
    return math.prod(made if kind == "Conv" else first) * math.prod(second[1:])


def _has_attention(model: onnx.ModelProto) -> bool:
    return any(node.op_type in ("Softmax", "Attention") or node.domain not in ("", "ai.onnx") for node in model.graph.node)


def count_engines(batches: Iterable[tuple[Sequence[float], Sequence[bool]]], group: int = GROUP) -> int:
    """Count the engines of one build of operators that are loaded in batches, as `load_operators` shares them out.

    A batch has the operators' rough costs, and whether each gets an engine of its own (attention).
    """
    return sum(len(planned(costs, alone, group)) for costs, alone in batches)


def estimate(operators: int, engines: int, builds: int, trials: int = 0) -> str:
    """Say how long building engines for operators may take, a guess, and said to be one.

    `engines` are shared by the operators and built so many times; `trials` are those that attention is tried in besides.
    """
    total = engines * builds + trials
    counted = f"{operators} operators in {engines}, times {builds} builds{f', and {trials} to choose attention' if trials else ''}"
    minutes = math.ceil(total * SECONDS_PER_BUILD / 60)
    return f"about {total} engines to build: {counted}; at {SECONDS_PER_BUILD:g} s each {minutes} min (estimated, not run)"

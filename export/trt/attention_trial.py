"""Try implementations of one attention in engines of their own: build, prove, time in turns, take the fastest. No torch here.

A failure is a reason against an implementation, unless it leaves CUDA unusable for the process (`CudaBroken`).
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from export.errors import HyctasError, InvalidInput
from export.onnx_function import OnnxFunction, attach, nodes_of
from export.runtime import Session
from export.trt.attention_case import KINDS, LIMITS, AttentionCase, Example, as_float, example, feeds
from export.trt.plugin import PLUGINS, with_plugins

if TYPE_CHECKING:
    import onnx

    from export.plugin_kernel import PluginKernel
    from export.trt.device import DeviceBackend
    from export.trt.engine_file import Machine

IMPLEMENTATIONS = ("plugin", "small-plugin", "native", "fused", "decomposed", "chunked")
"""In the order in which they are taken where nothing is measured."""
KERNELS = IMPLEMENTATIONS[:2]
"""Those that are kernels of ours."""
PLUGIN_GAIN = 0.05
"""Share by which the plugin must be faster than the best of the others."""
VARIABLE = "HYCTAS_TENSORRT_ATTENTION"
"""Environment variable that names what may be taken."""
ONE_KERNEL = ("native", "fused")
"""Those that TensorRT is to make one kernel of."""
NOT_TRIED = "not tried, since another that TensorRT makes one kernel of is right"
"""Why `lean` leaves an implementation out."""
PLAIN_SHARED_BYTES = 48 << 10
"""Shared memory that a block may have without the launcher asking the driver for more (CUDA C++ Programming Guide).

Whether TensorRT asks for more where a plugin needs it is not documented; a kernel that stays below needs no answer."""


class NoAttention(HyctasError):
    """No implementation computes an attention of this shape here.

    Attributes:
        case: the shape.
        refused: why, by implementation.
    """

    exit_code = 1

    def __init__(self, case: AttentionCase, refused: Mapping[str, str]) -> None:
        self.case, self.refused = case, dict(refused)
        reasons = "\n".join(f"  {name}: {why}" for name, why in refused.items()) or "  nothing was on offer"
        memory = f"Holding all its logits takes {case.logits_bytes / 2**30:.2f} GiB"
        advice = "take a smaller image, or fewer heads or channels of attention"
        super().__init__(f"no implementation computes attention of {case}:\n{reasons}\n{memory}; {advice}.")


class CudaBroken(HyctasError):
    """Trying an implementation left CUDA unusable for this process.

    Attributes:
        case: the shape.
        implementation: one of `IMPLEMENTATIONS`.
        reason: how the trial failed.
        said: what CUDA says since then.
    """

    exit_code = 1

    def __init__(self, case: AttentionCase, offer: Offer, reason: str, said: str) -> None:
        self.case, self.implementation, self.reason, self.said = case, offer.name, reason, said
        what = f"plugin {offer.kernel.name}" if offer.kernel is not None else f"implementation {offer.name}"
        broken = KERNELS if offer.name in KERNELS else (offer.name,)
        others = ",".join(name for name in allowed_implementations() if name not in broken)  # what broke it before stays out
        again = f"Repeat the command without it: {VARIABLE}={others} COMMAND" if others else f"{VARIABLE} allows nothing else"
        super().__init__(
            f"trying the {what} for attention of {case} broke CUDA for this process:\n  {reason}\n  since then: {said}\n"
            f"Nothing more can be built or run here. {again}"
        )


@dataclass(frozen=True, kw_only=True)
class Offer:
    """An implementation for one case: a body of the function, or a kernel, or why there is none."""

    name: str
    """One of `IMPLEMENTATIONS`."""
    body: str = ""
    """Name of the body in the `OnnxFunction`."""
    kernel: PluginKernel | None = None
    refused: str = ""
    """Why the implementation cannot be taken; empty where it can."""

    def __post_init__(self) -> None:
        if self.name not in IMPLEMENTATIONS:
            raise InvalidInput(f"unknown implementation {self.name!r}; there are {', '.join(IMPLEMENTATIONS)}")
        if (bool(self.body), self.kernel is not None, bool(self.refused)).count(True) != 1:
            raise InvalidInput(f"an offer has either a body, a kernel or a reason for none; {self.name} has {self}")


class Lab(Protocol):
    """Builds and runs small engines."""

    def register(self, kernels: Sequence[PluginKernel]) -> None:
        """Make kernels known to the builder."""
        ...

    def build(self, graph: bytes, precision: str, plugins: bool) -> bytes:
        """Return the engine of an ONNX graph; raise a `HyctasError` where it cannot be built."""
        ...

    def open(self, plan: bytes) -> Session:
        """Load an engine."""
        ...

    def broken(self) -> str:
        """Say why nothing more can be built or run in this process; empty where it can."""
        ...


@dataclass
class EngineLab:
    """The `Lab` of this machine's GPU."""

    trt: Any
    machine: Machine
    backend: DeviceBackend
    timing_cache: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """`BuildOptions` other than precision and plugins."""
    count: Callable[[float], None] = lambda seconds: None
    """Is told of every engine, with the seconds that building it took."""

    def register(self, kernels: Sequence[PluginKernel]) -> None:
        """Make kernels known to the builder."""
        PLUGINS.register(kernels, self.trt)

    def build(self, graph: bytes, precision: str, plugins: bool) -> bytes:
        """Build an engine with the effort of the network's own, since it is the same kernels that compete."""
        from export.trt.build import build_engine
        from export.trt.options import BuildOptions

        options = BuildOptions.release(precision, plugins=plugins, **self.settings)
        built = build_engine(graph, options, timing_cache=self.timing_cache, machine=self.machine, trt=self.trt)
        self.count(built.seconds)
        return built.plan

    def open(self, plan: bytes) -> Session:
        """Load an engine."""
        from export.trt.runner import EngineSession

        return EngineSession(plan, backend=self.backend)

    def broken(self) -> str:
        """Ask CUDA, which answers every call after a kernel's illegal access with an error."""
        from export.trt.device import CudaFailed

        try:
            self.backend.synchronize()
        except CudaFailed as error:
            return str(error)
        return ""


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """How implementations are timed: in turns, so that drift hits all alike."""

    warm_up: int = 20
    """Untimed runs of each."""
    rounds: int = 60
    """Turns."""
    steps: int = 5
    """Runs of one in a turn; the first is not counted, in which it finds the caches that the others left."""


class Trial:
    """One case's implementations, each in an engine of its own."""

    def __init__(
        self,
        case: AttentionCase,
        graph: onnx.ModelProto,
        functions: tuple[OnnxFunction, OnnxFunction | None],
        lab: Lab,
        rounds: Rounds,
        lean: bool,
    ) -> None:
        self.case, self.graph, self.functions, self.lab, self.rounds, self.lean = case, graph, functions, lab, rounds, lean
        self.node = graph.graph.node[0].name
        self.parity: dict[str, dict[str, float]] = {}
        self.refused: dict[str, str] = {}

    def choose(self, offers: Mapping[str, Offer], refused: Mapping[str, str]) -> dict[str, Any]:
        """Return the fields of a `Choice` that measuring decides."""
        examples = [example(self.case, kind) for kind in KINDS] if offers else []
        self.refused = dict(refused)
        times: dict[str, float] = {}
        try:
            with ExitStack() as stack:
                sessions: dict[str, Session] = {}
                for offer in offers.values():
                    if self.lean and offer.name not in KERNELS and any(name in sessions for name in ONE_KERNEL):
                        self.refused[offer.name] = NOT_TRIED
                        continue
                    with self._refusing(offer):
                        sessions[offer.name] = self._proven(stack, offer, examples)
                times = self._times(sessions, offers, examples[0]) if sessions else {}
        except HyctasError as error:  # where CUDA is broken, closing the sessions fails as well
            raise _first_failure(error) from None
        if not times and NOT_TRIED in self.refused.values():  # fused failed while it was timed: what was left out may hold
            self.lean = False
            return self.choose(offers, refused)
        if not times:
            raise NoAttention(self.case, self.refused)
        implementation, reason = _winner(times)
        found = {"times_ms": times, "parity": self.parity, "refused": self.refused}
        return {"implementation": implementation, "reason": reason, **found}

    @contextmanager
    def _refusing(self, offer: Offer) -> Iterator[None]:
        """Note what fails as the reason against an implementation.

        Raises:
            CudaBroken: after the failure nothing else can be tried.
        """
        try:
            yield
        except HyctasError as error:
            first = _first_failure(error)
            reason = " ".join(str(first).split())
            taken = offer.kernel.shared_bytes if offer.kernel is not None else 0
            if taken > PLAIN_SHARED_BYTES and not isinstance(first, InvalidInput):
                reason += f" (a block takes {taken} B of shared memory; more than {PLAIN_SHARED_BYTES} must be asked for)"
            if said := self.lab.broken():
                raise CudaBroken(self.case, offer, reason, said) from None
            self.refused[offer.name] = reason

    def _proven(self, stack: ExitStack, offer: Offer, examples: Sequence[Example]) -> Session:
        """Build, load and check one; on failure nothing of it stays open."""
        if offer.kernel is not None:
            self.lab.register([offer.kernel])
            graph = placed(self.graph, self.functions, {}, {self.node: offer.kernel})
        else:
            graph = placed(self.graph, self.functions, {self.node: offer.body}, {})
        plan = self.lab.build(graph.SerializeToString(), self.case.precision, offer.kernel is not None)
        with ExitStack() as local:
            session = local.enter_context(self.lab.open(plan))
            limit = LIMITS[self.case.dtype]
            errors = {e.kind: e.error(as_float(session.run(feeds(session.inputs, e))[0])) for e in examples}
            self.parity[offer.name] = errors
            if wrong := {kind: error for kind, error in errors.items() if not error <= limit}:
                listed = ", ".join(f"{error:.2e} for {kind} logits" for kind, error in wrong.items())
                raise InvalidInput(f"its output is wrong: relative error {listed}; the limit is {limit:.0e}")
            stack.push(local.pop_all())
        return session

    def _times(self, sessions: Mapping[str, Session], offers: Mapping[str, Offer], values: Example) -> dict[str, float]:
        """Return the median time of each in milliseconds; those that fail are left out."""
        samples: dict[str, list[float]] = {name: [] for name in sessions}
        for name, session in sessions.items():
            with self._refusing(offers[name]):
                session.bind(feeds(session.inputs, values))
                for _ in range(self.rounds.warm_up):
                    session.step()
        for _ in range(self.rounds.rounds):
            for name, session in sessions.items():
                if name not in self.refused:
                    with self._refusing(offers[name]):
                        samples[name] += [session.step() for _ in range(self.rounds.steps)][1:]
        return {name: statistics.median(taken) for name, taken in samples.items() if name not in self.refused}


def allowed_implementations() -> tuple[str, ...]:
    """Return what `HYCTAS_TENSORRT_ATTENTION` allows: all where it is not set.

    Raises:
        InvalidInput: it names an unknown implementation.
    """
    names = tuple(filter(None, (name.strip() for name in os.environ.get(VARIABLE, "").split(","))))
    if unknown := [name for name in names if name not in IMPLEMENTATIONS]:
        known = f"one or more of {', '.join(IMPLEMENTATIONS)}, with commas between them, or do not set it"
        raise InvalidInput(f"{VARIABLE} names {', '.join(unknown)}; write {known}")
    return names or IMPLEMENTATIONS


def placed(
    model: onnx.ModelProto,
    functions: tuple[OnnxFunction, OnnxFunction | None],
    bodies: Mapping[str, str],
    kernels: Mapping[str, PluginKernel],
) -> onnx.ModelProto:
    """Return a copy of a model in which every node of a function is a plugin node, or a body's operators.

    Args:
        model: with nodes of the first function.
        functions: the operator; and, under another name, what holds bodies of a newer operator set. The whole graph is taken to
            that set where one of these is chosen.
        bodies: by the name of the node.
        kernels: likewise.

    Raises:
        InvalidInput: the choice misses nodes, or names unknown ones, or the graph cannot be taken to the newer operator set.
    """
    from onnx import inliner

    function, newer = functions
    result = with_plugins(model, function, kernels)
    later = {name: body for name, body in bodies.items() if newer is not None and body in newer.bodies}
    for node in result.graph.node:
        if node.name in later and newer is not None:
            node.op_type = newer.name
    others = {name: body for name, body in bodies.items() if name not in later}
    if others or nodes_of(result, function):
        result = attach(result, function, others)
    if result.functions:
        result = inliner.inline_local_functions(result)
    if later and newer is not None:
        from export.trt.precision import at_opset

        result = inliner.inline_local_functions(attach(at_opset(result, newer.opset), newer, later))
    if not kernels:  # a domain that no node is of would only be a question to the parser
        kept = [item for item in result.opset_import if item.domain != function.domain]
        del result.opset_import[:]
        result.opset_import.extend(kept)
    return result


def _winner(times_ms: Mapping[str, float]) -> tuple[str, str]:
    """Return the implementation to take, and why."""
    ranked = sorted(times_ms, key=lambda name: times_ms[name])
    if len(ranked) == 1:
        return ranked[0], "the only one that works here"
    best = ranked[0]
    second = ranked[1]
    native = next((name for name in ranked if name not in KERNELS), None)
    if best in KERNELS and native is not None:
        gain = 1 - times_ms[best] / times_ms[native]
        told = f"the plugin is {gain:.1%} faster than {native}"
        return (best, told) if gain >= PLUGIN_GAIN else (native, f"{told}, less than the {PLUGIN_GAIN:.0%} asked for")
    return best, f"{1 - times_ms[best] / times_ms[second]:.1%} faster than {second}"


def _first_failure(error: HyctasError) -> HyctasError:
    """Return what failed first: a failure while closing hides the one that led to it."""
    while isinstance(error.__context__, HyctasError) and not error.__suppress_context__:
        error = error.__context__
    return error

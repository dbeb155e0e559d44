"""Try implementations of one attention in engines of their own: build, prove, time in turns, take the fastest.

A failure is a reason against an implementation, unless it leaves CUDA unusable for the process (`CudaBroken`).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.errors import HyctasError, InvalidInput
from export.runtime import Session
from export.trt.attention_case import KINDS, LIMITS, AttentionCase, Example, as_float, example, feeds
from export.trt.attention_memory import AttentionMemory
from export.trt.choose import ONE_KERNEL, VARIABLE, Candidate, NoAttention, Question, allowed_implementations
from export.trt.cuda.device import CudaFailed

if TYPE_CHECKING:
    from export.trt.cuda.device import DeviceBackend
    from export.trt.engine_file import Machine

PLUGIN_GAIN = 0.05
"""Share by which the plugin must be faster than the best of the others, since native code fuses with what surrounds it."""
NOT_TRIED = "not tried, since another that TensorRT makes one kernel of is right"
"""Why `lean` leaves an implementation out."""


class CudaBroken(HyctasError):
    """Trying an implementation left CUDA unusable for this process.

    Attributes:
        case: the shape.
        implementation: one of `IMPLEMENTATIONS`.
        reason: how the trial failed.
        said: what CUDA says since then.
    """

    exit_code = 1

    def __init__(self, case: AttentionCase, candidate: Candidate, reason: str, said: str) -> None:
        self.case, self.implementation, self.reason, self.said = case, candidate.name, reason, said
        what = f"plugin {candidate.kernel.name}" if candidate.kernel is not None else f"implementation {candidate.name}"
        others = ",".join(name for name in allowed_implementations() if name != candidate.name)
        again = f"Repeat the command without it: {VARIABLE}={others} COMMAND" if others else f"{VARIABLE} allows nothing else"
        super().__init__(
            f"trying the {what} for attention of {case} broke CUDA for this process:\n  {reason}\n  since then: {said}\n"
            f"Nothing more can be built or run here. {again}"
        )


@dataclass
class EngineBackend:
    """Builds and runs small engines on this machine's GPU."""

    trt: Any
    machine: Machine
    backend: DeviceBackend
    timing_cache: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """`BuildOptions` other than precision and plugins."""
    count: Callable[[float], None] = lambda seconds: None
    """Is told of every engine, with the seconds that building it took."""

    def build(self, graph: bytes, candidate: Candidate, precision: str) -> bytes:
        """Build an engine with the effort of the network's own, since it is the same kernels that compete."""
        from export.trt.build import build_engine
        from export.trt.options import BuildOptions

        options = BuildOptions.release(precision, plugins=candidate.kernel is not None, **self.settings)
        built = build_engine(graph, options, timing_cache=self.timing_cache, machine=self.machine, trt=self.trt)
        self.count(built.seconds)
        return built.plan

    def open(self, plan: bytes) -> Session:
        """Load an engine."""
        from export.trt.runner import EngineSession

        return EngineSession(plan, backend=self.backend, trt=self.trt)

    def broken(self) -> str:
        """Ask CUDA, which answers every call after a kernel's illegal access with an error; empty where it works."""
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


@dataclass
class Benchmarks:
    """A `export.trt.choose.Judge`: times the implementations of each shape, and remembers what was fastest."""

    engines: EngineBackend
    """Builds and runs."""
    lean: bool = False
    """Where one of `ONE_KERNEL` is right leave out those behind it: for tables, which have many shapes."""
    memory: AttentionMemory | None = None
    """Where choices are looked up before they are measured, and kept."""
    rounds: Rounds = field(default_factory=Rounds)

    def __call__(self, question: Question) -> dict[str, Any]:
        """Return the fields of a `Choice` that measuring decides; `NoAttention` where nothing works, or `CudaBroken`."""
        names = [*question.candidates]
        found = self.memory.get(question.case, names) if self.memory is not None else None
        if found is None or found["implementation"] not in names:
            found = _Benchmark(question, self.engines, self.rounds).choose(self.lean)
            if self.memory is not None:
                self.memory.put(question.case, names, found)
        return found


class _Benchmark:
    """One shape's implementations, each in an engine of its own."""

    def __init__(self, question: Question, engines: EngineBackend, rounds: Rounds) -> None:
        self.question, self.case, self.engines, self.rounds = question, question.case, engines, rounds
        self.parity: dict[str, dict[str, float]] = {}
        self.refused: dict[str, str] = {}

    def choose(self, lean: bool) -> dict[str, Any]:
        """Return the fields of a `Choice`."""
        examples = [example(self.case, kind) for kind in KINDS]
        self.refused = dict(self.question.refused)
        sessions: dict[str, Session] = {}
        try:
            with ExitStack() as stack:
                for name, candidate in self.question.candidates.items():
                    if lean and any(known in sessions for known in ONE_KERNEL):
                        self.refused[name] = NOT_TRIED
                        continue
                    with self._refusing(name):
                        sessions[name] = self._proven(stack, candidate, examples)
                times = self._times(sessions, examples[0])
        except HyctasError as error:  # where CUDA is broken, closing the sessions fails as well
            raise _first_failure(error) from None
        if not times and NOT_TRIED in self.refused.values():  # it failed while it was timed: what was left out may hold
            return self.choose(lean=False)
        if not times:
            raise NoAttention(self.case, self.refused)
        implementation, reason = _winner(times)
        found = {"times_ms": times, "parity": self.parity, "refused": self.refused}
        return {"implementation": implementation, "reason": reason, **found}

    @contextmanager
    def _refusing(self, name: str) -> Iterator[None]:
        """Note what fails as the reason against an implementation; `CudaBroken` where nothing else can be tried afterwards."""
        try:
            yield
        except HyctasError as error:
            self.refused[name] = reason = " ".join(str(_first_failure(error)).split())
            if said := self.engines.broken():
                raise CudaBroken(self.case, self.question.candidates[name], reason, said) from None

    def _proven(self, stack: ExitStack, candidate: Candidate, examples: Sequence[Example]) -> Session:
        """Build, load and check one; on failure nothing of it stays open."""
        plan = self.engines.build(self.question.graph(candidate).SerializeToString(), candidate, self.case.precision)
        with ExitStack() as local:
            session = local.enter_context(self.engines.open(plan))
            limit = LIMITS[self.case.dtype]
            errors = {e.kind: e.error(as_float(session.run(feeds(session.inputs, e))[0])) for e in examples}
            self.parity[candidate.name] = errors
            if wrong := {kind: error for kind, error in errors.items() if not error <= limit}:
                listed = ", ".join(f"{error:.2e} for {kind} logits" for kind, error in wrong.items())
                raise InvalidInput(f"its output is wrong: relative error {listed}; the limit is {limit:.0e}")
            stack.push(local.pop_all())
        return session

    def _times(self, sessions: Mapping[str, Session], values: Example) -> dict[str, float]:
        """Return the median time of each in milliseconds; those that fail are left out."""
        samples: dict[str, list[float]] = {name: [] for name in sessions}
        for name, session in sessions.items():
            with self._refusing(name):
                session.bind(feeds(session.inputs, values))
                for _ in range(self.rounds.warm_up):
                    session.step()
        for _ in range(self.rounds.rounds):
            for name, session in sessions.items():
                if name not in self.refused:
                    with self._refusing(name):
                        samples[name] += [session.step() for _ in range(self.rounds.steps)][1:]
        return {name: statistics.median(taken) for name, taken in samples.items() if name not in self.refused}


def _winner(times_ms: Mapping[str, float]) -> tuple[str, str]:
    """Return the implementation to take, and why."""
    best, *others = sorted(times_ms, key=lambda name: times_ms[name])
    if not others:
        return best, "the only one that works here"
    share = 1 - times_ms[best] / times_ms[others[0]]
    gain = f"{share:.1%} faster than {others[0]}"
    if best == "plugin" and share < PLUGIN_GAIN:
        return others[0], f"the plugin is {gain}, less than the {PLUGIN_GAIN:.0%} asked for"
    return best, gain


def _first_failure(error: HyctasError) -> HyctasError:
    """Return what failed first: a failure while closing hides the one that led to it."""
    while isinstance(error.__context__, HyctasError) and not error.__suppress_context__:
        error = error.__context__
    return error

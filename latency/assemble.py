"""Assemble operators into graphs in which each gets its input from another operator, as inside a network.

An operator that is timed alone starts and ends with the memory layout of a file's inputs and outputs, and finds its input in
whatever cache it was left in; between other operators it does neither. Graphs are chains that fork: each operator reads what
was computed last where that has the right shape, no tensor is read by more than `READERS`, and operators that were not asked
for come in only to make an input.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from latency.workload import Workload

MOST = 40
"""Operators from which a graph is closed: about as many as a network has."""
READERS = 2
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Placed:
    """One operator of a graph."""

    name: str
    workload: Workload
    inputs: tuple[str, ...]
    """Names of earlier operators, or of inputs of the graph."""


@dataclass
class Assembly:
    """A graph of operators."""

    inputs: dict[str, Shape] = field(default_factory=dict)
    placed: list[Placed] = field(default_factory=list)
    wanted: list[Placed] = field(default_factory=list)
    """Those that it was made for."""


def assemble(
    wanted: Sequence[Workload], context: Sequence[Workload], rng: np.random.Generator, most: int = MOST
) -> list[Assembly]:  # fmt: skip
    """Put every wanted operator into one of several graphs.

    Args:
        wanted: each key once.
        context: what else may stand between inputs and wanted operators, for instance all of the space.
        rng: draws the order; another draw gives other neighbours.
        most: operators from which a graph is closed.
    """
    order = [wanted[place] for place in rng.permutation(len(wanted))]
    makers = _Makers([*order, *context])
    left = {workload.key: workload for workload in order}
    found: list[Assembly] = []
    while left:
        growing = _Growing(makers, rng)
        while left and len(growing.assembly.placed) < most:
            workload = growing.next_of(left.values())
            del left[workload.key]
            growing.assembly.wanted.append(growing.place(workload))
        found.append(growing.assembly)
    return found


class _Makers:
    """Knows which operators make a shape, and how many in a row it takes at least; a shape that none makes is an input."""

    def __init__(self, workloads: Iterable[Workload]) -> None:
        self.of: dict[Shape, list[Workload]] = {}
        for workload in {workload.key: workload for workload in workloads}.values():
            if workload.output is not None:
                self.of.setdefault(workload.output, []).append(workload)
        self.depth: dict[Shape, int] = {}
        before: dict[Shape, int] | None = None
        while before != self.depth:  # Bellman and Ford's way; shapes are few
            before = dict(self.depth)
            for shape, made in self.of.items():
                for workload in made:
                    depths = [self.depth_of(each) for each in workload.inputs]
                    if all(depth is not None for depth in depths):
                        depth = 1 + max(depth for depth in depths if depth is not None)
                        self.depth[shape] = min(depth, self.depth.get(shape, depth))

    def depth_of(self, shape: Shape) -> int | None:
        """Return the operators between an input and a shape; None where it cannot be made."""
        return self.depth.get(shape) if shape in self.of else 0

    def choose(self, shape: Shape, rng: np.random.Generator) -> Workload | None:
        """Draw an operator that makes a shape from what takes fewer; None: it has to be an input."""
        depth = self.depth.get(shape)
        if depth is None:
            return None
        fit = []
        for workload in self.of[shape]:
            depths = [self.depth_of(each) for each in workload.inputs]
            if all(each is not None and each < depth for each in depths):
                fit.append(workload)
        return fit[int(rng.integers(len(fit)))]


class _Growing:
    """A graph that grows."""

    def __init__(self, makers: _Makers, rng: np.random.Generator) -> None:
        self.makers, self.rng = makers, rng
        self.assembly = Assembly()
        self.readers: dict[str, int] = {}
        """Of every tensor, the latest last."""
        self.shapes: dict[str, Shape] = {}

    def next_of(self, left: Iterable[Workload]) -> Workload:
        """Choose what reads the latest tensors; where nothing fits, the first."""
        ages = {self.shapes[name]: age for age, name in enumerate(self.readers) if self.readers[name] < READERS}
        first: Workload | None = None
        best, latest = None, -1
        for workload in left:
            first = first or workload
            age = min(ages.get(shape, -1) for shape in workload.inputs)
            if age > latest:
                best, latest = workload, age
        chosen = best or first
        assert chosen is not None
        return chosen

    def place(self, workload: Workload) -> Placed:
        """Add an operator, and before it what its inputs need."""
        placed = Placed("", workload, tuple(self.tensor(shape) for shape in workload.inputs))
        placed = Placed(f"n{len(self.assembly.placed):03d}", workload, placed.inputs)
        self.assembly.placed.append(placed)
        self.readers[placed.name] = 0
        self.shapes[placed.name] = workload.output or ()
        return placed

    def tensor(self, shape: Shape) -> str:
        """Return the latest tensor of a shape that takes another reader; make one where there is none."""
        names = [name for name, readers in self.readers.items() if self.shapes[name] == shape and readers < READERS]
        if names:
            name = names[-1]
        elif (maker := self.makers.choose(shape, self.rng)) is not None:
            name = self.place(maker).name
        else:
            name = f"x{len(self.assembly.inputs)}"
            self.assembly.inputs[name] = shape
            self.shapes[name] = shape
        self.readers[name] = self.readers.get(name, 0) + 1
        return name

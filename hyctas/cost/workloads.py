"""Give the latency package what it times (`workloads`) and what it sums (`units`), from operators and plans."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from export.errors import Give, InvalidInput, Perform, Remedy, TableMismatch
from export.target import Target, format_size, parse_size
from hyctas.arch.genotype import Genotype
from hyctas.arch.operators import DownUp, from_key
from hyctas.cost.memory import predicted_mib
from hyctas.plan import Plan, lower
from hyctas.space import SPACES
from hyctas.spaces.search_space import SearchSpace
from latency import LatencyTable, Unit, Workload
from latency.calibration import Calibration
from latency.judge import conformal_bound
from latency.predictor import predict

if TYPE_CHECKING:
    from torch import nn


def build_block(key: str) -> nn.Module:
    """Build the module of a latency key, with fresh weights."""
    from hyctas.nn.blocks import Block

    return Block(from_key(key)[0])


@functools.cache
def family(key: str) -> str:
    """Name an operator's family."""
    operator, _ = from_key(key)
    return "downup" if isinstance(operator, DownUp) else type(operator).__name__.lower()


def workloads(keys: Sequence[str]) -> list[Workload]:
    """Return what has to be timed for a list of keys."""
    return [_workload(key) for key in keys]


def _workload(key: str) -> Workload:
    operator, shapes = from_key(key)
    inputs, output = tuple((1, *shape) for shape in shapes), (1, *operator.output_shape(shapes))
    return Workload(key, family(key), functools.partial(build_block, key), inputs, output)


def units(plan: Plan) -> list[Unit]:
    """Return what a plan's latency is the calibrated sum of."""
    return [Unit(node.key, node.macs) for node in plan.nodes]


@dataclass(frozen=True)
class Costs:
    """What a network costs at one input size."""

    latency_ms: float
    """Predicted; for native output (logits at the head's stride)."""
    bound_ms: float
    """What the latency stays below with the model's confidence; without one, the prediction itself."""
    parameters: int
    macs: int
    memory_mib: float
    """Predicted for the table's runtime (`hyctas/cost/memory.py`)."""


class CostModel:
    """Predict the costs of networks of one space at one input size.

    Args:
        space: where the networks come from.
        table: latency table that holds all operators of the space at the size.
        size: height and width of the image.
        num_classes: number of classes.
        confidence: of the upper bound, above 0 and below 1; none: the bound is the prediction.
        beside: tables of further targets: a network's latency, bound and memory are the greatest that any of them predicts.

    Raises:
        MissingKeys: a table lacks operators.
        TableMismatch: the table's calibration was made for another version of the space.
        InvalidInput: a confidence that the calibration has too few networks for, or without a calibration.
    """

    def __init__(
        self, space: SearchSpace, table: LatencyTable, size: tuple[int, int], num_classes: int, confidence: float | None = None,
        beside: Sequence[LatencyTable] = (),
    ) -> None:  # fmt: skip
        self.space, self.table, self.size, self.num_classes = space, table, size, num_classes
        name = space.name if space.name in SPACES else "YOUR_SPACE.py"
        settings = {
            "run": "RUN", "space": name, "size": format_size(size), "classes": num_classes, "target": table.identity.target,
            "threads": table.identity.threads,
        }  # fmt: skip
        table.require(space.keys(size, num_classes), Perform("profile", settings))
        self.calibration = find_calibration(space, table, size)
        self.confidence, self.bound_factor = confidence, _bound_factor(self.calibration, confidence, settings)
        self.beside = [CostModel(space, other, size, num_classes, confidence) for other in beside]
        self._known: dict[str, Costs] = {}

    @property
    def all(self) -> list[CostModel]:
        """One model per target."""
        return [self, *self.beside]

    def costs(self, genotype: Genotype) -> Costs:
        """Return the costs of a network."""
        name = genotype.id
        if name not in self._known:
            plan = lower(genotype, self.size, self.num_classes)
            self._known[name] = _greatest([model.own_costs(plan) for model in self.all])
        return self._known[name]

    def own_costs(self, plan: Plan) -> Costs:
        """Return what a network costs on the target of the model's own table."""
        memory = predicted_mib(plan, Target.parse(self.table.identity.target).runtime)
        latency_ms = predict(units(plan), self.table, self.calibration)
        return Costs(latency_ms, self.bound_factor * latency_ms, plan.parameters, plan.macs, memory)


def _greatest(costs: Sequence[Costs]) -> Costs:
    """Return what a network costs on the most demanding of several targets, cost by cost."""
    return Costs(*(max(getattr(each, field.name) for each in costs) for field in fields(Costs)))


def _bound_factor(calibration: Calibration | None, confidence: float | None, settings: dict[str, Any]) -> float:
    """Return what turns a prediction into an upper bound: at least 1."""
    if confidence is None:
        return 1.0
    if calibration is None:
        raise InvalidInput(f"a bound of confidence {confidence} needs a calibrated table", Perform("profile", settings))
    try:
        return max(1.0, conformal_bound(calibration.ratios, confidence))
    except InvalidInput as error:
        raise InvalidInput(str(error), Perform("profile", settings | {"networks": "N", "restart": True})) from None


def find_calibration(space: SearchSpace, table: LatencyTable, size: tuple[int, int]) -> Calibration | None:
    """Return a table's calibration for a space and size, or None.

    Raises:
        TableMismatch: it was made for another version of the space.
    """
    name = calibration_name(space, size)
    calibration = table.calibrations.get(name)
    if calibration is not None and calibration.space_hash != space.hash:
        raise TableMismatch(
            f"the table's calibration {name} was made for another version of space {space.name} "
            f"(hash {calibration.space_hash}, now {space.hash})",
            Perform("profile", {"restart": True}),
        )
    return calibration


def calibrated_sizes(space: SearchSpace, table: LatencyTable) -> list[tuple[int, int]]:
    """List the image sizes that a table is calibrated for, of a space of this name."""
    return [parse_size(name.partition("@")[2]) for name in table.calibrations if name.startswith(f"{space.name}@")]


def only_calibrated_size(space: SearchSpace, table: LatencyTable, *remedies: Remedy) -> tuple[int, int]:
    """Return the one image size that a table is calibrated for.

    Raises:
        InvalidInput: it is calibrated for none, or for several; with the remedies of the caller.
    """
    found = calibrated_sizes(space, table)
    if len(found) != 1:
        known = ", ".join(table.calibrations) or "none"
        text = f"the latency table is calibrated for {len(found)} sizes of space {space.name}, not for one (calibrations: {known})"
        raise InvalidInput(text, *remedies)
    return found[0]


def calibration_name(space: SearchSpace, size: tuple[int, int]) -> str:
    """Name a calibration: space and size."""
    return f"{space.name}@{format_size(size)}"


def draw_networks(space: SearchSpace, count: int, seed: int, purpose: int) -> list[Genotype]:
    """Draw distinct networks of a space: fewer than asked for only where hardly any are left.

    Args:
        space: where they come from.
        count: how many.
        seed: of the draw.
        purpose: keeps the networks of fits and of checks apart.
    """
    rng = np.random.default_rng([seed, purpose])
    found: dict[str, Genotype] = {}
    fruitless = 0
    while len(found) < count and fruitless < FRUITLESS:
        before, genotype = len(found), space.sample(rng)
        found.setdefault(genotype.id, genotype)
        fruitless = 0 if len(found) > before else fruitless + 1
    return list(found.values())


POOL, FRUITLESS = 20, 1000
"""Networks drawn per network that a calibration measures, and draws without a new one after which a space is exhausted."""


def calibration_networks(
    space: SearchSpace, table: LatencyTable, size: tuple[int, int], num_classes: int, count: int, purpose: int, seed: int = 0
) -> list[Genotype]:
    """Choose the networks that a calibration measures: half as they are drawn, half evenly over the range of latencies.

    A search works where limits are, and draws are thin there: small networks are rare among random ones. Every other network
    is therefore taken from a large draw, at even steps of the logarithm of the plain sum of its operators. So that the range
    begins at the space's smallest network, a random share of the genes of each of these is that network's.

    Args:
        space: where they come from.
        table: holds all operators of the space at the size.
        size: height and width of the image.
        num_classes: number of classes.
        count: how many.
        purpose: of the random draw.
        seed: of the random draw.

    Raises:
        InvalidInput: the space has fewer networks.
    """
    pool = draw_networks(space, POOL * count, seed, purpose)
    drawn = {genotype.id: genotype for genotype in pool[: count - count // 2]}
    rng, least = np.random.default_rng([seed, purpose, 1]), np.array(space.encode(space.smallest()))
    smaller = {
        genotype.id: genotype
        for genes in (np.array(space.encode(genotype)) for genotype in pool[len(drawn) :])
        if (genotype := space.decode(np.where(rng.random(genes.size) < rng.random(), least, genes))).id not in drawn
    }  # fmt: skip
    rest = list(smaller.values())
    if len(drawn) + len(rest) < count:
        raise InvalidInput(
            f"{count} networks are to calibrate with, and space {space.name} has hardly more than {len(pool)}",
            Give("networks", str(len(pool) // 2)),
        )
    sums = np.log([predict(units(lower(genotype, size, num_classes)), table) for genotype in rest])
    chosen: list[int] = []
    for wanted in np.linspace(sums.min(), sums.max(), count // 2):
        free = np.setdiff1d(np.arange(len(rest)), chosen)
        chosen.append(int(free[np.argmin(np.abs(sums[free] - wanted))]))
    networks = [*drawn.values(), *(rest[index] for index in chosen)]
    return [networks[index] for index in rng.permutation(len(networks))]  # so that drift favours neither kind


def native_modules(genotypes: Sequence[Genotype], size: tuple[int, int], num_classes: int) -> list[tuple[Any, tuple[Any, ...]]]:
    """Build networks that compute native output, always with the same weights, with example images: for `Runtime.load_modules`."""
    import torch

    from hyctas.network import Native, build

    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    modules: list[tuple[Any, tuple[Any, ...]]] = []
    for genotype in genotypes:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            modules.append((Native(build(genotype, num_classes).eval()), (image,)))
    return modules

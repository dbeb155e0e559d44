"""Draw the networks that a supernet is trained for: those whose predicted cost lies in a band. No torch here.

Latencies of random networks pile up where most of a space is, far from most limits. So a band is cut into `STRATA` intervals of
equal ratio, each gets a pool of networks found by mutation of those nearest to it, and a draw takes an interval first: as many
networks near the limit as at half of it, at a few predictions each. Draws are functions of (seed, step) and the branch ratios.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from export.codec import Size, plain
from export.errors import Infeasible
from hyctas.arch.genotype import STAGES, Genotype
from hyctas.arch.lowering import ADDED
from hyctas.arch.node import stage_of
from hyctas.arch.operators import Layer, Norm, Scalar
from hyctas.cost.workloads import CostModel
from hyctas.plan import Node, lower
from hyctas.spaces.search_space import Genes, SearchSpace, genes_in
from hyctas.training.config import SupernetRecipe

DRAW, LARGEST = 13, 14
LOW, HIGH = 0.5, 1.2
"""A band's ends, as shares of the limit."""
LEAST = 0.8
"""Share of a search's limit above which no band's lower end narrows it."""
STRATA, ENOUGH = 8, 20
"""Intervals of a band, and how many networks make the pool of one."""
SAMPLES, MUTANTS, NEAREST = 400, 1200, 8
"""Random networks and at most so many mutants to fill the pools; parents that a mutant may have."""
TRIES, VARIATIONS, MEMBER_SHARE, VARIANT_SHARE = 2, 8, 0.25, 0.25
"""Per draw: random networks tried, then mutants of the pool; shares of hand-made networks and of their mutants."""
NEARLY = 0.99
"""The largest and the smallest network have at least this share of the trained operators that any has."""
Trained = Mapping[str, Mapping[str, Layer | Norm | Scalar]]
"""Layers by slot and by name."""
RATES = (None, 0.05, 0.1, 0.2)
"""Mutation rates; None: two genes."""


@dataclass(frozen=True)
class Band:
    """The networks that a supernet is trained for: those whose cost lies between two bounds."""

    cost: Callable[[Genotype], float]
    """For instance the predicted latency."""
    low: float
    high: float
    unit: str
    """Of the cost, for messages."""

    def holds(self, genotype: Genotype) -> bool:
        """Say whether a network lies in the band."""
        return self.low <= self.cost(genotype) <= self.high

    def edges(self) -> np.ndarray:
        """Return the ends of the band's intervals, ascending; a band without a lower end is one interval."""
        if self.low <= 0:
            return np.array([self.low, self.high])
        return np.geomspace(self.low, self.high, STRATA + 1)


def macs_band(recipe: SupernetRecipe, num_classes: int) -> Band:
    """Return the band of networks with at most `max_gmacs`; without it, of all networks."""

    @lru_cache(maxsize=4096)
    def gmacs(genotype: Genotype) -> float:
        return lower(genotype, recipe.crop, num_classes).macs / 1e9

    return Band(gmacs, 0.0, float("inf") if recipe.max_gmacs is None else recipe.max_gmacs, "GMAC at the crop's size")


def latency_band(model: CostModel, limit_ms: float) -> Band:
    """Return the band of networks that are predicted at `LOW` to `HIGH` times a limit."""

    @lru_cache(maxsize=4096)
    def latency_ms(genotype: Genotype) -> float:
        return model.costs(genotype).latency_ms

    return Band(latency_ms, LOW * limit_ms, HIGH * limit_ms, "ms (predicted)")


@dataclass(frozen=True, kw_only=True)
class TrainedBand:
    """The band of latencies that a supernet was trained for, as its record keeps it."""

    limit_ms: float
    low_ms: float
    high_ms: float
    size: Size
    """Height and width of the image that latency counts for."""
    table_sha256: str

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON has them."""
        return plain(self)

    def least_ms(self, limit_ms: float) -> float:
        """Return the least latency that a search looks at: the band's lower end, or a fifth below the limit on predictions."""
        return min(self.low_ms, LEAST * limit_ms)

    def warning(self, limit_ms: float | None, size: tuple[int, int], table_sha256: Sequence[str]) -> str | None:
        """Say what of a search with this limit on predictions, by tables of these hashes, was not trained for, or return None."""
        trained = f"the supernet was trained for networks of {self.low_ms:.3g} to {self.high_ms:.3g} ms"
        if size != self.size or self.table_sha256 not in table_sha256:
            return f"warning: {trained} of another latency table or size; what this search scores may not have been trained"
        if limit_ms is None:
            return f"warning: {trained}, and scores of others mean little; limit the search to ms={self.limit_ms:g}"
        if not self.low_ms <= limit_ms <= self.high_ms:
            return f"warning: {trained}, and the limit of {limit_ms:.3g} ms on predictions lies outside; train another for it"
        return None


class Drawer:
    """Draw the networks of a step from a band.

    Args:
        space: where they come from.
        recipe: seed and numbers.
        band: what the supernet is trained for.
        members: hand-made networks; those of the space and in the band are drawn too.
        trained: layers of the slots that start from trained weights, as wide as their source; the largest network, which teaches
            all others, and the smallest consist of them as far as possible.

    Raises:
        Infeasible: no network was found in the band.
    """

    def __init__(
        self, space: SearchSpace, recipe: SupernetRecipe, band: Band, members: Sequence[Genotype] = (),
        trained: Trained | None = None,
    ) -> None:  # fmt: skip
        self.space, self.recipe, self.band, self.trained = space, recipe, band, dict(trained or {})
        stages = set(map(stage_of, self.trained))
        self._before = {stage: [other for other in STAGES[: STAGES.index(stage)] if other in stages][-1:] for stage in STAGES}
        self.edges = band.edges()
        ends = [space.largest(), space.smallest()]
        costs = sorted(band.cost(genotype) for genotype in ends)
        if costs[0] > band.high or costs[1] < band.low:
            raise self._infeasible(costs)
        handmade = [(genes, genotype) for genotype in members if (genes := genes_in(space, genotype)) is not None]
        self._inside = [(genes, genotype) for genes, genotype in handmade if band.holds(genotype)]
        self.members = [genotype for _, genotype in self._inside]
        first = [*((space.encode(genotype), genotype) for genotype in ends), *handmade]
        if np.isinf(band.high):  # all of the space
            self.pools, self.largest, self.smallest = [first], *ends
            return
        self.pools = self._fill(first)
        known = [genotype for pool in self.pools for _, genotype in pool]
        if not known:
            raise self._infeasible(costs)
        if self.trained:
            shares = [self._trained_share(genotype) for genotype in known]
            known = [genotype for share, genotype in zip(shares, known, strict=True) if share >= NEARLY * max(shares)]
        self.smallest, self.largest = (end(known, key=band.cost) for end in (min, max))

    def _infeasible(self, costs: Sequence[float]) -> Infeasible:
        return Infeasible(
            f"no network of space {self.space.name} was found between {self.band.low:.3g} and {self.band.high:.3g} "
            f"{self.band.unit}; its smallest has {costs[0]:.3g}, its largest {costs[1]:.3g}: give another limit, size or space"
        )

    def _stratum(self, cost: float) -> int:
        """Return the interval that a cost in the band lies in."""
        return int(np.clip(np.searchsorted(self.edges, cost, side="right") - 1, 0, len(self.edges) - 2))

    def _fill(self, first: list[tuple[Genes, Genotype]]) -> list[list[tuple[Genes, Genotype]]]:
        """Return networks of every interval: given and random ones, and mutants of those nearest to intervals that have few."""
        rng, space, band = np.random.default_rng([self.recipe.seed, LARGEST]), self.space, self.band
        pools: list[list[tuple[Genes, Genotype]]] = [[] for _ in self.edges[1:]]
        seen: list[tuple[float, Genes]] = []
        names: set[str] = set()

        def note(genes: Genes, genotype: Genotype) -> None:
            cost = band.cost(genotype)
            seen.append((cost, genes))
            if band.low <= cost <= band.high and genotype.id not in names:
                names.add(genotype.id)
                pools[self._stratum(cost)].append((genes, genotype))

        for genes, genotype in first:
            note(genes, genotype)
        for _ in range(SAMPLES):
            genes = space.sample_genes(rng)
            note(genes, space.decode(genes))
        for _ in range(MUTANTS):
            poorest = min(range(len(pools)), key=lambda index: len(pools[index]))
            if len(pools[poorest]) >= ENOUGH:
                break
            middle = float(np.sqrt(max(self.edges[poorest], self.edges[poorest + 1] / 2) * self.edges[poorest + 1]))
            distances = np.abs(np.log(np.array([cost for cost, _ in seen]) / middle))
            near = np.argsort(distances, kind="stable")[:NEAREST]
            genes = self._mutant(seen[int(rng.choice(near))][1], rng)
            note(genes, space.decode(genes))
        return pools

    def _mutant(self, genes: Genes, rng: np.random.Generator) -> Genes:
        return self.space.mutate(genes, rng, RATES[int(rng.integers(len(RATES)))])

    def _trained_share(self, genotype: Genotype) -> float:
        """Return the share of a trunk's multiplications that start from trained weights and get the features that these know."""
        trunk = {node.name: node for node in lower(genotype, self.recipe.crop, 1).nodes if node.part in ("stem", "trunk")}
        total = sum(node.macs for node in trunk.values())
        return sum(node.macs * self._trained_part(node, trunk) for node in trunk.values()) / total

    def _trained_part(self, node: Node, trunk: Mapping[str, Node]) -> float:
        """Return the share of a node's weights that its source has; 0 where it reads other features than there."""
        source, before = self.trained.get(node.slot), trunk.get(node.inputs[0])
        while before is not None and before.operator.label in ADDED:
            before = trunk.get(before.inputs[0])
        if source is None or (before is not None and not self._reads(stage_of(node.slot), before.slot)):
            return 0.0
        layers = [layer for layer in node.operator.layers() if isinstance(layer, Layer)]
        known = [_shared(layer, full) for layer in layers if isinstance(full := source.get(layer.name), Layer)]
        return sum(layer.out * layer.fan_in for layer in known) / max(1, sum(layer.out * layer.fan_in for layer in layers))

    def _reads(self, stage: str, slot: str) -> bool:
        """Say whether a stage of the source reads a slot: one of the source, of the same stage or of the one before there."""
        return slot in self.trained and stage_of(slot) in (stage, *self._before[stage])

    def draw(self, step: int, ratios: tuple[float, float, float]) -> list[Genotype]:
        """Return the random networks of a step; some are hand-made ones, or mutants of these, where the band has such."""
        rng = np.random.default_rng([self.recipe.seed, DRAW, step])
        return [self._one(rng, ratios) for _ in range(self.recipe.random_networks)]

    def _one(self, rng: np.random.Generator, ratios: tuple[float, float, float]) -> Genotype:
        kind = rng.random()
        if self.members and kind < MEMBER_SHARE + VARIANT_SHARE:
            genes, member = self._inside[int(rng.integers(len(self._inside)))]
            return member if kind < MEMBER_SHARE else self._varied(genes, member, rng)
        pools = [pool for pool in self.pools if pool]
        pool = pools[int(rng.integers(len(pools)))]
        stratum = self._stratum(self.band.cost(pool[0][1]))
        for _ in range(TRIES):
            genotype = self.space.sample(rng, ratios)
            if self.band.holds(genotype) and self._stratum(self.band.cost(genotype)) == stratum:
                return genotype
        counts = np.array([len(genotype.branches) for _, genotype in pool])
        weights = np.array([ratios[count - 1] / np.sum(counts == count) for count in counts])
        chosen = int(rng.choice(len(pool), p=weights / weights.sum() if weights.sum() > 0 else None))
        return self._varied(*pool[chosen], rng)

    def _varied(self, genes: Genes, parent: Genotype, rng: np.random.Generator) -> Genotype:
        """Return a mutant of a network in the band, or the network itself where none is found."""
        for _ in range(VARIATIONS):
            genotype = self.space.decode(self._mutant(genes, rng))
            if self.band.holds(genotype):
                return genotype
        return parent


def _shared(own: Layer, full: Layer) -> Layer:
    """Return the part of a layer that a source has."""
    sources = own.sources if own.depthwise else tuple(map(min, own.sources, full.sources))
    return replace(own, sources=sources, out=min(own.out, full.out), kernel=min(own.kernel, full.kernel))

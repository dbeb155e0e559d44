"""Draw the networks that a supernet is trained for: those whose predicted cost lies in a band. No torch here.

Latencies of random networks pile up where most of a space is, far from most limits. So a band is cut into `STRATA` intervals of
equal ratio, each gets a pool of networks found by mutation of those nearest to it, and a draw takes an interval first: as many
networks near the limit as at half of it, at a few predictions each. Draws are functions of (seed, step) and the branch ratios.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from export.codec import Size, plain
from export.errors import Infeasible
from hyctas.arch.genotype import Genotype
from hyctas.cost.workloads import CostModel
from hyctas.plan import lower
from hyctas.spaces.search_space import Genes, SearchSpace, genes_in
from hyctas.training.config import SupernetRecipe

DRAW, LARGEST = 13, 14
LOW, HIGH = 0.5, 1.2
"""A band's ends, as shares of the limit."""
STRATA, ENOUGH = 8, 20
"""Intervals of a band, and how many networks make the pool of one."""
SAMPLES, MUTANTS, NEAREST, GROWTH = 400, 1200, 8, 300
"""Random networks and at most so many mutants to fill the pools; parents that a mutant may have; mutants to find the largest."""
TRIES, VARIATIONS, MEMBER_SHARE = 2, 8, 0.25
"""Per draw: random networks tried, then mutants of the pool; share of hand-made networks."""
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

    def warning(self, limit_ms: float | None, size: tuple[int, int], table_sha256: Sequence[str]) -> str | None:
        """Say what of a search, by tables of these hashes, was not trained for, or return None."""
        trained = f"the supernet was trained for networks of {self.low_ms:.3g} to {self.high_ms:.3g} ms"
        if size != self.size or self.table_sha256 not in table_sha256:
            return f"warning: {trained} of another latency table or size; what this search scores may not have been trained"
        if limit_ms is None:
            return f"warning: {trained}, and scores of others mean little; limit the search to ms={self.limit_ms:g}"
        if not self.low_ms <= limit_ms <= self.high_ms:
            return f"warning: {trained}, and the limit of {limit_ms:.3g} ms lies outside; train another for it"
        return None


class Drawer:
    """Draw the networks of a step from a band.

    Args:
        space: where they come from.
        recipe: seed and numbers.
        band: what the supernet is trained for.
        members: hand-made networks; those of the space and in the band are drawn too.
        trained: slots that start from trained weights; the largest network consists of them as far as possible, since it teaches
            all others.

    Raises:
        Infeasible: no network was found in the band.
    """

    def __init__(
        self, space: SearchSpace, recipe: SupernetRecipe, band: Band, members: Sequence[Genotype] = (),
        trained: Collection[str] = (),
    ) -> None:  # fmt: skip
        self.space, self.recipe, self.band, self.trained = space, recipe, band, frozenset(trained)
        self.edges = band.edges()
        ends = [space.largest(), space.smallest()]
        costs = sorted(band.cost(genotype) for genotype in ends)
        if costs[0] > band.high or costs[1] < band.low:
            raise self._infeasible(costs)
        handmade = [(genes, genotype) for genotype in members if (genes := genes_in(space, genotype)) is not None]
        self.members = [genotype for _, genotype in handmade if band.holds(genotype)]
        first = [*((space.encode(genotype), genotype) for genotype in ends), *handmade]
        if np.isinf(band.high):  # all of the space
            self.pools, self.largest, self.smallest = [first], *ends
            return
        self.pools = self._fill(first)
        known = [pair for pool in self.pools for pair in pool]
        if not known:
            raise self._infeasible(costs)
        self.smallest = min((genotype for _, genotype in known), key=band.cost)
        self.largest = self._grown(known) if self.trained else max((genotype for _, genotype in known), key=band.cost)

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

    def _grown(self, known: list[tuple[Genes, Genotype]]) -> Genotype:
        """Return the largest network found of those with most trained operators: the best start, mutated while it grows."""
        rng = np.random.default_rng([self.recipe.seed, LARGEST, 1])
        best = max((self._trained_share(genotype), self.band.cost(genotype), index) for index, (_, genotype) in enumerate(known))
        (share, cost, index) = best
        genes, genotype = known[index]
        for _ in range(GROWTH):
            child = self._mutant(genes, rng)
            network = self.space.decode(child)
            if cost < self.band.cost(network) <= self.band.high and self._trained_share(network) >= share:
                genes, genotype, share, cost = child, network, self._trained_share(network), self.band.cost(network)
        return genotype

    def _trained_share(self, genotype: Genotype) -> float:
        """Return the share of a trunk's multiplications that start from trained weights."""
        trunk = [node for node in lower(genotype, self.recipe.crop, 1).nodes if node.part in ("stem", "trunk")]
        return sum(node.macs for node in trunk if node.slot in self.trained) / sum(node.macs for node in trunk)

    def draw(self, step: int, ratios: tuple[float, float, float]) -> list[Genotype]:
        """Return the random networks of a step; `MEMBER_SHARE` of them are hand-made, where the band has such."""
        rng = np.random.default_rng([self.recipe.seed, DRAW, step])
        return [self._one(rng, ratios) for _ in range(self.recipe.random_networks)]

    def _one(self, rng: np.random.Generator, ratios: tuple[float, float, float]) -> Genotype:
        if self.members and rng.random() < MEMBER_SHARE:
            return self.members[int(rng.integers(len(self.members)))]
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
        genes, parent = pool[chosen]
        for _ in range(VARIATIONS):
            genotype = self.space.decode(self._mutant(genes, rng))
            if self.band.holds(genotype):
                return genotype
        return parent

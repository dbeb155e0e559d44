"""Propose networks: NSGA-II behind `ask` and `tell`, so that another optimiser fits in its place. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2, RankAndCrowding
from pymoo.core.crossover import Crossover
from pymoo.core.evaluator import Evaluator
from pymoo.core.mutation import Mutation
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.repair import Repair
from pymoo.core.survival import Survival
from pymoo.problems.static import StaticProblem

from export.errors import Infeasible
from hyctas.arch.genotype import Genotype
from hyctas.cost.workloads import CostModel
from hyctas.search.history import Evaluation
from hyctas.search.limits import Limits
from hyctas.spaces.search_space import SearchSpace

RANDOM, EVOLVE = 21, 22
"""Purposes of random draws: default_rng([seed, purpose, ...])."""
TRIES = 2000


class Optimiser(Protocol):
    """Proposes networks and learns from their evaluations."""

    def ask(self) -> list[Genotype]:
        """Return the networks of the next generation."""
        ...

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Take the evaluations of the networks last asked for, in their order."""
        ...


class RandomDraws:
    """Draw distinct random networks that meet the limits: most of the search's first generation.

    Args:
        model: predicts costs.
        limits: what networks must meet.
        seed: of the draws.
        known: ids of networks that are not drawn.

    Raises:
        Infeasible: hardly any network of the space meets the limits.
    """

    def __init__(self, model: CostModel, limits: Limits, seed: int, known: Iterable[str] = ()) -> None:
        self.model, self.limits, self.seed, self._count = model, limits, seed, 0
        self._seen = set(known)

    def next(self) -> Genotype:
        """Return the next network."""
        rng = np.random.default_rng([self.seed, RANDOM, self._count])
        self._count += 1
        for _ in range(TRIES):
            genotype = self.model.space.sample(rng)
            if genotype.id not in self._seen and self.limits.keeps(self.model.costs(genotype)):
                self._seen.add(genotype.id)
                return genotype
        raise Infeasible(
            f"{TRIES} random networks of space {self.model.space.name} gave no new one that meets the limits {self.limits}; "
            "raise the limits, or set a smaller population"
        )


class _SpaceCrossover(Crossover):
    def __init__(self, space: SearchSpace) -> None:
        super().__init__(2, 2, prob=0.9)
        self.space = space

    def _do(self, problem: Any, X: np.ndarray, *args: Any, random_state: Any = None, **kwargs: Any) -> np.ndarray:
        children = [self.space.crossover(X[0, k], X[1, k], random_state) for k in range(X.shape[1])]
        return np.array([[first for first, _ in children], [second for _, second in children]])


class _SpaceMutation(Mutation):
    def __init__(self, space: SearchSpace) -> None:
        super().__init__(prob=1.0)
        self.space = space

    def _do(self, problem: Any, X: np.ndarray, *args: Any, random_state: Any = None, **kwargs: Any) -> np.ndarray:
        return np.array([self.space.mutate(row, random_state) for row in X])


class _SpaceRepair(Repair):
    """Bring vectors into normal form, so that equal vectors are equal networks and duplicates are seen."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.space = space

    def _do(self, problem: Any, X: np.ndarray, **kwargs: Any) -> np.ndarray:
        return np.array([self.space.repair(row) for row in X])


class NicheSurvival(Survival):
    """Rank and crowding, with places kept for every number of branches: half of all, shared equally."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__(filter_infeasible=True)
        self.space, self._rank = space, RankAndCrowding()

    def _do(self, problem: Any, pop: Any, *args: Any, n_survive: int | None = None, random_state: Any = None, **kwargs: Any) -> Any:
        n_survive = len(pop) if n_survive is None else n_survive
        gene = self.space.index["branches"]
        niches = np.array([len(self.space.branch_sets[int(row[gene])]) for row in pop.get("X")])
        kept: list[int] = []
        names = np.unique(niches)
        for name in names:
            members = np.flatnonzero(niches == name)
            count = min(len(members), n_survive // (2 * len(names)))
            if count:
                chosen = self._rank.do(problem, pop[members], n_survive=count, random_state=random_state, return_indices=True)
                kept += members[chosen].tolist()
        ranked = self._rank.do(problem, pop, n_survive=len(pop), random_state=random_state)  # sets rank and crowding on all
        order = sorted(range(len(ranked)), key=lambda i: (ranked[i].get("rank"), -ranked[i].get("crowding")))
        position = {id(individual): index for index, individual in enumerate(pop)}
        for i in order:
            if len(kept) == n_survive:
                break
            if (index := position[id(ranked[i])]) not in kept:
                kept.append(index)
        return pop[kept[:n_survive]]


class Nsga2:
    """NSGA-II over a space's gene vectors: mIoU up, predicted latency down, limits as constraints.

    Args:
        model: predicts the costs.
        limits: what networks must meet; proposals may exceed them, and are then never evaluated but ranked by the excess.
        population: networks kept.
        first: the first generation.
        seed: of every draw.
        offspring: new networks in each generation; none: a third of the population.
    """

    def __init__(
        self, model: CostModel, limits: Limits, population: int, first: Sequence[Genotype], seed: int, offspring: int | None = None
    ) -> None:
        self.model, self.limits, space = model, limits, model.space
        constraints = len(limits.excess(model.costs(space.smallest())))
        self.problem = Problem(n_var=len(space.genes), n_obj=2, n_ieq_constr=constraints, xl=0, xu=space.cardinality - 1, vtype=int)
        self.algorithm = NSGA2(
            pop_size=population, n_offsprings=offspring or max(2, population // 3),
            sampling=np.array([space.encode(g) for g in first]), crossover=_SpaceCrossover(space),
            mutation=_SpaceMutation(space), repair=_SpaceRepair(space), survival=NicheSurvival(space),
            eliminate_duplicates=True,
        )  # fmt: skip
        derived = int(np.random.default_rng([seed, EVOLVE]).integers(2**31))
        self.algorithm.setup(self.problem, termination=("n_gen", 10**9), seed=derived, verbose=False)
        self._asked: Population | None = None

    def ask(self) -> list[Genotype]:
        """Return the next generation's networks; those that exceed a limit are among them."""
        self._asked = self.algorithm.ask()
        if self._asked is None or len(self._asked) == 0:
            return []
        return [self.model.space.decode(row) for row in self.genes]

    @property
    def genes(self) -> np.ndarray:
        """Gene vectors of the networks last asked for (N, genes), in normal form."""
        assert self._asked is not None
        genes: np.ndarray = self._asked.get("X")
        return genes

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Take the evaluations of all networks last asked for, in order (mIoU 0 where limits are broken)."""
        assert self._asked is not None and len(evaluations) == len(self._asked)
        values: dict[str, Any] = {"F": np.array([[-e.miou, e.predicted_ms] for e in evaluations])}
        excess = [self.limits.excess(self.model.costs(e.genotype)) for e in evaluations]
        if excess and excess[0]:
            values["G"] = np.array(excess)
        Evaluator().eval(StaticProblem(self.problem, **values), self._asked)
        self.algorithm.tell(infills=self._asked)

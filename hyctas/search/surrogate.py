"""Propose networks by NSGA-II on a surrogate, which predicts mIoU from genes and costs. No torch here.

Every generation fits the surrogate on all that was evaluated, lets NSGA-II evolve on its predictions, and proposes the networks
found there that are worth an evaluation (as NSGANetV2, Lu et al., ECCV 2020). The surrogate is gradient boosting on plain gene
numbers: on made-up scores it ranked unseen networks as well as random forests and better than Gaussian processes and linear models,
and it predicts fastest. It computes on one thread.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
from sklearn.ensemble import GradientBoostingRegressor

from hyctas.arch.genotype import Genotype
from hyctas.cost.workloads import CostModel
from hyctas.search.front import pareto, spread
from hyctas.search.history import SEARCH, Evaluation
from hyctas.search.limits import Limits
from hyctas.search.optimise import Nsga2

SURROGATE = 24
"""Purpose of random draws: default_rng([seed, purpose, ...])."""
IDLE = 10
"""Generations on the surrogate without a new network after which all have been seen."""


class Surrogate:
    """Predicts mIoU.

    Args:
        model: predicts costs.
        evaluations: what is known, at least two networks.
        seed: of the fit.
    """

    def __init__(self, model: CostModel, evaluations: Collection[Evaluation], seed: int) -> None:
        self.model = model
        self.regressor = GradientBoostingRegressor(
            n_estimators=150, learning_rate=0.06, max_depth=3, subsample=0.7, random_state=seed
        )
        genes = np.array([model.space.encode(e.genotype) for e in evaluations])
        self.regressor.fit(self._features(genes, [e.genotype for e in evaluations]), [e.miou for e in evaluations])

    def __call__(self, genes: np.ndarray, genotypes: Sequence[Genotype]) -> list[float]:
        """Return the predicted mIoU of networks, by their gene vectors in normal form (N, genes)."""
        return self.regressor.predict(self._features(genes, genotypes)).clip(0, 1).tolist()

    def _features(self, genes: np.ndarray, genotypes: Sequence[Genotype]) -> np.ndarray:
        costs = [self.model.costs(genotype) for genotype in genotypes]
        return np.hstack([genes, np.log([[c.latency_ms, c.macs, c.parameters] for c in costs])])


class SurrogateNsga2:
    """NSGA-II on a surrogate, as an `Optimiser`.

    Args:
        model: predicts costs.
        limits: what networks must meet; none is proposed that exceeds one.
        population: networks that NSGA-II keeps, and as many are new in each of its generations on the surrogate.
        first: the first generation.
        seed: of every draw.
        batch: networks proposed at a time.
        candidates: new networks that the surrogate looks at before each proposal.
    """

    def __init__(
        self, model: CostModel, limits: Limits, population: int, first: Sequence[Genotype], seed: int, batch: int,
        candidates: int,
    ) -> None:  # fmt: skip
        self.model, self.limits, self.population, self.first = model, limits, population, first
        self.seed, self.batch, self.candidates = seed, batch, candidates
        self.told: dict[str, Evaluation] = {}
        self._generation = 0

    def ask(self) -> list[Genotype]:
        """Return the networks of the next generation."""
        if not self.told:
            return list(self.first)
        self._generation += 1
        return [evaluation.genotype for evaluation in worthwhile(self._found().values(), self.batch)]

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Take the evaluations of the networks last asked for; one on all images replaces an estimate."""
        self.told |= {e.id: e for e in evaluations if e.kind == SEARCH or e.id not in self.told}

    def _found(self) -> dict[str, Evaluation]:
        """Return what NSGA-II comes by on the surrogate that was not evaluated yet, with predicted mIoU."""
        draw = int(np.random.default_rng([self.seed, SURROGATE, self._generation]).integers(2**31))
        surrogate = Surrogate(self.model, self.told.values(), draw)
        known = [evaluation.genotype for evaluation in self.told.values()]
        engine = Nsga2(self.model, self.limits, self.population, known, draw, offspring=self.population)
        found: dict[str, Evaluation] = {}
        idle = 0
        while len(found) < self.candidates and idle < IDLE:
            before, asked = len(found), engine.ask()
            predicted = surrogate(engine.genes, asked) if asked else []
            results = [self._result(genotype, miou) for genotype, miou in zip(asked, predicted, strict=True)]
            if results:
                engine.tell(results)
            found |= {e.id: e for e in results if e.id not in self.told and self.limits.keeps(self.model.costs(e.genotype))}
            idle = idle + 1 if len(found) == before else 0
        return found

    def _result(self, genotype: Genotype, miou: float) -> Evaluation:
        if genotype.id in self.told:
            return self.told[genotype.id]
        costs = self.model.costs(genotype)
        return Evaluation(
            SEARCH, self._generation, genotype.id, genotype, miou, costs.latency_ms, costs.parameters, costs.macs, costs.memory_mib
        )


def worthwhile(found: Iterable[Evaluation], count: int) -> list[Evaluation]:
    """Choose at most `count` networks: half of them spread over each branch count's own front, the others over the front of all."""
    rest = {evaluation.id: evaluation for evaluation in found}
    niches: dict[int, list[Evaluation]] = {}
    for evaluation in rest.values():
        niches.setdefault(len(evaluation.genotype.branches), []).append(evaluation)
    chosen: list[Evaluation] = []
    for _, niche in sorted(niches.items()):
        chosen += spread(pareto(niche), max(1, count // (2 * len(niches))))
    chosen = chosen[:count]
    while True:
        for evaluation in chosen:
            rest.pop(evaluation.id, None)
        if len(chosen) == count or not rest:
            return chosen
        chosen += spread(pareto(list(rest.values())), count - len(chosen))

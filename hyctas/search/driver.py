"""Run a search and its random baseline at equal numbers of evaluated networks. No torch here.

Generations are synchronous, recorded values are replayed, nothing measured feeds back: a search that was killed continues to
the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from hyctas.genotype import Genotype
from hyctas.search.front import hypervolume, pareto
from hyctas.search.history import Evaluation, History
from hyctas.search.limits import Limits
from hyctas.search.optimise import Nsga2, Optimiser, RandomDraws
from hyctas.workloads import CostModel

STALE_GENERATIONS = 20
"""A search that finds no new network for this many generations has seen what it can reach, and ends."""


class Progress(Protocol):
    """Told after every network: how many are done, of how many, and the hypervolume of the search so far."""

    def __call__(self, done: int, total: int, volume: float) -> None: ...


def search(
    model: CostModel, limits: Limits, score: Callable[[Genotype], float], history: History, *,
    evaluations: int, population: int, seed: int, reference_ms: float, progress: Progress | None = None,
    optimiser: Callable[[Sequence[Genotype]], Optimiser] | None = None,
) -> None:  # fmt: skip
    """Fill a history with `evaluations` networks found by the optimiser and as many drawn at random.

    Args:
        model: predicts costs.
        limits: what every evaluated network keeps.
        score: gives a network's mIoU.
        history: where evaluations are recorded, and replayed from.
        evaluations: distinct networks to score, for the search and for the baseline each.
        population: networks that the optimiser keeps; the first generation is the first part of the baseline.
        seed: of every draw.
        reference_ms: latency of the hypervolume's reference point.
        progress: told after every network.
        optimiser: makes another optimiser from the first generation; default NSGA-II.

    Raises:
        Infeasible: no network, or too few, keep the limits.
        CorruptFile: a recorded evaluation does not cost what the model says.
    """
    limits.check_feasible(model)
    history.check_costs(model.costs)
    draws = RandomDraws(model, limits, seed)
    baseline = [draws.next() for _ in range(evaluations)]
    make = optimiser or (lambda first: Nsga2(model, limits, min(population, evaluations), first, seed))
    run = _Run(model, score, history, reference_ms, 2 * evaluations, progress)
    _evolve(make(baseline[:population]), run, limits, evaluations)
    for genotype in baseline:
        run.evaluate(genotype, "random", 0)
    if strange := history.keep(run.done):
        history.notice(f"{history.path}: {strange} evaluations are of networks that this search did not ask for; they do not count")


def _evolve(optimiser: Optimiser, run: _Run, limits: Limits, evaluations: int) -> None:
    seen: set[str] = set()
    generation = stale = 0
    while len(seen) < evaluations and stale < STALE_GENERATIONS:
        before, results = len(seen), list[Evaluation]()
        for genotype in optimiser.ask():
            if not limits.keeps(run.model.costs(genotype)):
                results.append(run.broken(genotype, generation))
                continue
            if genotype.id not in seen and len(seen) == evaluations:
                return
            seen.add(genotype.id)
            results.append(run.evaluate(genotype, "search", generation))
        optimiser.tell(results)
        generation += 1
        stale = stale + 1 if len(seen) == before else 0


class _Run:
    """Evaluates networks once, and records them."""

    def __init__(
        self, model: CostModel, score: Callable[[Genotype], float], history: History, reference_ms: float, total: int,
        progress: Progress | None,
    ) -> None:  # fmt: skip
        self.model, self.score, self.history, self.reference_ms = model, score, history, reference_ms
        self.total, self.progress, self.done = total, progress, set[tuple[str, str]]()

    def evaluate(self, genotype: Genotype, kind: str, generation: int) -> Evaluation:
        known = self.history.known.get(genotype.id)
        miou = known.miou if known is not None else self.score(genotype)
        evaluation = self._evaluation(genotype, kind, generation, miou)
        self.history.add(evaluation)
        self.done.add((kind, genotype.id))
        if self.progress is not None:
            volume = hypervolume(pareto(self.history.of("search")), self.reference_ms)
            self.progress(len(self.done), self.total, volume)
        return evaluation

    def broken(self, genotype: Genotype, generation: int) -> Evaluation:
        """Stand in for a network that breaks the limits: never scored, never recorded."""
        return self._evaluation(genotype, "search", generation, 0.0)

    def _evaluation(self, genotype: Genotype, kind: str, generation: int, miou: float) -> Evaluation:
        costs = self.model.costs(genotype)
        return Evaluation(
            kind, generation, genotype.id, genotype, miou, costs.latency_ms, costs.parameters, costs.macs, costs.memory_mib
        )

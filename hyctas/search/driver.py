"""Run a search: networks are screened on a few images, and those that do best among all so far are scored on all. No torch here.

Generations are synchronous, recorded values are replayed, nothing measured feeds back: a search that was killed continues to
the same result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from hyctas.arch.genotype import Genotype
from hyctas.cost.workloads import CostModel
from hyctas.search.front import hypervolume, pareto
from hyctas.search.history import SCREEN, SEARCH, Evaluation, History
from hyctas.search.limits import Limits
from hyctas.search.optimise import Optimiser, RandomDraws
from hyctas.search.surrogate import SurrogateNsga2

STALE_GENERATIONS = 20
"""A search that finds no new network for this many generations has seen what it can reach, and ends."""
SURVIVING = 0.5
"""Share of the networks screened in a generation that are scored on all images; of the first generation, all are."""
Score = Callable[[Genotype], float]
Ahead = Callable[[str, Sequence[Genotype]], None]
"""Told which networks will be scored next, for SCREEN or SEARCH and in this order, so that it can begin on several at once."""


class Progress(Protocol):
    """Told after every scored network: how many are done, of how many, and the hypervolume of the search so far."""

    def __call__(self, done: int, total: int, volume: float) -> None: ...


def search(
    model: CostModel, limits: Limits, score: Score, history: History, *, evaluations: int, population: int, seed: int,
    reference_ms: float, candidates: int, screen: Score | None = None, members: Sequence[Genotype] = (),
    progress: Progress | None = None, optimiser: Callable[[Sequence[Genotype]], Optimiser] | None = None,
    ahead: Ahead | None = None,
) -> None:  # fmt: skip
    """Fill a history with `evaluations` scored networks.

    Args:
        model: predicts costs.
        limits: what every evaluated network keeps.
        score: gives a network's mIoU on all images.
        history: where evaluations are recorded, and replayed from.
        evaluations: distinct networks to score on all images.
        population: networks of the first generation, hand-made ones apart, and those that the optimiser keeps.
        seed: of every draw.
        reference_ms: latency of the hypervolume's reference point.
        candidates: networks that the surrogate looks at per generation.
        screen: gives a network's mIoU on a few images; none: all networks are scored at once.
        members: hand-made networks of the space; those within the limits stand in the first generation.
        progress: told after every scored network.
        optimiser: makes another optimiser from the first generation; default NSGA-II with a surrogate.
        ahead: told what will be scored next.

    Raises:
        Infeasible: no network, or too few, meet the limits.
        CorruptFile: a recorded evaluation does not cost what the model says.
    """
    limits.check_feasible(model)
    history.check_costs(model.costs)
    first = first_generation(model, limits, members, min(population, evaluations), seed)[:evaluations]
    batch = round(max(2, population // 3) / (1 if screen is None else SURVIVING))
    make = optimiser or (lambda first: SurrogateNsga2(model, limits, population, first, seed, batch, candidates))
    run = _Run(model, score, screen, history, reference_ms, evaluations, progress, ahead)
    _evolve(make(first), run, limits)
    if strange := history.keep(run.done):
        history.notice(f"{history.path}: {strange} evaluations are of networks that this search did not ask for; they do not count")


def first_generation(model: CostModel, limits: Limits, members: Sequence[Genotype], population: int, seed: int) -> list[Genotype]:
    """Return the hand-made networks within the limits, and random ones: `population` of both, but half of that random at least."""
    made = {genotype.id: genotype for genotype in members if limits.keeps(model.costs(genotype))}
    draws = RandomDraws(model, limits, seed, known=made)
    return [*made.values(), *(draws.next() for _ in range(max(population - len(made), population // 2)))]


def _evolve(optimiser: Optimiser, run: _Run, limits: Limits) -> None:
    generation = stale = 0
    while run.count < run.total and stale < STALE_GENERATIONS:
        before, asked = run.count, optimiser.ask()
        kept = {genotype.id: genotype for genotype in asked if limits.keeps(run.model.costs(genotype))}
        scored = run.survivors(list(kept.values()), generation)
        run.announce(SEARCH, scored)
        evaluations = {genotype.id: run.evaluate(genotype, SEARCH, generation) for genotype in scored}
        optimiser.tell([
            evaluations[g.id] if g.id in evaluations
            else run.estimated(g, generation) if g.id in kept else run.broken(g, generation) for g in asked
        ])  # fmt: skip
        generation += 1
        stale = stale + 1 if run.count == before else 0


class _Run:
    """Evaluates networks once, and records them."""

    def __init__(
        self, model: CostModel, score: Score, screen: Score | None, history: History, reference_ms: float, total: int,
        progress: Progress | None, ahead: Ahead | None,
    ) -> None:  # fmt: skip
        self.ahead = ahead
        self.model, self.history, self.reference_ms, self.total, self.progress = model, history, reference_ms, total, progress
        self.scores = {SEARCH: score} if screen is None else {SEARCH: score, SCREEN: screen}
        self.screened, self.scored = dict[str, Evaluation](), dict[str, Evaluation]()
        self.done: set[tuple[str, str]] = set()

    @property
    def count(self) -> int:
        """Networks scored on all images."""
        return len(self.scored)

    def survivors(self, genotypes: list[Genotype], generation: int) -> list[Genotype]:
        """Return the networks of a generation that are scored: at most as many as are left, after a screening the best ones.

        Best are those that the fewest of all screened so far dominate (as in MOGA, Fonseca and Fleming 1993), then by mIoU.
        """
        known, fresh = [g for g in genotypes if g.id in self.scored], [g for g in genotypes if g.id not in self.scored]
        room = self.total - self.count
        if SCREEN not in self.scores:
            return known + fresh[:room]
        most = room if generation == 0 else math.ceil(room / SURVIVING)
        self.announce(SCREEN, fresh[:most])
        found = [self.evaluate(genotype, SCREEN, generation) for genotype in fresh[:most]]
        if generation == 0:
            return [evaluation.genotype for evaluation in found]
        points = np.array([[e.predicted_ms, -e.miou] for e in self.screened.values()])

        def rank(evaluation: Evaluation) -> tuple[int, float, str]:
            own = np.array([evaluation.predicted_ms, -evaluation.miou])
            dominating = (points <= own).all(axis=1) & (points < own).any(axis=1)
            return int(dominating.sum()), -evaluation.miou, evaluation.id

        best = sorted(found, key=rank)[: min(room, math.ceil(len(found) * SURVIVING))]
        return known + [evaluation.genotype for evaluation in best]

    def announce(self, kind: str, genotypes: Sequence[Genotype]) -> None:
        """Tell which networks will be scored next, without those whose scores are recorded."""
        if self.ahead is not None:
            self.ahead(kind, [genotype for genotype in genotypes if (kind == SCREEN, genotype.id) not in self.history.known])

    def evaluate(self, genotype: Genotype, kind: str, generation: int) -> Evaluation:
        """Score a network, or replay its score."""
        known = self.history.known.get((kind == SCREEN, genotype.id))
        miou = known.miou if known is not None else self.scores[kind](genotype)
        evaluation = self._evaluation(genotype, kind, generation, miou)
        self.history.add(evaluation)
        self.done.add((kind, genotype.id))
        (self.screened if kind == SCREEN else self.scored).setdefault(genotype.id, evaluation)
        if kind == SEARCH and self.progress is not None:
            self.progress(self.count, self.total, hypervolume(pareto(list(self.scored.values())), self.reference_ms))
        return evaluation

    def estimated(self, genotype: Genotype, generation: int) -> Evaluation:
        """Stand in for a network that was screened only: its mIoU there, corrected by what all images changed in others' mean."""
        if genotype.id not in self.screened:  # the search ends here
            return self.broken(genotype, generation)
        pairs = [(e.miou, self.screened[id].miou) for id, e in self.scored.items() if id in self.screened]
        shift = sum(whole - few for whole, few in pairs) / max(1, len(pairs))
        found = self.screened[genotype.id]
        return replace(found, miou=min(1.0, max(0.0, found.miou + shift)))

    def broken(self, genotype: Genotype, generation: int) -> Evaluation:
        """Stand in for a network that exceeds a limit: never scored, never recorded."""
        return self._evaluation(genotype, SEARCH, generation, 0.0)

    def _evaluation(self, genotype: Genotype, kind: str, generation: int, miou: float) -> Evaluation:
        costs = self.model.costs(genotype)
        return Evaluation(
            kind, generation, genotype.id, genotype, miou, costs.latency_ms, costs.parameters, costs.macs, costs.memory_mib
        )

"""Search with an optimiser of your own: python docs/own_optimiser.py (runs/demo holds a trained supernet and a latency table)."""

from pathlib import Path

import numpy as np

from hyctas.cli.search import SearchJob
from hyctas.commands.search import run_search
from hyctas.space import tiny


class Mutants:
    """Change a gene or so of the four most accurate networks of the last generation."""

    def __init__(self, first):
        self.best, self.rng, self.space = list(first), np.random.default_rng(0), tiny()

    def ask(self):  # the genotypes of the next generation
        return [self.space.decode(self.space.mutate(self.space.encode(genotype), self.rng)) for genotype in self.best]

    def tell(self, evaluations):  # of the networks last asked for, in their order: miou, predicted_ms, parameters, ...
        self.best = [evaluation.genotype for evaluation in sorted(evaluations, key=lambda e: -e.miou)[:4]]


if __name__ == "__main__":
    run_search(SearchJob(run=Path("runs/demo"), evaluations=12, restart=True), optimiser=Mutants)

"""Say what every search space offers: the grid spaces of `hyctas.space`, the published one, and users' own. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np

from hyctas.genotype import Genotype
from hyctas.operators import Operator

LAYOUT = 2
"""Part of every space's hash: raised when equal genotypes are lowered to other operators, or place their weights otherwise."""
Genes = np.ndarray
Ratios = tuple[float, float, float]


@runtime_checkable
class SearchSpace(Protocol):
    """A space of genotypes with integer genes."""

    @property
    def name(self) -> str:
        """What users call it; calibrations are named after it."""

    @property
    def hash(self) -> str:
        """Changes whenever the space does."""

    @property
    def branch_sets(self) -> tuple[tuple[int, ...], ...]:
        """Sets of final strides; the gene `branches` chooses one."""

    @property
    def genes(self) -> tuple[tuple[str, int], ...]:
        """Every gene's name and number of values."""

    @property
    def index(self) -> dict[str, int]:
        """Position of every gene in a vector."""

    @property
    def cardinality(self) -> Genes:
        """Number of values of every gene, int64."""

    def decode(self, genes: Genes) -> Genotype:
        """Map a gene vector to a genotype in normal form."""

    def encode(self, genotype: Genotype) -> Genes:
        """Map a genotype of the space to its canonical gene vector; InvalidInput for any other."""

    def repair(self, genes: Genes) -> Genes:
        """Return the canonical vector of the same network."""

    def sample_genes(self, rng: np.random.Generator, ratios: Ratios = ...) -> Genes:
        """Draw a gene vector; ratios (rho) weigh networks of 1, 2, 3 branches."""

    def sample(self, rng: np.random.Generator, ratios: Ratios = ...) -> Genotype:
        """Draw a genotype."""

    def mutate(self, genes: Genes, rng: np.random.Generator, rate: float | None = None) -> Genes:
        """Change a few genes."""

    def crossover(self, first: Genes, second: Genes, rng: np.random.Generator) -> tuple[Genes, Genes]:
        """Exchange genes between two vectors."""

    def largest(self) -> Genotype:
        """Return the network with most branches, depth and width."""

    def smallest(self) -> Genotype:
        """Return the network with least branches, depth and width."""

    def keys(self, size: tuple[int, int], num_classes: int = 19) -> tuple[str, ...]:
        """List the latency-table keys of all networks at an image size, sorted."""

    def cells(self) -> Iterator[tuple[Operator, int, int]]:
        """Yield every trunk operator at its largest width, with its stride and ordinal."""

    def frames(self) -> Iterator[Genotype]:
        """Yield networks that together have every other operator at its largest, most branches first."""

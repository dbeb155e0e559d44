"""Say what every search space offers: the grid spaces of `hyctas.space`, the published one, and users' own."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np

from export.errors import InvalidInput
from hyctas.arch.genotype import Genotype, normal_form
from hyctas.arch.operators import Operator

LAYOUT = 3
"""Part of every space's hash: raised when equal genotypes are lowered to other operators, or place their weights otherwise."""
Genes = np.ndarray
Ratios = tuple[float, float, float]


@runtime_checkable
class SearchSpace(Protocol):
    """A space of genotypes with integer genes; it never changes."""

    def __hash__(self) -> int:
        """Equal spaces are the same: what a space holds is listed once."""

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

    def cells(self) -> Iterator[tuple[str, Operator]]:
        """Yield the slot of every cell, with an operator that is at least as wide as any that a network puts there."""

    def covering_networks(self) -> Iterator[Genotype]:
        """Yield networks that together have every other operator at its largest, most branches first."""


class GeneVectors:
    """What follows from a space's named genes, whatever they mean: the spaces of this project share it.

    A space adds `name`, `genes`, `decode`, `candidates` (the vectors that a genotype may have) and `sample_genes`, and says in
    `varied` how one gene changes.
    """

    @cached_property
    def index(self: SearchSpace) -> dict[str, int]:
        """Position of every gene in a vector."""
        return {name: position for position, (name, _) in enumerate(self.genes)}

    @cached_property
    def cardinality(self: SearchSpace) -> Genes:
        """Number of values of every gene, int64."""
        return np.array([count for _, count in self.genes], dtype=np.int64)

    def checked(self: SearchSpace, genes: Genes) -> Genes:
        """Return a gene vector as an array.

        Raises:
            InvalidInput: wrong length, or a gene outside its range; the text names it.
        """
        genes = np.asarray(genes)
        if genes.shape != self.cardinality.shape:
            raise InvalidInput(f"space {self.name} has {len(self.genes)} genes, got a vector of shape {genes.shape}")
        if wrong := [name for (name, count), value in zip(self.genes, genes, strict=True) if not 0 <= value < count]:
            raise InvalidInput(f"genes out of range: {', '.join(wrong)}")
        return genes

    def encode(self: SearchSpace, genotype: Genotype) -> Genes:
        """Map a genotype of the space to a gene vector; genes that play no role are 0.

        Raises:
            InvalidInput: the genotype is not of this space.
        """
        genotype = normal_form(genotype)
        try:
            for genes in self.candidates(genotype):  # type: ignore[attr-defined]
                if self.decode(genes) == genotype:
                    return genes
        except (ValueError, KeyError, IndexError):
            pass
        raise InvalidInput(f"genotype {genotype.id} is not of the space {self.name}")

    def sample(self: SearchSpace, rng: np.random.Generator, ratios: Ratios = (1.0, 1.0, 1.0)) -> Genotype:
        """Draw a genotype (see `sample_genes`)."""
        return self.decode(self.sample_genes(rng, ratios))

    def mutate(self, genes: Genes, rng: np.random.Generator, rate: float | None = None) -> Genes:
        """Change every gene with probability `rate` (default: two genes on average, at least one); see `varied`."""
        rate = 2 / len(genes) if rate is None else rate
        chosen = rng.random(len(genes)) < rate
        chosen[rng.integers(len(genes))] = True
        mutated = genes.copy()
        for position in np.flatnonzero(chosen):
            mutated[position] = self.varied(int(position), int(genes[position]), rng)
        return mutated

    def varied(self, position: int, value: int, rng: np.random.Generator) -> int:
        """Return a gene's mutated value: widths mostly move by one step, everything else is redrawn."""
        name, count = self.genes[position]  # type: ignore[attr-defined]
        if ".width" in name and rng.random() < 0.8:
            return int(np.clip(value + rng.choice((-1, 1)), 0, count - 1))
        return int(rng.integers(count))

    def crossover(self: SearchSpace, first: Genes, second: Genes, rng: np.random.Generator) -> tuple[Genes, Genes]:
        """Exchange genes between two vectors: whole branches half of the time, else gene by gene."""
        if rng.random() < 0.5:
            groups = np.array([name.split(".")[0] for name, _ in self.genes])
            names = np.unique(groups)
            swap = np.isin(groups, names[rng.random(len(names)) < 0.5])
        else:
            swap = rng.random(len(first)) < 0.5
        return np.where(swap, second, first), np.where(swap, first, second)

    def repair(self: SearchSpace, genes: Genes) -> Genes:
        """Return the canonical vector of the same network (ignored genes at 0), values clipped into range."""
        return self.encode(self.decode(np.clip(genes, 0, self.cardinality - 1)))


def genes_in(space: SearchSpace, genotype: Genotype) -> Genes | None:
    """Return a network's genes; None where it is not of the space."""
    try:
        return space.encode(genotype)
    except InvalidInput:
        return None

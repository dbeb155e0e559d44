"""The released search space: three rows of a grid (1/8, 1/16, 1/32) of L layers, 1 to 3 branches, fixed stem and head. No torch.

| gene                | values | meaning                                                                       |
|---------------------|--------|-------------------------------------------------------------------------------|
| `branches`          | 7      | which final strides: any set of 8, 16, 32                                      |
| `b16.downs`         | 19     | the layer that down-samples (not the last one); L = 20                         |
| `b32.downs`         | 171    | the two layers that down-sample                                                |
| `b<final>.<l>.op`   | 5      | skip, conv, downup, downup2x, attention; a skip that keeps the scale is pruned |
| `b<final>.<l>.width`| 5      | width multiplier 1/3 to 1 of a layer's output; the last one's is fixed at 1     |

Every value of a gene is equally likely in a draw, and draws that break a rule of compaction are drawn again: so draws are uniform
over the valid vectors of a branch count. Branches with equal leading cells share them (`hyctas.arch.genotype.shared_length`).
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from export.errors import InvalidInput
from hyctas.arch.genotype import Branch, Cell, Genotype, normal_form
from hyctas.arch.node import cell_operator, slot_name
from hyctas.arch.operators import Operator
from hyctas.published.compaction import broken, kept
from hyctas.published.frame import ARITHMETIC, OPERATORS, SCALES, WIDTHS, cell, channels, check_base, complete, head_kind
from hyctas.spaces.search_space import LAYOUT, Genes, GeneVectors

FINALS = SCALES


@dataclass(frozen=True, kw_only=True)
class PublishedSpace(GeneVectors):
    """The released space; what a search needs of it is as in `hyctas.space.Space`."""

    layers: int = 20
    """Layers of every branch before pruning (L; inferred from the released networks)."""
    base_channels: int = 16
    """Base width F of all channel numbers."""
    head: int | str = 1
    """Head of every network: 1, 2, or 0 ("light")."""

    def __post_init__(self) -> None:
        check_base(self.base_channels)
        head_kind(self.head)
        if self.layers < 6:
            raise InvalidInput(f"the published space needs at least 6 layers for two down-samplings, not {self.layers}")

    @property
    def name(self) -> str:
        """The space's name; variants of it name what differs."""
        base = "" if self.base_channels == 16 else f"-base{self.base_channels}"
        layers = "" if self.layers == 20 else f"-layers{self.layers}"
        head = "" if head_kind(self.head) == "head1" else f"-{head_kind(self.head)}"
        return f"published{base}{layers}{head}"

    @cached_property
    def hash(self) -> str:
        """The first 12 hexadecimal digits of the sha256 of what defines the space."""
        value = [LAYOUT, self.layers, self.base_channels, head_kind(self.head), OPERATORS, WIDTHS, SCALES]
        return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]

    @cached_property
    def branch_sets(self) -> tuple[tuple[int, ...], ...]:
        """Sets of final strides."""
        return tuple(chosen for count in (1, 2, 3) for chosen in itertools.combinations(FINALS, count))

    @cached_property
    def paths(self) -> dict[int, tuple[tuple[int, ...], ...]]:
        """Per final stride, every choice of the layers that down-sample."""
        places = range(self.layers - 1)
        return {final: tuple(itertools.combinations(places, count)) for count, final in enumerate(FINALS)}

    @cached_property
    def genes(self) -> tuple[tuple[str, int], ...]:
        """Name every gene with its cardinality. Genes of branches that a network lacks are ignored."""
        genes = [("branches", len(self.branch_sets))]
        for final in FINALS:
            genes.append((f"b{final}.downs", len(self.paths[final])))
            genes += [(f"b{final}.{layer}.op", len(OPERATORS)) for layer in range(self.layers)]
            genes += [(f"b{final}.{layer}.width", len(WIDTHS)) for layer in range(self.layers - 1)]
        return tuple(genes)

    # -- genes and genotypes ---------------------------------------------------------------------------------------------

    def decode(self, genes: Genes) -> Genotype:
        """Map a gene vector to the genotype it describes, in normal form; grids that break a rule are repaired.

        Raises:
            InvalidInput: wrong length, or a gene outside its range; the text names it.
        """
        genes = self.checked(genes)
        chosen = self.branch_sets[int(genes[0])]
        return normal_form(complete(tuple(self._branch(genes, final) for final in chosen), self.base_channels, self.head))

    def _grid(self, genes: Genes, final: int) -> tuple[list[int], tuple[int, ...], list[int]]:
        """Return operators, down-sampling layers and widths of a branch."""
        start = self.index[f"b{final}.downs"]
        ops = [int(value) for value in genes[start + 1 : start + 1 + self.layers]]
        widths = [int(value) for value in genes[start + 1 + self.layers : start + 2 * self.layers]]
        return ops, self.paths[final][int(genes[start])], widths

    def _branch(self, genes: Genes, final: int) -> Branch:
        ops, downs, widths = self._grid(genes, final)
        for layer in broken(ops, downs):
            ops[layer] = OPERATORS.index("conv")
        cells, row = list[Cell](), 0
        layers = kept(ops, downs)
        for layer in layers:
            down = layer in downs
            row += down
            width = 1.0 if layer == layers[-1] else WIDTHS[widths[layer]]
            cells.append(cell(OPERATORS[ops[layer]], channels(SCALES[row], self.base_channels, width), 1 + down))
        return tuple(cells)

    def candidates(self, genotype: Genotype) -> Iterator[Genes]:
        """Yield the vector that a genotype in normal form may have: its cells first, then skips; unused genes are 0."""
        genes = np.zeros(len(self.genes), dtype=np.int64)
        genes[0] = self.branch_sets.index(genotype.final_strides)
        for final, branch in zip(genotype.final_strides, genotype.branches, strict=True):
            self._encode(genes, final, branch)
        yield genes

    def _encode(self, genes: Genes, final: int, branch: Branch) -> None:
        start, row = self.index[f"b{final}.downs"], 0
        downs = tuple(layer for layer, one in enumerate(branch) if one.stride == 2)
        genes[start] = self.paths[final].index(downs)
        for layer, one in enumerate(branch):
            row += one.stride - 1
            genes[start + 1 + layer] = OPERATORS.index(one.op)
            if layer < len(branch) - 1:
                widths = [channels(SCALES[row], self.base_channels, width) for width in WIDTHS]
                genes[start + 1 + self.layers + layer] = widths.index(one.out)

    # -- drawing and varying -----------------------------------------------------------------------------------------------

    def sample_genes(self, rng: np.random.Generator, ratios: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Genes:
        """Draw a gene vector: the number of branches with the given ratios (rho), then uniformly among its valid vectors.

        Raises:
            InvalidInput: the ratios are negative or all 0.
        """
        weights = np.array(ratios, dtype=float)
        if weights.shape != (3,) or (weights < 0).any() or not weights.sum() > 0:
            raise InvalidInput(f"branch ratios {ratios} must be three numbers, none negative, not all 0")
        branches = 1 + int(rng.choice(3, p=weights / weights.sum()))
        sets = [chosen for chosen in self.branch_sets if len(chosen) == branches]
        sizes = np.array([np.prod([len(self.paths[final]) for final in chosen]) for chosen in sets], dtype=float)
        while True:
            genes = rng.integers(0, self.cardinality)
            chosen = sets[int(rng.choice(len(sets), p=sizes / sizes.sum()))]
            genes[0] = self.branch_sets.index(chosen)
            if not any(broken(*self._grid(genes, final)[:2]) for final in chosen):
                return genes

    def varied(self, position: int, value: int, rng: np.random.Generator) -> int:
        """Return a gene's mutated value: a down-sampling moves by up to three layers, else as in any space."""
        name, count = self.genes[position]
        if name.endswith(".downs") and count > 1:
            return self._moved(name, value, rng)
        return super().varied(position, value, rng)

    def _moved(self, name: str, value: int, rng: np.random.Generator) -> int:
        """Return a choice of down-sampling layers that moves one of them by up to three."""
        paths = self.paths[int(name.partition(".")[0][1:])]
        downs = list(paths[value])
        which = int(rng.integers(len(downs)))
        downs[which] += int(rng.choice((-3, -2, -1, 1, 2, 3)))
        moved = tuple(sorted(min(max(down, 0), self.layers - 2) for down in downs))
        return paths.index(moved) if moved in paths else value

    # -- extent ------------------------------------------------------------------------------------------------------------

    def uniform(self, finals: tuple[int, ...], op: str, width: int) -> Genotype:
        """Return the network whose layers all have one operator and width; it down-samples as early as it can."""
        genes = np.zeros(len(self.genes), dtype=np.int64)
        genes[0] = self.branch_sets.index(finals)
        for final in finals:
            start = self.index[f"b{final}.downs"]
            genes[start + 1 : start + 1 + self.layers] = OPERATORS.index(op)
            genes[start + 1 + self.layers : start + 2 * self.layers] = width
        return self.decode(genes)

    def largest(self) -> Genotype:
        """Return the network with three branches, all layers, full width, plain convolutions; it shares hardly a cell."""
        return self.uniform(FINALS, "conv", len(WIDTHS) - 1)

    def smallest(self) -> Genotype:
        """Return the narrowest network with one branch and as few layers as allowed, down-sampling at once."""
        return self.uniform((32,), "skip", 0)

    def keys(self, size: tuple[int, int], num_classes: int = 19) -> tuple[str, ...]:
        """List the latency-table keys of all networks of the space at an image size, sorted."""
        from hyctas.plan import lower

        keys: set[str] = set()
        for genotype in self._covering(size):
            keys.update(node.key for node in lower(genotype, size, num_classes).nodes)
        return tuple(sorted(keys))

    def _covering(self, size: tuple[int, int]) -> Iterator[Genotype]:
        """Yield networks that together contain every operator at every pair of widths.

        All but the last cell of a branch have free widths, and its end has full width: two cells and an end show every pair.
        A network is padded to a multiple of its largest final stride; where that gives other shapes, they are shown too.
        """
        steps = range(len(WIDTHS))
        padded = {final: (-(-size[0] // final) * final, -(-size[1] // final) * final) for final in FINALS}
        for final in FINALS:
            if final < FINALS[-1] and padded[final] == padded[FINALS[-1]]:
                continue
            for row in SCALES[: SCALES.index(final) + 1]:
                for op, stride in itertools.product(OPERATORS, (1, 2)):
                    if (op == "skip" and stride == 1) or (stride == 2 and row == final):
                        continue
                    for before, after in itertools.product(steps, steps):
                        yield self._chain(final, row, op, stride, WIDTHS[before], WIDTHS[after])
        for finals in self.branch_sets:
            ends = [self._chain(final, 8, "conv", 1, 1.0, 1.0).branches[0] for final in finals]
            yield normal_form(complete(tuple(ends), self.base_channels, self.head))

    def _chain(self, final: int, row: int, op: str, stride: int, before: float, after: float) -> Genotype:
        """Return a network with one branch: conv to width `before` at a row, the operator to width `after`, conv to the end.

        Widths elsewhere are `before` too, so that every row leaves with it.
        """
        base, cells, scale = self.base_channels, list[Cell](), 8
        while True:
            if scale == row:
                cells.append(cell("conv", channels(scale, base, before), 1))
                cells.append(cell(op, channels(scale * stride, base, after), stride))
                scale *= stride
            if scale == final:
                break
            scale *= 2
            cells.append(cell("conv", channels(scale, base, before), 2))
        cells.append(cell("conv", channels(final, base), 1))
        return normal_form(complete((tuple(cells),), base, self.head))

    def cells(self) -> Iterator[tuple[str, Operator]]:
        """Yield the slot and the operator of every trunk cell at its largest width: what a supernet must hold."""
        for operator, stride, ordinal in self._cells():
            yield slot_name("trunk", stride, ordinal, operator), operator

    def _cells(self) -> Iterator[tuple[Operator, int, int]]:
        for position, row in enumerate(SCALES):
            width = channels(row, self.base_channels)
            for ordinal in range(self.layers - position):
                for op in OPERATORS[1:]:
                    yield cell_operator(cell(op, width, 1), (width,), ARITHMETIC), row, ordinal
                # an attention that changes the width has one more layer, its shortcut
                narrow = channels(row, self.base_channels, WIDTHS[0])
                yield cell_operator(cell("attention", width, 1), (narrow,), ARITHMETIC), row, ordinal
                yield cell_operator(cell("attention", narrow, 1), (width,), ARITHMETIC), row, ordinal
                if row == 32 or ordinal > self.layers - 2:
                    continue
                wide = channels(row * 2, self.base_channels)
                for op in OPERATORS:
                    yield cell_operator(cell(op, wide, 2), (width,), ARITHMETIC), row, ordinal

    def covering_networks(self) -> Iterator[Genotype]:
        """Yield the largest networks of every branch set, most branches first."""
        for finals in sorted(self.branch_sets, key=lambda chosen: -len(chosen)):
            yield self.uniform(finals, "conv", len(WIDTHS) - 1)

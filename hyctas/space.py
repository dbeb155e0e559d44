"""Define search spaces: one table each, and everything that a search needs of it.

A space is a grid: the stem, three rows of cells (strides 8, 16, 32) per branch, the way back, the head. Every stride has one
ladder of widths, which stem, cells, fusion and head all use, so the operators of all networks of a space are few enough to be
measured one by one. Every network has a branch that ends at stride 32; so all are padded alike, and one table is exact.

Genes are integers (`Space.genes` names them with their cardinality). `decode` maps a vector to a genotype, `encode` back.
A user's own space is a short file: see `docs/own_space.py`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from export.errors import InvalidInput
from hyctas.genotype import (
    CELL_OPERATORS,
    HEAD_BLOCKS,
    HEAD_KINDS,
    Arithmetic,
    Attention,
    Branch,
    Cell,
    Fusion,
    Genotype,
    Head,
    StemConv,
    normal_form,
)
from hyctas.node import cell_operator
from hyctas.operators import Operator
from hyctas.published.space import PublishedSpace
from hyctas.search_space import LAYOUT, Genes, GeneVectors, SearchSpace

ROWS = (8, 16, 32)


@dataclass(frozen=True)
class AttentionVariant:
    """A kind of self-attention, for any width."""

    heads: int = 1
    qk_divisor: int = 8
    """Channels of q and k: width / qk_divisor, at least 8 per head."""
    pool: int = 1
    half_resolution: bool = False

    def at(self, channels: int) -> Attention:
        """Return the choice at a width; logits are scaled by 1 / sqrt(channels per head)."""
        qk = max(8 * self.heads, channels // self.qk_divisor // self.heads * self.heads)
        scale = round(float((qk / self.heads) ** -0.5), 6)
        return Attention(self.heads, qk, scale, self.pool, self.half_resolution)


@dataclass(frozen=True, kw_only=True)
class Space(GeneVectors):
    """A search space."""

    name: str
    widths: tuple[tuple[int, tuple[int, ...]], ...]
    """Per stride 2, 4, 8, 16, 32: its ladder of widths, ascending."""
    stem_depth: tuple[int, ...]
    """Choices for the number of extra convolutions at stride 4."""
    row_depth: tuple[int, int, int]
    """Most stride-1 cells of a branch at strides 8, 16, 32."""
    operators: tuple[str, ...] = ("skip", "conv", "downup", "downup2x", "attention")
    """Choices for a stride-1 cell; skip means no cell."""
    down_operators: tuple[str, ...] = ("skip", "conv", "downup", "downup2x")
    """Choices for a stride-2 cell."""
    attention: tuple[AttentionVariant, ...]
    """Kinds of self-attention; one per network. A cell of self-attention keeps the width of its input."""
    branch_sets: tuple[tuple[int, ...], ...] = ((32,), (8, 32), (16, 32), (8, 16, 32))
    """Sets of final strides, each with 32."""
    heads: tuple[str, ...] = ("light", "head1", "head2")
    head_blocks: tuple[str, ...] = ("conv", "downup2x")

    def __post_init__(self) -> None:
        strides = [stride for stride, _ in self.widths]
        if strides != [2, 4, 8, 16, 32]:
            raise InvalidInput(f"space {self.name}: widths are given for strides {strides}, expected 2, 4, 8, 16, 32")
        for stride, ladder in self.widths:
            if not ladder or list(ladder) != sorted(set(ladder)) or any(width % 8 for width in ladder):
                raise InvalidInput(f"space {self.name}: widths at stride {stride} must ascend in multiples of 8: {ladder}")
        problems = {
            "branch_sets: each ascends and holds 32, and (8, 16, 32) is among them": (8, 16, 32) not in self.branch_sets
            or any(32 not in chosen or list(chosen) != sorted({*chosen} & {*ROWS}) for chosen in self.branch_sets),
            f"operators: some of {CELL_OPERATORS}, conv and skip among them": not {"conv", "skip"} <= {*self.operators}
            or not {*self.operators} <= {*CELL_OPERATORS},
            "down_operators: conv is among them, attention is not, all are known": "conv" not in self.down_operators
            or not {*self.down_operators} <= {*CELL_OPERATORS} - {"attention"},
            "row_depth: three numbers, at least 1, 0, 0": len(self.row_depth) != 3
            or min(self.row_depth[0] - 1, *self.row_depth) < 0,
            "stem_depth: at least one number, none negative": min(self.stem_depth, default=-1) < 0,
            f"heads: some of {HEAD_KINDS}": not self.heads or not {*self.heads} <= {*HEAD_KINDS},
            f"head_blocks: some of {HEAD_BLOCKS}": not self.head_blocks or not {*self.head_blocks} <= {*HEAD_BLOCKS},
        }
        for rule, broken in problems.items():
            if broken:
                field = rule.partition(":")[0]
                raise InvalidInput(f"space {self.name}: {field} is {getattr(self, field)}; the rule is: {rule}")
        if "attention" in self.operators and not self.attention:
            raise InvalidInput(f"space {self.name}: attention is an operator but no variant is given")
        self.largest()  # every width can be decoded

    def ladder(self, stride: int) -> tuple[int, ...]:
        """Return the widths at a stride."""
        return dict(self.widths)[stride]

    @cached_property
    def hash(self) -> str:
        """The first 12 hexadecimal digits of the sha256 of the table."""
        value = {"layout": LAYOUT, **dataclasses.asdict(self)}
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]

    @cached_property
    def genes(self) -> tuple[tuple[str, int], ...]:
        """Name every gene with its cardinality. Genes of branches that a network lacks are ignored."""

        def widths(stride: int) -> int:
            return len(self.ladder(stride))

        genes = [("branches", len(self.branch_sets)), ("attention", max(1, len(self.attention)))]
        genes += [(f"stem.width{stride}", widths(stride)) for stride in (2, 4, 8)]
        genes += [("stem.depth", len(self.stem_depth)), ("fusion.width", min(widths(8), widths(16)))]
        genes += [("head.kind", len(self.heads)), ("head.block", len(self.head_blocks))]
        genes += [("head.width", min(widths(4), widths(8))), ("head.attention", 2 if self.attention else 1)]
        for final in ROWS:
            for row, depth in zip(ROWS, self.row_depth, strict=True):
                if row > final:
                    continue
                if row > 8:
                    genes += [(f"b{final}.down{row}.op", len(self.down_operators)), (f"b{final}.down{row}.width", widths(row))]
                for i in range(depth):
                    genes += [(f"b{final}.s{row}.{i}.op", len(self.operators)), (f"b{final}.s{row}.{i}.width", widths(row))]
        return tuple(genes)

    # -- genes and genotypes ---------------------------------------------------------------------------------------------

    def decode(self, genes: Genes) -> Genotype:
        """Map a gene vector to the genotype it describes, in normal form.

        Raises:
            InvalidInput: wrong length, or a gene outside its range; the text names it.
        """
        g = {name: int(value) for (name, _), value in zip(self.genes, self.checked(genes), strict=True)}
        return normal_form(
            Genotype(
                stem=self._stem(g),
                branches=tuple(self._branch(g, final) for final in self.branch_sets[g["branches"]]),
                fusion=self._fusion(g),
                head=self._head(g),
            )
        )

    def _stem(self, g: dict[str, int]) -> tuple[StemConv, ...]:
        w2, w4, w8 = (self.ladder(stride)[g[f"stem.width{stride}"]] for stride in (2, 4, 8))
        extra = (StemConv(w4, 1),) * self.stem_depth[g["stem.depth"]]
        return (StemConv(w2, 2), StemConv(w4, 2), *extra, StemConv(w8, 2))

    def _branch(self, g: dict[str, int], final: int) -> Branch:
        cells: list[Cell] = []
        width = self.ladder(8)[g["stem.width8"]]
        for row, depth in zip(ROWS, self.row_depth, strict=True):
            if row > final:
                break
            if row > 8:
                width = self.ladder(row)[g[f"b{final}.down{row}.width"]]
                cells.append(Cell(self.down_operators[g[f"b{final}.down{row}.op"]], width, 2))
            for i in range(depth):
                op = self.operators[g[f"b{final}.s{row}.{i}.op"]]
                if op == "attention":
                    cells.append(Cell(op, width, 1, self.attention[g["attention"]].at(width)))
                elif op != "skip":
                    width = self.ladder(row)[g[f"b{final}.s{row}.{i}.width"]]
                    cells.append(Cell(op, width))
        if not cells:  # repair: a branch that ends at stride 8 has at least one cell
            cells.append(Cell("conv", self.ladder(8)[g[f"b{final}.s8.0.width"]]))
        return tuple(cells)

    def _fusion(self, g: dict[str, int]) -> Fusion:
        level = g["fusion.width"]
        return Fusion(self.ladder(16)[level], self.ladder(8)[level], self.ladder(8)[level])

    def _head(self, g: dict[str, int]) -> Head:
        kind, level = self.heads[g["head.kind"]], g["head.width"]
        channels = self.ladder(8 if kind == "light" else 4)[level]
        attention = None
        if g["head.attention"]:
            half_resolution = dataclasses.replace(self.attention[g["attention"]], pool=1, half_resolution=True)
            attention = half_resolution.at(self._fusion(g).out)
        return Head(
            kind, channels, self.head_blocks[g["head.block"]], low4=0 if kind == "light" else channels,
            low8=self.ladder(8)[0] if kind == "head2" else 0, attention=attention,
        )  # fmt: skip

    def encode(self, genotype: Genotype) -> Genes:
        """Map a genotype of this space to a gene vector; genes that play no role are 0.

        Raises:
            InvalidInput: the genotype is not of this space.
        """
        genotype = normal_form(genotype)
        genes = np.zeros(len(self.genes), dtype=np.int64)
        try:
            for name, value in self._encoded(genotype):
                genes[self.index[name]] = value
            for variant in range(max(1, len(self.attention))):
                genes[self.index["attention"]] = variant
                if self.decode(genes) == genotype:
                    return genes
        except (ValueError, KeyError, IndexError):
            pass
        raise InvalidInput(f"genotype {genotype.id} is not of the space {self.name}")

    def _encoded(self, genotype: Genotype) -> Iterator[tuple[str, int]]:
        stem, head = genotype.stem, genotype.head
        yield "branches", self.branch_sets.index(genotype.final_strides)
        yield "stem.width2", self.ladder(2).index(stem[0].out)
        yield "stem.width4", self.ladder(4).index(stem[1].out)
        yield "stem.width8", self.ladder(8).index(stem[-1].out)
        yield "stem.depth", self.stem_depth.index(len(stem) - 3)
        yield "fusion.width", self.ladder(8).index(genotype.fusion.refine8)
        yield "head.kind", self.heads.index(head.kind)
        yield "head.block", self.head_blocks.index(head.block)
        yield "head.width", self.ladder(8 if head.kind == "light" else 4).index(head.channels)
        yield "head.attention", int(head.attention is not None)
        for final, branch in zip(genotype.final_strides, genotype.branches, strict=True):
            row, position = 8, 0
            for cell in branch:
                if cell.stride == 2:
                    row, position = row * 2, 0
                    yield f"b{final}.down{row}.op", self.down_operators.index(cell.op)
                    yield f"b{final}.down{row}.width", self.ladder(row).index(cell.out)
                    continue
                yield f"b{final}.s{row}.{position}.op", self.operators.index(cell.op)
                if cell.op != "attention":
                    yield f"b{final}.s{row}.{position}.width", self.ladder(row).index(cell.out)
                position += 1

    # -- drawing and varying -----------------------------------------------------------------------------------------------

    def sample_genes(self, rng: np.random.Generator, ratios: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Genes:
        """Draw a gene vector: the number of branches with the given ratios (rho), then within it.

        Row depths and a band of widths are drawn first, so that draws spread over small and large networks; branches share a
        random prefix half of the time.
        """
        counts = np.array([ratios[len(chosen) - 1] for chosen in self.branch_sets], dtype=float)
        per_count = [sum(len(other) == len(chosen) for other in self.branch_sets) for chosen in self.branch_sets]
        weights = counts / np.array(per_count)
        if not weights.sum() > 0:
            raise InvalidInput(f"branch ratios {ratios} leave space {self.name} without a network")
        genes = rng.integers(0, self.cardinality)
        genes[self.index["branches"]] = rng.choice(len(self.branch_sets), p=weights / weights.sum())
        low = rng.random()
        high = rng.uniform(low, 1.0)
        keep = rng.random()
        for position, (name, count) in enumerate(self.genes):
            if ".width" in name:
                genes[position] = rng.integers(int(low * count), max(int(low * count), int(high * count)) + 1) % count
            elif ".op" in name and ".down" not in name and rng.random() > keep and "skip" in self.operators:
                genes[position] = self.operators.index("skip")
        if rng.random() < 0.5:
            self._share_prefix(genes, rng)
        return genes

    def mutate(self, genes: Genes, rng: np.random.Generator, rate: float | None = None) -> Genes:
        """Change some genes (see `GeneVectors.mutate`); sometimes share a prefix among the branches."""
        mutated = super().mutate(genes, rng, rate)
        if rng.random() < 0.1:
            self._share_prefix(mutated, rng)
        return mutated

    def _share_prefix(self, genes: Genes, rng: np.random.Generator) -> None:
        """Copy a random number of leading cells from one branch to all others, in place."""
        source = int(rng.choice(ROWS))
        length = int(rng.integers(1, 2 * (sum(self.row_depth) + 2)))
        prefix = [name.partition(".")[2] for name, _ in self.genes if name.startswith(f"b{source}.")][:length]
        for final in ROWS:
            for name in prefix:
                target = self.index.get(f"b{final}.{name}")
                if target is not None:
                    genes[target] = genes[self.index[f"b{source}.{name}"]]

    # -- extent ------------------------------------------------------------------------------------------------------------

    def corner(self, *, largest: bool, branches: int | None = None, **overrides: int) -> Genotype:
        """Return the genotype with all widths and depths at their largest or smallest.

        Overrides set single genes by name (dots written as two underscores).
        """
        genes = (self.cardinality - 1) if largest else np.zeros_like(self.cardinality)
        by_size = sorted(range(len(self.branch_sets)), key=lambda i: len(self.branch_sets[i]))
        genes[self.index["branches"]] = by_size[-1 if largest else 0]
        for position, (name, _) in enumerate(self.genes):
            if name.endswith(".op"):
                choices = self.down_operators if ".down" in name else self.operators
                wanted = "conv" if largest else "skip" if "skip" in choices else choices[0]
                genes[position] = choices.index(wanted)
            elif name == "head.attention":
                genes[position] = 0
        if branches is not None:
            genes[self.index["branches"]] = branches
        for name, value in overrides.items():
            genes[self.index[name.replace("__", ".")]] = value
        return self.decode(genes)

    def largest(self) -> Genotype:
        """Return the network with most branches, depth and width, plain convolutions throughout."""
        return self.corner(largest=True)

    def smallest(self) -> Genotype:
        """Return the network with one branch and least depth and width."""
        return self.corner(largest=False)

    def keys(self, size: tuple[int, int], num_classes: int = 19) -> tuple[str, ...]:
        """List the latency-table keys of all networks of the space at an image size, sorted."""
        from hyctas.keys import space_keys

        return space_keys(self, size, num_classes)

    def cells(self) -> Iterator[tuple[Operator, int, int]]:
        """Yield every trunk operator at its largest width, with its stride and ordinal."""
        for row, depth in zip(ROWS, self.row_depth, strict=True):
            width = self.ladder(row)[-1]
            chosen = [Cell(op, width) for op in self.operators if op not in ("skip", "attention")]
            if "attention" in self.operators:
                chosen += [Cell("attention", width, 1, variant.at(width)) for variant in self.attention]
            for ordinal, cell in itertools.product(range(depth), chosen):
                yield cell_operator(cell, (width,), Arithmetic()), row, ordinal
            for ordinal, op in itertools.product(range(depth + 1), self.down_operators if row < 32 else ()):
                yield cell_operator(Cell(op, self.ladder(row * 2)[-1], 2), (width,), Arithmetic()), row, ordinal

    def frames(self) -> Iterator[Genotype]:
        """Yield the largest networks of every stem depth, head and branch set, most branches first."""
        by_size = sorted(range(len(self.branch_sets)), key=lambda index: -len(self.branch_sets[index]))
        attention = range(len(self.attention) + 1 if self.attention else 1)
        choices = (range(len(self.stem_depth)), range(len(self.heads)), range(len(self.head_blocks)), attention)
        for branches, depth, kind, block, variant in itertools.product(by_size, *choices):
            yield self.corner(
                largest=True, branches=branches, stem__depth=depth, head__kind=kind, head__block=block,
                head__attention=min(variant, 1), attention=max(variant - 1, 0),
            )  # fmt: skip


def edge() -> Space:
    """The space to search by default: from under 0.3 to about 10 GMAC at 360x480."""
    return Space(
        name="edge",
        widths=(
            (2, (8, 16, 24, 32)),
            (4, (16, 24, 32, 48, 64)),
            (8, (32, 48, 64, 96, 128)),
            (16, (48, 64, 96, 128, 192)),
            (32, (64, 96, 128, 192, 256)),
        ),
        stem_depth=(0, 1, 2),
        row_depth=(4, 4, 4),
        attention=(
            AttentionVariant(heads=1, half_resolution=True),
            AttentionVariant(heads=1),
            AttentionVariant(heads=1, pool=2),
            AttentionVariant(heads=4, qk_divisor=4, pool=2),
        ),
    )


def tiny() -> Space:
    """The same shape, small enough for tests and the demo."""
    return Space(
        name="tiny",
        widths=((2, (8, 16)), (4, (16, 24)), (8, (24, 40)), (16, (32, 56)), (32, (48, 80))),
        stem_depth=(0, 1),
        row_depth=(2, 2, 2),
        attention=(AttentionVariant(heads=1, half_resolution=True), AttentionVariant(heads=1)),
        heads=("light", "head1"),
    )


def published(base_channels: int = 16, head: int | str = 1, layers: int = 20) -> PublishedSpace:
    """The space of the released HyCTAS code (see `hyctas.published.space`)."""
    return PublishedSpace(base_channels=base_channels, head=head, layers=layers)


SPACES: dict[str, Callable[[], SearchSpace]] = {"edge": edge, "tiny": tiny, "published": published}

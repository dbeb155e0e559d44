"""Define search spaces as a table of stages, and everything that a search needs of one.

A space is a grid: seven stages of cells, the last of them per branch, then decoder and head. Every stage has a few widths, which
decoder and head use too, and all cells of a stage have one width: so the operators of all networks are few enough to be measured
one by one, and one latency table is exact.

| part            | genes                                                                                               |
|-----------------|------------------------------------------------------------------------------------------------------|
| stem            | kind, width of stages 2, 4 and 8, and of 4 and 8 kernel, expansion, first operator; cells of stage 4  |
| per branch      | cells of stage 8; per further stage first operator, width, kernel, expansion, cells                    |
|                 | per stage whether attention stands at its end; at 1/32 whether pooled context follows                 |
| decoder, head   | branch set, decoder and its width; head's kind, block, width, attention                                |
| network         | kind of attention                                                                                     |

Genes are integers that index into named choices (`Space.choices`). `decode` maps a vector to a genotype, `encode` back.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from export.errors import InvalidInput
from hyctas.arch.genotype import DECODERS, HEAD_BLOCKS, HEAD_KINDS, STAGES, Branch, Cell, Fusion, Genotype, Head, normal_form
from hyctas.arch.operators import CELLS, Operator
from hyctas.spaces import extent
from hyctas.spaces.search_space import LAYOUT, Genes, GeneVectors
from hyctas.spaces.stages import ALIGNED, STEMS, AttentionVariant, Stage, cells_of_stages, separable_width


@dataclass(frozen=True, kw_only=True)
class Space(GeneVectors):
    """A search space."""

    name: str
    stages: tuple[Stage, ...]
    """All seven, in order."""
    stems: tuple[str, ...] = STEMS
    attention: tuple[AttentionVariant, ...] = ()
    """Kinds of self-attention; one per network."""
    context: bool = True
    """Whether pooled context can end a branch at 1/32."""
    branch_sets: tuple[tuple[int, ...], ...] = ((16,), (32,), (8, 16), (8, 32), (16, 32), (8, 16, 32))
    """Sets of final strides."""
    decoders: tuple[str, ...] = DECODERS
    heads: tuple[str, ...] = HEAD_KINDS
    head_blocks: tuple[str, ...] = HEAD_BLOCKS

    def __post_init__(self) -> None:
        if [stage.name for stage in self.stages] != list(STAGES):
            raise InvalidInput(f"space {self.name}: stages are {[s.name for s in self.stages]}, expected {', '.join(STAGES)}")
        for stage in self.stages:
            self._check_stage(stage)
        rules = {
            "branch_sets: each ascends, and the one of all final strides is among them": self.finals not in self.branch_sets
            or any(not chosen or list(chosen) != sorted({*chosen} & {8, 16, 32}) for chosen in self.branch_sets),
            f"stems: some of {STEMS}": not self.stems or not {*self.stems} <= {*STEMS},
            f"decoders: some of {DECODERS}": not self.decoders or not {*self.decoders} <= {*DECODERS},
            f"heads: some of {HEAD_KINDS}": not self.heads or not {*self.heads} <= {*HEAD_KINDS},
            f"head_blocks: some of {HEAD_BLOCKS}": not self.head_blocks or not {*self.head_blocks} <= {*HEAD_BLOCKS},
            "attention: a kind where a stage allows attention": any(s.attention for s in self.stages) and not self.attention,
        }
        self._hold(self, rules)
        self.largest()  # every width can be decoded

    @cached_property
    def operators(self) -> tuple[str, ...]:
        """Everything that a cell of a stage can be, in the order of `hyctas.arch.operators.CELLS`."""
        found = {op for stage in self.stages for op in (*stage.first, *stage.operators)} - {"skip"}
        return tuple(op for op in CELLS if op in found)

    def _check_stage(self, stage: Stage) -> None:
        widths, known = stage.widths, cells_of_stages()
        inner = stage.first[1:] if stage.stride == 1 and stage.first[:1] == ("skip",) else stage.first
        rules = {
            "widths: one to five, ascending, multiples of 8": not 1 <= len(widths) <= 5
            or list(widths) != sorted(set(widths)) or any(width % 8 for width in widths),
            "depth: at least 1": stage.depth < 1,
            f"first: some of {known}": not inner or not {*inner} <= {*known} - {"downup2x" if stage.stride == 2 else ""},
            f"operators: skip first, then some of {known}": stage.operators[:1] != ("skip",)
            or not {*stage.operators} <= {*known},
            "kernels: some of 3, 5, 7, ascending": not stage.kernels or list(stage.kernels) != sorted({*stage.kernels} & {3, 5, 7}),
            "expansions: ascending from 1": not stage.expansions or list(stage.expansions) != sorted({*stage.expansions})
            or min(stage.expansions) < 1,
        }  # fmt: skip
        self._hold(stage, rules, f" of stage {stage.name}")

    def _hold(self, owner: Space | Stage, rules: Mapping[str, bool], where: str = "") -> None:
        """Raise for the first broken rule, `field: what it must be` -> whether it is broken."""
        for rule, broken in rules.items():
            if broken:
                field = rule.partition(":")[0]
                raise InvalidInput(f"space {self.name}: {field}{where} is {getattr(owner, field)}; the rule is: {rule}")

    def stage(self, name: str) -> Stage:
        """Return a stage by its name."""
        return self.stages[STAGES.index(name)]

    @cached_property
    def hash(self) -> str:
        """The first 12 hexadecimal digits of the sha256 of the table."""
        value = {"layout": LAYOUT, **dataclasses.asdict(self)}
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]

    @cached_property
    def choices(self) -> dict[str, tuple[Any, ...]]:
        """Name every gene with what its values stand for. Genes of branches and stages that a network lacks are ignored."""
        two, four, eight = self.stages[:3]
        found: dict[str, tuple[Any, ...]] = {
            "branches": self.branch_sets, "attention": self.attention or (None,), "stem.kind": self.stems,
            "stem.2.width": two.widths, "stem.4.first": four.first, **self._shape_genes("stem.4", four),
            **self._cell_genes("stem.4", four), "stem.8.first": eight.first, **self._shape_genes("stem.8", eight),
        }  # fmt: skip
        for final in self.finals:
            found |= self._cell_genes(f"b{final}.8", eight)
            for stage in self._own_stages(final):
                found[f"b{final}.{stage.name}.first"] = stage.first
                found |= {**self._shape_genes(f"b{final}.{stage.name}", stage), **self._cell_genes(f"b{final}.{stage.name}", stage)}
            if final == 32:
                found["b32.context"] = (False, True) if self.context else (False,)
        levels = min(len(eight.widths), len(self.stage("16a").widths))
        lows = min(len(four.widths), len(eight.widths))
        return found | {
            "decoder": self.decoders, "decoder.width": tuple(range(levels)), "head.kind": self.heads,
            "head.block": self.head_blocks, "head.width": tuple(range(lows)),
            "head.attention": (False, True) if self.attention else (False,),
        }  # fmt: skip

    @property
    def finals(self) -> tuple[int, ...]:
        """Final strides of all branches that a network can have."""
        return tuple(sorted({final for chosen in self.branch_sets for final in chosen}))

    def _own_stages(self, final: int) -> tuple[Stage, ...]:
        """Return the stages that a branch has by itself: those after stage 8."""
        return tuple(stage for stage in self.stages[3:] if stage.reduction <= final)

    def _shape_genes(self, prefix: str, stage: Stage) -> dict[str, tuple[Any, ...]]:
        return {f"{prefix}.width": stage.widths, f"{prefix}.kernel": stage.kernels, f"{prefix}.expansion": stage.expansions}

    def _cell_genes(self, prefix: str, stage: Stage) -> dict[str, tuple[Any, ...]]:
        attention = {f"{prefix}.attention": (False, True)} if stage.attention else {}
        return {f"{prefix}.{i}.op": stage.operators for i in range(1, stage.depth)} | attention

    @cached_property
    def genes(self) -> tuple[tuple[str, int], ...]:
        """Name every gene with its cardinality."""
        return tuple((name, len(values)) for name, values in self.choices.items())

    def decode(self, genes: Genes) -> Genotype:
        """Map a gene vector to the genotype it describes, in normal form.

        Raises:
            InvalidInput: wrong length, or a gene outside its range; the text names it.
        """
        values = zip(self.choices.items(), self.checked(genes), strict=True)
        return self.network({name: choices[int(value)] for (name, choices), value in values})

    def network(self, chosen: Mapping[str, Any]) -> Genotype:
        """Return the network with the given choices, in normal form; genes that are not named take their first one.

        Raises:
            InvalidInput: an unknown gene, or a choice that it does not have.
        """
        for name, value in chosen.items():
            if value not in self.choices.get(name, ()):
                known = self.choices.get(name, "there is no such gene")
                raise InvalidInput(f"space {self.name}: {name} cannot be {value!r}; choices: {known}")
        g = {name: choices[0] for name, choices in self.choices.items()} | dict(chosen)
        return normal_form(
            Genotype(
                stem=self._stem(g), branches=tuple(self._branch(g, final) for final in g["branches"]), fusion=self._fusion(g),
                head=self._head(g), arithmetic=ALIGNED,
            )
        )  # fmt: skip

    def _stem(self, g: Mapping[str, Any]) -> tuple[Cell, ...]:
        two, four, eight = self.stages[:3]
        kind, width = g["stem.kind"], g["stem.2.width"]
        resnet = kind == "resnet"
        cells = [Cell("conv", width, 2, stage="2", kernel=7 if resnet else 3, relu6=not resnet)]
        if kind == "separable":
            cells.append(two.cell("inverted", separable_width(width), 1, 3, 1))
        if resnet:
            cells.append(Cell("pool", width, 2, stage="4"))
        else:
            width = g["stem.4.width"]
            cells.append(self._first(g, "stem.4", four))
        first = "pool" if resnet else g["stem.4.first"]
        cells += self._rest(g, "stem.4", four, width, g["stem.4.kernel"], g["stem.4.expansion"], first)
        return (*cells, self._first(g, "stem.8", eight))

    def _first(self, g: Mapping[str, Any], prefix: str, stage: Stage) -> Cell:
        return stage.cell(g[f"{prefix}.first"], g[f"{prefix}.width"], stage.stride, g[f"{prefix}.kernel"], g[f"{prefix}.expansion"])

    def _rest(
        self, g: Mapping[str, Any], prefix: str, stage: Stage, width: int, kernel: int, expansion: int, first: str
    ) -> list[Cell]:
        """Return a stage's cells after the first, and attention at its end."""
        ops = [g[f"{prefix}.{i}.op"] for i in range(1, stage.depth)]
        cells = [stage.cell(op, width, 1, kernel, expansion, first) for op in ops if op != "skip"]
        if g.get(f"{prefix}.attention"):
            cells.append(Cell("attention", width, 1, g["attention"].at(width), stage=stage.name))
        return cells

    def _branch(self, g: Mapping[str, Any], final: int) -> Branch:
        eight, width = self.stage("8"), g["stem.8.width"]
        shape = (g["stem.8.kernel"], g["stem.8.expansion"], g["stem.8.first"])
        cells = self._rest(g, f"b{final}.8", eight, width, *shape)
        for stage in self._own_stages(final):
            prefix = f"b{final}.{stage.name}"
            if g[f"{prefix}.first"] == "skip":
                continue
            cells.append(self._first(g, prefix, stage))
            rest = (g[f"{prefix}.width"], g[f"{prefix}.kernel"], g[f"{prefix}.expansion"], g[f"{prefix}.first"])
            cells += self._rest(g, prefix, stage, *rest)
        if final == 32 and g["b32.context"]:
            cells.append(Cell("context", cells[-1].out, 1, stage=cells[-1].stage))
        if not cells:  # repair: a branch that ends at stride 8 has at least one cell
            cells.append(eight.cell(next((op for op in eight.operators if op != "skip"), "conv"), width, 1, *shape))
        return tuple(cells)

    def _fusion(self, g: Mapping[str, Any]) -> Fusion:
        level = g["decoder.width"]
        out = self.stage("8").widths[level]
        return Fusion(out if g["decoder"] == "sum" else self.stage("16a").widths[level], out, out, g["decoder"])

    def _head(self, g: Mapping[str, Any]) -> Head:
        kind, level = g["head.kind"], g["head.width"]
        channels = self.stage("8" if kind == "light" else "4").widths[level]
        attention = None
        if g["head.attention"]:
            half_resolution = dataclasses.replace(g["attention"], pool=1, half_resolution=True)
            attention = half_resolution.at(self._fusion(g).out)
        return Head(
            kind, channels, "conv" if kind == "plain" else g["head.block"], low4=channels if kind in ("head1", "head2") else 0,
            low8=self.stage("8").widths[0] if kind == "head2" else 0, attention=attention,
        )  # fmt: skip

    def candidates(self, genotype: Genotype) -> Iterator[Genes]:
        """Yield the vectors, one per kind of attention, that a genotype in normal form may have; unused genes are 0."""
        genes = np.zeros(len(self.genes), dtype=np.int64)
        for name, value in self._chosen(genotype).items():
            genes[self.index[name]] = self.choices[name].index(value)
        for variant in range(max(1, len(self.attention))):
            genes[self.index["attention"]] = variant
            yield genes

    def _chosen(self, genotype: Genotype) -> dict[str, Any]:
        """Return the choices that a genotype shows; some may not exist in this space."""
        stem, head, fusion = genotype.stem, genotype.head, genotype.fusion
        resnet = stem[1].op == "pool"
        found: dict[str, Any] = {
            "branches": genotype.final_strides, "stem.2.width": stem[0].out,
            "stem.kind": "resnet" if resnet else "separable" if stem[1].stage == "2" else "conv",
            "decoder": fusion.decoder, "decoder.width": self.stage("8").widths.index(fusion.out),
            "head.kind": head.kind, "head.block": head.block, "head.attention": head.attention is not None,
            "head.width": self.stage("8" if head.kind == "light" else "4").widths.index(head.channels),
        }  # fmt: skip
        found |= self._seen("stem.4", [cell for cell in stem if cell.stage == "4"], after_pool=resnet)
        found |= self._seen("stem.8", [cell for cell in stem if cell.stage == "8"])
        for final, branch in zip(genotype.final_strides, genotype.branches, strict=True):
            cells = [cell for cell in branch if cell.op != "context"]
            if len(cells) < len(branch):
                found["b32.context"] = True
            found |= self._seen(f"b{final}.8", [cell for cell in cells if cell.stage == "8"], shape="stem.8", first=False)
            for stage in self._own_stages(final):
                found |= self._seen(f"b{final}.{stage.name}", [cell for cell in cells if cell.stage == stage.name])
        return found

    def _seen(
        self, prefix: str, cells: list[Cell], *, shape: str | None = None, first: bool = True, after_pool: bool = False
    ) -> dict[str, Any]:
        """Return the choices that a stage's cells show; `shape` names the genes of kernel and expansion."""
        found: dict[str, Any] = {}
        if cells and first and not after_pool:
            found |= {f"{prefix}.first": cells[0].op, f"{prefix}.width": cells[0].out}
        for cell in cells:
            if cell.op == "inverted":
                found |= {f"{shape or prefix}.kernel": cell.kernel, f"{shape or prefix}.expansion": cell.expansion}
            if cell.op == "attention":
                found[f"{prefix}.attention"] = True
        rest = [cell for cell in (cells[1:] if first else cells) if cell.op != "attention"]
        return found | {f"{prefix}.{i}.op": cell.op for i, cell in enumerate(rest, 1)}

    def sample_genes(self, rng: np.random.Generator, ratios: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Genes:
        """Draw a gene vector: the number of branches with the given ratios (rho), then within it.

        Depths and a band of widths are drawn first, so that draws spread over small and large networks; half of the draws favour
        one operator throughout, and branches share a random prefix half of the time.
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
        favoured = str(rng.choice(self.operators)) if rng.random() < 0.5 else ""
        for position, (name, choices) in enumerate(self.choices.items()):
            count = len(choices)
            if ".width" in name:
                genes[position] = rng.integers(int(low * count), max(int(low * count), int(high * count)) + 1) % count
            elif name.endswith((".op", ".first")):
                if favoured in choices and rng.random() < 0.8:
                    genes[position] = choices.index(favoured)
                if choices[0] == "skip" and rng.random() > keep:
                    genes[position] = 0
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
        """Copy a random number of leading stages from one branch to all others, in place."""
        source = int(rng.choice(self.finals))
        last = int(rng.integers(3, len(STAGES) + 1))
        names = [name for name in self.choices if name.startswith(f"b{source}.") and name.split(".")[1] in STAGES[2:last]]
        for final, name in itertools.product(self.finals, names):
            target = self.index.get(f"b{final}.{name.partition('.')[2]}")
            if target is not None:
                genes[target] = genes[self.index[name]]

    def corner(self, *, largest: bool, **overrides: Any) -> Genotype:
        """Return the network with all widths and depths at their largest (plain convolutions) or smallest; overrides set genes."""
        chosen = {name: choices[-1 if largest else 0] for name, choices in self.choices.items()}
        chosen["branches"] = max(self.branch_sets, key=len) if largest else min(self.branch_sets, key=len)
        for name, choices in self.choices.items():
            if name.endswith((".op", ".first")):
                chosen[name] = choices[0] if not largest else "conv" if "conv" in choices else choices[-1]
            elif name.endswith(("attention", "context")) and name != "attention":
                chosen[name] = False
        return self.network(chosen | overrides)

    def largest(self) -> Genotype:
        """Return the network with most branches, depth and width, plain convolutions throughout."""
        return self.corner(largest=True)

    def smallest(self) -> Genotype:
        """Return the network with one branch and least depth and width."""
        return self.corner(largest=False)

    def keys(self, size: tuple[int, int], num_classes: int = 19) -> tuple[str, ...]:
        """List the latency-table keys of all networks of the space at an image size, sorted."""
        return extent.keys(self, size, num_classes)

    def cells(self) -> Iterator[tuple[str, Operator]]:
        """Yield the slot of every cell, with an operator that is at least as wide as any that a network puts there."""
        return ((slot, operator) for slot, operator, _ in extent.cells(self, (64, 64), widest=True))

    def covering_networks(self) -> Iterator[Genotype]:
        """Yield the largest networks of every branch set, decoder and head, optional stages in and out; most branches first."""
        return extent.covering_networks(self)

"""List what a supernet must hold: every weight slot of a space with its largest operator. No torch here."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from hyctas.genotype import Cell, Genotype
from hyctas.operators import Operator, SelfAttention
from hyctas.plan import cell_operator, lower, slot_name
from hyctas.space import ROWS, Space


def slots(space: Space, num_classes: int) -> dict[str, Operator]:
    """Map every slot to an operator at least as wide as any that a network of the space puts there."""
    found: dict[str, Operator] = {}
    for operator, stride, ordinal in _cells(space):
        _grow(found, slot_name("trunk", stride, ordinal, operator), operator, (0,))
    # the largest branch set comes first: with it, fusion's blocks appear in order
    for genotype in _frames(space):
        for node in lower(genotype, (32, 32), num_classes).nodes:
            if node.part != "trunk":
                _grow(found, node.slot, node.operator, node.blocks)
    return found


def _grow(found: dict[str, Operator], slot: str, operator: Operator, blocks: tuple[int, ...]) -> None:
    """Widen a slot so that it holds an operator too."""
    old = found.get(slot)
    sources = dict(enumerate(old.sources)) if old else {}
    for block, channels in zip(blocks, operator.sources, strict=True):
        sources[block] = max(channels, sources.get(block, 0))
    bigger = operator if old is None or operator.out >= old.out else old
    if isinstance(operator, SelfAttention) and isinstance(bigger, SelfAttention):
        known = old.qk_channels if isinstance(old, SelfAttention) else 0
        bigger = dataclasses.replace(bigger, heads=1, qk_channels=max(known, operator.qk_channels))
    found[slot] = dataclasses.replace(bigger, sources=tuple(sources[block] for block in range(len(sources))))


def _cells(space: Space) -> Iterator[tuple[Operator, int, int]]:
    """Yield every trunk operator at its largest width, with its stride and ordinal."""
    for row, depth in zip(ROWS, space.row_depth, strict=True):
        width = space.ladder(row)[-1]
        for ordinal in range(depth):
            for op in space.operators:
                if op == "attention":
                    for variant in space.attention:
                        yield cell_operator(Cell(op, width, 1, variant.at(width)), (width,)), row, ordinal
                elif op != "skip":
                    yield cell_operator(Cell(op, width), (width,)), row, ordinal
        for ordinal in range(depth + 1):
            for op in space.down_operators if row < 32 else ():
                yield cell_operator(Cell(op, space.ladder(row * 2)[-1], 2), (width,)), row, ordinal


def _frames(space: Space) -> Iterator[Genotype]:
    """Yield the largest networks of every stem depth, head and branch set, most branches first."""
    for branches in sorted(range(len(space.branch_sets)), key=lambda i: -len(space.branch_sets[i])):
        for depth in range(len(space.stem_depth)):
            for kind in range(len(space.heads)):
                for block in range(len(space.head_blocks)):
                    for attention in range(len(space.attention) + 1 if space.attention else 1):
                        yield space.corner(
                            largest=True, branches=branches, stem__depth=depth, head__kind=kind, head__block=block,
                            head__attention=min(attention, 1), attention=max(attention - 1, 0),
                        )  # fmt: skip

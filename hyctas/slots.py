"""List what a supernet must hold: every weight slot of a space with its largest operator. No torch here."""

from __future__ import annotations

import dataclasses

from hyctas.node import slot_name
from hyctas.operators import Operator, SelfAttention
from hyctas.plan import lower
from hyctas.search_space import SearchSpace


def slots(space: SearchSpace, num_classes: int) -> dict[str, Operator]:
    """Map every slot to an operator at least as wide as any that a network of the space puts there."""
    found: dict[str, Operator] = {}
    for operator, stride, ordinal in space.cells():
        _grow(found, slot_name("trunk", stride, ordinal, operator), operator, (0,))
    # the largest branch set comes first: with it, fusion's blocks appear in order
    for genotype in space.frames():
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

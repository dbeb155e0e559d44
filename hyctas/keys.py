"""List the latency-table keys of a whole space without walking its networks one by one.

Every node of a plan is decided by few genes. For each part we vary just those, lower, and collect the part's keys.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from hyctas.genotype import Genotype
from hyctas.plan import lower

if TYPE_CHECKING:
    from hyctas.space import Space


def space_keys(space: Space, size: tuple[int, int], num_classes: int) -> tuple[str, ...]:
    """Return every key that a network of the space can have at an image size, sorted."""
    keys: set[str] = set()
    for genotype in _covering(space):
        keys.update(node.key for node in lower(genotype, size, num_classes).nodes)
    return tuple(sorted(keys))


def _covering(space: Space) -> Iterator[Genotype]:
    """Yield genotypes that together contain every operator of the space at every pair of widths."""
    counts = dict(space.genes)
    yield from _stems(space, counts)
    yield from _trunks(space, counts)
    yield from _frames(space, counts)


def _with(space: Space, **genes: int) -> Genotype:
    return space.corner(largest=False, **genes)


def _stems(space: Space, counts: dict[str, int]) -> Iterator[Genotype]:
    for a, b in itertools.product(range(counts["stem.width2"]), range(counts["stem.width4"])):
        for depth in range(counts["stem.depth"]):
            yield _with(space, stem__width2=a, stem__width4=b, stem__depth=depth)
    for b, c in itertools.product(range(counts["stem.width4"]), range(counts["stem.width8"])):
        yield _with(space, stem__width4=b, stem__width8=c)


def _trunks(space: Space, counts: dict[str, int]) -> Iterator[Genotype]:
    """Vary two neighbouring cells: the first sets the input width, the second is the one wanted."""
    for row, depth in zip((8, 16, 32), space.row_depth, strict=True):
        before = "stem__width8" if row == 8 else f"b32__down{row}__width"
        for width_in in range(len(space.ladder(row))):
            if depth:
                for op, width in itertools.product(range(len(space.operators)), range(len(space.ladder(row)))):
                    for variant in range(counts["attention"] if space.operators[op] == "attention" else 1):
                        genes = {f"b32__s{row}__0__op": op, f"b32__s{row}__0__width": width, "attention": variant}
                        yield _with(space, **{before: width_in}, **genes)
            if row < 32:
                below = row * 2
                for op, width in itertools.product(range(len(space.down_operators)), range(len(space.ladder(below)))):
                    genes = {f"b32__down{below}__op": op, f"b32__down{below}__width": width}
                    yield _with(space, **{before: width_in}, **genes)


def _frames(space: Space, counts: dict[str, int]) -> Iterator[Genotype]:
    """Vary what feeds arms, refines, fusion and head."""
    for fusion in range(counts["fusion.width"]):
        for w8, w16, w32 in itertools.zip_longest(*(range(len(space.ladder(row))) for row in (8, 16, 32))):
            ends = {"stem__width8": w8 or 0, "b32__down16__width": w16 or 0, "b32__down32__width": w32 or 0}
            yield _with(space, fusion__width=fusion, **ends)
        for branches, chosen in enumerate(space.branch_sets):
            for w8, w16 in itertools.zip_longest(range(len(space.ladder(8))), range(len(space.ladder(16)))):
                conv = space.operators.index("conv")
                ends = {"b8__s8__0__op": conv, "b8__s8__0__width": w8 or 0, "b16__down16__width": w16 or 0}
                if 8 in chosen or 16 in chosen:
                    yield _with(space, fusion__width=fusion, branches=branches, **ends)
                else:
                    yield _with(space, fusion__width=fusion, branches=branches)
        for kind, block, width in itertools.product(
            range(counts["head.kind"]), range(counts["head.block"]), range(counts["head.width"])
        ):
            head = {"head__kind": kind, "head__block": block, "head__width": width}
            for low in range(max(len(space.ladder(4)), len(space.ladder(8)))):
                w4, w8 = min(low, len(space.ladder(4)) - 1), min(low, len(space.ladder(8)) - 1)
                yield _with(space, fusion__width=fusion, stem__width4=w4, stem__width8=w8, **head)
        for variant in range(counts["attention"] if counts["head.attention"] == 2 else 0):
            yield _with(space, fusion__width=fusion, head__attention=1, attention=variant)

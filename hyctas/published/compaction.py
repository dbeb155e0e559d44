"""Turn a grid of the released search space into the cells of a network, by the released rules. No torch here.

A branch has L layers. A layer whose operator is skip and which does not down-sample is pruned. Rules (released code,
`alphas2ops_path_width`):

1. behind a down-sampling, the layers up to the next one (or the branch's end) are never all skip, unless there are none;
2. at least round(L / 3) + 2 k layers stay, where k is the number of down-samplings.

The released code repairs by taking a layer's second-best operator, which needs the supernet's architecture weights; here a
grid that breaks a rule gets plain convolutions instead, in the first layers that help.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

SKIP = 0


def least_length(layers: int, downs: int) -> int:
    """Return the least number of layers that stay."""
    return round(layers / 3) + 2 * downs


def segments(layers: int, downs: Sequence[int]) -> list[range]:
    """Return the layers behind each down-sampling, up to the next one or the end."""
    return [range(start + 1, end) for start, end in itertools.pairwise([*downs, layers])]


def broken(ops: Sequence[int], downs: Sequence[int]) -> list[int]:
    """Return the layers that a repair would change: empty where both rules hold.

    Args:
        ops: operator number of every layer.
        downs: positions of the layers that down-sample, ascending; never the last layer.
    """
    pruned = [layer for layer, op in enumerate(ops) if op == SKIP and layer not in downs]
    changed = [segment[0] for segment in segments(len(ops), downs) if segment and all(layer in pruned for layer in segment)]
    missing = least_length(len(ops), len(downs)) - (len(ops) - len(pruned) + len(changed))
    changed += [layer for layer in pruned if layer not in changed][: max(0, missing)]
    return sorted(changed)


def kept(ops: Sequence[int], downs: Sequence[int]) -> list[int]:
    """Return the layers that are not pruned."""
    return [layer for layer, op in enumerate(ops) if op != SKIP or layer in downs]

"""Cut a training split in two: one part trains the weights, the other chooses (networks, epochs, settings).

Neighbouring frames of a video are nearly equal, so a random cut would let the choosing part be learnt by heart. The cut
therefore goes between whole clips, or, where there are too few clips, between contiguous blocks with a gap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from export.errors import InvalidInput
from hyctas.data.sample import Sample

_TOLERANCE = 0.10
_CLIPS_LEFT = 2
_EXHAUSTIVE_UP_TO = 12
_GREEDY_TRIES = 20
_SEGMENT = 60


@dataclass(frozen=True)
class Split:
    """The two parts, each in the order of the samples given."""

    weights: tuple[Sample, ...]
    """For training weights."""
    choosing: tuple[Sample, ...]
    """For choosing; never trained on."""
    method: str
    """`clips` (no clip is on both sides) or `blocks`."""
    dropped: tuple[Sample, ...] = ()
    """Samples near a boundary, in neither part (`blocks` only)."""


def honest_split(samples: Sequence[Sample], share: float = 0.25, gap: int = 2, seed: int = 0) -> Split:
    """Cut samples into a weights part and a choosing part.

    Whole clips go to the choosing part where a set of clips comes within 10 percentage points of `share` and leaves at
    least 2 clips for the weights (up to 12 clips the closest such set, ties by seed; above, a random set that comes
    close). Otherwise contiguous blocks are cut from each clip, one per 60 samples or so, and `gap` samples are dropped
    on each side of every boundary; clips too short for that serve the weights.

    Args:
        samples: the samples of one split; `clip` and `index` must be unique together.
        share: fraction for choosing, above 0 and below 1.
        gap: samples dropped on each side of a boundary between blocks.
        seed: decides among equal cuts; the result is a function of the arguments alone.

    Raises:
        InvalidInput: a bad argument, or too few samples to leave something on both sides.
    """
    if not 0 < share < 1:
        raise InvalidInput(f"share is {share}; wanted a fraction above 0 and below 1, for instance 0.25")
    if gap < 0:
        raise InvalidInput(f"gap is {gap}; wanted 0 or more")
    clips: dict[str, list[Sample]] = {}
    for sample in sorted(samples, key=lambda s: (s.clip, s.index)):
        clips.setdefault(sample.clip, []).append(sample)
    if len({(s.clip, s.index) for s in samples}) != len(samples):
        raise InvalidInput("two samples have the same clip and index; an honest split needs their order")
    rng = np.random.default_rng([seed, len(samples)])
    chosen_clips = _choose_clips({clip: len(members) for clip, members in clips.items()}, share, rng)
    if chosen_clips is not None:
        choosing = {s for clip in chosen_clips for s in clips[clip]}
        return _split(samples, choosing, set(), "clips")
    choosing, dropped = _choose_blocks(list(clips.values()), share, gap, rng)
    result = _split(samples, choosing, dropped, "blocks")
    if not result.choosing or not result.weights:
        raise InvalidInput(
            f"{len(samples)} samples in {len(clips)} clips are too few to hold back {share} with a gap of {gap}; "
            "give more samples, or a smaller gap"
        )
    return result


def _split(samples: Sequence[Sample], choosing: set[Sample], dropped: set[Sample], method: str) -> Split:
    return Split(
        weights=tuple(s for s in samples if s not in choosing and s not in dropped),
        choosing=tuple(s for s in samples if s in choosing),
        method=method,
        dropped=tuple(s for s in samples if s in dropped),
    )


def _choose_clips(sizes: dict[str, int], share: float, rng: np.random.Generator) -> set[str] | None:
    """Return clips whose samples make up about `share`, or None where no set comes near enough."""
    total, names = sum(sizes.values()), sorted(sizes)
    most = len(names) - _CLIPS_LEFT
    if most < 1:
        return None

    def miss(clips: Sequence[str]) -> float:
        return off(sum(sizes[c] for c in clips))

    def off(count: int) -> float:
        return abs(count / total - share)

    order = [names[i] for i in rng.permutation(len(names))]
    if len(names) <= _EXHAUSTIVE_UP_TO:
        candidates = [c for k in range(1, most + 1) for c in combinations(order, k)]
        best: Sequence[str] = min(candidates, key=lambda c: round(miss(c), 9))
        return set(best) if miss(best) <= _TOLERANCE + 1e-9 else None
    for _ in range(_GREEDY_TRIES):
        taken: list[str] = []
        count = 0
        for clip in order:
            if len(taken) < most and off(count + sizes[clip]) < off(count):
                taken.append(clip)
                count += sizes[clip]
        if taken and off(count) <= _TOLERANCE + 1e-9:
            return set(taken)
        order = [names[i] for i in rng.permutation(len(names))]
    return None


def _choose_blocks(clips: list[list[Sample]], share: float, gap: int, rng: np.random.Generator) -> tuple[set[Sample], set[Sample]]:
    """Return the choosing samples and the dropped ones."""
    choosing: set[Sample] = set()
    dropped: set[Sample] = set()
    for clip in clips:
        inside = np.zeros(len(clip), bool)
        for segment in np.array_split(np.arange(len(clip)), max(1, len(clip) // _SEGMENT)):
            # Longer by what the boundaries will take from it, so that the kept part comes to the share.
            length = round(share * len(segment)) + 2 * gap
            if round(share * len(segment)) < 1 or len(segment) - length < 2 * gap + 1:
                continue
            start = int(rng.integers(len(segment) - length + 1))
            inside[segment[start : start + length]] = True
        near = np.zeros(len(clip), bool)
        for boundary in np.flatnonzero(inside[1:] != inside[:-1]) + 1:
            near[max(0, boundary - gap) : boundary + gap] = True
        choosing.update(s for s, i, n in zip(clip, inside, near, strict=True) if i and not n)
        dropped.update(s for s, n in zip(clip, near, strict=True) if n)
    return choosing, dropped

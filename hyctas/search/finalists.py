"""Make the last choice by training: successive halving (Jamieson and Talwalkar, AISTATS 2016) over a search's finalists.

More candidates than finalists are measured on the device, so that those that exceed the limit can be replaced. Before each further
round the finalists are measured again, and those whose mean exceeds the limit go; the others train on, each round twice as long as
the one before; then the worse half goes, until one is left. What was found is written after every network, and replayed: a choice
that was killed continues to the same result. No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from export.codec import Count, Positive, Share, decode, encode
from export.errors import CheckFailed, CorruptFile, Give, StartOver
from hyctas.arch.genotype import Genotype
from hyctas.search.front import pareto
from hyctas.search.history import Evaluation
from hyctas.search.limits import Limits
from hyctas.spaces.members import family

FORMAT_VERSION = 1
HANDMADE_SHARE = 3
"""One finalist of so many is hand-made, where as many families of hand-made networks meet the limits."""
RESERVE = 2
"""One more candidate for each so many finalists, in place of those that exceed the limit when measured."""
APART = 3
"""Genes in which finalists that a search found differ at least, where there are such."""


@dataclass(frozen=True)
class Finalist:
    """A network that the last choice is made among."""

    evaluation: Evaluation
    handmade: str | None
    """Its name, where it is a hand-made network."""

    @property
    def id(self) -> str:
        return self.evaluation.id

    @property
    def name(self) -> str:
        """What people call it."""
        return self.id if self.handmade is None else f"{self.id} ({self.handmade})"


@dataclass(frozen=True)
class Round:
    """What one round found, by genotype id."""

    steps: Count
    """Of this round's training."""
    measured_ms: dict[str, Positive]
    """Mean of this and earlier rounds' measurements; empty where the device is not here."""
    slow: tuple[str, ...]
    """Those that exceed the limit by it."""
    miou: dict[str, Share] = field(default_factory=dict)
    """On the choosing split, after this round's training."""
    failed: dict[str, str] = field(default_factory=dict)
    """Why a training failed."""
    kept: tuple[str, ...] = ()
    """The better half, the best first; empty until all are trained."""


@dataclass(frozen=True)
class _Rounds:
    """The content of the journal."""

    rounds: tuple[Round, ...]


@dataclass(frozen=True)
class Turn:
    """One training of a finalist."""

    number: int
    """Of the round, from 1."""
    steps: int
    start: float
    """Share of all rounds that is done before it."""
    end: float


Train = Callable[[Finalist, Turn], float]
"""Train a finalist; return its mIoU on the choosing split, or raise CheckFailed."""
Ahead = Callable[[Sequence[tuple[Finalist, Turn]]], None]
"""Told which trainings come next, in this order, so that it can begin on several at once."""
Choose = Callable[[Sequence[Finalist]], list[Finalist]]
"""Choose finalists among candidates."""
Measure = Callable[[Sequence[Finalist]], dict[str, float]]
"""Measure finalists on the device: milliseconds by id, or nothing where it is not here."""


def choose_finalists(
    evaluations: Sequence[Evaluation], handmade: Mapping[str, str], count: int, genes: Callable[[Genotype], np.ndarray]
) -> list[Finalist]:  # fmt: skip
    """Choose who takes part, by mIoU with shared weights.

    Args:
        evaluations: all scored networks.
        handmade: names of hand-made networks by id.
        count: finalists; a third of them (more where the search found too few) the best hand-made networks, one per family, the
            rest half the most accurate of the front and half the most accurate of all others; near-copies come last.
        genes: gives a network's gene vector.
    """
    best = sorted(evaluations, key=lambda e: (-e.miou, e.predicted_ms, e.id))
    families: dict[str, Evaluation] = {}
    for evaluation in best:
        if evaluation.id in handmade:
            families.setdefault(family(handmade[evaluation.id]), evaluation)
    searched = [evaluation for evaluation in best if evaluation.id not in handmade]
    made = list(families.values())[: max(count > 1, count // HANDMADE_SHARE, count - len(searched))]
    front = _apart([], pareto(searched)[::-1], math.ceil((count - len(made)) / 2), genes)
    found = _apart(front, searched, max(0, count - len(made)), genes)
    found += [evaluation for evaluation in searched if evaluation not in found][: max(0, count - len(made) - len(found))]
    return [Finalist(evaluation, handmade.get(evaluation.id)) for evaluation in (*made, *found)][:count]


def _apart(
    found: Sequence[Evaluation], candidates: Sequence[Evaluation], count: int, genes: Callable[[Genotype], np.ndarray]
) -> list[Evaluation]:  # fmt: skip
    """Return networks that were found, and the first of the candidates that are no near-copies of others: `count` in all."""
    found = list(found)
    vectors = [genes(evaluation.genotype) for evaluation in found]
    for evaluation in candidates:
        if len(found) >= count:
            break
        vector = genes(evaluation.genotype)
        if all((vector != other).sum() >= APART for other in vectors):
            found.append(evaluation)
            vectors.append(vector)
    return found


def rounds_of(count: int) -> int:
    """Return how many rounds leave one of so many."""
    return max(1, int(math.log2(max(1, count))))


def halve(
    candidates: Sequence[Finalist], path: Path, limits: Limits, steps: int, train: Train, measure: Measure,
    on_status: Callable[[str], None], ahead: Ahead | None = None, choose: Choose = list,
) -> list[Round]:  # fmt: skip
    """Train finalists in rounds until one is left; the last round's `kept` names it, and is empty where all exceed the limit.

    Args:
        candidates: who can take part.
        path: the journal of the rounds; what it holds is not done again.
        limits: the one on latency is held against what is measured.
        steps: of the first round; each further round has twice as many.
        train: trains one.
        measure: measures them.
        on_status: told in a sentence who went, and why.
        ahead: told which trainings come next.
        choose: chooses who takes part among the candidates that do not exceed the limit; default: all of them.

    Raises:
        CheckFailed: all trainings of a round failed.
        CorruptFile: the journal is damaged.
    """
    left = {candidate.id: candidate for candidate in candidates}
    rounds = read_rounds(path, left) if path.exists() else []
    number = 0
    while number == 0 or len(rounds[number - 1].kept) > 1:
        if number == len(rounds):
            before = rounds[-1].measured_ms if rounds else {}
            measured = {id: (before.get(id, ms) * number + ms) / (number + 1) for id, ms in measure(list(left.values())).items()}
            limit = math.inf if limits.latency_ms is None else limits.latency_ms
            slow = tuple(id for id, ms in measured.items() if ms > limit)
            rounds.append(Round(steps * 2**number, measured, slow))
            write_rounds(path, rounds)
        for id in rounds[number].slow:
            ms = rounds[number].measured_ms[id]
            on_status(f"finalist {left[id].name} leaves: it was measured at {ms:.2f} ms, above the limit")
        taking_part = [finalist for finalist in left.values() if finalist.id not in rounds[number].slow]
        if not taking_part:
            return rounds
        if number == 0:
            taking_part = choose(taking_part)
            planned = rounds_of(len(taking_part))
        if not rounds[number].kept:
            rounds[number] = _train_round(rounds, number, taking_part, planned, path, train, on_status, ahead)
            write_rounds(path, rounds)
        left = {id: left[id] for id in rounds[number].kept}
        number += 1
    return rounds


def _train_round(
    rounds: list[Round], number: int, taking_part: Sequence[Finalist], planned: int, path: Path, train: Train,
    on_status: Callable[[str], None], ahead: Ahead | None,
) -> Round:  # fmt: skip
    """Train who takes part in a round, and say which half is the better one."""
    failed: dict[str, str] = {}
    shares = [min(1.0, (number + place / len(taking_part)) / planned) for place in range(len(taking_part) + 1)]
    left = [
        (finalist, Turn(number + 1, rounds[number].steps, start, end))
        for finalist, (start, end) in zip(taking_part, pairwise(shares), strict=True)
        if finalist.id not in rounds[number].miou
    ]
    if ahead is not None:
        ahead(left)
    for finalist, turn in left:
        try:
            miou = train(finalist, turn)
        except CheckFailed as error:
            failed[finalist.id] = str(error)
            on_status(f"finalist {finalist.name} leaves: its training failed ({error})")
            continue
        rounds[number] = replace(rounds[number], miou=rounds[number].miou | {finalist.id: miou})
        write_rounds(path, rounds)
    found = rounds[number].miou
    if not found:
        raise CheckFailed(
            f"the trainings of all {len(taking_part)} finalists failed, the last one because: {list(failed.values())[-1]}. What "
            "the search found is kept",
            Give("finalists", "0", "keep the choice by shared weights"),
        )
    best = sorted(taking_part, key=lambda f: (-found.get(f.id, -1.0), f.evaluation.predicted_ms, f.id))
    kept = [finalist.id for finalist in best if finalist.id in found][: max(1, len(taking_part) // 2)]
    return replace(rounds[number], failed=failed, kept=tuple(kept))


def read_rounds(path: Path, known: Collection[str]) -> list[Round]:
    """Read the journal of the rounds of finalists with these ids.

    Raises:
        CorruptFile: it is damaged, or of others.
    """
    try:
        rounds = decode(_Rounds, path, FORMAT_VERSION).rounds
        for found in rounds:
            if strange := {*found.measured_ms, *found.slow, *found.miou, *found.failed, *found.kept} - set(known):
                raise CorruptFile(path, f"holds rounds of others: {min(strange)} is no finalist")
    except CorruptFile as error:
        raise CorruptFile(path, error.reason, None, StartOver()) from None
    return list(rounds)


def write_rounds(path: Path, rounds: Sequence[Round]) -> None:
    """Write the journal of the rounds."""
    encode(path, _Rounds(tuple(rounds)), FORMAT_VERSION)


def described(finalist: Finalist, rounds: Sequence[Round]) -> dict[str, Any]:
    """Return what became of a finalist, for pareto.json."""
    id, last = finalist.id, rounds[-1]
    failure = next((found.failed[id] for found in rounds if id in found.failed), None)
    slow = any(id in found.slow for found in rounds)
    return {
        **finalist.evaluation.to_json(), "branches": len(finalist.evaluation.genotype.branches), "handmade": finalist.handmade,
        "measured_ms": next((found.measured_ms[id] for found in rounds[::-1] if id in found.measured_ms), None),
        "trained_miou": [found.miou[id] for found in rounds if id in found.miou],
        "end": "slow" if slow else "failed" if failure else "won" if last.kept[:1] == (id,) else "worse", "failure": failure,
    }  # fmt: skip

"""The last choice: who takes part, who leaves when, what is replayed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export.errors import CheckFailed, CorruptFile, StartOver
from hyctas.search.finalists import Finalist, Turn, choose_finalists, described, halve, read_rounds, rounds_of
from hyctas.search.history import Evaluation
from hyctas.search.limits import Limits
from hyctas.space import tiny

LIMITS = Limits(latency_ms=10.0)


def evaluations(count: int) -> list[Evaluation]:
    """Networks of which the slower are the more accurate, but for every third."""
    rng = np.random.default_rng(0)
    drawn = {genotype.id: genotype for genotype in (tiny().sample(rng) for _ in range(3 * count))}
    return [
        Evaluation("search", 0, id, genotype, (0.1 + index / 100) * (0.9 if index % 3 else 1), 1.0 + index / 10, 1, 1, 1.0)
        for index, (id, genotype) in enumerate(list(drawn.items())[:count])
    ]


FOUND, GENES = evaluations(30), tiny().encode
FINALISTS = [Finalist(evaluation, None) for evaluation in FOUND[:12]]


class Training:
    """Trains finalists so that those that come later in the list are better, and more so with every round."""

    def __init__(self, failing: Sequence[str] = (), stop: int | None = None) -> None:
        self.failing, self.stop, self.turns = failing, stop, list[tuple[str, Turn]]()

    def __call__(self, finalist: Finalist, turn: Turn) -> float:
        if len(self.turns) == self.stop:
            raise KeyboardInterrupt
        self.turns.append((finalist.id, turn))
        if finalist.id in self.failing:
            raise CheckFailed("the loss is not finite")
        return 0.5 + FINALISTS.index(finalist) / 100 + turn.number / 10


def measured(ms: dict[str, float] | None = None) -> Callable[[Sequence[Finalist]], dict[str, float]]:
    return lambda finalists: {finalist.id: (ms or {}).get(finalist.id, 9.0) for finalist in finalists}


def ids(*indices: int) -> tuple[str, ...]:
    return tuple(FINALISTS[index].id for index in indices)


def test_who_takes_part() -> None:
    names = {FOUND[2].id: "edge:plain", FOUND[5].id: "edge:plain-w75", FOUND[8].id: "edge:lite0"}
    chosen = choose_finalists(FOUND, names, 12, GENES)
    assert [finalist.handmade for finalist in chosen[:3]] == ["edge:lite0", "edge:plain-w75", None], "one per family"
    assert len({finalist.id for finalist in chosen}) == 12 and sum(f.handmade is not None for f in chosen) == 2
    assert max(FOUND, key=lambda e: e.miou).id in {finalist.id for finalist in chosen}
    assert len(choose_finalists(FOUND, dict.fromkeys((e.id for e in FOUND), "edge:plain"), 12, GENES)) == 1
    assert len(choose_finalists(FOUND[:2], {}, 12, GENES)) == 2
    few = {FOUND[0].id: "edge:plain", FOUND[1].id: "edge:lite0", FOUND[2].id: "edge:hyctas"}
    assert len(choose_finalists(FOUND[:4], few, 4, GENES)) == 4, "hand-made networks take the places of what was not found"
    assert choose_finalists(FOUND, names, 1, GENES)[0].handmade is None


def test_near_copies_come_last() -> None:
    space, best = tiny(), max(FOUND, key=lambda e: e.miou)
    vector = GENES(best.genotype)
    copies: list[Evaluation] = []
    for position in np.flatnonzero(space.cardinality > vector + 1):
        genes = vector.copy()
        genes[position] += 1
        copy = space.decode(genes)
        if 0 < (GENES(copy) != vector).sum() < 3:
            copies.append(replace(best, id=copy.id, genotype=copy, miou=best.miou - 1e-6 * len(copies)))
    assert len(copies) > 6
    chosen = choose_finalists([*FOUND, *copies], {}, 12, GENES)
    assert not {finalist.id for finalist in chosen} & {copy.id for copy in copies[1:]}
    assert len(choose_finalists([best, *copies], {}, 6, GENES)) == 6, "where there is nothing else, they take part"


def test_candidates_replace_those_that_are_slow(tmp_path: Path) -> None:
    slow = measured(dict.fromkeys(ids(0, 2), 10.5))
    train = Training()
    rounds = halve(FINALISTS, tmp_path / "r.json", LIMITS, 1, train, slow, print, None, lambda fitting: list(fitting[:4]))
    assert [len(found.miou) for found in rounds] == [4, 2] and set(rounds[0].miou) == set(ids(1, 3, 4, 5))
    assert len(rounds[0].measured_ms) == 12 and train.turns[-1][1].end == 1


def test_the_mean_of_all_measurements_counts(tmp_path: Path) -> None:
    times, told = iter((9.0, 10.8, 11.5)), list[str]()
    rounds = halve(
        FINALISTS[:8], tmp_path / "r.json", LIMITS, 1, Training(), lambda left: dict.fromkeys((f.id for f in left), next(times)),
        told.append,
    )  # fmt: skip
    assert [next(iter(found.measured_ms.values())) for found in rounds] == pytest.approx([9.0, 9.9, 10.433], abs=1e-3)
    assert rounds[1].kept and not rounds[2].kept and "10.43 ms, above the limit" in told[0]


def test_half_of_them_leave_each_round(tmp_path: Path) -> None:
    train, told = Training(), list[str]()
    rounds = halve(FINALISTS, tmp_path / "r.json", LIMITS, 100, train, measured(), told.append)
    assert [(found.steps, len(found.miou), len(found.kept)) for found in rounds] == [(100, 12, 6), (200, 6, 3), (400, 3, 1)]
    assert rounds[-1].kept == ids(11) and rounds_of(12) == 3 and not told
    shares = [share for _, turn in train.turns for share in (turn.start, turn.end)]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1
    assert described(FINALISTS[11], rounds)["end"] == "won" and described(FINALISTS[0], rounds)["trained_miou"] == [0.6]


def test_who_breaks_the_limit_when_measured_goes(tmp_path: Path) -> None:
    slow, told = dict.fromkeys(ids(11, 3), 10.5), list[str]()
    train = Training()
    rounds = halve(FINALISTS, tmp_path / "r.json", LIMITS, 1, train, measured(slow), told.append)
    assert set(rounds[0].slow) == set(ids(11, 3)) and not set(ids(11, 3)) & {id for id, _ in train.turns}
    assert rounds[-1].kept == ids(10) and len(told) == 2 and "10.50 ms, above the limit" in told[0]
    assert described(FINALISTS[11], rounds)["end"] == "slow"
    none = halve(FINALISTS, tmp_path / "s.json", LIMITS, 1, Training(), measured(dict.fromkeys(ids(*range(12)), 11.0)), told.append)
    assert len(none) == 1 and none[0].kept == ()
    assert halve(FINALISTS, tmp_path / "t.json", LIMITS, 1, Training(), lambda left: {}, told.append)[-1].kept == ids(11)


def test_failed_trainings_are_told_and_left_out(tmp_path: Path) -> None:
    told: list[str] = []
    rounds = halve(FINALISTS[:4], tmp_path / "r.json", LIMITS, 1, Training(failing=ids(3)), measured(), told.append)
    assert rounds[-1].kept == ids(2) and list(rounds[0].failed) == list(ids(3)) and len(told) == 1 and FINALISTS[3].id in told[0]
    with pytest.raises(CheckFailed, match=r"all 4 finalists failed.*not finite"):
        halve(FINALISTS[:4], tmp_path / "s.json", LIMITS, 1, Training(failing=ids(0, 1, 2, 3)), measured(), told.append)
    again = halve(FINALISTS[:4], tmp_path / "s.json", LIMITS, 1, Training(), measured(), told.append)
    assert again[-1].kept == ids(3), "they are tried again"


@pytest.mark.parametrize("stop", [0, 5, 11, 12, 13, 18, 20])
def test_a_killed_choice_continues(tmp_path: Path, stop: int) -> None:
    """Nothing is trained or measured twice."""
    whole = halve(FINALISTS, tmp_path / "a.json", LIMITS, 2, Training(), measured(), print)
    with pytest.raises(KeyboardInterrupt):
        halve(FINALISTS, tmp_path / "b.json", LIMITS, 2, Training(stop=stop), measured(), print)
    rest = Training()
    assert halve(FINALISTS, tmp_path / "b.json", LIMITS, 2, rest, measured(), print) == whole
    assert len(rest.turns) == 21 - stop and (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()


def test_a_damaged_journal_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    halve(FINALISTS[:2], path, LIMITS, 1, Training(), measured(), print)
    good = json.loads(path.read_text())
    for damage in ({"steps": "many"}, {"miou": {"0" * 12: 0.5}}, {"slow": None}, {"strange": 1}):
        path.write_text(json.dumps({**good, "rounds": [{**good["rounds"][0], **damage}]}))
        with pytest.raises(CorruptFile) as found:
            read_rounds(path, [finalist.id for finalist in FINALISTS])
        assert found.value.remedies == (StartOver(),)
    assert replace(FINALISTS[0], handmade="edge:plain").name == f"{FINALISTS[0].id} (edge:plain)"

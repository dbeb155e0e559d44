"""Search: limits, history on disk, replay after a kill, the surrogate, hand-made members, and the outcome."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from export.errors import CorruptFile, Infeasible, InvalidInput, MissingKeys, Perform
from hyctas.arch.genotype import Genotype
from hyctas.arch.operators import from_key
from hyctas.artifacts.choice import chosen_genotype
from hyctas.cli.advice import advice
from hyctas.cost.workloads import CostModel
from hyctas.cost.workloads import family as operator_family
from hyctas.plan import lower
from hyctas.search.driver import first_generation, search
from hyctas.search.front import hypervolume, pareto, spread
from hyctas.search.history import Evaluation, History, read_history
from hyctas.search.limits import Limits
from hyctas.search.optimise import Nsga2, RandomDraws
from hyctas.search.outcome import choose, write_outcome
from hyctas.search.surrogate import Surrogate, worthwhile
from hyctas.space import edge, tiny
from hyctas.spaces.members import family, members, members_of
from latency.identity import Identity
from latency.table import LatencyTable, Row

TINY, SIZE, CLASSES = tiny(), (64, 64), 4
HEADER = {"seed": 0}


def table() -> LatencyTable:
    """A table in which latency follows MACs."""
    identity = Identity(target="torch-cpu:fp32", device={}, versions={}, threads=1, protocol={})
    rows = {}
    for key in TINY.keys(SIZE, CLASSES):
        operator, shapes = from_key(key)
        ms = 0.01 + operator.macs(shapes) / 1e7
        rows[key] = Row(op=operator_family(key), median_ms=ms, p10_ms=ms, p90_ms=ms, n=20, builds=1, busy=False)
    return LatencyTable(identity, rows)


MODEL = CostModel(TINY, table(), SIZE, CLASSES)


def score(genotype: Genotype) -> float:
    """A made-up mIoU that rewards attention and size."""
    attention = any(cell.op == "attention" for branch in genotype.branches for cell in branch)
    macs = lower(genotype, SIZE, CLASSES).macs
    return 0.8 * (1 - np.exp(-macs / 2e7)) + 0.1 * attention


def screen(genotype: Genotype) -> float:
    """What few images say of it: a little less, and never the same twice over."""
    return max(0.0, score(genotype) - 0.05 + 0.01 * int(genotype.id, 16) / 16**12)


def run(
    path: Path, evaluations: int = 24, limits: Limits | None = None, scorer: Callable[[Genotype], float] = score, **more: Any
) -> History:
    history = History(path, HEADER, lambda text: None)
    more = {"population": 8, "candidates": 16, "screen": screen} | more
    search(MODEL, limits or Limits(), scorer, history, evaluations=evaluations, seed=0, reference_ms=20.0, **more)
    return history


def test_limits() -> None:
    limits = Limits.parse(["fps=50", "ms=30", "params=2e5", "mib=9"])
    assert limits == Limits(latency_ms=20.0, parameters=2e5, memory_mib=9.0)
    for bad in (["fps=0"], ["fps"], ["gpu=3"], ["ms=abc"], ["ms=nan"], ["ms=1", "ms=2"]):
        with pytest.raises(InvalidInput):
            Limits.parse(bad)


def test_infeasible_limits_explain_themselves() -> None:
    with pytest.raises(Infeasible, match=r"smallest network [\d.]+"):
        Limits(latency_ms=1e-3).check_feasible(MODEL)
    with pytest.raises(Infeasible, match="parameters"):
        Limits(parameters=10).check_feasible(MODEL)


def test_missing_keys_are_all_reported_with_the_command() -> None:
    partial = table()
    gone = sorted(partial.rows)[:7]
    for key in gone:
        del partial.rows[key]
    with pytest.raises(MissingKeys) as caught:
        CostModel(TINY, partial, SIZE, CLASSES)
    (remedy,) = caught.value.remedies
    assert set(caught.value.keys) == set(gone) and "--space tiny --size 64x64 --classes 4" in advice(remedy)


def test_numbers_of_evaluations_and_replay(whole: History) -> None:
    path, history = whole.path, whole
    scored, screened = ([e.id for e in history.of(kind)] for kind in ("search", "screen"))
    assert len(set(scored)) == len(scored) == 24 and set(scored) < set(screened)
    assert len(set(screened)) == len(screened) == 40, "8 of the first generation, of the others twice as many as are scored"
    first = path.read_text()

    def never(genotype: Genotype) -> float:
        raise AssertionError("recorded values are replayed")

    again = run(path, scorer=never, screen=never)
    assert path.read_text() == first and len(again.evaluations) == len(history.evaluations)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> History:
    """A search that ran through."""
    return run(tmp_path_factory.mktemp("whole") / "history.jsonl")


@pytest.mark.parametrize("stop", [15, 55])
def test_a_killed_search_continues_to_the_same_result(tmp_path: Path, whole: History, stop: int) -> None:
    """Whether it is killed while it screens or while it scores."""
    calls = 0

    def dying(function: Callable[[Genotype], float]) -> Callable[[Genotype], float]:
        def dies(genotype: Genotype) -> float:
            nonlocal calls
            calls += 1
            if calls == stop:
                raise KeyboardInterrupt
            return function(genotype)

        return dies

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", scorer=dying(score), screen=dying(screen))
    text = (tmp_path / "b").read_text()
    (tmp_path / "b").write_text(text + '{"kind": "sea')  # and an incomplete line
    notices: list[str] = []
    History(tmp_path / "b", HEADER, notices.append)
    assert len(notices) == 1 and "incomplete last line" in notices[0] and (tmp_path / "b").read_text() == text
    continued = run(tmp_path / "b")
    assert continued.evaluations == whole.evaluations and (tmp_path / "b").read_text() == whole.path.read_text()


def test_a_history_with_a_random_baseline_is_read(tmp_path: Path) -> None:
    """Version 1 had one; the search that it belongs to is another, and is not continued."""
    path = tmp_path / "h"
    run(path, 8, screen=None)
    lines = path.read_text().replace('"format_version": 2', '"format_version": 1').splitlines()
    path.write_text("\n".join([*lines, *(line.replace('"search"', '"random"') for line in lines[1:])]) + "\n")
    _, points, cut_off = read_history(path)
    assert {point.kind for point in points} == {"search", "random"} and not cut_off
    with pytest.raises(InvalidInput, match="format_version: was 1, now 2"):
        History(path, HEADER, lambda text: None)


def test_hand_made_networks_stand_in_the_first_generation(tmp_path: Path) -> None:
    limits = Limits(latency_ms=MODEL.costs(TINY.smallest()).latency_ms * 2.5)
    made = [TINY.smallest(), TINY.largest()]
    first = first_generation(MODEL, limits, made, 8, 0)
    assert first[0] == TINY.smallest() and TINY.largest() not in first and len({g.id for g in first}) == 8
    assert len(first_generation(MODEL, Limits(), [TINY.sample(np.random.default_rng(i)) for i in range(9)], 8, 0)) == 9 + 4
    history = run(tmp_path / "h", 8, limits, members=made)
    assert history.of("search")[0].id == TINY.smallest().id and history.of("search")[0].generation == 0
    assert set(members_of(TINY)) == {"plain"} and members_of(edge()) == members() and family("lite0-16-w75") == "lite0-16"


def test_the_surrogate_ranks_what_it_has_not_seen() -> None:
    known, unseen = evaluations(80)[:50], evaluations(80)[50:]
    known, unseen = ([replace(e, miou=float(score(e.genotype))) for e in part] for part in (known, unseen))
    genes = np.array([TINY.encode(e.genotype) for e in unseen])
    found = Surrogate(MODEL, known, 0)(genes, [e.genotype for e in unseen])
    assert spearmanr(found, [e.miou for e in unseen]).statistic > 0.8
    assert found == Surrogate(MODEL, known, 0)(genes, [e.genotype for e in unseen])


def test_worthwhile_networks_are_of_every_branch_count() -> None:
    found = evaluations(60)
    chosen = worthwhile(found, 12)
    assert len({e.id for e in chosen}) == 12 and {len(e.genotype.branches) for e in chosen} == {1, 2, 3}
    assert len(worthwhile(found[:5], 12)) == 5 and len(worthwhile(found, 1)) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line[:-20],
        lambda line: line.replace('"miou": 0', '"miou": 7'),
        lambda line: line.replace('"kind": "screen"', '"kind": "other"'),
        lambda line: json.dumps({**json.loads(line), "id": "0" * 12}),
        lambda line: json.dumps({**json.loads(line), "extra": 1}),
        lambda line: "[]",
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, change: object) -> None:
    path = tmp_path / "h"
    run(path, 4)
    lines = path.read_text().splitlines()
    lines[2] = change(lines[2])  # type: ignore[operator]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(CorruptFile) as caught:
        History(path, HEADER, lambda text: None)
    assert caught.value.line == 3


def test_another_header_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "h", 4)
    with pytest.raises(InvalidInput, match="seed: was 0, now 1"):
        History(tmp_path / "h", {"seed": 1}, lambda text: None)


def test_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = run(tmp_path / "h", 4)
    before = (tmp_path / "h").read_text()
    evaluation = evaluations(1)[0]

    def full(handle: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        history.add(evaluation)
    assert (tmp_path / "h").read_text() == before


def test_limits_are_kept_and_niches_live(tmp_path: Path) -> None:
    limits = Limits(latency_ms=MODEL.costs(TINY.smallest()).latency_ms * 2.5)
    history = run(tmp_path / "h", 40, limits)
    assert all(limits.keeps(MODEL.costs(e.genotype)) for e in history.evaluations)
    last = [e for e in history.of("search") if e.generation >= 2]
    assert len({len(e.genotype.branches) for e in last}) > 1


def test_proposals_are_of_the_space_and_distinct() -> None:
    draws = RandomDraws(MODEL, Limits(), 0)
    first = [draws.next() for _ in range(8)]
    assert len({g.id for g in first}) == 8
    optimiser = Nsga2(MODEL, Limits(), 8, first, 0)
    asked = optimiser.ask()
    assert [g.id for g in asked] == [g.id for g in first]
    for genotype in asked:
        TINY.encode(genotype)


def evaluations(count: int) -> list[Evaluation]:
    rng = np.random.default_rng(5)
    found = []
    for _ in range(count):
        genotype = TINY.sample(rng)
        costs = MODEL.costs(genotype)
        found.append(Evaluation("search", 0, genotype.id, genotype, float(rng.random()), costs.latency_ms, costs.parameters,
                                costs.macs, costs.memory_mib))  # fmt: skip
    return found


def test_front_and_hypervolume() -> None:
    found = evaluations(60)
    front = pareto(found)
    for member in front:
        assert not any(e.miou > member.miou and e.predicted_ms <= member.predicted_ms for e in found)
    assert [e.predicted_ms for e in front] == sorted(e.predicted_ms for e in front)
    assert abs(hypervolume(found, 50.0) - hypervolume(front, 50.0)) < 1e-12
    assert hypervolume([], 1.0) == 0 and len(spread(front, 2)) == 2 and spread(front, 99) == front


def test_choice_trusts_what_was_measured(tmp_path: Path) -> None:
    front = pareto(evaluations(60))
    slow = {e.id: e.predicted_ms * (3 if i == len(front) - 1 else 1) for i, e in enumerate(front)}
    limits = Limits(latency_ms=front[-1].predicted_ms * 1.01)
    assert choose(front, {}, limits) == front[-1]
    assert choose(front, slow, limits) == front[-2]
    assert choose(front, slow, Limits(latency_ms=1e-6)) == front[0]
    history = run(tmp_path / "history.jsonl", 4)
    outcome = write_outcome(tmp_path / "pareto.json", history, Limits(), 20.0, {}, {"target": "t", "size": (64, 64)})
    assert chosen_genotype(tmp_path).id == outcome["chosen"]
    (tmp_path / "pareto.json").write_text(json.dumps(outcome | {"chosen": "x"}))
    with pytest.raises(CorruptFile, match="chosen"):
        chosen_genotype(tmp_path)
    with pytest.raises(InvalidInput) as lacking:
        chosen_genotype(tmp_path / "nowhere")
    assert Perform("search", {"run": tmp_path / "nowhere"}) in lacking.value.remedies

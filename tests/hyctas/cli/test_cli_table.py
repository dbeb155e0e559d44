"""What makes a latency table trustworthy: its error shown and limited, bounds with confidence, shards, merging, --check."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from export.errors import CheckFailed, CorruptFile, Give, InvalidInput, Perform, TableMismatch
from export.files import write_json
from export.machine import hardware
from export.runtimes import open_runtime
from export.target import Target
from hyctas.arch.genotype import Genotype
from hyctas.artifacts.choice import read_outcome
from hyctas.artifacts.runs import Run
from hyctas.commands import demo_handmade, measured_networks
from hyctas.commands.demo_handmade import comparison, nearest_in_latency
from hyctas.commands.front_table import show_front
from hyctas.commands.measured_networks import measure_evaluations
from hyctas.commands.profile import part
from hyctas.commands.usable_table import usable_table
from hyctas.cost.calibrate import Conditions, NetworkJournal, Progress, Visits, measure_confirmed
from hyctas.cost.workloads import CostModel, calibration_networks, draw_networks, only_calibrated_size, units
from hyctas.search.limits import Limits
from hyctas.space import tiny
from latency.identity import Identity, versions_of
from latency.predictor import predict
from latency.table import LatencyTable
from latency.witness import Witness
from tests.hyctas.cli.conftest import CLASSES, SEARCH, SIZE, Command, expect, made_table, nano

QUICK = "warmup_ms = 0\nmin_samples = 6\npasses = 1\nbudget_ms = 1\nci = 0.5\nretake_load = 1\n"
RATIOS = tuple(np.linspace(0.9, 1.2, 50).tolist())


def test_search_shows_the_error_and_refuses_a_bad_table(command: Command, run: Path) -> None:
    made_table(mape=0.12).save(run / "latency.json")
    expect(command("search", "--run", run, *SEARCH, "--restart"), 1, "hold-out error MAPE 12.0%", "--max-error 13")
    assert not (run / "history.jsonl").exists()
    expect(command("search", "--run", run, *SEARCH, "--max-error", 13, "--restart"), 0, "hypervolume")


def test_a_table_of_another_version_is_refused_and_load_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, path = made_table(), tmp_path / "latency.json"
    found = versions_of(open_runtime(Target.parse(table.identity.target), 1))
    here = replace(table.identity, device=hardware(), versions=found)
    key, row = next(iter(table.rows.items()))
    replace(table, identity=here, rows=table.rows | {key: replace(row, busy=True)}).save(path)
    assert usable_table(path).identity == here
    assert f"warning: 1 of {len(table)} operators of {path} were timed while other processes" in capsys.readouterr().out
    replace(table, identity=replace(here, versions={"onnxruntime": "1.0"})).save(path)
    with pytest.raises(TableMismatch, match=r"was measured with onnxruntime 1\.0, and here it is ") as caught:
        usable_table(path)
    assert caught.value.remedies == (Perform("profile", {"restart": True}),)
    replace(table, identity=replace(here, device={"cpu": "another"}, versions={})).save(path)
    assert usable_table(path).identity.versions == {}, "what another machine has cannot be compared"


def test_search_keeps_limits_with_confidence(command: Command, run: Path) -> None:
    table = made_table(ratios=RATIOS)
    table.save(run / "latency.json")
    limit = 1.5 * CostModel(tiny(), table, SIZE, CLASSES).costs(tiny().smallest()).latency_ms
    arguments = ("--run", run, *SEARCH, "--limit", f"ms={limit}", "--restart")
    expect(command("search", *arguments, "--confidence", 95), 0, "upper bound of 95%: 1.200 x prediction")
    outcome = json.loads((run / "pareto.json").read_text())
    assert outcome["confidence"] == 0.95 and outcome["bound_factor"] == pytest.approx(1.2)
    assert max(member["predicted_ms"] for member in outcome["front"]) * 1.2 <= limit * (1 + 1e-9)
    assert json.loads((run / "history.jsonl").read_text().splitlines()[0])["confidence"] == 0.95
    for wrong in (30, 100):
        assert "at least 50, below 100" in command("search", *arguments, "--confidence", wrong)[1]
    made_table(ratios=RATIOS[:10]).save(run / "latency.json")
    expect(command("search", *arguments, "--confidence", 95), 2, "needs at least 45 networks; got 10; run hyctas-profile")


def test_a_machine_that_is_slower_than_its_table_chooses_nothing(searched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its measured times would leave no network within the limit."""
    table = made_table()
    here = replace(table, identity=replace(table.identity, device=hardware()))
    found = [member.evaluation for member in read_outcome(searched).front]

    def measure(slower: float, limit_ms: float) -> dict[str, float]:
        times = {evaluation.id: slower * evaluation.predicted_ms for evaluation in found}
        monkeypatch.setattr(measured_networks, "_measure", lambda *given: times)
        return measure_evaluations("front", found, CostModel(tiny(), here, SIZE, CLASSES), limit_ms)

    fastest = min(evaluation.predicted_ms for evaluation in found)
    with pytest.raises(CheckFailed, match=r"took 5\.0 times as long as predicted .* repeat the command"):
        measure(5.0, 4 * fastest)
    assert measure(5.0, 6 * fastest), "one is within the limit"
    assert measure(1.2, 1.1 * fastest), "predictions may be off by so much"


def test_bounds_and_limits() -> None:
    table = made_table(ratios=RATIOS)
    plain, bound = CostModel(tiny(), table, SIZE, CLASSES), CostModel(tiny(), table, SIZE, CLASSES, 0.95)
    smallest = tiny().smallest()
    assert plain.costs(smallest).bound_ms == plain.costs(smallest).latency_ms == bound.costs(smallest).latency_ms
    limits = Limits(latency_ms=1.1 * plain.costs(smallest).latency_ms)
    assert limits.keeps(plain.costs(smallest)) and not limits.keeps(bound.costs(smallest))
    fast = made_table(ratios=tuple(np.full(50, 0.5).tolist()))
    assert CostModel(tiny(), fast, SIZE, CLASSES, 0.9).bound_factor == 1.0, "a bound never lies below the prediction"


def test_a_search_for_several_targets(command: Command, run: Path, tmp_path: Path) -> None:
    here, other = made_table(ratios=RATIOS), tmp_path / "phone.json"
    times = {key: 0.02 + 0.5 * row.median_ms for key, row in here.rows.items()}  # an operator costs more, work less
    rows = {key: replace(row, p10_ms=times[key], median_ms=times[key], p90_ms=times[key]) for key, row in here.rows.items()}
    phone = replace(here, identity=replace(here.identity, target="openvino-cpu:fp32"), rows=rows)
    here.save(run / "latency.json")
    phone.save(other)
    models = [CostModel(tiny(), table, SIZE, CLASSES) for table in (here, phone)]
    limit = 1.2 * max(model.costs(tiny().smallest()).latency_ms for model in models)
    arguments = ("--run", run, *SEARCH, "--limit", f"ms={limit}", "--restart", "--table", run / "latency.json")
    expect(command("search", *arguments, other), 0, "front on onnxruntime-cpu:fp32 (1 thread) and openvino-cpu:fp32 (1 thread)")
    for member in read_outcome(run).front:
        times = [model.costs(member.evaluation.genotype).latency_ms for model in models]
        assert member.evaluation.predicted_ms == pytest.approx(max(times)) and max(times) <= limit
    both = CostModel(tiny(), here, SIZE, CLASSES, 0.95, [phone])
    assert len(both.all) == 2 and both.costs(tiny().smallest()).bound_ms == pytest.approx(
        1.2 * max(model.costs(tiny().smallest()).latency_ms for model in models)
    )
    expect(command("search", *arguments, run / "latency.json"), 2, "are both of onnxruntime-cpu:fp32 (1 thread) on one device")
    expect(command("search", *arguments, tmp_path / "none.json"), 2, "none.json")


def test_the_hand_made_network_beside_a_demos_stays(searched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_handmade, "ROUNDS", 1)
    found = nearest_in_latency(searched, ["plain"], CLASSES)
    assert found in ("edge:plain", "edge:plain-w75")
    assert nearest_in_latency(searched, ["two-branch"], CLASSES) == found, "a demo that was killed goes on with it"
    (searched / "handmade.json").write_text("{}")
    with pytest.raises(CorruptFile, match=r"handmade\.json"):
        nearest_in_latency(searched, ["plain"], CLASSES)


@pytest.mark.parametrize(
    ("genotypes", "text"),
    [
        (("a", "b"), "the searched network is more accurate by 2.0 points"),
        (("a", "a"), "the search chose the hand-made network; what it learnt in supernet and search is worth +2.0 points"),
    ],
)
def test_a_demos_network_beside_the_hand_made_one(tmp_path: Path, genotypes: tuple[str, str], text: str) -> None:
    folders = tmp_path / "run", tmp_path / "run/handmade"
    for folder, genotype, miou in zip(folders, genotypes, (0.5, 0.48), strict=True):
        folder.mkdir()
        write_json(folder / "scores.json", {"format_version": 1, "genotype": genotype, "val": {"miou": miou}})
    write_json(tmp_path / "run/fps.json", {"format_version": 1, "models": [{"median_ms": 1.0}, {"median_ms": 1.1}]})
    Run(folders[1], "train-network", {}, ()).finish(start=None)
    assert comparison(*folders, "edge:plain").splitlines()[1:] == [
        "hand-made: 48.0 % mIoU on val at 1.10 ms (edge:plain), as many steps from random weights", text,
    ]  # fmt: skip


def test_measured_front_is_counted(searched: Path) -> None:
    outcome = json.loads((searched / "pareto.json").read_text())
    for index, member in enumerate(outcome["front"]):
        member["measured_ms"] = 4.0 if index % 2 == 0 else 6.0
    (searched / "pareto.json").write_text(json.dumps(outcome))
    count = len(outcome["front"])
    assert f"{(count + 1) // 2} of {count} measured networks meet 5.00 ms (searched on the prediction)" in show_front(searched)


def test_the_only_calibrated_size() -> None:
    table = made_table()
    assert only_calibrated_size(tiny(), table) == SIZE
    (calibration,) = table.calibrations.values()
    for calibrations in ({}, {**table.calibrations, "tiny@32x48": calibration}):
        with pytest.raises(InvalidInput) as found:
            only_calibrated_size(tiny(), replace(table, calibrations=calibrations), Give("size", "HEIGHTxWIDTH"))
        assert f"for {len(calibrations)} sizes" in str(found.value) and found.value.remedies == (Give("size", "HEIGHTxWIDTH"),)


def test_calibration_networks_reach_the_ends() -> None:
    table, space = made_table(), tiny()
    networks = calibration_networks(space, table, SIZE, CLASSES, 20, 31)
    assert len({g.id for g in networks}) == 20 and networks == calibration_networks(space, table, SIZE, CLASSES, 20, 31)

    def spread(sample: list[object]) -> float:
        from hyctas.plan import lower

        sums = [predict(units(lower(g, SIZE, CLASSES)), table) for g in sample]  # type: ignore[arg-type]
        return max(sums) / min(sums)

    drawn = [space.sample(np.random.default_rng(seed)) for seed in range(20)]
    assert spread(networks) > spread(drawn)  # type: ignore[arg-type]
    assert spread([*networks, space.smallest()]) < 1.2 * spread(networks), "nor far above the smallest network"  # type: ignore[list-item]


def test_what_is_not_as_expected_is_measured_again() -> None:
    networks = draw_networks(tiny(), 4, 0, 1)
    takes = {  # by measurement
        networks[0].id: [1.0],  # as expected
        networks[1].id: [2.0, 1.01, 1.03],  # disturbed at first
        networks[2].id: [3.0, 3.1],  # slow
        networks[3].id: [1.05, 5.0],  # as expected
    }
    left = {name: iter(ms) for name, ms in takes.items()}
    asked: list[list[str]] = []

    def measure(some: Sequence[Genotype], progress: Progress) -> np.ndarray:
        asked.append([genotype.id for genotype in some])
        progress(len(some), len(some))
        return np.array([next(left[genotype.id]) for genotype in some])

    shown: list[tuple[int, int]] = []
    found = measure_confirmed(networks, measure, lambda first: np.full(4, 1.0), lambda *progress: shown.append(progress))
    assert shown == [(4, 4), (6, 6), (7, 7)], "never back to the beginning"
    assert found == pytest.approx([1.0, 1.02, 3.05, 1.05])
    names = [genotype.id for genotype in networks]
    assert asked == [names, names[1:3], names[1:2]]


class Machine:
    """Sessions that take 2, 7 and (the witness) 5 ms; three tenths longer while the witness takes these steps."""

    def __init__(self, slow: range) -> None:
        self.slow, self.steps = slow, 0

    def session(self, ms: float, *, steps: int = 0) -> Any:
        def step() -> float:
            self.steps += steps
            return ms * (1.3 if self.steps in self.slow else 1.0)

        return SimpleNamespace(step=step)


@pytest.mark.parametrize("slow", [range(0), range(25, 95), range(35, 45)])
def test_times_beside_a_slow_witness_do_not_count(slow: range, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latency.witness.READING_MS", 50.0)
    machine = Machine(slow)
    present = Witness(machine.session(5.0, steps=1))
    visits = Visits([machine.session(2.0), machine.session(7.0)], 2, 3, present)
    for repeat, offset in [(0, 0), (0, 1), (1, 0), (1, 1)] * 3:
        visits.visit(repeat, offset)
    visits.repeat_slow()
    assert visits.medians().tolist() == [[2.0, 7.0], [2.0, 7.0]]
    assert sum(len(times) for row in visits.times for times in row) == (12 if not slow else pytest.approx(18, abs=5))


@pytest.mark.parametrize(
    ("then_ms", "said"),
    [(5.2, ""), (None, ""), (4.0, "beside 100% of the timings of the front, the machine was 1.25 times as slow"),
     (6.0, "1.20 times as fast")],
)
def test_a_machine_of_another_speed_than_the_tables_is_named(
    then_ms: float | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    machine = Machine(range(0))
    present = Witness(machine.session(5.0))
    visits = Visits([machine.session(2.0)], 1, 1, present)
    visits.visit(0, 0)
    visits.medians()
    measured_networks._compare_witness("front", then_ms, present)
    printed = capsys.readouterr().out
    assert said in printed and bool(printed) == bool(said)


def test_a_killed_calibration_continues(tmp_path: Path) -> None:
    networks, path = draw_networks(tiny(), 20, 0, 1), tmp_path / "networks.jsonl"
    conditions = Conditions(Identity(target="t", device={}, versions={}, threads=1, protocol={}), (64, 64), 4)
    asked: list[int] = []

    def measure(some: Sequence[Genotype], progress: Progress) -> np.ndarray:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(len(some))
        progress(len(some), len(some))
        return np.arange(len(some)) + 1.0

    def ignore(done: int, total: int) -> None:
        assert 0 < done <= total

    with pytest.raises(KeyboardInterrupt):
        NetworkJournal(path, conditions).measure(networks, measure, ignore)
    with path.open("a") as file:
        file.write('{"id": "12')  # as a kill inside a write leaves it
    asked.clear()
    journal = NetworkJournal(path, conditions)
    assert journal.measure(networks, measure, ignore).tolist() == [*range(1, 9), *range(1, 9), *range(1, 5)] and asked == [4]
    assert journal.measure(networks[:1], measure, ignore).tolist() == [1.0] and asked == [4, 1], "a second time is another one"
    asked.clear()
    again = NetworkJournal(path, conditions)
    assert [again.measure(networks[:1], measure, ignore).tolist() for _ in range(2)] == [[1.0], [1.0]] and not asked
    other = NetworkJournal(path, replace(conditions, size=(32, 32)))
    assert not other.times and len(path.read_text().splitlines()) == 1, "what was measured of another size is dropped"


# -- profiling ----------------------------------------------------------------------------------------------------------------


def test_parts() -> None:
    keys = list("abcdefg")
    assert part(keys, None) == keys
    parts = [part(keys, f"{i}/3") for i in (1, 2, 3)]
    assert sorted(key for found in parts for key in found) == keys and max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.slow
def test_shards_merge_into_a_whole_table(nano_known: None, command: Command, tmp_path: Path) -> None:
    """Two machines measure half each; a third step joins them, calibrates, and --check finds the machine unchanged or noisy."""
    settings = tmp_path / "quick.toml"
    settings.write_text(QUICK)
    common = ("--space", "nano", "--size", "32x48", "--target", "torch-cpu:fp32", "--classes", 3, "--config", settings)
    for half in (1, 2):
        expect(command("profile", *common, "--run", tmp_path / f"half{half}", "--shard", f"{half}/2"), 0, "belong to other shards")
    tables = [tmp_path / f"half{half}" / "latency.json" for half in (1, 2)]
    sizes = [len(LatencyTable.load(path)) for path in tables]
    before = LatencyTable.load(tables[0]).rows
    ended = command("profile", *common, "--run", tmp_path / "whole", "--networks", 6, "--merge", *tables)
    expect(ended, 0, f"joined 2 tables: {sum(sizes)} operators")
    whole = LatencyTable.load(tmp_path / "whole" / "latency.json")
    assert set(whole.rows) == set(nano().keys((32, 48), 3)) and whole.calibrations["nano@32x48"].n == 6
    assert {key: whole.rows[key] for key in before} == before, "nothing was measured again"
    code, text = command("profile", *common, "--run", tmp_path / "whole", "--networks", 7, "--merge", *tables)
    again = LatencyTable.load(tmp_path / "whole" / "latency.json")
    assert code == 0 and again.calibrations["nano@32x48"].n == 7 and again.rows == whole.rows, "more networks alone are measured"
    assert "already measured" in command("profile", *common, "--run", tmp_path / "whole", "--networks", 7, "--merge", *tables)[1]
    code, text = command("profile", "--check", tmp_path / "whole" / "latency.json")
    assert (code, "still describes" in text) == (0, True) or (code == 1 and "does not describe this machine as it is now" in text)
    foreign = replace(whole, identity=replace(whole.identity, device={"cpu": "another"}))
    foreign.save(tables[1])
    expect(command("profile", "--check", tables[1]), 2, "device.")
    expect(command("profile", *common, "--run", tmp_path / "mixed", "--merge", *tables), 2, "cannot be merged: device.")


@pytest.mark.parametrize("shard", ["0/2", "3/2", "2", "a/b", "1/0"])
def test_wrong_shards(command: Command, tmp_path: Path, shard: str) -> None:
    expect(command("profile", "--space", "tiny", "--size", "32x48", "--run", tmp_path, "--shard", shard), 2, "PART/PARTS")


def test_protocol_settings_come_from_toml(command: Command, tmp_path: Path) -> None:
    settings = tmp_path / "protocol.toml"
    settings.write_text("builds = 0\n")
    expect(command("profile", "--space", "tiny", "--run", tmp_path, "--config", settings), 2, "builds is 0")
    settings.write_text("budget = 3\n")
    ended = command("profile", "--space", "tiny", "--run", tmp_path, "--config", settings)
    expect(ended, 2, "unknown keys ['budget']", "flush_mib")


@pytest.mark.parametrize(
    "key", ["conv", "[]", '{"operator":"Warp","inputs":[]}', '{"operator":"Conv","sources":[3],"inputs":[[3,4,4]]}']
)
def test_check_of_a_table_with_an_unknown_key(command: Command, tmp_path: Path, key: str) -> None:
    table = made_table()
    table.rows = {key: next(iter(table.rows.values()))}
    table.save(tmp_path / "t.json")
    expect(command("profile", "--check", tmp_path / "t.json"), 2, "not the key of an operator of this release")


def test_check_of_what_is_no_table(command: Command, tmp_path: Path) -> None:
    made_table().save(tmp_path / "t.json")
    whole = (tmp_path / "t.json").read_text()
    (tmp_path / "t.json").write_text(whole[: len(whole) // 2])
    for path, says in ((tmp_path / "t.json", "t.json"), (tmp_path / "none.json", "there is no latency table")):
        expect(command("profile", "--check", path), 2, says)

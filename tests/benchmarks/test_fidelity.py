"""The judgement of latency tables: what is measured again, and what is counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.fidelity import coverage, drawn_networks, measured_twice, scatter
from benchmarks.residuals import Sums, read_sums, report
from export.errors import InvalidInput
from hyctas.arch.genotype import Genotype
from hyctas.cost.calibrate import Conditions, Progress
from hyctas.cost.workloads import calibration_networks, draw_networks, family, units
from hyctas.plan import lower
from hyctas.space import tiny
from hyctas.spaces.stages import Stage
from latency import LatencyTable
from latency.accuracy import Fidelity
from latency.calibration import Calibration
from latency.identity import Identity
from latency.predictor import predict
from latency.table import Row

IDENTITY = Identity(target="onnxruntime-cpu:fp32", device={}, versions={}, threads=2, protocol={})


def test_networks_whose_times_differ_are_measured_a_third_time(tmp_path: Path) -> None:
    path, asked = tmp_path / "networks.jsonl", list[int]()
    networks = drawn(20)
    header = Conditions(IDENTITY, (64, 64), 4)

    def measure(some: Sequence[Genotype], show: Progress) -> np.ndarray:
        asked.append(len(some))
        show(len(some), len(some))
        return np.array([2.8 if len(asked) in (2, 4) else 2.0 for _ in some])  # other networks in each pass

    found = measured_twice(networks, header, measure, path)
    assert {*found.values()} == {(2.0, 2.0)} and asked == [8, 8, 4, 8, 8, 4, 8, 8]
    again = measured_twice(networks, header, measure, path)
    assert again == found and len(asked) == 8, "what stands in the file is not measured again"
    with pytest.raises(InvalidInput, match="another target, machine, size or number of classes"):
        measured_twice(networks, replace(header, size=(32, 32)), measure, path)


def drawn(count: int) -> list[Genotype]:
    rng = np.random.default_rng(0)
    return list({genotype.id: genotype for genotype in (tiny().sample(rng) for _ in range(2 * count))}.values())[:count]


def test_a_space_may_have_fewer_networks_than_are_drawn() -> None:
    space = tiny()
    one = replace(space, name="one", branch_sets=((16,),), stages=tuple(
        Stage(stage.name, stage.widths[:1], 1, stage.first[-1:]) for stage in space.stages
    ), stems=("conv",), attention=(), context=False, decoders=("sum",), heads=("light",), head_blocks=("conv",))  # fmt: skip
    assert len(draw_networks(one, 50, 0, 1)) < 10
    with pytest.raises(InvalidInput, match="hardly more than"):
        calibration_networks(one, LatencyTable(IDENTITY, {}), (64, 64), 4, 50, 1)


def test_fidelity_counts_what_the_bound_covers() -> None:
    score = Fidelity(0.05, 0.6, 0.9, 0.99, 0.95, 19)
    ratios = tuple(np.linspace(0.9, 1.1, 60).tolist())
    calibration = Calibration("tiny@64x64", 0.0, 1.0, 19, score, "h", 0.05, ratios)
    found = coverage(calibration, [1.0, 1.0, 1.0, 1.0], np.array([0.9, 1.05, 1.1, 1.2]))
    assert found == (0.75, pytest.approx(1.1)) and coverage(None, [1.0], np.array([1.0])) is None
    assert scatter("a heading", [1.0, 2.0], np.array([1.1, 1.9])).count("<svg") == 1


def test_errors_by_families_of_operators(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ms = rng.uniform(1, 5, size=(80, 3))
    measured = (0.5 + ms @ [1.0, 1.3, 1.0]) * rng.normal(1, 0.01, 80)
    text = report(Sums(["conv", "pool", "all others"], ms, measured), np.full(80, 0.01), "heading", "command")
    factors = {name: float(row.split("|")[4]) for name in ("conv", "pool") for row in text.splitlines() if f"| {name} |" in row}
    assert factors["pool"] / factors["conv"] == pytest.approx(1.3, rel=0.03)
    found = {row.split("|")[1].strip(): row.split("|")[2].strip() for row in text.splitlines() if row.startswith("| ")}
    assert found["a factor per family"] in ("0.8%", "0.9%") and float(found["one scale"][:-1]) > 2


def test_errors_of_networks_that_were_judged(tmp_path: Path) -> None:
    space, size = tiny(), (64, 64)
    keys = space.keys(size, 4)
    rows = {key: Row(op=family(key), median_ms=0.1, p10_ms=0.1, p90_ms=0.1, n=9, builds=1, busy=False) for key in keys}
    table = LatencyTable(IDENTITY, rows)
    table.save(tmp_path / "latency.json")
    with pytest.raises(InvalidInput, match=r"run python -m benchmarks\.fidelity"):
        read_sums(tmp_path, "tiny", 9, 3)
    networks = [genotype for part in drawn_networks(space, table, size, 4, 9, 3) for genotype in part]
    measured_twice(networks, Conditions(IDENTITY, size, 4), lambda some, _: np.full(len(some), 2.0), tmp_path / "networks.jsonl")
    sums, apart, conditions = read_sums(tmp_path, "tiny", 9, 3)
    assert conditions.size == size and len(sums.measured) == len(networks) and (apart == 0).all() and (sums.measured == 2).all()
    assert sums.ms.sum(axis=1) == pytest.approx([predict(units(lower(g, size, 4)), table) for g in networks])
    assert sums.families[-1] == "all others" and "conv" in sums.families
    with pytest.raises(InvalidInput, match=r"are not in .* twice"):
        read_sums(tmp_path, "tiny", 9, 4)

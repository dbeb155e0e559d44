"""The judgement of latency tables: what is measured again, and what is counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.fidelity import coverage, measured_twice, scatter
from export.errors import InvalidInput
from hyctas.arch.genotype import Genotype
from hyctas.cost.calibrate import Conditions, Progress
from hyctas.cost.workloads import calibration_networks, draw_networks
from hyctas.space import tiny
from hyctas.spaces.stages import Stage
from latency import LatencyTable
from latency.accuracy import Fidelity
from latency.calibration import Calibration
from latency.identity import Identity

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

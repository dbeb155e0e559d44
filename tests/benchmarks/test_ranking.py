"""Judging a supernet's ranking: what is chosen, what is skipped, and what the report says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import ranking
from benchmarks.screening import read_results
from export.errors import Infeasible, InvalidInput
from hyctas.arch.genotype import Genotype
from hyctas.plan import lower
from hyctas.space import tiny
from hyctas.training import band
from tests.hyctas.cli.conftest import TRAIN, made_table, run_command


def line(name: str, seed: int, inherited: float, retrained: float) -> dict[str, Any]:
    subject = {"supernet": "0123456789ab", "ms": 12.0, "steps": 1500, "crop": "192x256", "init": None, "data": "d", "cpu": "a CPU"}
    return {**subject, "id": name, "seed": seed, "inherited_miou": inherited, "retrained": retrained}


def test_chosen_networks_are_spread_evenly() -> None:
    assert ranking.spread_evenly([0.1, 0.11, 0.12, 0.5, 0.9, 0.49], 3) == [0, 3, 4]
    assert sorted(ranking.spread_evenly([0.3, 0.3, 0.3], 3)) == [0, 1, 2], "each once, though all are equal"


def test_report() -> None:
    """Inherited mIoU ranks seed 0 perfectly and exchanges the upper two of seed 1: tau 1 and 1/3, and 1/3 between the seeds."""
    lines = [
        line("a", 0, 0.40, 0.50), line("b", 0, 0.45, 0.55), line("c", 0, 0.50, 0.52 + 0.08),
        line("a", 1, 0.40, 0.42), line("b", 1, 0.45, 0.60), line("c", 1, 0.50, 0.51), line("d", 0, 0.3, 0.9),
    ]  # fmt: skip
    text = ranking.report(lines)
    assert "mean over seeds: **0.67**; between two seeds: 0.33 (2.00 of it)" in text
    assert "+8.0 points on average, from +5.5 to +12.5; within 2 points: 0 of 3" in text
    assert "| c | 50.0 | 60.0, 51.0 | +5.5 |" in text and "| d |" not in text, "d has one seed"
    with pytest.raises(InvalidInput, match="no three networks"):
        ranking.report(lines[:3])


def test_candidates_lie_near_the_latency() -> None:
    def predict(genotype: Genotype) -> float:
        return lower(genotype, (64, 64), 5).macs / 1e6

    ms = predict(tiny().sample(np.random.default_rng(2)))
    found = ranking.draw(tiny(), predict, ms, 10)
    assert len({genotype.id for genotype in found}) == 10
    assert all(abs(predict(genotype) / ms - 1) <= 0.15 for genotype in found)
    with pytest.raises(Infeasible):
        ranking.draw(tiny(), predict, 1e-3, 10)


def test_a_repeated_command_trains_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, results = tmp_path / "run", tmp_path / "ranking.jsonl"
    assert run_command("train", *TRAIN, "--run", run) == 0
    made_table().save(run / "latency.json")
    monkeypatch.setattr(band, "SAMPLES", 40)
    monkeypatch.setattr(band, "ENOUGH", 2)
    trained: list[str] = []
    stop = [4]

    def train(genotype: Genotype, folder: Path, *given: object) -> tuple[dict[str, Any], dict[str, Any]]:
        if len(trained) in stop:
            raise InterruptedError
        trained.append(folder.name)
        return {"choose": {"miou": 0.5}}, {"results": {"spent_s": 1.0}, "machine": {"cpu": "a CPU"}}

    monkeypatch.setattr(ranking, "train", train)
    arguments = f"ranking --run {run} --ms 0.3 --candidates 4 --networks 3 --results {results}".split()
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(InterruptedError):
        ranking.main()
    assert len(read_results(results)) == 8, "four candidates scored, four trainings"
    stop.clear()
    ranking.main()
    assert len(trained) == len(set(trained)) == 6 and len(read_results(results)) == 10
    ranking.main()
    assert len(trained) == 6
    monkeypatch.setattr(sys, "argv", ["ranking", "--report", "--results", str(results)])
    ranking.main()
    assert "3 networks, 2 seeds" in (tmp_path / "ranking.md").read_text()

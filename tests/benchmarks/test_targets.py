"""Two searches for two targets: what may be compared, and what the hypervolume of measured fronts is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.targets import check_comparable, hypervolume, read_run, report
from export.errors import InvalidInput
from hyctas.space import tiny

SPACE = tiny()
NETWORKS = [SPACE.smallest(), SPACE.largest(), SPACE.sample(np.random.default_rng(1))]


def write_run(folder: Path, target: str, miou: list[float], limit_ms: float | None = None, **header: Any) -> Path:
    """Write what a search leaves, as far as it is read here."""
    folder.mkdir()
    front = [{"id": g.id, "miou": value, "genotype": json.loads(g.to_json())} for g, value in zip(NETWORKS, miou, strict=False)]
    outcome = {
        "format_version": 1, "target": target, "threads": 1, "space": "tiny", "size": [64, 64], "num_classes": 4, "images": 5,
        "eval_size": None, "limits": {"latency_ms": limit_ms}, "front": front,
    }  # fmt: skip
    (folder / "pareto.json").write_text(json.dumps(outcome))
    first = {"supernet_sha256": "s", "data": 1, "evaluations": 9, "seed": 0, "population": 4, "limits": {}} | header
    (folder / "history.jsonl").write_text(json.dumps(first) + "\n")
    return folder


def test_hypervolume_of_a_measured_front(tmp_path: Path) -> None:
    found = read_run(write_run(tmp_path / "a", "torch-cpu:fp32", [0.2, 0.6, 0.4]))
    ms = dict(zip(found.genotypes, (1.0, 4.0, 2.0), strict=True))
    assert hypervolume(found, ms, 10.0) == pytest.approx((0.2 * 1 + 0.4 * 2 + 0.6 * 6) / 10)
    slow = dict(zip(found.genotypes, (1.0, 20.0, 5.0), strict=True))
    assert hypervolume(found, slow, 10.0) == pytest.approx((0.2 * 4 + 0.4 * 5) / 10), "what is too slow counts nothing"


def test_report_says_who_wins_where(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a", "torch-cpu:fp32", [0.5, 0.6]), write_run(tmp_path / "b", "onnxruntime-cpu:fp32", [0.5, 0.6])]
    found = [read_run(run) for run in runs]
    check_comparable(runs, found)
    names = list(found[0].genotypes)
    found[1].genotypes.pop(names[0])
    found[1].miou.pop(names[0])
    text, value = report(found, [dict(zip(names, (1.0, 2.0), strict=True)), dict(zip(names, (3.0, 1.0), strict=True))], "command")
    assert not value["own_better"] and "1 of them in both" in text and "own target: no" in text
    assert value["rank_correlation"] == -1 and value["reference_ms"] == [2.0, 3.0]


@pytest.mark.parametrize(
    ("second", "header", "says"),
    [
        ("torch-cpu:fp32", {}, "both searches are for torch-cpu:fp32"),
        ("onnxruntime-cpu:fp32", {"supernet_sha256": "other"}, "differ in supernet_sha256: s and other"),
        ("onnxruntime-cpu:fp32", {"evaluations": 8}, "differ in evaluations"),
    ],
)
def test_what_cannot_be_compared(tmp_path: Path, second: str, header: dict[str, Any], says: str) -> None:
    runs = [write_run(tmp_path / "a", "torch-cpu:fp32", [0.5]), write_run(tmp_path / "b", second, [0.5], **header)]
    with pytest.raises(InvalidInput, match=says):
        check_comparable(runs, [read_run(run) for run in runs])
    with pytest.raises(InvalidInput, match="run hyctas-search"):
        read_run(tmp_path)

"""The benchmark commands: the yardstick is the network it claims to be, and the account repeats what the files say."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import attention_cpu, fidelity, screening, yardstick
from benchmarks.compare import account
from benchmarks.gpu_suite import __main__ as gpu_suite
from benchmarks.published import drawing, numbers
from benchmarks.yardstick import Yardstick
from hyctas import published
from hyctas.plan import lower
from hyctas.spaces.members import member

DOCS = Path(__file__).parents[2] / "docs"


def test_yardstick_costs() -> None:
    with torch.device("meta"):
        network, image = Yardstick(11).eval(), torch.empty(1, 3, 360, 480)
    with FlopCounterMode(display=False) as counter:
        assert network(image).shape == (1, 11, 360, 480)
    macs, parameters = counter.get_total_flops() / 2, sum(p.numel() for p in network.parameters())
    assert (round(macs / 1e9, 2), round(parameters / 1e6, 2)) == (1.28, 1.37)
    plan = lower(member("plain"), (360, 480), 11)  # the same network as a member of the space `edge`
    assert plan.macs == pytest.approx(macs, rel=0.02) and plan.parameters == pytest.approx(parameters, rel=0.02)


def write(folder: Path, name: str, value: dict[str, Any]) -> None:
    (folder / name).write_text(json.dumps({"format_version": 1, **value}))


def score(miou: float) -> dict[str, Any]:
    return {"miou": miou, "iou": [miou, None]}


def test_account(tmp_path: Path) -> None:
    data = {"name": "streets", "train": 7, "choose": 3, "method": "clips", "classes": ["road", "sky"]}
    common = {"machine": {"cpu": "a CPU"}, "command_line": ["hyctas-x", "--data", "/secret/place", "--minutes", "3"]}
    for name in ("profile", "train-supernet", "search"):
        write(tmp_path, f"{name}.json", {**common, "config": {"data": data}})
    trained = {"config": {"recipe": {"minutes": 3}}, "results": {"crops": 99}}
    write(tmp_path, "train-network.json", {**common, **trained})
    scores = {"choose": score(0.5), "val": score(0.6)}
    write(tmp_path, "scores.json", scores)
    yardstick = {**common, **trained, "command_line": ["yardstick.py", "--data", "/secret/place"]}
    write(tmp_path, "yardstick.json", {**yardstick, "results": {"crops": 98, "scores": scores}})
    member = {"id": "abc", "branches": 2, "miou": 0.4, "predicted_ms": 11.0, "measured_ms": 10.0, "parameters": 1e6, "macs": 2e9}
    held = {"n": 30, "mape": 0.04, "within5": 0.6, "within10": 0.9, "spearman": 0.98}
    write(tmp_path, "pareto.json", {
        "target": "t", "threads": 2, "size": [360, 480], "front": [member], "chosen": "abc", "reference_ms": 20.0,
        "hypervolume": {"search": 0.22}, "evaluations": {"search": 9, "screen": 18},
        "calibration": {"holdout": held},
    })  # fmt: skip
    model = {"name": "bundle", "median_ms": 10.0, "p90_ms": 11.0, "p99_ms": 12.0, "fps": 100.0}
    bench = {"models": [model, {**model, "name": "other", "median_ms": 20.0}], "command_line": ["hyctas-bench", "a", "b"]}
    write(tmp_path, "bench.json", bench)
    arguments = argparse.Namespace(run=tmp_path, yardstick=tmp_path, bench=tmp_path / "bench.json", fidelity=None)
    text = account(arguments)
    for expected in ("secret", "| abc (chosen) | 2 | 40.0 | 11.00 | 10.00 | +10.0 |", "0.2200 after 9 networks",
                     "| chosen network | 3 | 99 | 50.0 | 60.0 |", "python -m benchmarks.yardstick --data DATA",
                     "| sky | absent | absent | absent | absent |", "MAPE 4.0 %", "takes 0.50 of",
                     "hyctas-bench a b"):  # fmt: skip
        assert (expected in text) == (expected != "secret"), expected


def test_pages_of_the_published_networks_are_up_to_date() -> None:
    assert (DOCS / "published_numbers.md").read_text() == numbers(), "run python -m benchmarks.published --out docs"
    for name in published.NAMES:
        assert (DOCS / f"published_{name}.svg").read_text() == drawing(name), name


@pytest.mark.parametrize(
    ("module", "flags"),
    [(fidelity, ("--networks", "4")), (fidelity, ("--threads", "0")), (fidelity, ("--seed", "-1")), (fidelity, ("--classes", "0")),
     (yardstick, ("--minutes", "nan")), (yardstick, ("--seed", "x")), (attention_cpu, ("--rounds", "0")),
     (attention_cpu, ("--threads", "-1")), (screening, ("--seeds", "0", "-1")), (gpu_suite, ("--seconds", "inf"))],
)  # fmt: skip
def test_numbers_are_held_to_their_ranges(
    module: ModuleType, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", *flags])
    with pytest.raises(SystemExit) as end:
        module.main()
    assert end.value.code == 2 and f"{flags[-1]!r} is not allowed: a" in capsys.readouterr().err

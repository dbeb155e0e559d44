"""Train supernets that draw numbers of branches at other ratios, and score the same networks with each."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.ablations.trainings import grouped, how, scores
from benchmarks.ranking import draw, open_supernet_scorer
from benchmarks.screening import append, read_results, run_training
from export.bench_report import markdown_rows
from export.errors import InvalidInput
from export.files import sha256
from hyctas.arch.genotype import Genotype
from hyctas.artifacts.inherit import SupernetRecord
from hyctas.artifacts.runs import Record
from hyctas.commands.datasets import open_dataset
from hyctas.cost.workloads import CostModel, only_calibrated_size
from hyctas.search.limits import Limits
from hyctas.space import edge
from latency import LatencyTable

SETTINGS: dict[str, dict[str, Any]] = {
    "three branches only (drawn uniformly, practically all networks have three)": {"ratios": [0, 0, 1], "adaptive": False},
    "equal": {"ratios": [1, 1, 1], "adaptive": False},
    "1 : 2 : 3": {"ratios": [1, 2, 3], "adaptive": False},
    "1 : 2 : 3, adaptive (the default)": {"ratios": [1, 2, 3], "adaptive": True},
}
NETWORKS = 6
"""Scored per number of branches."""
COUNTS = (1, 2, 3)


def ratios(arguments: argparse.Namespace) -> str:
    """Train a supernet per setting and seed, and score networks near the limit with it; return the account.

    Raises:
        InvalidInput: no limit on latency.
        CheckFailed: a training failed.
    """
    limit_ms = Limits.parse([arguments.limit]).latency_ms
    if limit_ms is None:
        raise InvalidInput(f"--limit {arguments.limit} is not one on latency; give ms=... or fps=...")
    path = arguments.results / "ablation_ratios.jsonl"
    for seed in range(arguments.seeds):
        for number, (name, settings) in enumerate(SETTINGS.items()):
            table = {"limit_ms": limit_ms, "table_sha256": sha256(arguments.table)}
            case = {"setting": name, **settings, **table, **how(arguments, seed)}
            if case not in [line["case"] for line in read_results(path)]:
                run = arguments.runs / f"ratios{number}_{case['steps']}_{case['crop']}_seed{seed}"
                append(path, {"case": case, **_trained(run, settings, arguments, seed, limit_ms)})
    return ratios_account(read_results(path))


def _trained(run: Path, settings: Mapping[str, Any], arguments: argparse.Namespace, seed: int, limit_ms: float) -> dict[str, Any]:
    run_training("supernet", run, settings, [
        "--space", "edge", "--data", arguments.data, "--steps", str(arguments.steps), "--crop", arguments.crop, "--seed", str(seed),
        "--limit", arguments.limit, "--table", str(arguments.table),
    ])  # fmt: skip
    record = Record.read(run, "train-supernet")
    supernet, data = SupernetRecord.read(run), open_dataset(arguments.data, check=False)
    scorer = open_supernet_scorer(run, supernet, data)
    found = [
        {"branches": len(genotype.branches), "id": genotype.id, "inherited": scorer(genotype)}
        for genotype in judged_networks(arguments.table, limit_ms, data.num_classes)
    ]
    return {"networks": found, "ratios_at_end": record.results["ratios"], "cpu": record.machine["cpu"]}


def judged_networks(table_path: Path, limit_ms: float, num_classes: int) -> list[Genotype]:
    """Return networks of each number of branches near the limit, the same ones for every supernet.

    Raises:
        Infeasible: a number of branches has too few.
    """
    space, table = edge(), LatencyTable.load(table_path)
    model = CostModel(space, table, only_calibrated_size(space, table), num_classes)
    only = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    found = [draw(space, lambda g: model.costs(g).latency_ms, limit_ms, NETWORKS, ratios) for ratios in only]
    return [genotype for some in found for genotype in some]


def ratios_account(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return the results as Markdown: mean mIoU of the networks of each number of branches, by setting."""
    rows = [["rho", "branches", "mIoU % with shared weights, by seed", "mean", "rho at the end, last seed"]]
    for name, group in grouped(lines, "setting").items():
        for count in COUNTS:
            by_seed = {
                line["case"]["seed"]: 100 * mean(n["inherited"] for n in line["networks"] if n["branches"] == count)
                for line in group
            }  # fmt: skip
            end = " : ".join(f"{ratio:.2f}" for ratio in group[-1]["ratios_at_end"])
            rows.append([name, str(count), *scores(by_seed), end])
    case = lines[0]["case"]
    return (
        "# What do the branch ratios change?\n\nPrinted by `python -m benchmarks.ablations ratios`: supernets of `edge` for "
        f"{case['limit_ms']:.2f} ms, {case['steps']} steps of {case['crop']}, that draw numbers of branches at different ratios "
        f"rho. Each scores the same {NETWORKS} networks of each number of branches, within 15 % of the limit, on the choosing "
        "split.\n\n"
        + markdown_rows(rows, 1) + "\n"
    )  # fmt: skip

"""Train the networks of an ablation alike, once each, and group what they reached."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.screening import append, read_results, train
from hyctas.arch.genotype import Genotype
from hyctas.pretrained.start import default_source

Predict = Callable[[Genotype], float | None]
"""Gives a network's latency in milliseconds; None where it cannot be predicted."""


def how(arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Return what of the command line decides a training."""
    return {"seed": seed, "steps": arguments.steps, "crop": arguments.crop}


def trained(
    case: dict[str, Any], genotype: Genotype, arguments: argparse.Namespace, path: Path, predicted_ms: float | None = None
) -> None:
    """Train a network unless its case stands in the results file, and append what it reached."""
    init = default_source(genotype)
    case = {**case, "init": init}
    if case in [line["case"] for line in read_results(path)]:
        return
    options = ["--init", init, "--data", arguments.data, "--steps", str(case["steps"]), "--crop", case["crop"]]
    folder = arguments.runs / f"{genotype.id}_{case['steps']}_{case['crop']}_seed{case['seed']}"
    found, record = train(genotype, folder, {}, [*options, "--seed", str(case["seed"])])
    append(path, {
        "case": case, "genotype": genotype.id, "miou": found["choose"]["miou"], "predicted_ms": predicted_ms,
        "spent_s": record["results"]["spent_s"], "cpu": record["machine"]["cpu"],
    })  # fmt: skip


def grouped(lines: Sequence[Mapping[str, Any]], name: str) -> dict[Any, list[Mapping[str, Any]]]:
    """Return the lines of a results file by one property of their cases, in the order of the first ones."""
    found: dict[Any, list[Mapping[str, Any]]] = {}
    for line in lines:
        found.setdefault(line["case"][name], []).append(line)
    return found


def by_seed(lines: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Return mIoU in per cent by seed."""
    return {line["case"]["seed"]: 100 * line["miou"] for line in lines}


def scores(found: Mapping[int, float]) -> list[str]:
    """Return two cells of a table: the values by seed, and their mean with its spread (standard deviation over the seeds)."""
    values = [found[seed] for seed in sorted(found)]
    return [", ".join(f"{value:.1f}" for value in values), f"{mean(values):.1f}{spread(values)}"]


def spread(values: Sequence[float]) -> str:
    """Return the standard deviation of several values as text; nothing for one."""
    return f" ± {stdev(values):.1f}" if len(values) > 1 else ""

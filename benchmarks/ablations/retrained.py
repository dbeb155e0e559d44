"""Train the answers of a search and of random draws alike."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from benchmarks import search_against_random
from benchmarks.ablations.trainings import by_seed, grouped, how, scores, trained
from benchmarks.screening import read_results
from benchmarks.search_against_random import SIDES, paired
from export.bench_report import markdown_rows
from export.errors import InvalidInput
from hyctas.arch.genotype import Genotype


def retrained(arguments: argparse.Namespace) -> str:
    """Train the answers of `benchmarks.search_against_random`; return the account.

    Raises:
        InvalidInput: there are none.
    """
    answers = read_results(arguments.results / search_against_random.RESULTS.name)
    if not answers:
        raise InvalidInput(f"{arguments.results} holds no answers; run python -m benchmarks.search_against_random first")
    path = arguments.results / "ablation_retrained.jsonl"
    for seed in range(arguments.seeds):
        for answer in answers:
            for side in SIDES:
                found = answer[side]
                case = {"side": side, "search_seed": answer["case"]["seed"], "limit_ms": answer["case"]["limit_ms"]}
                case |= {"predicted_ms": found["predicted_ms"], "inherited": found["unseen_miou"], **how(arguments, seed)}
                trained(case, Genotype.from_json(json.dumps(found["genotype"])), arguments, path)
    return retrained_account(read_results(path))


def retrained_account(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return the results as Markdown: what either side's answers reach, and the mean difference with its interval of 95 %."""
    rows, gains = [["search", "network", "ms, predicted", "inherited mIoU %", "retrained mIoU %, by seed", "mean"]], []
    for search_seed, group in grouped(lines, "search_seed").items():
        means = {}
        for side, some in grouped(group, "side").items():
            case, found = some[0]["case"], by_seed(some)
            rows.append([
                str(search_seed), f"{side}: {some[0]['genotype']}", f"{case['predicted_ms']:.2f}", f"{100 * case['inherited']:.1f}",
                *scores(found),
            ])  # fmt: skip
            means[side] = mean(found.values())
        if set(means) == set(SIDES):
            gains.append(means["search"] - means["random"])
    difference = "Neither side is trained yet."
    if gains:
        middle, low, high = paired(gains)
        ends = f", 95 % interval {low:+.2f} to {high:+.2f}" if len(gains) > 1 else ""
        difference = f"Search minus random, retrained: {middle:+.2f} points{ends} ({len(gains)} searches)."
    return (
        "# Searched against random networks, retrained\n\nPrinted by `python -m benchmarks.ablations retrained`: the answers of "
        "`search_against_random.jsonl`, trained alike; mIoU on the choosing split.\n\n" + markdown_rows(rows, 2)
        + f"\n\n{difference}\n"
    )  # fmt: skip

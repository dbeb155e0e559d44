"""Say what each step of a run took."""

from __future__ import annotations

import argparse
from pathlib import Path

from export.bench_report import markdown_rows
from export.errors import InvalidInput
from hyctas.artifacts.runs import Cost, Record
from hyctas.report.collect import collect
from hyctas.search.history import SEARCH

COMMANDS = ("profile", "train-supernet", "search", "finalists/finalists", "train-network")
PUBLISHED = (
    ("Auto-DeepLab", "3 P100 GPU-days (Liu et al., CVPR 2019, abstract)"),
    ("FasterSeg", "one GTX 1080 Ti of 11 GB (its repository); one user computed 8.3 days for the 30 epochs of its search"),
)


def cost(arguments: argparse.Namespace) -> str:
    """Return what each step of a run took, as Markdown.

    Raises:
        InvalidInput: no step of the run is done.
    """
    run, rows, total = Path(arguments.run), [["step", "wall time, min", "peak memory, MiB", ""]], 0.0
    costs = {command: cost for command in COMMANDS if (cost := _cost(run / command))}
    for command, found in costs.items():
        total += found.wall_s / 60
        peak = "-" if found.peak_mib is None else f"{found.peak_mib:.0f}"
        rows.append([Path(command).name, f"{found.wall_s / 60:.1f}", peak, "of its last process" * found.continued])
    if len(rows) == 1:
        raise InvalidInput(f"no step of {run} is done, or all were done before their cost was noted; run hyctas-search --run {run}")
    rows.append(["all", f"{total:.1f}", "", f"{total / 60:.2f} device hours"])
    scored = sum(point.kind == SEARCH for point in collect(run).points)
    alone = ""
    if "train-network" in costs:
        hours = scored * costs["train-network"].wall_s / 3600
        alone = f"Trained one by one, as the chosen one was, the {scored} networks scored would take {hours:.1f} hours.\n\n"
    return (
        f"# What a search costs\n\nPrinted by `python -m benchmarks.ablations cost`.\n\n{markdown_rows(rows)}\n\n{alone}"
        + "\n".join(f"* {name}: {text}" for name, text in PUBLISHED) + "\n"
    )  # fmt: skip


def _cost(path: Path) -> Cost | None:
    """Return the cost that a step's record notes; None where it has not finished, or before this was noted."""
    try:
        return Record.read(path.parent, path.name).cost
    except FileNotFoundError:
        return None

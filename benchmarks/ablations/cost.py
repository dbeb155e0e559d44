"""Say what each step of a run took."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from export.bench_report import markdown_rows
from export.errors import InvalidInput
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
    for name in COMMANDS:
        path = run / f"{name}.json"
        record = json.loads(path.read_text()) if path.exists() else {}
        if record.get("state") != "done" or "cost" not in record:
            continue
        found = record["cost"]
        total += found["wall_s"] / 60
        peak = "-" if found["peak_mib"] is None else f"{found['peak_mib']:.0f}"
        rows.append([path.stem, f"{found['wall_s'] / 60:.1f}", peak, "of its last process" * found["continued"]])
    if len(rows) == 1:
        raise InvalidInput(f"no step of {run} is done, or all were done before their cost was noted; run hyctas-search --run {run}")
    rows.append(["all", f"{total:.1f}", "", f"{total / 60:.2f} device hours"])
    scored = sum(point.kind == SEARCH for point in collect(run).points)
    trained = json.loads((run / "train-network.json").read_text()) if (run / "train-network.json").exists() else None
    alone = ""
    if trained and "cost" in trained:
        hours = scored * trained["cost"]["wall_s"] / 3600
        alone = f"Trained one by one, as the chosen one was, the {scored} networks scored would take {hours:.1f} hours.\n\n"
    return (
        f"# What a search costs\n\nPrinted by `python -m benchmarks.ablations cost`.\n\n{markdown_rows(rows)}\n\n{alone}"
        + "\n".join(f"* {name}: {text}" for name, text in PUBLISHED) + "\n"
    )  # fmt: skip

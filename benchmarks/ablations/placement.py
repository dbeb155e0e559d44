"""Count at which strides the networks of a search have attention."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from export.bench_report import markdown_rows
from export.files import write_text
from hyctas.arch.genotype import Genotype, final_stride
from hyctas.artifacts.choice import read_outcome
from hyctas.report.collect import collect
from hyctas.search.history import SEARCH, Evaluation

BEST = 10
"""One in so many evaluations counts as the best."""
STRIDES = (8, 16, 32)
COLOURS = {None: "#a8b0ba", 32: "#3f86d6", 16: "#d9480f", 8: "#2b8a3e"}


def placement(arguments: argparse.Namespace) -> str:
    """Return where the networks of a search have attention, as Markdown.

    Raises:
        FileNotFoundError, CorruptFile: the search's results are not there, or damaged.
    """
    run = Path(arguments.run)
    scored = [point for point in collect(run).points if point.kind == SEARCH]
    front = [member.evaluation for member in read_outcome(run).front]
    write_text(arguments.results / "ablation_placement.svg", figure(scored, front))
    parts = [
        "# Where attention stands",
        f"Printed by `python -m benchmarks.ablations placement` of a search with {len(scored)} scored networks: the share of the "
        "networks that have attention at a stride, by their number of branches.",
        "![all scored networks, by the strides at which they have attention](ablation_placement.svg)",
    ]
    for what, some in (("The front", front), (f"The best tenth of all ({len(best(scored))})", best(scored)), ("All", scored)):
        parts += [f"## {what}", placement_table(some)]
    return "\n\n".join(parts) + "\n"


def best(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Return the tenth that the fewest others dominate (Fonseca and Fleming 1993), among equals the most accurate."""

    def dominating(one: Evaluation) -> int:
        return sum(
            other.predicted_ms <= one.predicted_ms and other.miou >= one.miou
            and (other.predicted_ms, other.miou) != (one.predicted_ms, one.miou) for other in evaluations
        )  # fmt: skip

    ranked = sorted(evaluations, key=lambda e: (dominating(e), -e.miou, e.id))
    return ranked[: -(-len(ranked) // BEST)]


def placement_table(evaluations: Sequence[Evaluation]) -> str:
    """Return the share of networks with attention at each stride, by number of branches."""
    rows = [["branches", "networks", *(f"1/{stride}" for stride in STRIDES), "in the head", "anywhere"]]
    for count in (1, 2, 3):
        some = [e.genotype for e in evaluations if len(e.genotype.branches) == count]
        places = [attention_strides(genotype) for genotype in some]
        shares = [sum(stride in found for found in places) for stride in (*STRIDES, 0)] + [sum(bool(found) for found in places)]
        rows.append([str(count), str(len(some)), *(f"{share / len(some):.0%}" if some else "-" for share in shares)])
    return markdown_rows(rows, 1)


def figure(scored: Sequence[Evaluation], front: Sequence[Evaluation]) -> str:
    """Draw all scored networks by the finest stride at which a branch has attention, and the front."""
    import matplotlib
    from matplotlib.figure import Figure

    from hyctas.report.plot import INK, STYLE, svg

    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(8.4, 5.4), layout="constrained")
        axes = drawn.add_subplot()
        for stride, colour in COLOURS.items():
            some = [e for e in scored if min(attention_strides(e.genotype) - {0}, default=None) == stride]
            label = f"no attention in its branches ({len(some)})" if stride is None else f"from 1/{stride} on ({len(some)})"
            axes.scatter([e.predicted_ms for e in some], [100 * e.miou for e in some], s=26, color=colour, alpha=0.8, label=label)
        ordered = sorted(front, key=lambda e: e.predicted_ms)
        axes.step([e.predicted_ms for e in ordered], [100 * e.miou for e in ordered], where="post", color=INK, label="front")
        axes.set(xlabel="latency in ms, predicted", ylabel="mIoU in %, choosing split, shared weights")
        axes.legend(frameon=False, fontsize=9)
        return svg(drawn)


def attention_strides(genotype: Genotype) -> set[int]:
    """Return the strides at which a network's branches have attention, and 0 where its head has."""
    found = {0} if genotype.head.attention is not None else set()
    for branch in genotype.branches:
        found |= {final_stride(branch[: place + 1]) for place, cell in enumerate(branch) if cell.op == "attention"}
    return found

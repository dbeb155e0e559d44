"""Draw the Pareto front of a run: accuracy over latency, predicted against measured.

The only module of the project that needs matplotlib. Colours have equal contrast on light and on dark ground and differ for
colour-blind readers (after Okabe and Ito); branches differ in their marker too.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from export.errors import InvalidInput, Perform
from hyctas.report.run_data import Outcome, RunData
from hyctas.search.history import SEARCH, Evaluation

INK = "#75808f"
"""Text and axes: readable on white and on black. In a page it becomes the colour of the page's text."""
BRANCHES = {1: ("o", "#d98a00"), 2: ("^", "#109a76"), 3: ("s", "#3f86d6")}
LIMIT, CHOSEN = "#c2487f", "#d9480f"
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "hyctas",  # equal data, equal file
    "text.parse_math": False,  # names of targets are no formulas
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def pareto_figure(run_data: RunData) -> Figure:
    """Draw what a search found.

    Raises:
        InvalidInput: the run folder holds no finished search.
    """
    outcome = run_data.outcome
    if outcome is None:
        lacking = f"{run_data.folder} holds no pareto.json, so there is no front to draw"
        raise InvalidInput(lacking, Perform("search", {"run": run_data.folder}))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 6.0), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        _clean(axes)
        handles = [*_clouds(axes, run_data.points), *_front(axes, outcome), *_measured(axes, outcome), *_limit(axes, outcome)]
        handles.append(_chosen(axes, outcome))
        axes.set_xlabel(f"latency in ms (on {outcome.targets}, {outcome.size[0]}x{outcome.size[1]})")
        axes.set_ylabel("mIoU in %, choosing split, shared weights")
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=10, columnspacing=3)
    return figure


def fronts_figure(found: Mapping[str, RunData]) -> Figure:
    """Draw what several searches found, side by side, with one scale of accuracy."""
    across = min(3, len(found))
    down = -(-len(found) // across)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6 * across, 4.4 * down + 0.6), layout="constrained")
        figure.patch.set_alpha(0)
        grid = list(figure.subplots(down, across, sharey=True, squeeze=False).flat)
        handles: dict[str, Any] = {}
        for axes, (name, data) in zip(grid, found.items(), strict=False):
            outcome = data.outcome
            assert outcome is not None
            _clean(axes)
            star = _chosen(axes, outcome)
            axes.set_title(f"{name}\n{star.get_label()}", fontsize=10)
            star.set_label("chosen")
            drawn = [*_clouds(axes, data.points), *_front(axes, outcome), *_measured(axes, outcome), star]
            handles |= {handle.get_label(): handle for handle in drawn}
            for line in _limit(axes, outcome):
                handles["limit"] = line
                line.set_label("limit")
            axes.set_xlabel(f"latency in ms ({outcome.targets})")
        for axes in grid[len(found) :]:
            axes.set_visible(False)
        figure.supylabel("mIoU in %, choosing split, shared weights")
        figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=4, frameon=False, fontsize=10)
    return figure


def svg(figure: Figure, *, links: bool = False) -> str:
    """Render a figure as SVG; equal figures give equal text.

    Args:
        figure: of `pareto_figure`.
        links: let every network of the front lead to its row in the page's table.
    """
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = buffer.getvalue().decode()
    return text if links else re.sub(r"</?a\b[^>]*>", "", text)


def anchor(id: str) -> str:
    """Return the name of a network's row in the table; its point in the figure leads there."""
    return f"network-{id}"


def _clean(axes: Axes) -> None:
    axes.patch.set_alpha(0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=INK, alpha=0.18, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.margins(0.05, 0.07)


def _clouds(axes: Axes, points: Sequence[Evaluation]) -> list[Any]:
    """Scatter all scored networks."""
    handles = []
    for count, (marker, colour) in BRANCHES.items():
        chosen = [e for e in points if e.kind == SEARCH and len(e.genotype.branches) == count]
        if chosen:
            name = f"searched, {count} branch{'es' * (count > 1)}"
            filled: Any = {"color": colour, "alpha": 0.7, "linewidths": 0}
            handles.append(axes.scatter(*_xy(chosen), s=26, marker=marker, **filled, label=name, zorder=3))
    return handles


def _front(axes: Axes, outcome: Outcome) -> list[Any]:
    """Draw the front as stairs: the best accuracy that a latency allows."""
    x, y = _xy([member.evaluation for member in outcome.front])
    handles = axes.step(x, y, where="post", color=INK, linewidth=1.5, label="front", zorder=4)
    for member in outcome.front:
        marker, colour = BRANCHES[member.branches]
        point = axes.scatter(*_xy([member.evaluation]), s=52, marker=marker, color=colour, edgecolors=INK, linewidths=0.9, zorder=6)
        point.set_urls([f"#{anchor(member.id)}"])
    return handles


def _measured(axes: Axes, outcome: Outcome) -> list[Any]:
    """Join each member's prediction with its measurement."""
    measured = [(m, m.measured_ms) for m in outcome.front if m.measured_ms is not None]
    if not measured:
        return []
    for member, ms in measured:
        miou = 100 * member.evaluation.miou
        axes.plot([member.evaluation.predicted_ms, ms], [miou, miou], color=INK, linewidth=0.9, zorder=5)
    x, y = [ms for _, ms in measured], [100 * m.evaluation.miou for m, _ in measured]
    return axes.plot(x, y, linestyle="none", marker="D", markersize=5.5, markerfacecolor="none", markeredgecolor=INK,
                     markeredgewidth=1.3, label="measured", zorder=7)  # fmt: skip


def _limit(axes: Axes, outcome: Outcome) -> list[Any]:
    limit = outcome.limits.latency_ms
    if limit is None:
        return []
    return [axes.axvline(limit, color=LIMIT, linewidth=1.5, linestyle=(0, (6, 2)), label=f"limit {limit:.3g} ms", zorder=1)]


def _chosen(axes: Axes, outcome: Outcome) -> Line2D:
    member = outcome.choice
    x, y = member.latency_ms, 100 * member.evaluation.miou
    kind = "predicted" if member.measured_ms is None else "measured"
    star = axes.plot([x], [y], linestyle="none", marker="*", markersize=19, color=CHOSEN, markeredgecolor="white",
                     markeredgewidth=0.9, label=f"chosen: {y:.1f} %, {x:.3g} ms {kind}", zorder=8)  # fmt: skip
    return star[0]


def _xy(evaluations: Sequence[Evaluation]) -> tuple[list[float], list[float]]:
    return [e.predicted_ms for e in evaluations], [100 * e.miou for e in evaluations]

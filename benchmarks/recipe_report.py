"""Write down what hand-made networks reach: every family by screening, the finals, mIoU against measured latency.

    python -m benchmarks.recipe_report

Reads what `python -m benchmarks.screening` wrote (trainings, and with `--time` latencies); writes recipe.md and recipe.svg
beside it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.failures import one_sentence
from benchmarks.screening import (
    BASE,
    BASE_INIT,
    FINAL_CROP,
    FINAL_STEPS,
    PLANS,
    RECIPE,
    RECIPES,
    RESULTS,
    SIZE,
    TARGET,
    Case,
    read_results,
)
from export.bench_report import markdown_rows
from export.errors import CheckFailed
from export.files import read_json, write_text
from export.target import format_size

YARDSTICK, DEFAULT, EARLIER = "edge:plain", "default", ", recipe 1"
Times = dict[str, dict[str, float]]
"""Milliseconds of a network, by its number of threads."""


@dataclass(frozen=True)
class Trained:
    """One network from one start with one recipe, trained with several seeds."""

    network: str
    init: str
    settings: str
    lines: tuple[dict[str, Any], ...]

    @property
    def name(self) -> str:
        """All three as one text."""
        return f"{self.network}, {self.init}, {self.settings}"

    def scores(self, split: str) -> list[float]:
        """Return mIoU in per cent on a split, in the order of the seeds."""
        return [100 * (line["miou"] if line["split"] == split else line[split]["miou"]) for line in self.lines]

    def ious(self, split: str) -> list[float]:
        """Return IoU in per cent per class, averaged over the seeds."""
        columns = zip(*((line["iou"] if line["split"] == split else line[split]["iou"]) for line in self.lines), strict=True)
        return [100 * mean(value or 0.0 for value in column) for column in columns]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="results file of benchmarks.screening")
    path = parser.parse_args().results
    with one_sentence():
        times = read_json(path.with_name("screening_latency.json"), 1)["ms"]
        lines = read_results(path)
        families, finals = of_plan(lines, ("widths", "families")), of_plan(lines, ("finals",))
        if not families:
            raise CheckFailed(f"{path} holds no families; train them: python -m benchmarks.screening --plan widths families finals")
        text = report(families, finals, brief_gains(lines), times, sorted({line["cpu"] for line in lines}))
        write_text(path.with_name("recipe.md"), text)
        write_text(path.with_name("recipe.svg"), figure(families, finals, times))


def of_plan(lines: Sequence[dict[str, Any]], plans: Iterable[str]) -> list[Trained]:
    """Return what plans have trained so far, chosen by the choosing split, in their order: the seeds of one case together.

    All by one recipe, that of most lines, but for cases that name an earlier one themselves.
    """
    noted = {Case.of(line).key: line for line in lines}
    cases = [case for plan in plans for case in PLANS[plan]() if not case.all_of_train]
    by_recipe = {number: [replace(c, recipe=min(number, c.recipe)) for c in cases] for number in RECIPES}
    chosen = max(by_recipe, key=lambda number: (sum(case.key in noted for case in by_recipe[number]), number))
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for case in by_recipe[chosen]:
        if case.key in noted:
            settings = ", ".join(f"{name} = {value}" for name, value in case.settings.items())
            settings = (settings or DEFAULT) + EARLIER * (case.recipe < RECIPE)
            found.setdefault((case.network, case.init, settings), []).append(noted[case.key])
    return [Trained(*key, tuple(group)) for key, group in found.items()]


def report(families: Sequence[Trained], finals: Sequence[Trained], brief: str, times: Times, cpus: Sequence[str]) -> str:
    """Return the account as Markdown."""
    head = ["network", "start", "recipe", "ms, 1 thread", "ms, 2 threads", "mIoU %, choosing split, by seed", "mean"]
    final_rows = [[*row(each, times), *scores(each, "val")] for each in by_latency(finals, times)]
    parts = [
        "# Hand-made networks: what they reach, and what it costs",
        "Printed by `python -m benchmarks.recipe_report` from `screening.jsonl` and `screening_latency.json`, which "
        f"`python -m benchmarks.screening` wrote. CamVid; machine: {', '.join(cpus)}. Latency: {TARGET}, {format_size(SIZE)}, "
        "native output, all networks interleaved. Everything was chosen on the choosing split (a video sequence cut from *train*). "
        "*val* is a clip of a sequence that also trains, which flatters whoever remembers: it was looked at in the finals only. "
        f"Recipe 1: {RECIPES[1]}; without remark, {RECIPES[RECIPE]}.",
        "![mIoU against latency](recipe.svg)",
        "## One width of every family: 1,500 steps of 12 crops of 192x256",
        markdown_rows([head, *(row(each, times) for each in by_latency(families, times))], left=3),
    ]
    if not finals:
        return "\n\n".join([*parts, "The finals are not trained yet."]) + "\n"
    ious, classes = [each.ious("choose") for each in finals], finals[0].lines[0]["classes"]
    per_class = [[name, *(f"{values[index]:.1f}" for values in ious)] for index, name in enumerate(classes)]
    parts += [
        f"## Finals: {FINAL_STEPS:,} steps of 12 crops of {FINAL_CROP}",
        markdown_rows([[*head, "val, by seed", "val, mean"], *final_rows], left=3),
        against(finals),
        brief,
        "## IoU per class, finals, choosing split, mean of the seeds (%)",
        markdown_rows([["class", *(each.name for each in finals)], *per_class]),
    ]
    return "\n\n".join(parts) + "\n"


def by_latency(trained: Sequence[Trained], times: Times) -> list[Trained]:
    """Return what was trained, the fastest first; what was not timed stands last."""
    return sorted(trained, key=lambda each: times.get(each.network, {}).get("2", float("inf")))


def row(trained: Trained, times: Times) -> list[str]:
    """Return one line of a table."""
    found = times.get(trained.network)
    ms = [f"{found[threads]:.2f}" for threads in ("1", "2")] if found else ["not timed"] * 2
    return [trained.network, trained.init, trained.settings, *ms, *scores(trained, "choose")]


def scores(trained: Trained, split: str) -> list[str]:
    """Return mIoU of every seed, and their mean with its spread (standard deviation over the seeds)."""
    values = trained.scores(split)
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return [", ".join(f"{value:.1f}" for value in values), f"{mean(values):.1f}{spread}"]


def against(finals: Sequence[Trained]) -> str:
    """Say what each finalist is ahead of the last one, the yardstick as it was trained before, paired by seed."""
    *others, yardstick = finals
    if yardstick.network != YARDSTICK or yardstick.settings != DEFAULT + EARLIER:
        return f"{YARDSTICK} as it was trained before, which the others are compared with, is not trained yet."
    lines = [f"Points of the choosing split against {yardstick.name}, as it was trained before, seed by seed:", ""]
    return "\n".join([*lines, *(f"- {each.name}: {gains(each.scores('choose'), yardstick.scores('choose'))}" for each in others)])


def gains(scores: Sequence[float], others: Sequence[float]) -> str:
    """Say what scores are ahead of others, on average and seed by seed."""
    found = [a - b for a, b in zip(scores, others, strict=False)]
    return f"{mean(found):+.1f} ({', '.join(f'{gain:+.1f}' for gain in found)})"


def brief_gains(lines: Sequence[dict[str, Any]]) -> str:
    """Say the same of brief trainings, and what was aimed at; empty as long as something is missing."""
    noted = {Case.of(line).key: 100 * line["miou"] for line in lines}

    def scores(network: str, init: str, recipe: int) -> list[float]:
        cases = [Case(network=network, init=init, seed=seed, recipe=recipe) for seed in (0, 1)]
        return [noted[case.key] for case in cases if case.key in noted]

    now, plain, before = scores(BASE, BASE_INIT, RECIPE), scores(YARDSTICK, "none", RECIPE), scores(YARDSTICK, "none", 1)
    if not now or not plain or not before:
        return ""
    return (
        f"After brief trainings (1,500 steps of 12 crops of 192x256), likewise: {BASE} {gains(now, before)}, {YARDSTICK} "
        f"{gains(plain, before)}. Aimed at: 4 points for {YARDSTICK} by its recipe alone; for {BASE}, 12 after 15 minutes and 6 "
        f"after 60. Trainings are equal in steps here; in equal minutes, {YARDSTICK} would take more of them."
    )


def figure(families: Sequence[Trained], finals: Sequence[Trained], times: Times) -> str:
    """Draw mIoU of the choosing split against latency: trained weights filled, random ones open; a bar from worst to best seed."""
    import matplotlib
    from matplotlib.figure import Figure

    from hyctas.report.plot import BRANCHES, CHOSEN, INK, STYLE, svg

    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(8.4, 5.4), layout="constrained")
        axes = drawn.add_subplot()
        for group, colour, label in ((families, BRANCHES[3][1], "1,500 steps"), (finals, CHOSEN, f"{FINAL_STEPS:,} steps")):
            axes.plot([], [], "o", color=colour, label=label)
            for each in (each for each in group if each.network in times):
                ms, values = times[each.network]["2"], each.scores("choose")
                point = (ms, mean(values))
                axes.plot([ms, ms], [min(values), max(values)], color=colour, linewidth=1)
                axes.scatter(*point, s=42, color="none" if each.init == "none" else colour, edgecolors=colour, zorder=3)
                alike = [mean(e.scores("choose")) for e in group if (e.network, e.init) == (each.network, each.init)]
                below = mean(values) < max(alike)
                name = each.network.removeprefix("edge:") + ", re-parameterised" * ("reparameterise" in each.settings)
                axes.annotate(name, point, (5, -11 if below else 4), textcoords="offset points", fontsize=8, color=INK)
        axes.set(xlabel=f"latency in ms ({TARGET}, {format_size(SIZE)}, 2 threads)", ylabel="mIoU in %, choosing split")
        axes.margins(x=0.1)  # room for the last label
        axes.set_title("filled: from trained weights, open: from random ones", fontsize=9)
        axes.legend(frameon=False, fontsize=9)
        return svg(drawn)


if __name__ == "__main__":
    main()

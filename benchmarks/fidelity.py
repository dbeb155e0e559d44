"""Judge a latency table by fresh networks: predicted against measured, beside the noise of measuring twice.

    python -m benchmarks.fidelity --target onnxruntime-cpu:fp32 --space edge --size 360x480 --networks 30 --seed 1

Without --table, the space is profiled and calibrated first (into a temporary folder). Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np

from benchmarks.failures import one_sentence
from export import codec
from export.errors import CheckFailed, InvalidInput
from export.files import read_json, write_json, write_text
from export.machine import fingerprint
from export.ranges import Classes, Range, Seed, Threads, argument
from export.target import Target, format_size, parse_size
from hyctas.cost.calibrate import calibrate, measure_networks
from hyctas.cost.workloads import CostModel, draw_networks, units, workloads
from hyctas.engine.table_attention import open_target
from hyctas.plan import lower
from hyctas.spaces.space_file import load_space
from latency import LatencyTable, Protocol, predict, profile
from latency.calibration import Calibration
from latency.judge import conformal_bound, judge
from latency.predictor import by_macs

FRESH, CALIBRATE = 41, 31
"""Purposes of random draws; calibration networks are never judged."""
CONFIDENCE = 0.95
CALIBRATION_NETWORKS = 60


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="onnxruntime-cpu:fp32")
    parser.add_argument("--space", default="edge")
    parser.add_argument("--size", default="360x480")
    parser.add_argument("--networks", type=argument(Annotated[int, Range(5, 1000)]), default=30, help="5 or more judge a table")
    parser.add_argument("--seed", type=argument(Seed), default=0)
    parser.add_argument("--threads", type=argument(Threads), default=1)
    parser.add_argument("--table", type=Path, help="latency table to judge; default: profile now")
    parser.add_argument("--classes", type=argument(Classes), default=19)
    parser.add_argument("--out", type=Path, help="write FILE.json, FILE.md and FILE.svg")
    parser.add_argument("--redraw", type=Path, help="draw FILE.svg again from FILE.json, and nothing else")
    arguments = parser.parse_args()
    with one_sentence():
        redraw(arguments.redraw) if arguments.redraw else run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Measure, predict, and print the judgement."""
    space, size, target = load_space(arguments.space), parse_size(arguments.size), Target.parse(arguments.target)
    runtime = open_target(target, arguments.threads)
    table = LatencyTable.load(arguments.table) if arguments.table else _profiled(arguments)
    found = (table.identity.target, table.identity.threads)
    if found != (str(target), arguments.threads):
        raise InvalidInput(f"the table was made for {found[0]} with {found[1]} threads, not {target} with {arguments.threads}")
    model = CostModel(space, table, size, arguments.classes)
    calibrated_ids = {g.id for g in draw_networks(space, 2000, 0, CALIBRATE)}
    fresh = draw_networks(space, arguments.networks + 50, arguments.seed, FRESH)
    networks = [g for g in fresh if g.id not in calibrated_ids][: arguments.networks]
    first, second = measure_networks(networks, runtime, size, arguments.classes, repeats=2)
    plans = [units(lower(g, size, arguments.classes)) for g in networks]
    predicted = [model.costs(g).latency_ms for g in networks]
    sums = [predict(plan, table) for plan in plans]
    judgement, plain = judge(predicted, first, repeat=second), judge(sums, first)
    macs = by_macs(plans, first)
    bound = coverage(model.calibration, predicted, first)
    if not all(value > 0 for value in first):
        raise CheckFailed("a measured latency is not positive")
    heading = (
        f"{target}, {arguments.threads} threads, space {space.name} at {format_size(size)}, {len(networks)} fresh networks "
        f"(seed {arguments.seed})"
    )
    calibrated = f"calibrated on {model.calibration.n} networks" if model.calibration else "not calibrated"
    text = (
        f"# Predicted against measured latency\n\n{heading}; {fingerprint()['cpu']}, {fingerprint()['cores']} cores; "
        f"{calibrated}\n\n"
        f"{judgement.to_markdown()}\nPlain sum of operators, without calibration: MAPE {plain.fidelity.mape:.1%}, "
        f"Spearman {plain.fidelity.spearman:.3f}. MACs instead of a table, by five-fold cross-validation on these networks: "
        f"MAPE {macs.mape:.1%}, Spearman {macs.spearman:.3f}. {_bound_text(bound)}"
    )
    print(text)
    if arguments.out:
        points = [{"id": g.id, "predicted_ms": p, "sum_ms": s, "measured_ms": m, "repeat_ms": r}
                  for g, p, s, m, r in zip(networks, predicted, sums, first.tolist(), second.tolist(), strict=True)]  # fmt: skip
        result = {"format_version": 1, "heading": heading, "machine": fingerprint(), "identity": codec.plain(table.identity),
                  "judgement": judgement.to_json(), "plain_sum": plain.to_json(),
                  "bound": {"confidence": CONFIDENCE, "coverage": bound[0], "factor": bound[1]} if bound else None,
                  "macs": asdict(macs), "networks": points}  # fmt: skip
        write_json(arguments.out.with_suffix(".json"), codec.plain(result))
        command = "python -m benchmarks.fidelity " + " ".join(sys.argv[1:])
        write_text(arguments.out.with_suffix(".md"), f"{text}\n```\n{command}\n```\n")
        write_text(arguments.out.with_suffix(".svg"), scatter(heading, predicted, first))


def redraw(path: Path) -> None:
    """Draw a result again."""
    value = read_json(path, 1)
    networks = value["networks"]
    measured = np.array([network["measured_ms"] for network in networks])
    write_text(path.with_suffix(".svg"), scatter(value["heading"], [network["predicted_ms"] for network in networks], measured))


def coverage(calibration: Calibration | None, predicted: Sequence[float], measured: np.ndarray) -> tuple[float, float] | None:
    """Return which share of networks stays below the upper bound, and the bound's factor; None without a calibration."""
    if calibration is None:
        return None
    factor = max(1.0, conformal_bound(calibration.ratios, CONFIDENCE))
    return float(np.mean(measured <= factor * np.asarray(predicted))), factor


def _bound_text(bound: tuple[float, float] | None) -> str:
    if bound is None:
        return "The table is not calibrated, so there is no bound."
    return f"Upper bound of {CONFIDENCE:.0%} ({bound[1]:.3f} x prediction): kept by {bound[0]:.0%} of the networks."


def scatter(heading: str, predicted: Sequence[float], measured: np.ndarray) -> str:
    """Draw predicted against measured latency, with lines at equality and 10 % off."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    from hyctas.report.plot import STYLE, svg

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 6.0), layout="constrained")
        axes = figure.add_subplot()
        ends = np.array([min(*predicted, *measured) * 0.9, max(*predicted, *measured) * 1.1])
        axes.fill_between(ends, 0.9 * ends, 1.1 * ends, color="#3f86d6", alpha=0.15, label="within 10 %", linewidth=0)
        axes.plot(ends, ends, color="#75808f", linewidth=1)
        axes.scatter(measured, predicted, s=14, color="#d9480f", alpha=0.8, label=f"{len(predicted)} networks", zorder=3)
        axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="measured (ms)", ylabel="predicted (ms)")
        ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if ends[0] <= t <= ends[1]]
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(FixedLocator(ticks))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
        axes.set_title(heading.replace(", space", ",\nspace"), fontsize=9)
        axes.legend(frameon=False, fontsize=9)
        return svg(figure)


def _profiled(arguments: argparse.Namespace) -> LatencyTable:
    """Profile and calibrate the space now."""
    space, size = load_space(arguments.space), parse_size(arguments.size)
    runtime = open_target(Target.parse(arguments.target), arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        keys = space.keys(size, arguments.classes)

        def show(done: int, total: int, left: float, key: str) -> None:
            if done % 50 == 0 or done == total:
                print(f"profiled {done}/{total}, {left:.0f} s left", file=sys.stderr, flush=True)

        operators = workloads(keys)
        table = profile(operators, runtime, Path(folder) / "latency.json", Protocol(), progress=show, context=operators)
        calibration = calibrate(space, table, runtime, size, arguments.classes, CALIBRATION_NETWORKS, CALIBRATE)
        return LatencyTable(table.identity, table.rows, {calibration.name: calibration}, table.provenance)


if __name__ == "__main__":
    main()

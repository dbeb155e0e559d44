"""Judge a latency table by fresh networks: predicted against measured, beside the noise of measuring twice.

    python -m benchmarks.fidelity --target onnxruntime-cpu:fp32 --space edge --size 360x480 --networks 30 --seed 1

Without --table, the space is profiled first, into --run or a temporary folder. Nothing else should run meanwhile.

Between the networks a small one is timed; beside what it takes longer than usual, the machine was slow (`latency.witness`), and
that is timed again; predictions have no part in it.
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
from export.errors import InvalidInput
from export.files import read_json, write_json, write_text
from export.machine import fingerprint
from export.ranges import Classes, Range, Seed, Threads, argument
from export.runtime import Runtime
from export.target import Target, format_size, parse_size
from hyctas.arch.genotype import Genotype
from hyctas.cost.calibrate import (
    APART,
    Conditions,
    Measure,
    NetworkJournal,
    NetworkTime,
    Progress,
    closest,
    measure_networks,
    open_witness,
    read_lines,
)
from hyctas.cost.workloads import calibration_networks, find_calibration, units, workloads
from hyctas.engine.table_attention import open_target
from hyctas.plan import lower
from hyctas.spaces.search_space import SearchSpace
from hyctas.spaces.space_file import load_space
from latency import LatencyTable, Protocol, Unit, fit, predict, profile
from latency.accuracy import fidelity
from latency.calibration import Calibration
from latency.judge import conformal_bound, judge
from latency.predictor import by_macs
from latency.witness import Witness

FRESH, CALIBRATE = 41, 31
"""Purposes of random draws; calibration networks are never judged."""
CONFIDENCE = 0.95
CALIBRATION_NETWORKS, CALIBRATIONS, FASTEST = 60, 100, 5


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
    parser.add_argument("--run", type=Path, help="folder of what was measured; a killed run continues there")
    parser.add_argument("--cache", type=Path, help="folder that keeps exported networks, for several targets of one size")
    parser.add_argument("--classes", type=argument(Classes), default=19)
    parser.add_argument("--out", type=Path, help="write FILE.json, FILE.md and FILE.svg")
    parser.add_argument("--redraw", type=Path, help="draw FILE.svg again from FILE.json, and nothing else")
    arguments = parser.parse_args()
    with one_sentence():
        redraw(arguments.redraw) if arguments.redraw else run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Measure, predict, and print the judgement."""
    space, size, target = load_space(arguments.space), parse_size(arguments.size), Target.parse(arguments.target)
    runtime = open_target(target, arguments.threads, arguments.cache)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.run or Path(temporary)
        table = LatencyTable.load(arguments.table) if arguments.table else _profiled(arguments, runtime, folder)
        found = (table.identity.target, table.identity.threads)
        if found != (str(target), arguments.threads):
            raise InvalidInput(f"the table was made for {found[0]} with {found[1]} threads, not {target} with {arguments.threads}")
        calibrating, networks = drawn_networks(space, table, size, arguments.classes, arguments.networks, arguments.seed)
        every = [*calibrating, *networks]
        with open_witness(runtime, size, arguments.classes) as present:

            def measure(some: Sequence[Genotype], show: Progress) -> np.ndarray:
                found = measure_networks(some, runtime, size, arguments.classes, beside=present)[0]
                show(len(some), len(some))
                return found

            mixed = [every[index] for index in np.random.default_rng(0).permutation(len(every))]
            header = Conditions(table.identity, size, arguments.classes)
            times = measured_twice(mixed, header, measure, folder / "networks.jsonl")
    first, second = (np.array([times[genotype.id][turn] for genotype in networks]) for turn in (0, 1))
    plans = [units(lower(genotype, size, arguments.classes)) for genotype in networks]
    calibration_plans = [units(lower(genotype, size, arguments.classes)) for genotype in calibrating]
    calibration_ms = np.array([np.mean(times[genotype.id]) for genotype in calibrating])
    calibration = find_calibration(space, table, size) if arguments.table else fit(
        calibration_plans, calibration_ms, table, space_hash=space.hash, name="fidelity"
    )  # fmt: skip
    sums = [predict(plan, table) for plan in plans]
    predicted = [predict(plan, table, calibration) for plan in plans]
    judgement, plain = judge(predicted, first, repeat=second), judge(sums, first)
    fastest = np.argsort(first)[: len(first) // FASTEST]
    small = fidelity(np.array(predicted)[fastest], first[fastest])
    macs = by_macs(plans, first)
    bound = coverage(calibration, predicted, first)
    shares = coverages([*calibration_plans, *plans], np.concatenate([calibration_ms, first]), table)
    heading = (
        f"{target}, {arguments.threads} threads, space {space.name} at {format_size(size)}, {len(networks)} fresh networks "
        f"(seed {arguments.seed})"
    )
    calibrated = f"calibrated on {calibration.n} networks" if calibration else "not calibrated"
    text = (
        f"# Predicted against measured latency\n\n{heading}; {fingerprint()['cpu']}, {fingerprint()['cores']} cores; "
        f"{calibrated}\n\n{judgement.to_markdown()}\n"
        f"The fastest fifth, up to {first[fastest].max():.1f} ms: MAPE {small.mape:.1%}, {small.within10:.0%} within 10 %.\n\n"
        f"Plain sum of operators, without calibration: MAPE {plain.fidelity.mape:.1%}, Spearman {plain.fidelity.spearman:.3f}. "
        f"MACs instead of a table, by five-fold cross-validation on these networks: MAPE {macs.mape:.1%}, Spearman "
        f"{macs.spearman:.3f}. {_table_text(table)}\n\n{_bound_text(bound)} {_coverages_text(shares)}\n\n{_witness_text(present)}"
    )
    print(text)
    if arguments.out:
        points = [{"id": g.id, "predicted_ms": p, "sum_ms": s, "measured_ms": m, "repeat_ms": r}
                  for g, p, s, m, r in zip(networks, predicted, sums, first.tolist(), second.tolist(), strict=True)]  # fmt: skip
        result = {"format_version": 1, "heading": heading, "machine": fingerprint(), "identity": codec.plain(table.identity),
                  "judgement": judgement.to_json(), "fastest_fifth": asdict(small),
                  "plain_sum": plain.to_json(),
                  "bound": {"confidence": CONFIDENCE, "coverage": bound[0], "factor": bound[1]} if bound else None,
                  "coverages": shares, "macs": asdict(macs), "networks": points}  # fmt: skip
        write_json(arguments.out.with_suffix(".json"), codec.plain(result))
        command = "python -m benchmarks.fidelity " + " ".join(sys.argv[1:])
        write_text(arguments.out.with_suffix(".md"), f"{text}\n\n```\n{command}\n```\n")
        write_text(arguments.out.with_suffix(".svg"), scatter(heading, predicted, first))


def drawn_networks(
    space: SearchSpace, table: LatencyTable, size: tuple[int, int], classes: int, count: int, seed: int
) -> tuple[list[Genotype], list[Genotype]]:  # fmt: skip
    """Draw the networks that calibrate, and the fresh ones that judge: `count`, less those that calibrate."""
    calibrating, networks = (
        calibration_networks(space, table, size, classes, number, purpose, seed_of)
        for number, purpose, seed_of in ((CALIBRATION_NETWORKS, CALIBRATE, 0), (count, FRESH, seed))
    )
    known = {genotype.id for genotype in calibrating}
    return calibrating, [genotype for genotype in networks if genotype.id not in known]


def measured_twice(
    networks: Sequence[Genotype], header: Conditions, measure: Measure, path: Path
) -> dict[str, tuple[float, float]]:  # fmt: skip
    """Measure networks twice each; return the milliseconds by id.

    The second pass begins when the first one is through. Where they differ by more than `APART`, a third measurement says which
    of the two was disturbed: the two closest ones count.

    Args:
        networks: what is measured.
        header: the conditions.
        measure: returns the milliseconds of some networks, whose rounds alternate, and tells its progress.
        path: of the journal of what was measured; with it, a killed run continues.

    Raises:
        InvalidInput: the journal is of other conditions.
        CorruptFile: it is damaged.
    """
    if path.exists() and read_lines(path, header, NetworkTime) is None:
        raise InvalidInput(f"{path} is of another target, machine, size or number of classes; give another --run")
    journal, times = NetworkJournal(path, header), {genotype.id: list[float]() for genotype in networks}

    def once_more(left: Sequence[Genotype], what: str) -> None:
        def show(done: int, total: int) -> None:
            print(f"{what}: {done}/{total} networks", file=sys.stderr, flush=True)

        for genotype, ms in zip(left, journal.measure(left, measure, show).tolist(), strict=True):
            times[genotype.id].append(ms)

    for turn in (1, 2):
        once_more(networks, f"measured, pass {turn}")
    once_more([g for g in networks if max(times[g.id]) / min(times[g.id]) > APART], "measured once more")
    return {name: closest(ms) for name, ms in times.items()}


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


def coverages(units_list: Sequence[Sequence[Unit]], measured: np.ndarray, table: LatencyTable) -> list[float]:
    """Calibrate on random subsets of the networks; return, for each, the share of the others that its bound holds for."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(CALIBRATIONS):
        order = rng.permutation(len(units_list))
        chosen, rest = order[:CALIBRATION_NETWORKS], order[CALIBRATION_NETWORKS:]
        calibration = fit([units_list[i] for i in chosen], measured[chosen], table, space_hash="", name="")
        predicted = [predict(units_list[i], table, calibration) for i in rest]
        share = coverage(calibration, predicted, measured[rest])
        assert share is not None
        found.append(share[0])
    return found


def _bound_text(bound: tuple[float, float] | None) -> str:
    if bound is None:
        return "The table is not calibrated, so there is no bound."
    return f"Upper bound of {CONFIDENCE:.0%} ({bound[1]:.3f} x prediction): kept by {bound[0]:.0%} of the networks."


def _coverages_text(shares: Sequence[float]) -> str:
    """Say how often the bound holds over calibrations."""
    kept = sum(share >= CONFIDENCE for share in shares)
    return (
        f"Of {len(shares)} calibrations, each on {CALIBRATION_NETWORKS} networks drawn from all that were measured here, {kept} "
        f"gave a bound that at least {CONFIDENCE:.0%} of the others stayed below (least {min(shares):.0%}, median "
        f"{np.median(shares):.0%})."
    )


def _witness_text(present: Witness) -> str:
    """Say how often the machine was slow."""
    slow = np.mean([present.slow(ms) for ms in present.readings]) if present.readings else 0.0
    return f"Between the networks a small one was timed {len(present.readings)} times; {slow:.0%} of that, the machine was slow."


def _table_text(table: LatencyTable) -> str:
    """Say how noisy the table is."""
    spreads = [row.spread for row in table.rows.values() if row.spread is not None]
    text = f"The table holds {len(table)} operators, {table.busy} of them measured beside other processes"
    return text + (f"; several measurements of one differ by {np.median(spreads):.1%} (median)." if spreads else ".")


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


def _profiled(arguments: argparse.Namespace, runtime: Runtime, folder: Path) -> LatencyTable:
    """Profile the space into a folder."""
    operators = workloads(load_space(arguments.space).keys(parse_size(arguments.size), arguments.classes))

    def show(done: int, total: int, left: float, key: str) -> None:
        print(f"profiled {done}/{total}, {left:.0f} s left", file=sys.stderr, flush=True)

    return profile(operators, runtime, folder / "latency.json", Protocol(), progress=show, context=operators)


if __name__ == "__main__":
    main()

"""Judge a supernet: does it rank networks of one latency as retraining does, and how far below retrained ones are they?

    python -m benchmarks.ranking --run RUN --ms 12 [--table FILE] [--data FOLDER] [--steps 1500] [--crop 192x256] [--init SOURCE]
    python -m benchmarks.ranking --report

RUN holds a trained supernet. Candidates within 15 % of a latency are scored with its weights (norms re-estimated) on the whole
choosing split; 12 of them, spread evenly over that mIoU, are trained by `hyctas-train network`, with two seeds each, and scored on
the same images. Kendall's tau between inherited and retrained mIoU stands beside the tau between the two seeds, which is the most
that can be asked for. Every finished piece appends a line to the results file, and what stands there is skipped.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.failures import one_sentence
from benchmarks.screening import append, read_results, train
from export.bench_report import markdown_rows
from export.codec import convert, plain
from export.errors import Infeasible, InvalidInput
from export.files import sha256, write_text
from export.target import format_size
from hyctas.arch.genotype import Genotype
from hyctas.artifacts.inherit import SupernetRecord
from hyctas.artifacts.runs import recorded_preprocessing
from hyctas.commands.datasets import DataSet, open_dataset
from hyctas.cost.workloads import CostModel, only_calibrated_size
from hyctas.data import Frames
from hyctas.search.score import Scorer
from hyctas.spaces.members import members
from hyctas.spaces.search_space import SearchSpace
from hyctas.training.band import Band, Drawer, latency_band
from hyctas.training.config import SupernetRecipe
from latency import LatencyTable
from latency.accuracy import kendall

GROUP = ("supernet", "ms", "steps", "crop", "init", "data")
"""What networks of one comparison share."""
RESULTS = Path(__file__).parent / "results/cpu/ranking.jsonl"
SPREAD, DRAWS = 0.15, 40
"""Share of the latency that candidates may be off, and draws per candidate before giving up."""
THREADS, NORM_BATCHES = 2, 8
"""Norms are estimated from as many images as those of a trained network."""
EQUAL = (1.0, 1.0, 1.0)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="run folder of the supernet")
    parser.add_argument("--ms", type=float, help="latency that the candidates are near, by the table")
    parser.add_argument("--table", type=Path, help="latency table (default: RUN/latency.json)")
    parser.add_argument("--data", help="data set, as hyctas-train takes it (default: the supernet's)")
    parser.add_argument("--candidates", type=int, default=60, help="networks scored with the supernet's weights (default 60)")
    parser.add_argument("--networks", type=int, default=12, help="of these trained (default 12)")
    parser.add_argument("--seeds", type=int, default=2, help="seeds that each is trained with (default 2)")
    parser.add_argument("--steps", type=int, default=1500, help="steps of each training (default 1500)")
    parser.add_argument("--crop", default="192x256", help="crops of each training (default 192x256)")
    parser.add_argument("--init", help="what each training starts from (default: what hyctas-train takes by itself)")
    parser.add_argument("--runs", type=Path, default=Path("runs/ranking"), help="folder of the run folders")
    parser.add_argument("--results", type=Path, default=RESULTS, help="results file")
    parser.add_argument("--report", action="store_true", help="write the results file's report beside it instead")
    arguments = parser.parse_args()
    with one_sentence():
        if arguments.report:
            lines = read_results(arguments.results)
            write_text(arguments.results.with_suffix(".md"), report(lines))
            write_text(arguments.results.with_suffix(".svg"), figure(lines))
            return
        if arguments.run is None or arguments.ms is None or arguments.ms <= 0:
            raise InvalidInput("give the run folder of a trained supernet and a latency above 0: --run RUN --ms 12")
        if arguments.seeds < 2 or not 3 <= arguments.networks <= arguments.candidates:
            raise InvalidInput("a tau between seeds takes --seeds 2 and --networks 3, or more, and at least as many --candidates")
        judge(arguments)


def judge(arguments: argparse.Namespace) -> None:
    """Score the candidates, and train those chosen."""
    supernet, table_path = SupernetRecord.read(arguments.run), arguments.table or arguments.run / "latency.json"
    space, table = supernet.space(), LatencyTable.load(table_path)
    size = only_calibrated_size(space, table)
    data = open_dataset(arguments.data or supernet.data, check=False)
    model = CostModel(space, table, size, data.num_classes)
    predict = latency_band(model, arguments.ms).cost
    subject = {
        "supernet": sha256(supernet.path), "table": sha256(table_path), "ms": arguments.ms, "data": data.identity(),
        "candidates": arguments.candidates,
    }  # fmt: skip
    candidates = draw(space, predict, arguments.ms, arguments.candidates)
    scorer = open_supernet_scorer(arguments.run, supernet, data)
    for genotype in candidates:
        key = {**subject, "genotype": json.loads(genotype.to_json())}
        if not noted(arguments.results, key):
            append(arguments.results, {**key, "predicted_ms": predict(genotype), "inherited": scorer(genotype)})
    scores = {}
    for line in read_results(arguments.results):
        if "inherited" in line and matches(line, subject):
            scores[convert(Genotype, line["genotype"]).id] = line["inherited"]
    chosen = spread_evenly([scores[genotype.id] for genotype in candidates], arguments.networks)
    how = {"steps": arguments.steps, "crop": arguments.crop, "init": arguments.init}
    for seed, index in itertools.product(range(arguments.seeds), chosen):  # seed by seed, so that a part says something
        genotype = candidates[index]
        key = {**subject, **how, "id": genotype.id, "seed": seed}
        if noted(arguments.results, key):
            continue
        options = ["--steps", str(arguments.steps), "--crop", arguments.crop, "--seed", str(seed)]
        options += ["--data", arguments.data or supernet.data, *(["--init", arguments.init] if arguments.init else [])]
        options += ["--size", format_size(supernet.size)] if supernet.size else []
        found, record = train(genotype, arguments.runs / f"{genotype.id}_{arguments.steps}_seed{seed}", {}, options)
        cost = {"spent_s": record["results"]["spent_s"], "cpu": record["machine"]["cpu"]}
        line = {**key, "inherited_miou": scores[genotype.id], "retrained": found["choose"]["miou"], **cost}
        append(arguments.results, line)


def draw(
    space: SearchSpace, predict: Callable[[Genotype], float], ms: float, count: int,
    ratios: tuple[float, float, float] = EQUAL,
) -> list[Genotype]:  # fmt: skip
    """Draw distinct networks within `SPREAD` of a latency, numbers of branches at some ratios.

    Raises:
        Infeasible: there are not as many.
    """
    band = Band(predict, (1 - SPREAD) * ms, (1 + SPREAD) * ms, "ms (predicted)")
    drawer = Drawer(space, SupernetRecipe(steps=1, random_networks=1), band, list(members().values()))
    found: dict[str, Genotype] = {}
    for step in range(DRAWS * count):
        (genotype,) = drawer.draw(step, ratios)
        if ratios[len(genotype.branches) - 1]:  # a band may hold no network of some number, and others are drawn in its place
            found.setdefault(genotype.id, genotype)
        if len(found) == count:
            return list(found.values())
    raise Infeasible(f"only {len(found)} networks of space {space.name} were found within {SPREAD:.0%} of {ms:g} ms, not {count}")


def open_supernet_scorer(run: Path, supernet: SupernetRecord, data: DataSet) -> Callable[[Genotype], float]:
    """Return what scores networks with a supernet's weights on the whole choosing split."""
    train_frames = Frames(data.source, "train", data.train, size=supernet.size)
    choose = Frames(data.source, "train", data.choose, size=supernet.size)
    preprocessing = recorded_preprocessing(run / "train-supernet.json")
    return Scorer(
        supernet.load(), train_frames, choose, preprocessing=preprocessing, seed=0, norm_batches=NORM_BATCHES, threads=THREADS
    )


def spread_evenly(values: Sequence[float], count: int) -> list[int]:
    """Return the indices of `count` values nearest to even steps from the least to the greatest."""
    free = np.array(values, dtype=float)
    chosen: list[int] = []
    for wanted in np.linspace(free.min(), free.max(), count):
        distance = np.abs(free - wanted)
        distance[chosen] = np.inf
        chosen.append(int(distance.argmin()))
    return chosen


def noted(results: Path, key: dict[str, Any]) -> bool:
    """Say whether a line of the results file has all of a key."""
    return any(matches(line, key) for line in read_results(results))


def matches(line: dict[str, Any], key: dict[str, Any]) -> bool:
    """Say whether a line has all of a key, as JSON has it."""
    return plain(key).items() <= line.items()


def report(lines: Sequence[dict[str, Any]]) -> str:
    """Return the results as Markdown, a section per supernet, latency and way of training.

    Raises:
        InvalidInput: no network was trained with two seeds.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        if "retrained" in line:
            groups.setdefault(json.dumps([line[name] for name in GROUP]), []).append(line)
    sections = [text for group in groups.values() if (text := _section(group))]
    if not sections:
        raise InvalidInput("no three networks have two seeds yet; run python -m benchmarks.ranking --run RUN --ms MS first")
    return (
        "# Does the supernet rank as retraining does?\n\nPrinted by `python -m benchmarks.ranking --report` from `ranking.jsonl`, "
        "which `python -m benchmarks.ranking --run RUN --ms MS` wrote. mIoU in per cent on the choosing split.\n\n"
        "![inherited against retrained mIoU](ranking.svg)\n\n"
        + "\n".join(sections)
    )


def figure(lines: Sequence[dict[str, Any]]) -> str:
    """Draw retrained against inherited mIoU: a point per network at the mean of its seeds, a bar from the worst to the best."""
    import matplotlib
    from matplotlib.figure import Figure

    from hyctas.report.plot import INK, STYLE, svg

    groups: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for line in lines:
        if "retrained" in line:
            label = f"{line['ms']:g} ms, {line['steps']} steps of {line['crop']}, supernet {line['supernet'][:6]}"
            found = groups.setdefault(label, {}).setdefault(line["id"], [])
            found.append((100 * line["inherited_miou"], 100 * line["retrained"]))
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(6.4, 6.0), layout="constrained")
        axes = drawn.add_subplot()
        for label, by_id in groups.items():
            x = [points[0][0] for points in by_id.values()]
            retrained = [[value for _, value in points] for points in by_id.values()]
            y = np.array([np.mean(values) for values in retrained])
            reach = np.abs(np.array([(min(values), max(values)) for values in retrained]).T - y)
            axes.errorbar(x, y, reach, fmt="o", markersize=5, linewidth=1, label=label)
        low, high = axes.get_xlim()
        axes.plot((low, high), (low, high), color=INK, linewidth=0.8, zorder=0, label="equal")
        axes.set(xlabel="mIoU in %, with the supernet's weights", ylabel="mIoU in %, retrained")
        axes.legend(frameon=False, fontsize=9)
        return svg(drawn)


def _section(group: Sequence[dict[str, Any]]) -> str | None:
    by_id: dict[str, dict[int, dict[str, Any]]] = {}
    for line in group:
        by_id.setdefault(line["id"], {})[line["seed"]] = line
    seeds = sorted({line["seed"] for line in group})
    whole = {name: found for name, found in by_id.items() if len(found) == len(seeds)}
    if len(seeds) < 2 or len(whole) < 3:
        return None
    inherited = np.array([100 * found[seeds[0]]["inherited_miou"] for found in whole.values()])
    retrained = np.array([[100 * found[seed]["retrained"] for seed in seeds] for found in whole.values()])
    own = float(np.mean([kendall(inherited, retrained[:, column]) for column in range(len(seeds))]))
    pairs = itertools.combinations(range(len(seeds)), 2)
    ceiling = float(np.mean([kendall(retrained[:, a], retrained[:, b]) for a, b in pairs]))
    gaps, first = retrained.mean(1) - inherited, group[0]
    share = f"{own / ceiling:.2f} of it" if ceiling > 0 else "no ceiling to compare with"
    rows = [["network", "inherited", "retrained, by seed", "difference"]]
    rows += [
        [name, f"{a:.1f}", ", ".join(f"{value:.1f}" for value in row), f"{gap:+.1f}"]
        for name, a, row, gap in sorted(zip(whole, inherited, retrained, gaps, strict=True), key=lambda entry: entry[1])
    ]
    cpus = ", ".join(sorted({line["cpu"] for line in group}))
    return (
        f"## Supernet {first['supernet'][:12]}, {first['ms']:g} ms, {first['steps']} steps of {first['crop']}, started from "
        f"{first['init'] or 'the default'}\n\n{len(whole)} networks, {len(seeds)} seeds, {cpus}.\n\n"
        f"* Kendall's tau, inherited against retrained, mean over seeds: **{own:.2f}**; between two seeds: {ceiling:.2f} "
        f"({share}).\n"
        f"* Retrained less inherited: {gaps.mean():+.1f} points on average, from {gaps.min():+.1f} to {gaps.max():+.1f}; within 2 "
        f"points: {(np.abs(gaps) <= 2).sum()} of {len(gaps)}.\n\n"
        f"{markdown_rows(rows)}\n"
    )


if __name__ == "__main__":
    main()

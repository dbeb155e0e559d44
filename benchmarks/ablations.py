"""Answer questions of the paper about attention and cost, one table each.

    python -m benchmarks.ablations attention --network edge:hyctas-w50 --data FOLDER [--table FILE]
    python -m benchmarks.ablations retrained --data FOLDER
    python -m benchmarks.ablations placement --run RUN
    python -m benchmarks.ablations cost --run RUN

`attention` trains a network beside itself with an attention cell moved, removed and, given a latency table, replaced by the
convolution of nearest time. `retrained` trains the answers of `benchmarks.search_against_random`, each side's, alike. Both train by
screening (1,500 steps of 12 crops of 192x256, two seeds): every finished training appends a line to a results file and is skipped
then, and the account is written anew. `placement` counts at which strides the networks of a search have attention; `cost` says what
each step of a run took.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks import search_against_random
from benchmarks.failures import one_sentence
from benchmarks.screening import append, read_results, train
from benchmarks.search_against_random import SIDES, paired
from export.bench_report import markdown_rows
from export.errors import InvalidInput, MissingKeys
from export.files import write_text
from hyctas.arch.genotype import Branch, Cell, Genotype, final_stride, normal_form, shared_length
from hyctas.artifacts.choice import read_genotype, read_outcome
from hyctas.cost.workloads import find_calibration, only_calibrated_size, units
from hyctas.plan import lower
from hyctas.pretrained.start import default_source
from hyctas.report.collect import collect
from hyctas.search.history import SEARCH, Evaluation
from hyctas.space import edge
from latency import LatencyTable
from latency.predictor import predict

RESULTS = Path(__file__).parent / "results/cpu"
ORIGINAL, STEPS, CROP, SEEDS, CLASSES = "as it is", 1500, "192x256", 2, 11
CONVOLUTIONS = (
    *(Cell("conv", 1, kernel=kernel) for kernel in (3, 5)), Cell("residual", 1), Cell("downup", 1), Cell("downup2x", 1),
    *(Cell("inverted", 1, kernel=kernel, expansion=expansion) for kernel in (3, 5) for expansion in (3, 6)),
)  # fmt: skip
BEST = 10
"""One in so many evaluations counts as the best."""
STRIDES = (8, 16, 32)
Predict = Callable[[Genotype], float]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for name, needs in (("attention", "data"), ("retrained", "data"), ("placement", "run"), ("cost", "run")):
        kind = kinds.add_parser(name)
        about = {"data": "data set, as hyctas-train takes it", "run": "run folder"}[needs]
        kind.add_argument(f"--{needs}", required=True, help=about)
        kind.add_argument("--results", type=Path, default=RESULTS, help="folder of the results file and the account")
        if needs == "data":
            kind.add_argument("--runs", type=Path, default=Path("runs/ablations"), help="folder of the run folders")
            kind.add_argument("--seeds", type=int, default=SEEDS)
            kind.add_argument("--steps", type=int, default=STEPS)
            kind.add_argument("--crop", default=CROP)
        if name == "attention":
            kind.add_argument("--network", type=Path, required=True, help="edge:NAME, published:NAME or a genotype's file")
            kind.add_argument("--table", type=Path, help="latency table with the network's operators")
    arguments = parser.parse_args()
    with one_sentence():
        text = {"attention": attention, "retrained": retrained, "placement": placement, "cost": cost}[arguments.kind](arguments)
        write_text(arguments.results / f"ablation_{arguments.kind}.md", text)
        print(text)


# -- attention ----------------------------------------------------------------------------------------------------------------


def variants(genotype: Genotype, predict_ms: Predict | None) -> dict[str, Genotype]:
    """Return a network by itself, and with each of its attention cells moved, removed and replaced.

    Args:
        genotype: branches that share cells keep sharing what is moved.
        predict_ms: a network's latency, to choose the convolution by; none: nothing is replaced.

    Raises:
        InvalidInput: its branches have no attention at stride 1.
    """
    original = normal_form(genotype)
    found = {ORIGINAL: original}
    for number, place in _attention_cells(original):
        branch = original.branches[number]
        where = f"attention {place + 1} of the branch to 1/{final_stride(branch)}"
        cell = branch[place]
        changed = {"removed": (*branch[:place], *branch[place + 1 :])}
        if place:
            before, source = branch[place - 1], branch[place - 2] if place > 1 else original.stem[-1]
            changed["one earlier"] = (*branch[: place - 1], _placed(cell, source), before, *branch[place + 1 :])
        if place + 1 < len(branch):
            after = branch[place + 1]
            changed["one later"] = (*branch[:place], after, _placed(cell, after), *branch[place + 2 :])
        for what, cells in changed.items():
            if any(c.op != "skip" for c in cells):
                found[f"{where}: {what}"] = _with(original, number, place + (what == "one later"), cells)
        for other, cells in enumerate(original.branches):
            if other != number and all(c.op != "attention" for c in cells):
                without = _with(original, number, place, changed["removed"])
                moved = (*without.branches[other], _placed(cell, cells[-1]))
                branches = (*without.branches[:other], moved, *without.branches[other + 1 :])
                found[f"{where}: at the end of the branch to 1/{final_stride(cells)}"] = replace(without, branches=branches)
        if predict_ms is not None:
            wanted = predict_ms(original)
            replaced = [
                _with(original, number, place, (*branch[:place], replace(c, out=cell.out, stage=cell.stage), *branch[place + 1 :]))
                for c in CONVOLUTIONS
            ]
            found[f"{where}: the convolution of nearest time"] = min(replaced, key=lambda g: abs(predict_ms(g) - wanted))
    if len(found) == 1:
        raise InvalidInput(f"no branch of {original.id} has attention that could be moved or removed; give another --network")
    return found


def _attention_cells(genotype: Genotype) -> list[tuple[int, int]]:
    """List branch and place of each attention cell, shared ones once."""
    cells = []
    for number, branch in enumerate(genotype.branches):
        shared = max((shared_length(earlier, branch) for earlier in genotype.branches[:number]), default=0)
        cells += [(number, p) for p, cell in enumerate(branch) if p >= shared and cell.op == "attention" and cell.stride == 1]
    return cells


def _placed(cell: Cell, source: Cell) -> Cell:
    """Return an attention cell as it stands behind another one: with its channels, and as many for q and k in proportion."""
    assert cell.attention is not None
    heads = cell.attention.heads
    qk_channels = max(1, round(cell.attention.qk_channels * source.out / cell.out / heads)) * heads
    return replace(cell, out=source.out, stage=source.stage, attention=replace(cell.attention, qk_channels=qk_channels))


def _with(genotype: Genotype, number: int, last: int, cells: Branch) -> Genotype:
    """Return a network with other cells in a branch, changed up to the `last` one; branches that share that one change alike."""
    old, branches = genotype.branches[number], []
    for index, branch in enumerate(genotype.branches):
        shared = shared_length(old, branch)
        alike = (*cells[: shared + len(cells) - len(old)], *branch[shared:])
        branches.append(cells if index == number else alike if shared > last else branch)
    return replace(genotype, branches=tuple(branches))


def attention(arguments: argparse.Namespace) -> str:
    """Train a network and its variants; return the account.

    Raises:
        InvalidInput: the network has no attention to move.
        MissingKeys: the table lacks operators of the network.
    """
    genotype = read_genotype(arguments.network)
    predict_ms = table_prediction(LatencyTable.load(arguments.table)) if arguments.table else None
    if predict_ms is not None:
        predict_ms(genotype)
    listed = variants(genotype, _or_far(predict_ms) if predict_ms else None)
    path = arguments.results / "ablation_attention.jsonl"
    for seed in range(arguments.seeds):
        for name, variant in listed.items():
            case = {"network": normal_form(genotype).id, "given": str(arguments.network), "variant": name, **_how(arguments, seed)}
            trained(case, variant, arguments, path, predict_ms)
    return attention_account(read_results(path))


def table_prediction(table: LatencyTable) -> Predict:
    """Return what predicts by a table that is calibrated for one size.

    Raises:
        InvalidInput: it is calibrated for none or several.
    """
    size = only_calibrated_size(edge(), table)
    calibration = find_calibration(edge(), table, size)
    return lambda genotype: predict(units(lower(genotype, size, CLASSES)), table, calibration)


def _or_far(predict_ms: Predict) -> Predict:
    def prediction(genotype: Genotype) -> float:
        try:
            return predict_ms(genotype)
        except MissingKeys:
            return float("inf")

    return prediction


def attention_account(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return the results as Markdown: each variant against its network, paired by seed."""
    parts = [
        "# Does it matter where attention stands?",
        "Printed by `python -m benchmarks.ablations attention` from `ablation_attention.jsonl`: a network beside itself with one "
        "attention cell moved, removed or replaced, all trained alike; CamVid, mIoU in per cent on the choosing split.",
    ]
    for network, group in _grouped(lines, "network").items():
        own = _by_seed([line for line in group if line["case"]["variant"] == ORIGINAL])
        rows = [["variant", "network", "ms, predicted", "mIoU %, by seed", "mean", "against it as it is"]]
        for name, some in _grouped(group, "variant").items():
            found = _by_seed(some)
            gains = [found[seed] - own[seed] for seed in sorted(found.keys() & own.keys())]
            gain = "-" if name == ORIGINAL or not gains else f"{mean(gains):+.1f}{_spread(gains)}"
            ms = some[0].get("predicted_ms")
            rows.append([name, some[0]["genotype"], f"{ms:.2f}" if ms else "not predicted", *_scores(found), gain])
        case = group[0]["case"]
        how = f"{case['steps']} steps of {case['crop']}, started from {case['init']}"
        parts += [f"## {case['given']} ({network}), {how}", markdown_rows(rows, 2)]
    return "\n\n".join(parts) + "\n"


# -- searched and random networks, retrained ----------------------------------------------------------------------------------


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
                case |= {"predicted_ms": found["predicted_ms"], "inherited": found["unseen_miou"], **_how(arguments, seed)}
                trained(case, Genotype.from_json(json.dumps(found["genotype"])), arguments, path)
    return retrained_account(read_results(path))


def retrained_account(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return the results as Markdown: what either side's answers reach, and the mean difference with its interval of 95 %."""
    rows, gains = [["search", "network", "ms, predicted", "inherited mIoU %", "retrained mIoU %, by seed", "mean"]], []
    for search_seed, group in _grouped(lines, "search_seed").items():
        means = {}
        for side, some in _grouped(group, "side").items():
            case, found = some[0]["case"], _by_seed(some)
            rows.append([
                str(search_seed), f"{side}: {some[0]['genotype']}", f"{case['predicted_ms']:.2f}", f"{100 * case['inherited']:.1f}",
                *_scores(found),
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


# -- trainings ----------------------------------------------------------------------------------------------------------------


def _how(arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    return {"seed": seed, "steps": arguments.steps, "crop": arguments.crop}


def trained(
    case: dict[str, Any], genotype: Genotype, arguments: argparse.Namespace, path: Path, predict_ms: Predict | None = None
) -> None:
    """Train a network unless its case stands in the results file, and append what it reached."""
    init = default_source(genotype)
    case = {**case, "init": init}
    if case in [line["case"] for line in read_results(path)]:
        return
    options = ["--init", init, "--data", arguments.data, "--steps", str(case["steps"]), "--crop", case["crop"]]
    folder = arguments.runs / f"{genotype.id}_{case['steps']}_{case['crop']}_seed{case['seed']}"
    found, record = train(genotype, folder, {}, [*options, "--seed", str(case["seed"])])
    ms = None
    if predict_ms is not None:
        try:
            ms = predict_ms(genotype)
        except MissingKeys:
            print(f"{genotype.id}: the latency table lacks an operator of it, so its latency is not predicted")
    append(path, {
        "case": case, "genotype": genotype.id, "miou": found["choose"]["miou"], "predicted_ms": ms,
        "spent_s": record["results"]["spent_s"], "cpu": record["machine"]["cpu"],
    })  # fmt: skip


def _grouped(lines: Sequence[Mapping[str, Any]], name: str) -> dict[Any, list[Mapping[str, Any]]]:
    found: dict[Any, list[Mapping[str, Any]]] = {}
    for line in lines:
        found.setdefault(line["case"][name], []).append(line)
    return found


def _by_seed(lines: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    return {line["case"]["seed"]: 100 * line["miou"] for line in lines}


def _scores(found: Mapping[int, float]) -> list[str]:
    values = [found[seed] for seed in sorted(found)]
    return [", ".join(f"{value:.1f}" for value in values), f"{mean(values):.1f}{_spread(values)}"]


def _spread(values: Sequence[float]) -> str:
    return f" ± {stdev(values):.1f}" if len(values) > 1 else ""


# -- placement ----------------------------------------------------------------------------------------------------------------


def placement(arguments: argparse.Namespace) -> str:
    """Return where the networks of a search have attention, as Markdown.

    Raises:
        FileNotFoundError, CorruptFile: the search's results are not there, or damaged.
    """
    run = Path(arguments.run)
    scored = [point for point in collect(run).points if point.kind == SEARCH]
    front = [member.evaluation for member in read_outcome(run).front]
    parts = [
        "# Where attention stands",
        f"Printed by `python -m benchmarks.ablations placement` of a search with {len(scored)} scored networks: the share of the "
        "networks that have attention at a stride, by their number of branches.",
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


def attention_strides(genotype: Genotype) -> set[int]:
    """Return the strides at which a network's branches have attention, and 0 where its head has."""
    found = {0} if genotype.head.attention is not None else set()
    for branch in genotype.branches:
        found |= {final_stride(branch[: place + 1]) for place, cell in enumerate(branch) if cell.op == "attention"}
    return found


# -- cost ---------------------------------------------------------------------------------------------------------------------

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


if __name__ == "__main__":
    main()

"""Train a network beside itself with an attention cell moved, removed or replaced by a convolution."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import mean
from typing import Any

from benchmarks.ablations.trainings import Predict, by_seed, grouped, how, scores, spread, trained
from benchmarks.screening import read_results
from export.bench_report import markdown_rows
from export.errors import InvalidInput, MissingKeys
from hyctas.arch.genotype import Branch, Cell, Genotype, final_stride, normal_form, shared_length
from hyctas.artifacts.choice import read_genotype
from hyctas.cost.workloads import CostModel, only_calibrated_size
from hyctas.space import edge
from latency import LatencyTable

ORIGINAL, CLASSES = "as it is", 11
CONVOLUTIONS = (
    *(Cell("conv", 1, kernel=kernel) for kernel in (3, 5)), Cell("residual", 1), Cell("downup", 1), Cell("downup2x", 1),
    *(Cell("inverted", 1, kernel=kernel, expansion=expansion) for kernel in (3, 5) for expansion in (3, 6)),
)  # fmt: skip


def variants(genotype: Genotype, predict_ms: Predict | None) -> dict[str, Genotype]:
    """Return a network by itself, and with each of its attention cells moved, removed and replaced.

    Args:
        genotype: branches that share cells keep sharing what is moved.
        predict_ms: a network's latency, to choose the convolution by; none: nothing is replaced.

    Raises:
        InvalidInput: its branches have no attention at stride 1, or its own latency cannot be predicted.
    """
    original = normal_form(genotype)
    found = {ORIGINAL: original}
    wanted = predict_ms(original) if predict_ms else None
    if predict_ms and wanted is None:
        raise InvalidInput(f"the latency table lacks operators of {original.id}; leave --table out, or give one of its space")
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
        if predict_ms and wanted is not None:
            replaced = [
                _with(original, number, place, (*branch[:place], replace(c, out=cell.out, stage=cell.stage), *branch[place + 1 :]))
                for c in CONVOLUTIONS
            ]
            off = {g.id: abs(ms - wanted) for g in replaced if (ms := predict_ms(g)) is not None}
            nearest = min((g for g in replaced if g.id in off), key=lambda g: off[g.id])
            found[f"{where}: the convolution of nearest time"] = nearest
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
        InvalidInput: the network has no attention to move, or the table lacks operators of it.
        MissingKeys: the table lacks operators of `edge`.
    """
    genotype = read_genotype(arguments.network)
    predict_ms = table_prediction(LatencyTable.load(arguments.table)) if arguments.table else None
    listed = variants(genotype, predict_ms)
    path = arguments.results / "ablation_attention.jsonl"
    for seed in range(arguments.seeds):
        for name, variant in listed.items():
            case = {"network": normal_form(genotype).id, "given": str(arguments.network), "variant": name, **how(arguments, seed)}
            trained(case, variant, arguments, path, predict_ms(variant) if predict_ms else None)
    return attention_account(read_results(path))


def table_prediction(table: LatencyTable) -> Predict:
    """Return what predicts by a table of `edge` that is calibrated for one size: None where it lacks an operator of a network.

    Raises:
        InvalidInput: it is calibrated for none or several sizes.
        MissingKeys: it lacks operators of `edge`.
    """
    space = edge()
    model = CostModel(space, table, only_calibrated_size(space, table), CLASSES)

    def prediction(genotype: Genotype) -> float | None:
        try:
            return model.costs(genotype).latency_ms
        except MissingKeys:
            return None

    return prediction


def attention_account(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return the results as Markdown: each variant against its network, paired by seed."""
    parts = [
        "# Does it matter where attention stands?",
        "Printed by `python -m benchmarks.ablations attention` from `ablation_attention.jsonl`: a network beside itself with one "
        "attention cell moved, removed or replaced, all trained alike; CamVid, mIoU in per cent on the choosing split.",
    ]
    for network, group in grouped(lines, "network").items():
        own = by_seed([line for line in group if line["case"]["variant"] == ORIGINAL])
        rows = [["variant", "network", "ms, predicted", "mIoU %, by seed", "mean", "against it as it is"]]
        for name, some in grouped(group, "variant").items():
            found = by_seed(some)
            gains = [found[seed] - own[seed] for seed in sorted(found.keys() & own.keys())]
            gain = "-" if name == ORIGINAL or not gains else f"{mean(gains):+.1f}{spread(gains)}"
            ms = some[0].get("predicted_ms")
            rows.append([name, some[0]["genotype"], f"{ms:.2f}" if ms else "not predicted", *scores(found), gain])
        case = group[0]["case"]
        how = f"{case['steps']} steps of {case['crop']}, started from {case['init']}"
        parts += [f"## {case['given']} ({network}), {how}", markdown_rows(rows, 2)]
    return "\n\n".join(parts) + "\n"

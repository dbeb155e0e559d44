"""Place a trained trunk in the stages of our networks: its genotype, its weights by slot, its channels sorted by importance."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from export.errors import InvalidInput
from hyctas.arch.genotype import STAGES, Arithmetic, Cell, Fusion, Genotype, Head
from hyctas.plan import lower
from hyctas.pretrained.state_file import WITHOUT
from hyctas.pretrained.trunk import EPS, NormedConv, SourceBlock, SourceTrunk
from hyctas.pretrained.weights import SlotWeights, Weights

NORM = {"weight": "norm_weight", "bias": "norm_bias", "running_mean": "running_mean", "running_var": "running_var"}


def trunk_cells(trunk: SourceTrunk) -> tuple[Cell, ...]:
    """Return a trunk's blocks as cells with stages.

    A stage begins where the stride doubles; at 1/16 and 1/32 a second one begins where the width changes.

    Raises:
        InvalidInput: the trunk does not fit our stages.
    """
    cells: list[Cell] = []
    reduction, letter = 1, ""
    for block in trunk.blocks:
        if block.stride == 2:
            reduction *= 2
            letter = "a" if reduction > 8 else ""
        elif letter and block.out != cells[-1].out:
            letter = "b" if letter == "a" else "c"
        stage = f"{reduction}{letter}"
        if stage not in STAGES:
            raise InvalidInput(f"a {trunk.family} with a stage {stage} does not fit the stages {', '.join(STAGES)}", WITHOUT)
        kernel = block.kernel if block.op in ("conv", "inverted") else 3
        cells.append(Cell(
            block.op, block.out, block.stride, stage=stage, kernel=kernel, expansion=block.expansion, relu6=block.relu6,
        ))  # fmt: skip
    return tuple(cells)


def trunk_genotype(trunk: SourceTrunk) -> Genotype:
    """Return the network that is this trunk, whole, with a light decoder; padding as the source's."""
    cells = trunk_cells(trunk)
    start = 1 + next(index for index, cell in enumerate(cells) if cell.stage == "8")
    return Genotype(
        stem=cells[:start], branches=(cells[start:],), fusion=Fusion(64, 64, 64, "sum"),
        head=Head("plain", 32), arithmetic=Arithmetic(aligned=not trunk.symmetric_padding),
    )  # fmt: skip


def trunk_weights(trunk: SourceTrunk) -> Weights:
    """Return a trunk's weights by slot, channels as they are; sort them first (`sorted_by_importance`) where a slice is taken."""
    found: Weights = {}
    nodes = [node for node in lower(trunk_genotype(trunk), (32, 32), 1).nodes if node.part in ("stem", "trunk")]
    for block, node in zip(trunk.blocks, nodes, strict=True):
        tensors = {
            name: {"weight": conv.weight} | {f"norm.{ours}": getattr(conv, theirs) for ours, theirs in NORM.items()}
            for name, conv in block.layers.items()
        }
        found[node.slot] = SlotWeights({layer.name: layer for layer in node.operator.layers()}, tensors, node.blocks)
    return found


def sorted_by_importance(trunk: SourceTrunk) -> SourceTrunk:
    """Reorder channels so that a prefix keeps the most important ones; the trunk computes the same, channels permuted.

    One order per stage, shared by all its blocks (they are added) and by what reads them: by the L1 norm of the rows of the
    convolutions that write the stage, norms folded in, summed over the stage. Hidden channels have an order per block: by the L1
    norm of the columns that read them (once-for-all, Cai et al., ICLR 2020, section 3.3).
    """
    orders = _stage_orders(trunk)
    blocks = []
    inputs = torch.arange(3)
    for index, block in enumerate(trunk.blocks):
        outputs = orders[index]
        blocks.append(replace(block, layers=_reordered(block, inputs, outputs)))
        inputs = outputs
    return replace(trunk, blocks=tuple(blocks))


def _stage_orders(trunk: SourceTrunk) -> list[Tensor]:
    """Return the order of every block's output channels; blocks whose outputs are added share one."""
    groups: list[int] = []
    for index, block in enumerate(trunk.blocks):
        kept = index > 0 and block.stride == 1 and block.out == trunk.blocks[index - 1].out
        groups.append(groups[-1] if kept or block.op == "pool" else index)
    scores = {group: torch.zeros(trunk.blocks[group].out, dtype=torch.float64) for group in groups}
    for group, block in zip(groups, trunk.blocks, strict=True):
        for name, conv in block.layers.items():
            if name in ("conv", "project", "second", "shortcut"):
                scores[group] += _folded(conv).abs().sum((1, 2, 3))
    return [scores[group].argsort(descending=True, stable=True) for group in groups]


def _folded(conv: NormedConv) -> Tensor:
    """Return a convolution's weights with its norm folded in, fp64 (out, in / groups, k, k)."""
    factor = conv.norm_weight.double() / torch.sqrt(conv.running_var.double() + EPS)
    return conv.weight.double() * factor[:, None, None, None]


def _reordered(block: SourceBlock, inputs: Tensor, outputs: Tensor) -> dict[str, NormedConv]:
    """Return a block's layers with its input, hidden and output channels in other orders."""
    layers = block.layers
    if block.op == "inverted":
        hidden = inputs
        if "expand" in layers:
            hidden = _folded(layers["project"]).abs().sum((0, 2, 3)).argsort(descending=True, stable=True)
        found = {"depthwise": _take(layers["depthwise"], hidden, None), "project": _take(layers["project"], outputs, hidden)}
        return found if "expand" not in layers else {"expand": _take(layers["expand"], hidden, inputs), **found}
    if block.op == "residual":
        hidden = _folded(layers["second"]).abs().sum((0, 2, 3)).argsort(descending=True, stable=True)
        found = {"first": _take(layers["first"], hidden, inputs), "second": _take(layers["second"], outputs, hidden)}
        return found | {name: _take(conv, outputs, inputs) for name, conv in layers.items() if name == "shortcut"}
    return {name: _take(conv, outputs, inputs) for name, conv in layers.items()}


def _take(conv: NormedConv, outputs: Tensor, inputs: Tensor | None) -> NormedConv:
    weight = conv.weight[outputs] if inputs is None else conv.weight[outputs][:, inputs]
    norm = {name: getattr(conv, name)[outputs] for name in NORM.values()}
    return NormedConv(weight=weight, **norm)

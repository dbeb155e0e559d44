"""Search among networks with attention alone, beside a search among all: what it costs to ask for attention."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from typing import Any

from benchmarks.screening import read_results
from benchmarks.search_against_random import Side, answers_table, compare, search_of_all
from export.errors import InvalidInput
from hyctas.arch.genotype import Genotype
from hyctas.commands.search import OptimiserMaker
from hyctas.cost.workloads import CostModel
from hyctas.search.limits import Limits
from hyctas.spaces.grid import Space


class AttentionSpace(Space):
    """A space whose networks all have attention in their trunk: where genes ask for none, it ends the first branch's last stage."""

    def network(self, chosen: Mapping[str, Any]) -> Genotype:
        """Return the network with the given choices, and attention."""
        found = super().network(chosen)
        if any(cell.op == "attention" for branch in found.branches for cell in branch):
            return found
        branch, final = found.branches[0], found.final_strides[0]
        return super().network({**chosen, f"b{final}.{branch[-1].stage}.attention": True})


def with_attention(model: CostModel, limits: Limits, seed: int, batch: int) -> tuple[CostModel, OptimiserMaker | None]:
    """Search among the networks with attention.

    Raises:
        InvalidInput: the space does not offer it at the end of every stage from 1/8 on.
    """
    space = model.space
    if not isinstance(space, Space) or not all(stage.attention for stage in space.stages if stage.reduction >= 8):
        raise InvalidInput(f"space {space.name} does not offer attention at the end of every stage from 1/8 on")
    fields = {field.name: getattr(space, field.name) for field in dataclasses.fields(space)}
    return CostModel(AttentionSpace(**fields), model.table, model.size, model.num_classes), None


REQUIRED: dict[str, Side] = {"attention required": with_attention, "all networks": search_of_all}


def required(arguments: argparse.Namespace) -> str:
    """Do both searches with every seed, as `benchmarks.search_against_random` does; return the account."""
    path = arguments.results / "ablation_required.jsonl"
    for seed in range(arguments.seeds):
        compare(arguments, seed, REQUIRED, path)
    return (
        "# What it costs to ask for attention\n\nPrinted by `python -m benchmarks.ablations required`: a search among the networks "
        "with attention in their trunk, beside one among all. " + answers_table(read_results(path), *REQUIRED)
    )

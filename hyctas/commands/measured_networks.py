"""Measure whole networks where their latency table was measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from export.errors import Unavailable
from export.machine import hardware
from export.target import Target
from hyctas.arch.genotype import Genotype
from hyctas.cli.show import Show, bar, say
from hyctas.cost.calibrate import measure_confirmed, measure_networks
from hyctas.cost.workloads import CostModel
from hyctas.engine.table_attention import open_target
from hyctas.search.history import Evaluation


def measure_evaluations(what: str, evaluations: Sequence[Evaluation], model: CostModel, show: Show = bar) -> dict[str, float]:
    """Measure networks on the table's target, in ms by id; nothing, with the reason, where this is not the table's machine."""
    identity = model.table.identity
    if not evaluations:
        return {}
    if dict(identity.device) != hardware():
        say(f"{what} not measured: the latency table comes from another machine")
        return {}
    try:
        runtime = open_target(Target.parse(identity.target), identity.threads)
    except Unavailable as error:
        say(f"{what} not measured: {error}")
        return {}
    genotypes = [evaluation.genotype for evaluation in evaluations]
    predicted = np.array([evaluation.predicted_ms for evaluation in evaluations])
    with show(f"measure {len(evaluations)} of the {what}") as shown:

        def measure(some: Sequence[Genotype]) -> np.ndarray:
            return measure_networks(
                some, runtime, model.size, model.num_classes, repeats=2, progress=lambda done, total: shown.update(done / total)
            ).mean(axis=0)

        measured = measure_confirmed(genotypes, measure, lambda _: predicted)
    return dict(zip((evaluation.id for evaluation in evaluations), measured.tolist(), strict=True))

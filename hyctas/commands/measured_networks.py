"""Measure whole networks where their latency table was measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from export.errors import CheckFailed, Unavailable
from export.machine import hardware
from export.runtime import Runtime
from export.target import Target
from hyctas.arch.genotype import Genotype
from hyctas.cli.show import Show, bar, say
from hyctas.cost.calibrate import Progress, measure_confirmed, measure_networks, open_witness
from hyctas.cost.workloads import CostModel
from hyctas.engine.table_attention import open_target
from hyctas.plan import lower
from hyctas.search.history import Evaluation
from latency.witness import Witness

SLOWED = 1.3
"""Networks that take so many times as long as predicted, in the median, were not measured under the conditions of the table."""
WITNESS_MOVED = 1.1
"""The machine has another speed where the witness takes so many times as long, or as short, as beside the calibration."""
RARELY = 0.05
"""Share of timings beside which that is not worth a word: of each network's, the median counts."""


def measure_evaluations(
    what: str, evaluations: Sequence[Evaluation], model: CostModel, limit_ms: float | None = None, show: Show = bar
) -> dict[str, float]:
    """Measure networks on the target of the model's table, in ms by id; nothing, with the reason, where this is not its machine.

    Of several targets, the longest time counts, and all must be here.

    Raises:
        CheckFailed: all exceed the limit because the machine is slower than when its table was measured.
    """
    if not evaluations:
        return {}
    runtimes = [runtime for one in model.all if (runtime := _runtime_of(what, one)) is not None]
    if len(runtimes) < len(model.all):
        return {}
    genotypes, found = [evaluation.genotype for evaluation in evaluations], dict[str, float]()
    for one, runtime in zip(model.all, runtimes, strict=True):
        for name, ms in _measure(what, genotypes, one, runtime, show).items():
            found[name] = max(ms, found.get(name, 0.0))
    if limit_ms is not None and min(found.values()) > limit_ms:
        _check_conditions(what, [found[evaluation.id] / evaluation.predicted_ms for evaluation in evaluations], limit_ms)
    return found


def _check_conditions(what: str, ratios: Sequence[float], limit_ms: float) -> None:
    """Refuse times that say more about the machine than about networks, given measured by predicted times.

    Raises:
        CheckFailed: it is slower than when its table was measured.
    """
    if (slower := float(np.median(ratios))) > SLOWED:
        raise CheckFailed(
            f"the {what} took {slower:.1f} times as long as predicted (median of {len(ratios)} networks), so none meets the limit "
            f"of {limit_ms:.4g} ms: the machine is busy or throttled. What the search found is kept; repeat the command when the "
            "machine is as quiet as when its latency table was measured, or measure that anew as things are now (hyctas-profile "
            "--restart)"
        )


def _runtime_of(what: str, model: CostModel) -> Runtime | None:
    identity = model.table.identity
    if dict(identity.device) != hardware():
        say(f"{what} not measured: the latency table of {identity.target} comes from another machine")
        return None
    try:
        return open_target(Target.parse(identity.target), identity.threads)
    except Unavailable as error:
        say(f"{what} not measured: {error}")
        return None


def _measure(what: str, genotypes: Sequence[Genotype], model: CostModel, runtime: Runtime, show: Show) -> dict[str, float]:
    plans = [lower(genotype, model.size, model.num_classes) for genotype in genotypes]
    predicted = np.array([model.own_costs(plan).latency_ms for plan in plans])
    where = (runtime, model.size, model.num_classes)
    then_ms = model.calibration.witness_ms if model.calibration else None
    with show(f"measure {len(genotypes)} of the {what}") as shown, open_witness(*where, then_ms) as present:

        def measure(some: Sequence[Genotype], progress: Progress) -> np.ndarray:
            return measure_networks(some, *where, repeats=2, progress=progress, beside=present).mean(axis=0)

        measured = measure_confirmed(genotypes, measure, lambda _: predicted, lambda done, total: shown.update(done / total))
    _compare_witness(what, then_ms, present)
    return dict(zip((genotype.id for genotype in genotypes), measured.tolist(), strict=True))


def _compare_witness(what: str, then_ms: float | None, present: Witness) -> None:
    """Say so where the machine had another speed than when the table was calibrated."""
    if then_ms is None:
        return
    ratios = [ms / then_ms for ms in present.counted]
    moved = [ratio for ratio in ratios if max(ratio, 1 / ratio) > WITNESS_MOVED]
    if len(moved) > RARELY * len(ratios):
        ratio = float(np.median(moved))
        speed = f"{ratio:.2f} times as slow" if ratio > 1 else f"{1 / ratio:.2f} times as fast"
        share = f"{len(moved) / len(ratios):.0%}"
        say(f"beside {share} of the timings of the {what}, the machine was {speed} as when the latency table was calibrated "
            f"(a network that is timed between others took {ratio * then_ms:.3g} ms, and then {then_ms:.3g} ms): "
            "predictions are off by about as much there")  # fmt: skip

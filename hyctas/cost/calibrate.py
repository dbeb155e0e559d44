"""Measure whole networks on a target, and calibrate a latency table's predictions with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from export.runtime import Runtime
from hyctas.arch.genotype import Genotype
from hyctas.cost.workloads import calibration_name, calibration_networks, native_modules, units
from hyctas.plan import lower
from hyctas.spaces.search_space import SearchSpace
from latency import LatencyTable, Protocol
from latency.calibration import Calibration
from latency.lock import measuring
from latency.measure import measure
from latency.predictor import fit

BATCH = 8
NETWORK_PROTOCOL = Protocol(warmup_ms=50, min_samples=10, budget_ms=200)
"""How whole networks are timed in each round."""
ROUNDS = 3


def measure_networks(
    genotypes: Sequence[Genotype], runtime: Runtime, size: tuple[int, int], num_classes: int, *, repeats: int = 1,
    rounds: int = ROUNDS, progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:  # fmt: skip
    """Measure whole networks with native output and random weights.

    Every result is the median of some rounds over a batch of networks, so that what slows the machine for a second or two
    touches one round only.

    Returns:
        (repeats, networks) latencies in milliseconds; the rounds of different repeats alternate, so that their difference shows
        the noise of measuring and not of the hour.
    """
    results = np.empty((repeats, len(genotypes)))
    total = repeats * rounds
    with measuring():
        for start in range(0, len(genotypes), BATCH):
            batch = genotypes[start : start + BATCH]
            sessions = runtime.load_modules(native_modules(batch, size, num_classes))
            try:
                for session in sessions:
                    rng = np.random.default_rng(0)
                    session.bind({s.name: rng.standard_normal(s.shape, dtype=np.float32) for s in session.inputs})
                times = np.empty((rounds, repeats, len(batch)))
                for turn in range(total):
                    for offset, session in enumerate(sessions):
                        times[turn // repeats, turn % repeats, offset] = measure(session, NETWORK_PROTOCOL).median_ms
                        if progress is not None:
                            progress(start * total + turn * len(batch) + offset + 1, total * len(genotypes))
                results[:, start : start + len(batch)] = np.median(times, axis=0)
            finally:
                for session in sessions:
                    session.close()
    return results


def calibrate(
    space: SearchSpace, table: LatencyTable, runtime: Runtime, size: tuple[int, int], num_classes: int, count: int, purpose: int,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:  # fmt: skip
    """Measure `count` networks of a space (see `calibration_networks`), and fit the correction of a table's sums to them.

    Args:
        space: where the networks come from.
        table: holds all operators of the space at the size.
        runtime: the table's target.
        size: height and width of the image.
        num_classes: number of classes.
        count: networks to measure, at least 5.
        purpose: of the random draw.
        progress: told (networks done, of how many).
    """
    genotypes = calibration_networks(space, table, size, num_classes, count, purpose)
    measured = measure_networks(genotypes, runtime, size, num_classes, progress=progress)[0]
    plans = [units(lower(genotype, size, num_classes)) for genotype in genotypes]
    return fit(plans, measured, table, space_hash=space.hash, name=calibration_name(space, size))

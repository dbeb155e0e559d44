"""Turn what a runtime says of a model's layers into the times of the parts that the model was wired of."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np


def warm(step: Callable[[], object], warmup_ms: float) -> None:
    """Run for at least so long, and twice."""
    start, done = time.perf_counter(), 0
    while done < 2 or 1e3 * (time.perf_counter() - start) < warmup_ms:
        step()
        done += 1


def timed(step: Callable[[], object], runs: int) -> list[float]:
    """Return the milliseconds of every run."""
    found = []
    for _ in range(runs):
        start = time.perf_counter()
        step()
        found.append(1e3 * (time.perf_counter() - start))
    return found


def summed(layers: Mapping[str, Sequence[float]], owners: Mapping[str, str], whole_ms: Sequence[float]) -> dict[str, list[float]]:
    """Sum layers by part.

    What a run takes beside its layers, and what profiling adds to them, is shared equally among the layers: a profile counts in
    whole microseconds and leaves out what is between two layers, which is much where they are small.

    Args:
        layers: milliseconds of every run, by layer.
        owners: part of a layer; one that has none counts for nobody.
        whole_ms: of runs without a profile.
    """
    totals = np.sum([times for times in layers.values()], axis=0)
    beside = (statistics.median(whole_ms) - float(np.median(totals))) / len(layers)
    found: dict[str, list[float]] = {}
    for name, times in layers.items():
        if (part := owners.get(name)) is not None:
            before = found.get(part, [0.0] * len(times))
            found[part] = [a + b + beside for a, b in zip(before, times, strict=True)]
    return {part: [max(0.0, ms) for ms in times] for part, times in found.items()}

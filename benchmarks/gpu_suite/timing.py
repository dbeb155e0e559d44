"""Time calls on the device: bursts of a captured CUDA graph, several contenders in turn, medians.

Inputs are those of the previous burst, so that what fits into the GPU's cache is there, as it is between the layers of a network.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_suite.place import Place
from benchmarks.gpu_suite.records import describe

WARM_UP = 3
MOST_CALLS = 200
"""Calls in one burst."""
QUEUE_CYCLES = 200_000
"""Clock cycles that the GPU is kept waiting for, about 0.1 ms."""
ROUNDS = (7, 41)
"""Fewest and most rounds."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds per call."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    rounds: int
    calls: int
    """Per round."""
    method: str
    """`graph`, `events` (with the reason why no graph), or `wall clock`."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


class Burst:
    """Some calls in a row that are timed together.

    Args:
        call: what is timed; it must allocate nothing but through torch, and must not wait for the device.
        place: where.
        burst_ms: how long a burst should take.
    """

    def __init__(self, call: Callable[[], object], place: Place, burst_ms: float = 2.0) -> None:
        self.call, self.place = call, place
        self.graph: torch.cuda.CUDAGraph | None = None
        self.calls, self.method = 1, "wall clock"
        if place.rehearsal:
            call()
            return
        side = torch.cuda.Stream(place.device)
        side.wait_stream(torch.cuda.current_stream(place.device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                call()
        torch.cuda.current_stream(place.device).wait_stream(side)
        place.synchronize()
        once = min(self._elapsed(call) for _ in range(WARM_UP))
        self.calls = max(1, min(MOST_CALLS, math.ceil(burst_ms / max(once, 1e-4))))
        self._capture()

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                for _ in range(self.calls):
                    self.call()
        except RuntimeError as error:
            self.place.synchronize()
            self.method = f"events, since no graph could be captured: {describe(error)[:200]}"
            return
        self.graph, self.method = graph, "graph"

    def _elapsed(self, call: Callable[[], object]) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(QUEUE_CYCLES)  # what follows is queued meanwhile, so that a busy CPU leaves no gap in it
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))

    def ms(self) -> float:
        """Run a burst and return milliseconds per call."""
        if self.place.rehearsal:
            start = time.perf_counter()
            self.call()
            return (time.perf_counter() - start) * 1e3
        if self.graph is not None:
            return self._elapsed(self.graph.replay) / self.calls
        return self._elapsed(lambda: [self.call() for _ in range(self.calls)]) / self.calls


def interleave(bursts: Mapping[str, Burst], seconds: float = 0.5) -> dict[str, Timing]:
    """Time contenders in turn, so that a change of clock meets all of them.

    Args:
        bursts: contenders.
        seconds: how long it may take, about; there are never fewer rounds than `ROUNDS` says.
    """
    once = sum(burst.ms() * burst.calls for burst in bursts.values())  # also the first replay, which uploads the graph
    few, many = (2, 2) if any(burst.place.rehearsal for burst in bursts.values()) else ROUNDS
    rounds = max(few, min(many, int(seconds * 1e3 / max(once, 1e-3))))
    times: dict[str, list[float]] = {name: [] for name in bursts}
    for _ in range(rounds):
        for name, burst in bursts.items():
            times[name].append(burst.ms())
    return {name: _summary(times[name], burst) for name, burst in bursts.items()}


def quick_ms(call: Callable[[], object], place: Place) -> float:
    """Time one call shortly, to choose among many."""
    burst = Burst(call, place, burst_ms=1.0)
    burst.ms()
    return float(np.median([burst.ms() for _ in range(1 if place.rehearsal else 3)]))


def _summary(samples: list[float], burst: Burst) -> Timing:
    p10, median, p90 = (float(value) for value in np.percentile(samples, (10, 50, 90)))
    return Timing(median, p10, p90, len(samples), burst.calls, burst.method)

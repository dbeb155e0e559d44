"""Time one session: warm up by time, repeat until the median is known well enough, retake what others disturbed.

Samples are taken in windows of about 100 ms, because the load of the machine is known in steps of 10 ms only. A window
in which other processes used too much of the cores is set aside and retaken; what was set aside counts only where the
budget ends before enough quiet samples came together, and the result is then marked `busy`.
"""

from __future__ import annotations

import functools
import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from export.errors import CheckFailed, InvalidInput
from export.load import LoadReader, others_share, read_load
from export.runtime import Session
from latency.protocol import Protocol

Clock = Callable[[], float]
WINDOW_MS = 100.0
NOISY_CV = 0.025  # the coefficient of variation from which trtexec warns


class MeasurementFailed(CheckFailed):
    """A session gives no usable times: they are zero, negative or not finite, or the clock runs backwards."""


@dataclass(frozen=True)
class Measurement:
    """What the samples of one session say, in milliseconds."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    n: int
    """Samples that these numbers rest on."""
    cv: float
    """Coefficient of variation."""
    ci: float
    """Half the width of the median's 95 % confidence interval, as a share of the median."""
    discarded: int = 0
    """Unusable samples (not positive, not finite, or the clock ran backwards), left out."""
    retaken: int = 0
    """Samples set aside because other processes were running."""
    flags: tuple[str, ...] = ()
    """`busy`, `noisy` (cv > 2.5 %), `wide` (the interval asked for was not reached), `load-unknown`, `discarded`."""

    @property
    def busy(self) -> bool:
        """Whether samples taken beside other processes had to be kept."""
        return "busy" in self.flags


def median_ci(samples: Sequence[float]) -> float:
    """Half width of the median's 95 % confidence interval from order statistics, as a share of the median.

    Distribution-free (normal approximation of the binomial ranks). Infinite below 6 samples, where no such interval
    exists.
    """
    n = len(samples)
    if n < 6:
        return math.inf
    ordered = np.sort(samples)
    half = 1.96 * math.sqrt(n) / 2
    low, high = max(0, math.floor(n / 2 - half)), min(n - 1, math.ceil(n / 2 + half))
    return float((ordered[high] - ordered[low]) / (2 * np.median(ordered)))


@dataclass
class _Sampler:
    """Steps a session, drops unusable samples and keeps time even where the clock does not."""

    session: Session
    clock: Clock
    limit: int
    flush: Callable[[], None] | None = None
    discarded: int = 0
    elapsed_ms: float = field(default=0.0)

    def step(self) -> float | None:
        if self.flush is not None:
            self.flush()
        before = self.clock()
        took_ms = self.session.step()
        passed_ms = (self.clock() - before) * 1e3
        usable = math.isfinite(took_ms) and took_ms > 0
        self.elapsed_ms += max(passed_ms if passed_ms > 0 else 0.0, took_ms if usable else 0.0)
        if usable and passed_ms >= 0:
            return took_ms
        self.discarded += 1
        if self.discarded > self.limit:
            reason = "the clock runs backwards" if usable else f"the last sample was {took_ms} ms"
            raise MeasurementFailed(
                f"{self.discarded} samples are unusable ({reason}); a time must be positive and finite. "
                "Check the machine's clock and the runtime's timer; nothing was stored"
            )
        return None

    def window(self, length_ms: float, most: int) -> list[float]:
        """Take samples for `length_ms`, at least one and at most `most`."""
        samples: list[float] = []
        end_ms = self.elapsed_ms + length_ms
        while len(samples) < most and (not samples or self.elapsed_ms < end_ms):
            sample = self.step()
            if sample is not None:
                samples.append(sample)
        return samples


def measure(session: Session, protocol: Protocol, *, clock: Clock = time.perf_counter, load: LoadReader = read_load) -> Measurement:
    """Time `session.step()` on inputs that were bound before.

    Args:
        session: a loaded model with its inputs bound.
        protocol: how long and how exactly.
        clock: seconds; paces warm-up and budget (the samples themselves come from the session's own timer).
        load: reads the machine's load; samples count as quiet where it returns None.

    Raises:
        MeasurementFailed: more than `min_samples` unusable samples.
    """
    collecting = gc.isenabled()
    gc.disable()  # a collection inside a step would be counted as the operator's time
    try:
        flush = flusher(session, protocol.flush_mib) if protocol.flush_mib else None
        return _measure(_Sampler(session, clock, limit=protocol.min_samples, flush=flush), protocol, load)
    finally:
        if collecting:
            gc.enable()


def flusher(session: Session, mib: float) -> Callable[[], None]:
    """Return what overwrites a buffer: on the session's device where it offers `flush(mib)`, else in main memory.

    Raises:
        InvalidInput: the session computes on a GPU and cannot flush there.
    """
    own: Callable[[float], None] | None = getattr(session, "flush", None)
    if own is not None:
        return functools.partial(own, mib)
    if getattr(session, "on_gpu", False):
        raise InvalidInput("flush_mib: this runtime cannot overwrite the GPU's cache; measure on torch-cuda, or set it to 0")
    buffer = np.zeros(max(1, round(mib * 2**20 / 8)))

    def overwrite() -> None:
        buffer.__iadd__(1.0)

    return overwrite


def _measure(sampler: _Sampler, protocol: Protocol, load: LoadReader) -> Measurement:
    before = load()  # the first window's load includes the warm-up, so that it spans enough ticks
    sampler.window(protocol.warmup_ms, most=10**9)
    start_ms = sampler.elapsed_ms
    quiet: list[float] = []
    disturbed: list[float] = []
    unknown = False
    while True:
        length_ms = max(0.0, min(WINDOW_MS, start_ms + protocol.budget_ms - sampler.elapsed_ms))
        samples = sampler.window(length_ms, most=max(1, protocol.max_samples - len(quiet)))
        after = load()
        share = others_share(before, after)
        before = after
        unknown |= share is None
        (quiet if share is None or share <= protocol.retake_load else disturbed).extend(samples)
        over = sampler.elapsed_ms - start_ms >= protocol.budget_ms
        if len(quiet) >= protocol.min_samples:
            if over or len(quiet) >= protocol.max_samples or median_ci(quiet) <= protocol.ci:
                break
        elif over and disturbed and len(quiet) + len(disturbed) >= 3 * protocol.min_samples:
            break  # slow workloads get two retakes' worth beyond the budget
    busy = len(quiet) < protocol.min_samples
    kept = quiet + disturbed if busy else quiet
    flags = ["busy"] if busy else []
    flags += ["load-unknown"] if unknown else []
    return summarize(kept, protocol, flags, discarded=sampler.discarded, retaken=len(disturbed))


def summarize(
    samples: Sequence[float], protocol: Protocol, flags: Sequence[str] = (), *, discarded: int = 0, retaken: int = 0
) -> Measurement:
    """Reduce samples (ms) to a `Measurement`, adding the flags that follow from them."""
    values = np.asarray(samples, dtype=float)
    p10, median, p90, p95, p99 = (float(v) for v in np.percentile(values, (10, 50, 90, 95, 99)))
    cv, ci = float(values.std() / values.mean()), median_ci(samples)
    found = [*flags]
    found += ["noisy"] if cv > NOISY_CV else []
    found += ["wide"] if ci > protocol.ci else []
    found += ["discarded"] if discarded else []
    return Measurement(median, p10, p90, p95, p99, len(values), cv, ci, discarded, retaken, tuple(found))

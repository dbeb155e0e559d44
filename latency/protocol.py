"""Configure how a workload is timed. Imports nothing heavy: the command line reads it before it parses."""

from __future__ import annotations

import math
from dataclasses import dataclass

from export.errors import InvalidInput


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a workload is timed; part of a table's identity."""

    warmup_ms: float = 50
    """Run untimed for at least this long."""
    min_samples: int = 20
    """Samples taken even where the budget does not allow them."""
    max_samples: int = 400
    """Quiet samples after which measuring stops."""
    budget_ms: float = 250
    """Time for the samples of one workload, without warm-up."""
    ci: float = 0.02
    """Stop once the 95 % confidence interval of the median is within this share of the median, to each side."""
    retake_load: float = 0.10
    """Retake samples while other processes use more than this share of the cores."""
    builds: int = 1
    """Build each workload this often and keep the median of the builds (TensorRT chooses kernels anew in each)."""
    copies: int = 1
    """Above 1: time this many and twice as many copies of an operator side by side, and take the difference per copy."""
    in_context: bool = False
    """Time an operator behind 1x1 convolutions, and take those off (see `latency.compose`)."""
    flush_mib: float = 0
    """Overwrite this much memory before every sample, so that caches are cold; 0: leave them warm."""

    def __post_init__(self) -> None:
        for name in ("min_samples", "max_samples", "builds", "copies"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidInput(f"protocol: {name} is {value!r}; it must be an integer of at least 1")
        for name in ("warmup_ms", "budget_ms", "ci", "retake_load", "flush_mib"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
                raise InvalidInput(f"protocol: {name} is {value!r}; it must be a finite number of at least 0")
        if self.max_samples < self.min_samples:
            raise InvalidInput(f"protocol: max_samples {self.max_samples} is below min_samples {self.min_samples}")
        if self.copies > 1 and self.in_context:
            raise InvalidInput("protocol: copies and in_context exclude each other")
        if self.ci >= 1 or self.retake_load > 1:
            raise InvalidInput(f"protocol: ci {self.ci} must be below 1 and retake_load {self.retake_load} at most 1")

"""Configure how a workload is timed. Imports nothing heavy: the command line reads it before it parses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from export.errors import InvalidInput
from export.ranges import Range, Settings


@dataclass(frozen=True, kw_only=True)
class Protocol(Settings):
    """How a workload is timed; part of a table's identity."""

    warmup_ms: Annotated[float, Range(0, 600_000)] = 50
    """Run untimed for at least this long."""
    min_samples: Annotated[int, Range(1, 10**6)] = 20
    """Samples taken even where the budget does not allow them."""
    max_samples: Annotated[int, Range(1, 10**6)] = 400
    """Quiet samples after which measuring stops."""
    budget_ms: Annotated[float, Range(0, 3_600_000)] = 250
    """Time for the samples of one workload, without warm-up."""
    ci: Annotated[float, Range(0, below=1)] = 0.02
    """Stop once the 95 % confidence interval of the median is within this share of the median, to each side."""
    retake_load: Annotated[float, Range(0, 1)] = 0.10
    """Retake samples while other processes use more than this share of the cores."""
    builds: Annotated[int, Range(1, 1000)] = 1
    """Build each workload this often and keep the median of the builds (TensorRT chooses kernels again in each)."""
    passes: Annotated[int, Range(0, 1000)] = 3
    """Where the runtime times layers: passes over all operators, each inside other graphs; 0: time operators alone."""
    flush_mib: Annotated[float, Range(0, 65536)] = 0
    """Overwrite this much memory before every sample, so that caches are cold; 0: leave them warm."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_samples < self.min_samples:
            raise InvalidInput(f"protocol: max_samples {self.max_samples} is below min_samples {self.min_samples}")

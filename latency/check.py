"""Say whether a table still describes a machine: measure a sample of its rows again."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.errors import Perform
from export.machine import hardware
from export.runtime import Runtime
from latency.identity import Identity
from latency.in_situ import Progress
from latency.measure import Protocol
from latency.measure import measure as measure_session
from latency.profiling import Measure, profile
from latency.table import LatencyTable
from latency.workload import Workload

SHIFT, SCATTER, SHARE = 0.10, 0.20, 0.80
"""A table still holds where the median ratio is within SHIFT of 1, and a SHARE of the ratios within SCATTER of the median."""


@dataclass(frozen=True)
class Check:
    """A sample of rows beside what they measure now."""

    ratios: Mapping[str, float]
    """Measured now / in the table, by key."""

    @property
    def median(self) -> float:
        return float(np.median(list(self.ratios.values())))

    @property
    def share(self) -> float:
        """Share of the sample whose ratio is near the median."""
        values = np.array(list(self.ratios.values()))
        return float(np.mean(np.abs(values / self.median - 1) <= SCATTER))

    @property
    def holds(self) -> bool:
        """Say whether the table still describes the machine."""
        return abs(self.median - 1) <= SHIFT and self.share >= SHARE

    def summary(self) -> str:
        """Return the verdict as a sentence or two."""
        worst = max(self.ratios, key=lambda key: abs(np.log(self.ratios[key] / self.median)))
        found = (
            f"{len(self.ratios)} operators take {self.median:.2f} x their time in the table (median); {self.share:.0%} are within "
            f"{SCATTER:.0%} of that; farthest off: {self.ratios[worst]:.2f} x, {worst}"
        )
        if self.holds:
            return f"the table still describes this machine: {found}"
        if abs(self.median - 1) > SHIFT:
            return f"the table does not describe this machine as it is now: {found}. Other clocks, another load, other settings?"
        return f"the table does not describe this machine as it is now: {found}. It is noisy, or operators changed differently"


def sample_keys(table: LatencyTable, count: int) -> list[str]:
    """Return keys spread over the latencies of a table, the fastest and the slowest among them."""
    ordered = sorted(table.rows, key=lambda key: (table.rows[key].median_ms, key))
    places = np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int)
    return [ordered[place] for place in dict.fromkeys(places.tolist())]


def check_table(
    table: LatencyTable, workloads: Sequence[Workload], runtime: Runtime, *, context: Sequence[Workload] = (),
    machine: Mapping[str, Any] | None = None, progress: Progress | None = None, notice: Callable[[str], None] = print,
    measure: Measure = measure_session,
) -> Check:  # fmt: skip
    """Measure rows of a table again, by the table's own protocol.

    Args:
        table: holds rows for all the workloads.
        workloads: which rows (`sample_keys` chooses some).
        runtime: the table's target.
        context: as `latency.profile` takes it.
        machine: the hardware; default `export.machine.hardware()`.
        progress: told after each key.
        notice: told what a person should know.
        measure: times a session; replaced in tests.

    Raises:
        TableMismatch: the conditions differ already: device, versions, threads.
        MissingKeys: the table lacks one of the workloads.
    """
    table.require([workload.key for workload in workloads], Perform("profile", {"target": table.identity.target}))
    protocol = Protocol(**table.identity.protocol)
    machine = hardware() if machine is None else machine
    table.identity.check(Identity.of(runtime, protocol, machine), "the table does not describe this machine")
    with tempfile.TemporaryDirectory(prefix="hyctas-check-") as folder:
        fresh = profile(
            workloads, runtime, Path(folder) / "latency.json", protocol, machine=machine, progress=progress, notice=notice,
            measure=measure, context=context,
        )  # fmt: skip
    return Check({w.key: fresh.rows[w.key].median_ms / table.rows[w.key].median_ms for w in workloads})

"""Tell how much of the machine other processes used between two moments, from /proc/stat and our own process times."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
"""Resolution of /proc/stat."""


@dataclass(frozen=True)
class LoadReading:
    """Processor time since boot, over the cores that this process may use, in seconds."""

    total_s: float
    """Busy and idle time of the cores together."""
    busy_s: float
    """What all processes used, stolen time included."""
    own_s: float
    """What this process used, all its threads together."""


LoadReader = Callable[[], LoadReading | None]
"""Reads the load now; None where the machine does not tell."""


def read_load(stat: Path = Path("/proc/stat")) -> LoadReading | None:
    """Read the load of the cores that this process may use; None where there is no usable /proc/stat."""
    try:
        lines = stat.read_text().splitlines()
        cores = {f"cpu{n}" for n in os.sched_getaffinity(0)}
    except (OSError, AttributeError):  # not Linux
        return None
    total = idle = 0
    for line in lines:
        name, *fields = line.split()
        if name in cores and len(fields) >= 5:
            ticks = [int(field) for field in fields[:8]]  # user nice system idle iowait irq softirq steal; guest is in user
            total += sum(ticks)
            idle += ticks[3] + ticks[4]
    if not total:
        return None
    return LoadReading(total * TICK_S, (total - idle) * TICK_S, time.process_time())


def others_share(before: LoadReading | None, after: LoadReading | None) -> float | None:
    """Share of the cores, 0 to 1, that other processes used between two readings; None where unknown.

    One tick is granted to rounding: /proc/stat counts in ticks, our own time is exact.
    """
    if before is None or after is None or after.total_s <= before.total_s:
        return None
    others = (after.busy_s - before.busy_s) - (after.own_s - before.own_s) - TICK_S
    return min(1.0, max(0.0, others / (after.total_s - before.total_s)))

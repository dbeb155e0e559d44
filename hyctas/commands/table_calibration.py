"""Calibrate a latency table on whole networks, and say how good it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from export.errors import InvalidInput
from export.runtime import Runtime
from hyctas.cli.show import bar, say
from hyctas.commands.datasets import open_dataset
from hyctas.cost.calibrate import calibrate
from hyctas.cost.workloads import find_calibration
from hyctas.spaces.search_space import SearchSpace
from latency import LatencyTable
from latency.calibration import Calibration
from latency.predictor import MIN_NETWORKS

if TYPE_CHECKING:
    from hyctas.cli.profile import ProfileJob

CALIBRATE = 31
"""Purpose of the draw of calibration networks."""


def check_networks(job: ProfileJob) -> None:
    """Refuse a number of calibration networks that no fit can do with.

    Raises:
        InvalidInput: above 0, and too few.
    """
    if job.networks and job.networks < MIN_NETWORKS:
        raise InvalidInput(f"--networks {job.networks}: a calibration needs at least {MIN_NETWORKS} networks, or 0 for none")


def num_classes(job: ProfileJob) -> int:
    """Return the number of classes asked for, or that of the data set, or 19."""
    if job.classes is not None:
        return job.classes
    return open_dataset(job.data, check=False).num_classes if job.data else 19


def calibrated(
    job: ProfileJob, space: SearchSpace, table: LatencyTable, runtime: Runtime, size: tuple[int, int], classes: int, path: Path
) -> Calibration:
    """Return the table's calibration; where it has none on that many networks, measure them and write it into the table."""
    found = find_calibration(space, table, size)
    if found is not None and found.n == job.networks:
        return found
    journal = path.with_name(f"{path.name}.networks.jsonl")
    with bar(f"measure {job.networks} networks") as shown:
        found = calibrate(
            space, table, runtime, size, classes, job.networks, CALIBRATE,
            lambda done, total: shown.update(done / total, f"{done}/{total}"), journal,
        )  # fmt: skip
    replace(table, calibrations={**table.calibrations, found.name: found}).save(path)
    journal.unlink()
    return found


def show(calibration: object) -> None:
    """Print how well whole networks are predicted."""
    if not isinstance(calibration, Calibration):
        say("no calibration: predictions are plain sums of operators, their error unknown")
        return
    held = calibration.holdout
    say(f"calibrated on {calibration.n} networks; hold-out error: MAPE {held.mape:.1%}, "
        f"{held.within5:.0%} within 5 %, {held.within10:.0%} within 10 %, Spearman {held.spearman:.3f}")  # fmt: skip

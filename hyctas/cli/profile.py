"""hyctas-profile: measure a space's operators on a target, and calibrate the prediction on whole networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from hyctas.cli.entry import command
from hyctas.cli.jobs import ProfileJob, image_size, parse_target
from hyctas.operators import from_key

if TYPE_CHECKING:
    from latency import Workload

CALIBRATE = 31
"""Purpose of the draw of calibration networks."""


def main() -> None:
    """Run the command line."""
    command(profile_space, ProfileJob, "Measure every operator of a space on a target: RUN/latency.json.")


def profile_space(job: ProfileJob) -> None:
    """Measure RUN/latency.json."""
    from export.errors import InvalidInput
    from export.runtimes import open_runtime
    from hyctas.calibrate import calibrate
    from hyctas.cli.datasets import open_dataset
    from hyctas.cli.show import bar, say
    from hyctas.runs import Run
    from hyctas.space_file import load_space
    from hyctas.workloads import find_calibration, workloads
    from latency import LatencyTable, Protocol, profile
    from latency.calibration import Calibration

    if job.networks and job.networks < 5:
        raise InvalidInput(f"--networks {job.networks}: a calibration needs at least 5 networks, or 0 for none")
    space, size, target = load_space(job.space), image_size(job.size), parse_target(job.target)
    classes = job.classes or (open_dataset(job.data, check=False).num_classes if job.data else 19)
    runtime = open_runtime(target, job.threads)
    say(f"target: {target}, {job.threads} thread{'s' if job.threads > 1 else ''}")
    config = {"space": job.space, "space_hash": space.hash, "size": size, "classes": classes, "target": str(target),
              "threads": job.threads, "networks": job.networks, "budget_ms": job.budget_ms}  # fmt: skip
    run = Run(job.run, "profile", config, ("latency.json", "latency.json.journal.jsonl"), restart=job.restart)
    table_path = run.file("latency.json")
    if run.done:
        say(f"{table_path} is already measured with this configuration")
        show(LatencyTable.load(table_path).calibrations.get(run.record["results"].get("calibration", "")))
        return
    keys = space.keys(size, classes)
    wanted = workloads(keys)
    with bar(f"profile {len(keys)} operators") as shown:
        table = profile(
            wanted, runtime, table_path, Protocol(budget_ms=job.budget_ms), notice=say, reference=reference(wanted),
            progress=lambda done, total, left, key: shown.update(done / total, f"{done}/{total}"),
        )  # fmt: skip
    busy = sum(table.rows[key].busy for key in keys)
    if busy:
        say(f"warning: {busy} of {len(keys)} operators were timed while other processes were running; "
            "for a table to rely on, repeat on a quiet machine with --restart")  # fmt: skip
    calibration: Calibration | None = None
    if job.networks:
        calibration = find_calibration(space, table, size)
        if calibration is None:
            with bar(f"measure {job.networks} networks") as shown:
                calibration = calibrate(
                    space, table, runtime, size, classes, job.networks, CALIBRATE,
                    lambda done, total: shown.update(done / total, f"{done}/{total}"),
                )  # fmt: skip
            table = replace(table, calibrations={**table.calibrations, calibration.name: calibration})
            table.save(table_path)
    run.finish(keys=len(keys), busy=busy, calibration=calibration.name if calibration else None)
    show(calibration)
    say(f"wrote {table_path}: {len(keys)} operators")


def reference(wanted: Sequence[Workload]) -> Workload:
    """Return the workload that drift is judged by: one that works long enough to be timed well."""
    ordered = sorted(wanted, key=lambda workload: from_key(workload.key)[0].macs(from_key(workload.key)[1]))
    return ordered[len(ordered) * 9 // 10]


def show(calibration: object) -> None:
    """Print how well whole networks are predicted."""
    from hyctas.cli.show import say
    from latency.calibration import Calibration

    if not isinstance(calibration, Calibration):
        say("no calibration: predictions are plain sums of operators, their error unknown")
        return
    held = calibration.holdout
    say(f"calibrated on {calibration.n} networks ({calibration.model}); hold-out error: MAPE {held.mape:.1%}, "
        f"{held.within5:.0%} within 5 %, {held.within10:.0%} within 10 %, Spearman {held.spearman:.3f}")  # fmt: skip

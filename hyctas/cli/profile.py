"""hyctas-profile: measure a space's operators on a target, and calibrate the prediction on whole networks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from export.target import TENSORRT
from hyctas.arch.operators import from_key
from hyctas.cli.entry import command
from hyctas.cli.jobs import ProfileJob, image_size, parse_target

if TYPE_CHECKING:
    from export.runtime import Runtime
    from export.target import Target
    from hyctas.cli.show import Bar
    from hyctas.spaces.search_space import SearchSpace
    from latency import LatencyTable, Protocol, Workload
    from latency.calibration import Calibration
    from latency.table import Row

CALIBRATE = 31
"""Purpose of the draw of calibration networks."""
SAMPLE = 24
"""Operators that --check measures again."""
BUILDS = 3
"""Of every operator, where TensorRT chooses kernels anew in each."""


def main() -> None:
    """Run the command line."""
    command(
        profile_space, ProfileJob, "Measure every operator of a space on a target: RUN/latency.json.",
        name="hyctas-profile", example="--run runs/mine --size 360x480 --target onnxruntime-cpu:fp32 --threads 2",
    )  # fmt: skip


def profile_space(job: ProfileJob) -> None:
    """Measure RUN/latency.json."""
    from hyctas.artifacts.runs import Run
    from hyctas.cli.show import bar, say
    from hyctas.cost.workloads import workloads
    from hyctas.engine.table_attention import open_target
    from hyctas.spaces.space_file import load_space
    from latency import LatencyTable, profile

    if job.kit is not None or job.ingest is not None:
        from hyctas.cli.kit import ingest_profile, write_profile_kit

        (write_profile_kit if job.ingest is None else ingest_profile)(job)
        return
    if job.check is not None:
        check(job)
        return
    check_networks(job)
    space, size, target = load_space(job.space), image_size(job.size), parse_target(job.target)
    protocol = protocol_of(job, target)
    classes = num_classes(job)
    every_key = space.keys(size, classes)
    keys = part(every_key, job.shard)
    runtime = open_target(target, job.threads)
    say(f"target: {target}, {job.threads} thread{'s' if job.threads > 1 else ''}")
    config = {"space": job.space, "space_hash": space.hash, "size": size, "classes": classes, "target": str(target),
              "threads": job.threads, "protocol": asdict(protocol), "shard": job.shard,
              "merge": [str(path) for path in job.merge]}  # fmt: skip
    run = Run(job.run, "profile", config, ("latency.json", "latency.json.journal.jsonl"), restart=job.restart,
              formerly={**config, "networks": job.networks})  # fmt: skip
    table_path = run.file("latency.json")
    if run.done and run.record["results"].get("networks", job.networks) == job.networks:
        say(f"{table_path} is already measured with this configuration")
        show(LatencyTable.load(table_path).calibrations.get(run.record["results"].get("calibration", "")))
        return
    join(table_path, job.merge)
    wanted = workloads(keys)
    engines, ahead = engines_ahead(wanted, protocol.builds, table_path) if target.runtime in TENSORRT else (0, "")
    if engines:
        say(ahead)
    with bar(f"profile {len(keys)} operators") as shown:
        follow(runtime, shown, engines)
        table = profile(
            wanted, runtime, table_path, protocol, notice=say, reference=reference(wanted),
            progress=lambda done, total, left, key: shown.update(done / total, f"{done}/{total}", left),
        )  # fmt: skip
    show_spread([table.rows[key] for key in keys])
    show_attention(runtime)
    busy = sum(table.rows[key].busy for key in keys)
    if busy:
        say(f"warning: {busy} of {len(keys)} operators were timed while other processes were running; "
            "for a table to rely on, repeat on a quiet machine with --restart")  # fmt: skip
    if missing := table.missing(every_key):
        run.finish(keys=len(keys), busy=busy, calibration=None)
        say(f"wrote {table_path}: {len(keys)} operators; {len(missing)} more belong to other shards. When all are measured: "
            f"hyctas-profile --merge TABLE TABLE ... (with the same --space, --size, --target)")  # fmt: skip
        return
    calibration = calibrated(job, space, table, runtime, size, classes, table_path) if job.networks else None
    run.finish(keys=len(keys), busy=busy, calibration=calibration.name if calibration else None, networks=job.networks)
    show(calibration)
    say(f"wrote {table_path}: {len(keys)} operators")


def protocol_of(job: ProfileJob, target: Target) -> Protocol:
    """Return how operators are timed; TensorRT builds each `BUILDS` times where the TOML file says nothing else."""
    protocol = job.protocol()
    said = "builds" in json.loads(job.expert)
    return replace(protocol, builds=BUILDS) if target.runtime in TENSORRT and not said else protocol


def engines_ahead(wanted: Sequence[Workload], builds: int, path: Path) -> tuple[int, str]:
    """Count the engines to be built for what a table and its journal lack, and say how long that may take."""
    from export.trt.grouped import count_engines, estimate, rough_ms
    from hyctas.arch.operators import BYTES_PER_ELEMENT
    from hyctas.cli.kit import ALONE
    from hyctas.engine.table_attention import TRIALS, attention_shapes
    from latency import LatencyTable
    from latency.journal import journal_path, read_journal
    from latency.profiling import BATCH, in_order

    known = set(LatencyTable.load(path).rows) if path.exists() else set()
    journal = read_journal(journal_path(path), lambda said: None) if journal_path(path).exists() else None
    todo = in_order([workload for workload in wanted if workload.key not in known | set(journal.rows if journal else ())])
    costs = []
    for workload in todo:
        operator, shapes = from_key(workload.key)
        costs.append(rough_ms(operator.macs(shapes), operator.bytes_moved(shapes) / BYTES_PER_ELEMENT))
    alone = [workload.op in ALONE for workload in todo]
    engines = count_engines((costs[at : at + BATCH], alone[at : at + BATCH]) for at in range(0, len(todo), BATCH))
    trials = TRIALS * len(attention_shapes(workload.key for workload in todo))
    return engines * builds + trials, estimate(len(todo), engines, builds, trials)


def follow(runtime: Runtime, shown: Bar, engines: int) -> None:
    """Have a runtime that builds engines tell of each; before the first operator is measured, they foretell the time left."""
    from export.trt.tensorrt_runtime import TensorRTRuntime

    if isinstance(runtime, TensorRTRuntime):

        def tell(text: str) -> None:
            left = max(0, engines - runtime.engines)
            shown.tell(text, left * runtime.building_s / runtime.engines if runtime.engines else None)

        runtime.tell = tell


def show_attention(runtime: Runtime) -> None:
    """Print which implementations attention got, where a runtime chooses one per shape."""
    from hyctas.cli.show import say
    from hyctas.engine.table_attention import MeasuredAttention

    attention = getattr(runtime, "attention", None)
    if isinstance(attention, MeasuredAttention) and attention.taken:
        say(attention.summary())


def show_spread(rows: Sequence[Row]) -> None:
    """Print how far the builds of an operator differ, where there are several."""
    from hyctas.cli.show import say

    spreads = sorted(row.spread for row in rows if row.spread is not None)
    if spreads:
        middle, high = spreads[len(spreads) // 2], spreads[len(spreads) * 9 // 10]
        say(f"builds of one operator differ by {middle:.1%} (median of {len(spreads)} operators), {high:.1%} (90th percentile)")


def check_networks(job: ProfileJob) -> None:
    """Refuse a number of calibration networks that no fit can do with.

    Raises:
        InvalidInput: above 0, and too few.
    """
    from export.errors import InvalidInput
    from latency.predictor import MIN_NETWORKS

    if job.networks and job.networks < MIN_NETWORKS:
        raise InvalidInput(f"--networks {job.networks}: a calibration needs at least {MIN_NETWORKS} networks, or 0 for none")


def num_classes(job: ProfileJob) -> int:
    """Return the number of classes asked for, or that of the data set, or 19."""
    from hyctas.cli.datasets import open_dataset

    if job.classes is not None:
        return job.classes
    return open_dataset(job.data, check=False).num_classes if job.data else 19


def calibrated(
    job: ProfileJob, space: SearchSpace, table: LatencyTable, runtime: Runtime, size: tuple[int, int], classes: int, path: Path
) -> Calibration:
    """Return the table's calibration; where it has none on that many networks, measure them and write it into the table."""
    from hyctas.cli.show import bar
    from hyctas.cost.calibrate import calibrate
    from hyctas.cost.workloads import find_calibration

    found = find_calibration(space, table, size)
    if found is not None and found.n == job.networks:
        return found
    with bar(f"measure {job.networks} networks") as shown:
        found = calibrate(
            space, table, runtime, size, classes, job.networks, CALIBRATE,
            lambda done, total: shown.update(done / total, f"{done}/{total}"),
        )  # fmt: skip
    replace(table, calibrations={**table.calibrations, found.name: found}).save(path)
    return found


def part(keys: Sequence[str], shard: str | None) -> list[str]:
    """Return the keys of a shard, written `2/4`; all of them without one.

    Raises:
        InvalidInput: not of that form.
    """
    from export.errors import InvalidInput

    if shard is None:
        return list(keys)
    which, _, count = shard.partition("/")
    if not (which.isdecimal() and count.isdecimal() and 1 <= int(which) <= int(count)):
        raise InvalidInput(f"--shard {shard!r} must be written PART/PARTS, for instance 2/4")
    return list(keys[int(which) - 1 :: int(count)])


def join(path: Path, others: Sequence[Path]) -> None:
    """Join tables of equal machines to the one at `path`, which may be absent.

    Raises:
        TableMismatch: their conditions differ.
    """
    from hyctas.cli.show import say
    from latency import LatencyTable

    tables = [LatencyTable.load(other) for other in ([path] if path.exists() and others else []) + list(others)]
    for table in tables[1:]:
        tables[0] = tables[0].merge(table)
    if others:
        tables[0].save(path)
        say(f"joined {len(others)} tables: {len(tables[0])} operators")


def check(job: ProfileJob) -> None:
    """Measure a sample of a table again, and say whether it still describes this machine.

    Raises:
        TableMismatch: it was made under other conditions.
        CheckFailed: it does not.
    """
    from export.errors import CheckFailed, CorruptFile
    from export.target import Target
    from hyctas.cli.show import bar, say
    from hyctas.cost.workloads import workloads
    from hyctas.engine.table_attention import open_target
    from latency import LatencyTable
    from latency.check import check_table, sample_keys

    assert job.check is not None
    table = LatencyTable.load(job.check)
    runtime = open_target(Target.parse(table.identity.target), table.identity.threads)
    try:
        wanted = workloads(sample_keys(table, SAMPLE))
    except ValueError as error:
        raise CorruptFile(job.check, str(error)) from None
    with bar(f"check {len(wanted)} of {len(table)} operators") as shown:
        found = check_table(
            table, wanted, runtime, notice=say, progress=lambda done, total, left, key: shown.update(done / total)
        )
    if not found.holds:
        raise CheckFailed(found.summary())
    say(found.summary())


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


if __name__ == "__main__":
    main()

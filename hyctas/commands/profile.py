"""Measure a space's operators on a target, and calibrate the prediction on whole networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from export.errors import CheckFailed, CorruptFile, InvalidInput
from export.runtime import Runtime
from export.target import TENSORRT, Target
from hyctas.artifacts.runs import Run
from hyctas.cli.show import bar, say
from hyctas.cli.values import image_size
from hyctas.commands.chosen_target import parse_target
from hyctas.commands.profile_kit import ingest_profile, write_profile_kit
from hyctas.commands.profile_tensorrt import engines_ahead, follow, protocol_of, show_attention, show_spread
from hyctas.commands.profile_workers import profile_config, profile_on_cluster, reference
from hyctas.commands.table_calibration import calibrated, check_networks, num_classes, show
from hyctas.cost.workloads import workloads
from hyctas.engine.table_attention import open_target
from hyctas.spaces.space_file import load_space
from latency import LatencyTable, Protocol, Workload, profile
from latency.check import check_table, sample_keys

if TYPE_CHECKING:
    from hyctas.cli.profile import ProfileJob

SAMPLE = 24
"""Operators that --check measures again."""


def profile_space(job: ProfileJob) -> None:
    """Do what the settings ask for: measure here, write a device kit or read one, or check a table."""
    if job.ray is not None:
        profile_on_cluster(job)
    elif job.ingest is not None:
        ingest_profile(job)
    elif job.kit is not None:
        write_profile_kit(job)
    elif job.check is not None:
        check(job)
    else:
        measure_space(job)


def measure_space(job: ProfileJob) -> None:
    """Measure RUN/latency.json."""
    check_networks(job)
    space, size, target = load_space(job.space), image_size(job.size), parse_target(job.target)
    protocol = protocol_of(job, target)
    classes = num_classes(job)
    every_key = space.keys(size, classes)
    keys = part(every_key, job.shard)
    runtime = open_target(target, job.threads)
    say(f"target: {target}, {job.threads} thread{'s' if job.threads > 1 else ''}")
    config = profile_config(job, space, size, classes, target, protocol)
    run = Run(
        job.run, "profile", config, ("latency.json", "latency.json.journal.jsonl", "latency.json.networks.jsonl"),
        restart=job.restart, formerly={**config, "networks": job.networks},
    )  # fmt: skip
    table_path = run.file("latency.json")
    if run.done and run.record["results"].get("networks", job.networks) == job.networks:
        say(f"{table_path} is already measured with this configuration")
        show(LatencyTable.load(table_path).calibrations.get(run.record["results"].get("calibration", "")))
        return
    join(table_path, job.merge)
    table = measure_operators(workloads(keys), runtime, target, table_path, protocol, workloads(every_key))
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


def measure_operators(
    wanted: Sequence[Workload], runtime: Runtime, target: Target, table_path: Path, protocol: Protocol, context: Sequence[Workload]
) -> LatencyTable:
    """Measure what the table lacks, and show how much builds or passes differ; `context` is all of the space."""
    engines, ahead = engines_ahead(wanted, protocol.builds, table_path) if target.runtime in TENSORRT else (0, "")
    if engines:
        say(ahead)
    with bar(f"profile {len(wanted)} operators") as shown:
        follow(runtime, shown, engines)
        table = profile(
            wanted, runtime, table_path, protocol, notice=say, reference=reference(wanted), context=context,
            progress=lambda done, total, left, key: shown.update(done / total, f"{done}/{total}", left),
        )  # fmt: skip
    show_spread([table.rows[workload.key] for workload in wanted])
    show_attention(runtime)
    return table


def part(keys: Sequence[str], shard: str | None) -> list[str]:
    """Return the keys of a shard, written `2/4`; all of them without one.

    Raises:
        InvalidInput: not of that form.
    """
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
    assert job.check is not None
    table = LatencyTable.load(job.check)
    runtime = open_target(Target.parse(table.identity.target), table.identity.threads)
    try:
        wanted, context = workloads(sample_keys(table, SAMPLE)), workloads(tuple(table.rows))
    except ValueError as error:
        raise CorruptFile(job.check, str(error)) from None
    with bar(f"check {len(wanted)} of {len(table)} operators") as shown:
        found = check_table(
            table, wanted, runtime, context=context, notice=say,
            progress=lambda done, total, left, key: shown.update(done / total),
        )  # fmt: skip
    if not found.holds:
        raise CheckFailed(found.summary())
    say(found.summary())

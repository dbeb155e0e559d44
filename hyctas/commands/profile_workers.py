"""Measure a space's operators on all machines of a cluster: one worker per machine, one table per kind of machine."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from export.codec import decode, plain
from export.errors import CheckFailed, Give, InvalidInput, LeaveOut
from export.files import write_bytes
from export.machine import hardware
from export.target import Target
from hyctas.arch.operators import from_key
from hyctas.artifacts.runs import Run, package_versions
from hyctas.cli.show import Bar, bar, say
from hyctas.cli.values import image_size
from hyctas.commands.profile_tensorrt import protocol_of
from hyctas.commands.table_calibration import CALIBRATE, check_networks, num_classes, show
from hyctas.cost.calibrate import calibrate
from hyctas.cost.workloads import find_calibration, workloads
from hyctas.engine.table_attention import open_target
from hyctas.ray_cluster import Device, open_cluster
from hyctas.spaces.search_space import SearchSpace
from hyctas.spaces.space_file import load_space
from hyctas.workers import Pool
from latency import LatencyTable, Protocol, Workload, profile
from latency.calibration import Calibration
from latency.identity import Identity
from latency.journal import fold
from latency.profiling import BATCH, OperatorsFailed, in_effect, in_order

if TYPE_CHECKING:
    from hyctas.cli.profile import ProfileJob

ALONE = ("shard", "merge", "check", "kit", "ingest")
"""Settings that do not go with a cluster."""


def reference(wanted: Sequence[Workload]) -> Workload:
    """Return the workload that drift is judged by: one that works long enough to be timed well."""
    ordered = sorted(wanted, key=lambda workload: from_key(workload.key)[0].macs(from_key(workload.key)[1]))
    return ordered[len(ordered) * 9 // 10]


def profile_config(
    job: ProfileJob, space: SearchSpace, size: tuple[int, int], classes: int, target: Target, protocol: Protocol
) -> dict[str, Any]:  # fmt: skip
    """Return what decides what a table holds, as a run records it."""
    return {
        "space": job.space, "space_hash": space.hash, "size": size, "classes": classes, "target": str(target),
        "threads": job.threads, "protocol": asdict(protocol), "shard": job.shard, "merge": [str(path) for path in job.merge],
    }  # fmt: skip


class ProfileWorker:
    """What a worker measures on its machine; what a machine is like is its kind.

    Args:
        target: where.
        threads: on a CPU target.
        protocol: how operators are timed.
        space: that networks are of.
    """

    def __init__(self, target: Target, threads: int, protocol: Protocol, space: str) -> None:
        self.runtime, self.protocol, self.space = open_target(target, threads), protocol, load_space(space)
        self.facts = profile_facts(self.space)
        measured = in_effect(protocol, self.runtime)
        self.kind = json.dumps(plain(Identity.of(self.runtime, measured, hardware())), sort_keys=True)

    def measure(self, keys: Sequence[str], asked: tuple[tuple[int, int], int], drift: str) -> tuple[bytes, list[str], str | None]:
        """Measure operators of the space at a size and number of classes; return the table, what was noticed, and what failed.

        `drift` is the key that tells of drift where they are measured alone.
        """
        (steady,), noticed, failure = workloads([drift]), list[str](), None
        context = workloads(self.space.keys(*asked))
        with TemporaryDirectory() as scratch:
            path = Path(scratch) / "latency.json"
            try:
                profile(
                    workloads(keys), self.runtime, path, self.protocol, notice=noticed.append, reference=steady, context=context
                )  # fmt: skip
            except OperatorsFailed as error:
                failure = str(error)
            return path.read_bytes() if path.exists() else b"", noticed, failure

    def calibrate(self, table: bytes, size: tuple[int, int], classes: int, networks: int) -> Calibration:
        """Measure whole networks, and return the correction of a table's sums."""
        return calibrate(self.space, _read(table), self.runtime, size, classes, networks, CALIBRATE)


def profile_facts(space: SearchSpace) -> dict[str, str]:
    """Return what must be equal on all machines; what else decides latency, the table's identity says."""
    return {"hyctas": package_versions()["hyctas"], "space": space.hash}


def profile_on_cluster(job: ProfileJob) -> None:
    """Measure RUN/latency.json on the machines of a cluster; where they are of several kinds, RUN/latency-KIND.json for each."""
    if given := tuple(name for name in ALONE if getattr(job, name)):
        raise InvalidInput("a cluster measures whole tables, one per kind of machine", LeaveOut(given), LeaveOut(("ray",)))
    if job.target is None:
        raise InvalidInput("the best target may differ from machine to machine of a cluster", Give("target", "TARGET"))
    check_networks(job)
    space, size, target = load_space(job.space), image_size(job.size), Target.parse(job.target)
    classes, protocol = num_classes(job), protocol_of(job, target)
    config = profile_config(job, space, size, classes, target, protocol)
    run = Run(job.run, "profile", config, ("latency.json", "latency.json.journal.jsonl"), restart=job.restart)
    keys = space.keys(size, classes)
    with open_cluster(job.ray, None, None) as cluster:
        pool = Pool(cluster, ProfileWorker, (target, job.threads, protocol, job.space), profile_facts(space), say)
        tables = _tables(run, pool.kinds())
        with bar(f"profile {len(keys)} operators on {len(cluster.devices)} machines") as shown:
            _measure(pool, tables, keys, (size, classes), shown)
        if job.networks:
            _calibrate(pool, tables, space, (size, classes, job.networks))
        pool.close()
    busy = sum(kind.table().busy for kind in tables.values())
    names = [find_calibration(space, kind.table(), size) for kind in tables.values()]
    calibration = next((found.name for found in names if found is not None), None)
    run.finish(keys=len(keys), busy=busy, calibration=calibration, networks=job.networks)
    for kind, found in zip(tables.values(), names, strict=True):
        say(f"wrote {kind.path}: {len(keys)} operators, measured on {kind.machines}")
        show(found)


@dataclass(frozen=True)
class _Kind:
    """The table of one kind of machine."""

    path: Path
    identity: Identity
    machines: str

    def table(self) -> LatencyTable:
        """Return what is measured so far."""
        return fold(self.path, self.identity, say)

    def add(self, shown: Bar, done: dict[str, int], found: tuple[bytes, list[str], str | None]) -> None:
        """Join what a worker measured to the table."""
        content, noticed, _ = found
        for text in noticed:
            say(f"{self.machines}: {text}")
        if content:
            part = _read(content)
            self.table().merge(part).save(self.path)
            done["operators"] += len(part)
            shown.update(min(1.0, done["operators"] / done["all"]), f"{done['operators']}/{done['all']}")


def _tables(run: Run, kinds: Mapping[str, Sequence[Device]]) -> dict[str, _Kind]:
    """Say where the table of each kind of machine is: where one of its identity is, else in latency.json, or by the kind's name."""
    known = {path: LatencyTable.load(path).identity for path in sorted(run.folder.glob("latency*.json"))}
    found: dict[str, _Kind] = {}
    for text, devices in sorted(kinds.items()):
        identity = decode(Identity, text)
        path = next((path for path, other in known.items() if other == identity), None)
        if path is None:
            alone = len(kinds) == 1 and not known
            path = run.file("latency.json" if alone else f"latency-{_name(identity, text)}.json")
        found[text] = _Kind(path, identity, ", ".join(sorted({device.name for device in devices})))
    return found


def _name(identity: Identity, text: str) -> str:
    """Name a kind of machine: by its GPU, else its CPU, and six digits that tell equal names apart."""
    gpus = identity.device.get("gpus") or []
    name = str(gpus[0]["name"] if gpus else identity.device.get("cpu", "machine"))
    return f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def _measure(
    pool: Pool, tables: Mapping[str, _Kind], keys: Sequence[str], asked: tuple[tuple[int, int], int], shown: Bar
) -> None:  # fmt: skip
    """Let the machines of each kind share the operators that its table lacks; every part is kept as soon as it comes.

    Raises:
        CheckFailed: operators could not be loaded; all others are in the tables.
    """
    every = in_order(workloads(keys))
    missing = {text: [w.key for w in every if w.key not in kind.table()] for text, kind in tables.items()}
    total = len(keys) * len(tables)
    done = {"operators": total - sum(map(len, missing.values())), "all": total}
    drift, parts = reference(every).key, list[tuple[str, int]]()
    for text, kind in tables.items():
        for start in range(0, len(missing[text]), BATCH):
            parts.append((text, start))
            part = missing[text][start : start + BATCH]
            pool.submit((text, start), "measure", part, asked, drift, kind=text, arrived=partial(kind.add, shown, done))
    failures = [failure for key in parts if (failure := pool.result(key)[2]) is not None]
    if failures:
        raise CheckFailed("\n".join(failures))


def _calibrate(pool: Pool, tables: Mapping[str, _Kind], space: SearchSpace, asked: tuple[tuple[int, int], int, int]) -> None:
    """Let one machine of each kind measure whole networks, where its table is not calibrated on as many."""
    size, _, networks = asked
    left = list[str]()
    for text, kind in tables.items():
        found = find_calibration(space, kind.table(), size)
        if found is None or found.n != networks:
            left.append(text)
            pool.submit(("calibrate", text), "calibrate", kind.path.read_bytes(), *asked, kind=text)
    with bar(f"measure {networks} networks") as shown:
        for number, text in enumerate(left, 1):
            found, table = pool.result(("calibrate", text)), tables[text].table()
            replace(table, calibrations={**table.calibrations, found.name: found}).save(tables[text].path)
            shown.update(number / len(left))


def _read(content: bytes) -> LatencyTable:
    """Read a table that was sent."""
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / "latency.json"
        write_bytes(path, content)
        return LatencyTable.load(path)

"""Write a device kit for a space's operators and calibration networks, and turn what comes back into RUN/latency.json."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import torch

from export.errors import InvalidInput, MissingKeys
from export.onnx.exporter import export_modules
from export.target import Target, format_size
from hyctas.arch.genotype import Genotype
from hyctas.arch.operators import from_key
from hyctas.artifacts.runs import Run
from hyctas.cli.advice import command_line
from hyctas.cli.show import bar, say
from hyctas.cli.values import image_size
from hyctas.commands.kit_folder import advise, kit_target, purpose, refuse, report_lost
from hyctas.commands.output_paths import check_writable
from hyctas.commands.profile_tensorrt import ALONE
from hyctas.commands.table_calibration import CALIBRATE, check_networks, num_classes, show
from hyctas.cost.workloads import calibration_name, calibration_networks, family, native_modules, units, workloads
from hyctas.plan import lower
from hyctas.spaces.search_space import SearchSpace
from hyctas.spaces.space_file import load_space, recorded_space
from latency import LatencyTable
from latency.calibration import Calibration
from latency.identity import Identity
from latency.kit.ingest import ALONE as APART
from latency.kit.ingest import Ingested, ingest
from latency.kit.write import write_kit
from latency.predictor import MIN_NETWORKS, fit
from latency.protocol import Protocol
from latency.table import Row

if TYPE_CHECKING:
    from hyctas.cli.profile import ProfileJob

BATCH = 8


def write_profile_kit(job: ProfileJob) -> None:
    """Write a kit for what RUN/latency.json lacks (everything, where there is none)."""
    assert job.kit is not None
    refuse(job, "shard", "merge", "check")
    if job.builds is not None or job.protocol != Protocol():
        raise InvalidInput("a device kit has a measuring protocol of its own; leave the settings of the TOML file out")
    check_networks(job)
    check_writable(job.kit / "kit.json")
    space, size, target = load_space(job.space), image_size(job.size), kit_target(job.target)
    classes = num_classes(job)
    every_key = space.keys(size, classes)
    costs = {key: estimate_ms(key) for key in every_key}
    genotypes = _networks(space, size, classes, job.networks, target, costs) if job.networks else []
    keys, alone = list(every_key), tuple[str, ...](ALONE)
    known = _partial(job.run, target)
    if known is not None:
        keys = known.missing(every_key)
        measured = _measured_networks(known)
        genotypes = [genotype for genotype in genotypes if genotype.id not in measured]
        if len(keys) < len(every_key):
            say(f"{job.run / 'latency.json'} holds {len(every_key) - len(keys)} of {len(every_key)} operators; "
                "this kit has the rest, each in a file of its own")  # fmt: skip
            alone = tuple(keys)
        if not keys and not genotypes:
            raise InvalidInput(f"{job.run / 'latency.json'} is complete: there is nothing to measure")
    about = {"purpose": "profile", "space": job.space, "space_hash": space.hash, "size": list(size), "classes": classes,
             "count": job.networks, "networks": {genotype.id: genotype.to_json() for genotype in genotypes}}  # fmt: skip
    then = command_line("profile", run=job.run, ingest=job.kit)
    title = f"write {len(keys)} operators, {len(genotypes)} networks"
    with network_models(genotypes, size, classes) as networks, bar(title) as shown:
        kit = write_kit(
            job.kit, workloads(keys), networks, target, about=about, cost_ms=costs, alone=alone, then=then,
            progress=lambda done, total: shown.update(done / total, f"{done}/{total}"),
        )  # fmt: skip
    advise(job.kit, kit, then)


def ingest_profile(job: ProfileJob) -> None:
    """Turn a kit's results into RUN/latency.json, or add them to what an earlier kit brought there.

    Raises:
        MissingKeys: the table was written, but lacks operators.
        InvalidInput: no kit or no results; or too few networks to calibrate, with the table written.
        TableMismatch: results of different devices, or the space has changed since.
    """
    assert job.ingest is not None
    refuse(job, "kit", "shard", "merge", "check")
    found = ingest(job.ingest)
    about = purpose(found.kit, "profile", job.ingest)
    size, classes = (about["size"][0], about["size"][1]), about["classes"]
    space = recorded_space(about["space"], about["space_hash"], job.ingest, job.space)
    config = {"space": about["space"], "space_hash": space.hash, "size": size, "classes": classes, "target": str(found.kit.target),
              "threads": 1, "networks": about["count"], "device_kit": True}  # fmt: skip
    run = Run(job.run, "profile", config, ("latency.json", "latency.json.journal.jsonl"), restart=job.restart)
    path = run.file("latency.json")
    table = found.table
    if path.exists():
        old = LatencyTable.load(path)
        table = replace(old, provenance=[e for e in old.provenance if e.get("kit") != found.kit.id]).merge(table)
    keys = space.keys(size, classes)
    missing = table.missing(keys)
    calibration, lacking = (None, "") if missing else _calibrated(space, table, size, classes, about["count"])
    table = replace(table, calibrations={} if calibration is None else {calibration.name: calibration})
    table.save(path)
    say(f"wrote {path}: {len(keys) - len(missing)} of {len(keys)} operators, TensorRT {table.identity.versions['tensorrt']} on "
        f"{table.identity.device['gpus'][0]['name']}")  # fmt: skip
    busy = table.busy
    _warn(found, busy)
    if missing:
        command = f"on the device: sh run.sh; then here: {command_line('profile', run=job.run, ingest=job.ingest)}"
        if found.lost and all(lost.remedy == APART for lost in found.lost):
            command = command_line(
                "profile", run=job.run, kit="NEW_DIR", space=about["space"], size=format_size(size), classes=classes,
                networks=about["count"], target=found.kit.target,
            )  # fmt: skip
        raise MissingKeys(missing, f"measure them: {command}")
    if calibration is None and about["count"]:
        raise InvalidInput(lacking)
    run.finish(keys=len(keys), busy=busy, calibration=calibration.name if calibration else None, kit=found.kit.id)
    if lacking:
        say(f"warning: {lacking}")
    show(calibration)
    say(f"next: {command_line('search', run=job.run)}, or with another run: --table {path}")


def _warn(found: Ingested, busy: int) -> None:
    """Say which timings are lost or disturbed."""
    report_lost(found)
    if busy:
        say(f"warning: {busy} operators were timed while the device's speed moved, or without a CUDA graph; lock its clocks "
            "(run.sh says how), move results/ away and measure again")  # fmt: skip
    if disturbed := [notes[0] for notes in found.notes.values() if notes]:
        say(f"warning: {len(disturbed)} calibration networks were disturbed: {disturbed[0]}")


def estimate_ms(key: str) -> float:
    """Guess an operator's time on an embedded board; only to put operators of similar cost into one file.

    1 TMAC/s, 50 GB/s at two bytes per element, and 10 us of launches.
    """
    operator, shapes = from_key(key)
    return 0.01 + operator.macs(shapes) / 1e9 + operator.bytes_moved(shapes) / 2 / 50e6


@contextmanager
def network_models(
    genotypes: Sequence[Genotype], size: tuple[int, int], classes: int
) -> Iterator[dict[str, Callable[[], onnx.ModelProto]]]:
    """Give fp32 models with native output and random weights by genotype id; exported in batches, on first use."""
    with tempfile.TemporaryDirectory(prefix="hyctas-kit-") as temporary:

        def make(at: int) -> onnx.ModelProto:
            path = Path(temporary) / f"{genotypes[at].id}.onnx"
            if not path.exists():
                batch = genotypes[at : at + BATCH]
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(at)  # the same kit has the same bytes
                    modules = native_modules(batch, size, classes)
                export_modules(modules, path.parent, [genotype.id for genotype in batch])
            return onnx.load(path)

        yield {genotype.id: (lambda at=at: make(at)) for at, genotype in enumerate(genotypes)}  # type: ignore[misc]


def _networks(
    space: SearchSpace, size: tuple[int, int], classes: int, count: int, target: Target, costs: dict[str, float]
) -> list[Genotype]:
    """Choose calibration networks as `hyctas-profile` does, by estimated times: the table is not there yet."""
    rows = {key: Row(family(key), ms, ms, ms, n=1, builds=1, busy=False) for key, ms in costs.items()}
    guess = LatencyTable(Identity(str(target), {}, {}, 1, {}), rows)
    return calibration_networks(space, guess, size, classes, count, CALIBRATE)


def _partial(run: Path, target: Target) -> LatencyTable | None:
    """Return the table that an earlier kit left in the run folder."""
    if not (run / "latency.json").exists():
        return None
    table = LatencyTable.load(run / "latency.json")
    return table if table.identity.target == str(target) and table.identity.protocol.get("tool") == "trtexec" else None


def _measured_networks(table: LatencyTable) -> dict[str, tuple[str, float]]:
    """Return genotype and milliseconds of every network that kits have measured for a table, by id."""
    found: dict[str, tuple[str, float]] = {}
    for entry in table.provenance:
        genotypes = entry.get("about", {}).get("networks", {})
        found |= {name: (genotypes[name], ms) for name, ms in entry.get("networks", {}).items() if name in genotypes}
    return found


def _calibrated(
    space: SearchSpace, table: LatencyTable, size: tuple[int, int], classes: int, count: int
) -> tuple[Calibration | None, str]:
    """Fit the calibration on the networks measured so far; and say what is lacking."""
    networks = _measured_networks(table)
    lacking = ""
    if len(networks) < count:
        lacking = f"{len(networks)} of {count} calibration networks were measured; repeat sh run.sh on the device, and --ingest"
    if len(networks) < MIN_NETWORKS:
        return None, f"{lacking}. A calibration needs at least {MIN_NETWORKS}; the table stands without one"
    plans = [units(lower(Genotype.from_json(text), size, classes)) for text, _ in networks.values()]
    times = [ms for _, ms in networks.values()]
    return fit(plans, times, table, space_hash=space.hash, name=calibration_name(space, size)), lacking

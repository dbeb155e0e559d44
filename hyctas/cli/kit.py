"""Write a device kit for a space's operators and calibration networks, and turn what comes back into RUN/latency.json."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyctas.cli.jobs import BenchJob, ProfileJob, check_writable, image_size

if TYPE_CHECKING:
    import onnx

    from export.target import Target
    from hyctas.arch.genotype import Genotype
    from hyctas.spaces.search_space import SearchSpace
    from latency import LatencyTable
    from latency.calibration import Calibration
    from latency.kit.format import Kit
    from latency.kit.ingest import Ingested

DEFAULT_TARGET = "tensorrt:fp16"
ALONE = ("selfattention",)
"""Families that TensorRT may compile into one layer with their neighbours: each operator gets a file of its own."""
BATCH = 8


def write_profile_kit(job: ProfileJob) -> None:
    """Write a kit for what RUN/latency.json lacks (everything, where there is none)."""
    from export.errors import InvalidInput
    from hyctas.cli.profile import check_networks, num_classes
    from hyctas.cli.show import bar, say
    from hyctas.cost.workloads import workloads
    from hyctas.spaces.space_file import load_space
    from latency.kit.write import write_kit

    assert job.kit is not None
    refuse(job, "shard", "merge", "check")
    if job.expert != "{}":
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
    then = shlex.join(["hyctas-profile", "--run", str(job.run), "--ingest", str(job.kit)])
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
    from export.errors import InvalidInput, MissingKeys
    from hyctas.artifacts.runs import Run
    from hyctas.cli.profile import show
    from hyctas.cli.show import say
    from hyctas.spaces.space_file import recorded_space
    from latency import LatencyTable
    from latency.kit.ingest import ALONE as APART
    from latency.kit.ingest import ingest

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
    busy = sum(row.busy for row in table.rows.values())
    say(f"wrote {path}: {len(keys) - len(missing)} of {len(keys)} operators, TensorRT {table.identity.versions['tensorrt']} on "
        f"{table.identity.device['gpus'][0]['name']}")  # fmt: skip
    report_lost(found, say)
    if busy:
        say(f"warning: {busy} operators were timed while the device's speed moved, or without a CUDA graph; lock its clocks "
            "(run.sh says how), move results/ away and measure again")  # fmt: skip
    drifted = sum(bool(notes) for notes in found.notes.values())
    if drifted:
        say(f"warning: {drifted} calibration networks were disturbed: {next(notes[0] for notes in found.notes.values() if notes)}")
    if missing:
        command = f"on the device: sh run.sh; then here: hyctas-profile --run {job.run} --ingest {job.ingest}"
        if found.lost and all(lost.remedy == APART for lost in found.lost):
            command = (f"hyctas-profile --run {job.run} --kit NEW_DIR --space {about['space']} --size {size[0]}x{size[1]} "
                       f"--classes {classes} --networks {about['count']} --target {found.kit.target}")  # fmt: skip
        raise MissingKeys(missing, command)
    if calibration is None and about["count"]:
        raise InvalidInput(lacking)
    run.finish(keys=len(keys), busy=busy, calibration=calibration.name if calibration else None, kit=found.kit.id)
    if lacking:
        say(f"warning: {lacking}")
    show(calibration)
    say(f"next: hyctas-search --run {job.run}, or with another run: --table {path}")


def kit_target(text: str | None) -> Target:
    """Return the target of a kit; the device is not here, so that nothing can be probed."""
    from export.target import Target
    from hyctas.cli.show import say

    if text is None:
        say(f"target: {DEFAULT_TARGET} (give --target for another)")
    return Target.parse(text or DEFAULT_TARGET)


def estimate_ms(key: str) -> float:
    """Guess an operator's time on an embedded board; only to put operators of similar cost into one file.

    1 TMAC/s, 50 GB/s at two bytes per element, and 10 us of launches.
    """
    from hyctas.arch.operators import from_key

    operator, shapes = from_key(key)
    return 0.01 + operator.macs(shapes) / 1e9 + operator.bytes_moved(shapes) / 2 / 50e6


@contextmanager
def network_models(
    genotypes: Sequence[Genotype], size: tuple[int, int], classes: int
) -> Iterator[dict[str, Callable[[], onnx.ModelProto]]]:
    """Give fp32 models with native output and random weights by genotype id; exported in batches, on first use."""
    from export.onnx.exporter import export_modules
    from hyctas.cost.workloads import native_modules

    with tempfile.TemporaryDirectory(prefix="hyctas-kit-") as temporary:

        def make(at: int) -> onnx.ModelProto:
            import onnx
            import torch

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
    from hyctas.cli.profile import CALIBRATE
    from hyctas.cost.workloads import calibration_networks, family
    from latency import LatencyTable
    from latency.identity import Identity
    from latency.table import Row

    rows = {key: Row(family(key), ms, ms, ms, n=1, builds=1, busy=False) for key, ms in costs.items()}
    guess = LatencyTable(Identity(str(target), {}, {}, 1, {}), rows)
    return calibration_networks(space, guess, size, classes, count, CALIBRATE)


def _partial(run: Path, target: Target) -> LatencyTable | None:
    """Return the table that an earlier kit left in the run folder."""
    from latency import LatencyTable

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
    from hyctas.arch.genotype import Genotype
    from hyctas.cost.workloads import calibration_name, units
    from hyctas.plan import lower
    from latency.predictor import MIN_NETWORKS, fit

    networks = _measured_networks(table)
    lacking = ""
    if len(networks) < count:
        lacking = f"{len(networks)} of {count} calibration networks were measured; repeat sh run.sh on the device, and --ingest"
    if len(networks) < MIN_NETWORKS:
        return None, f"{lacking}. A calibration needs at least {MIN_NETWORKS}; the table stands without one"
    plans = [units(lower(Genotype.from_json(text), size, classes)) for text, _ in networks.values()]
    times = [ms for _, ms in networks.values()]
    return fit(plans, times, table, space_hash=space.hash, name=calibration_name(space, size)), lacking


def purpose(kit: Kit, wanted: str, folder: Path) -> dict[str, Any]:
    """Return what a kit is for.

    Raises:
        InvalidInput: it is for another command.
    """
    from export.errors import InvalidInput

    other = kit.about.get("purpose")
    if other != wanted:
        raise InvalidInput(f"{folder} is a kit of hyctas-{other}, not of hyctas-{wanted}; take hyctas-{other} --ingest {folder}")
    return dict(kit.about)


def advise(folder: Path, kit: Kit, then: str) -> None:
    """Print what to do with a kit."""
    from hyctas.cli.show import say

    size = sum(path.stat().st_size for path in (folder / "onnx").iterdir()) / 2**20
    say(f"wrote {folder}: {len(kit.files)} ONNX files ({size:.0f} MiB) for {kit.target}, {len(kit.steps())} timings")
    say("next:")
    say(f"  1. copy {folder} to the device (it needs trtexec, and no Python)")
    say("  2. there: sh run.sh        (a minute or so per file; continues when interrupted)")
    say(f"  3. copy its results/ back into {folder}")
    say(f"  4. here: {then}")


def report_lost(found: Ingested, say: Callable[[str], None]) -> None:
    """Print every file without a usable result."""
    for lost in found.lost:
        say(f"  {lost.name}: {lost.reason}; {lost.remedy}")


def refuse(job: ProfileJob | BenchJob, *names: str) -> None:
    """Refuse flags that have no meaning beside --kit or --ingest."""
    from export.errors import InvalidInput

    for name in names:
        if getattr(job, name):
            raise InvalidInput(f"--{name} does not go together with --{'ingest' if job.ingest is not None else 'kit'}")

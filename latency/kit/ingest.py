"""Turn what a device kit brought back (DIR/results) into a latency table and the times of whole networks.

Nothing is dropped in silence: every file whose result is missing, broken or not attributable is listed with the reason and
with what to do. Results of different devices, TensorRT releases or power modes are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from export.errors import InvalidInput, TableMismatch
from export.trt.attribution import MAX_SHARED, Shares, attribute, inputs_outputs
from latency.identity import Identity
from latency.kit.format import CANARY, FLOOR, MAX_DRIFT, OPERATORS, Kit, KitFile, Step
from latency.kit.trtexec_json import Unusable, read_layers, read_profile, read_times
from latency.table import LatencyTable, Row

AGAIN = "run `sh run.sh` on the device again"
ALONE = "write a second kit for what is missing; it gives each operator a file of its own"
SAME = ("gpu", "cc", "board", "trt", "driver", "power", "typing")
"""Fields of a status that must be equal in all results."""


@dataclass(frozen=True)
class Lost:
    """A file without a usable result."""

    name: str
    reason: str
    remedy: str


@dataclass
class Ingested:
    """What a kit measured."""

    kit: Kit
    table: LatencyTable
    networks: dict[str, list[list[float]]]
    """Milliseconds of every query, per round, of each network that has all its rounds."""
    notes: dict[str, list[str]] = field(default_factory=dict)
    """Remarks, by network."""
    lost: list[Lost] = field(default_factory=list)

    @property
    def missing(self) -> list[str]:
        """The keys without a row."""
        return self.table.missing(self.kit.keys)


def ingest(folder: Path) -> Ingested:
    """Read DIR/kit.json and DIR/results.

    Raises:
        InvalidInput: no kit, no results, or results of another kit.
        CorruptFile: kit.json cannot be read.
        TableMismatch: the results come from different devices, releases or power modes.
    """
    kit = Kit.load(folder)
    results, steps = folder / "results", kit.steps()
    states = {step.name: _status(results / f"{step.name}.status") for step in steps}
    if not any(states.values()):
        raise InvalidInput(f"{results} holds no results; copy {folder} to the device and run `sh run.sh` there, then copy it back")
    identity = _identity(kit, folder, {name: state for name, state in states.items() if state.get("gpu")})
    times: dict[str, list[float]] = {}
    found = Ingested(kit, LatencyTable(identity), {})
    for step in steps:
        try:
            times[step.name] = _times(step, states[step.name], results)
        except Unusable as error:
            remedy = "its operator is not supported by this TensorRT" if states[step.name].get("status") == "unsupported" else AGAIN
            found.lost.append(Lost(step.name, str(error), remedy))
    moved = _drift(steps, times)
    plain = [name for name in times if states[name].get("graph") == "no"]
    facts: dict[str, Any] = {"kit": kit.id, "about": dict(kit.about), "shared": {}, "conversions": {}, "near_floor": []}
    facts |= {"no_graph": plain, "networks": {}}
    floor = next((float(np.median(times[step.name])) for step in steps if step.file.kind == FLOOR and step.name in times), None)
    for step in steps:
        if step.file.kind == OPERATORS and step.name in times:
            busy = step.block in moved or (found.table.identity.protocol["cuda_graph"] and step.name in plain)
            _rows(found, step, times[step.name], results, busy=busy, floor=floor, facts=facts)
    _networks(found, steps, states, times, facts, moved)
    facts |= {
        "floor_ms": floor, "drift": {str(block): round(by, 4) for block, by in moved.items()},
        "device": _device(results / "device.txt"), "lost": [asdict(lost) for lost in found.lost],
        "started": min((s["finished"] for s in states.values() if s.get("finished")), default=""),
    }  # fmt: skip
    found.table.provenance.append(facts)
    return found


def _status(path: Path) -> dict[str, str]:
    """Read a step's key=value lines; empty where the step was never finished."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition("=") for line in lines)}


def _times(step: Step, state: Mapping[str, str], results: Path) -> list[float]:
    if not state:
        raise Unusable("not measured")
    if state.get("status") != "ok":
        raise Unusable(f"{state.get('status', 'no status')}: {state.get('reason', '')}")
    if state.get("sha256") not in (step.file.sha256, "unchecked"):
        raise Unusable("the device measured another ONNX file than kit.json names")
    return read_times(results / f"{step.name}.times.json")


def _identity(kit: Kit, folder: Path, states: Mapping[str, Mapping[str, str]]) -> Identity:
    """Name device and versions, the same for all results."""
    first: dict[str, tuple[str, str]] = {}
    for name, state in states.items():
        if state.get("kit") != kit.id:
            raise InvalidInput(f"{folder}/results/{name}.status belongs to device kit {state.get('kit')}, this is kit {kit.id}")
        for what in SAME:
            value = state.get(what, "")
            known, source = first.setdefault(what, (value, name))
            if known != value:
                raise TableMismatch(
                    f"{folder}/results mixes conditions: {what} is {known!r} in {source}, {value!r} in {name}. Latencies of "
                    "different conditions do not mix: move results/ away on the device and run `sh run.sh` again"
                )
    fact = {what: value for what, (value, _) in first.items()}
    some = next(iter(states.values()), {})
    cores = int(some["cores"]) if some.get("cores", "").isdecimal() else 0
    gpu = {"name": fact.get("gpu", "unknown"), "driver": fact.get("driver") or "unknown", "memory": some.get("memory", "")}
    device = {"cpu": fact.get("board") or "the host of the GPU", "cores": cores, "usable_cores": cores, "gpus": [gpu],
              "compute_capability": fact.get("cc", ""), "power_mode": fact.get("power", "")}  # fmt: skip
    graph = any(state.get("graph") == "yes" for state in states.values())
    protocol = {"tool": "trtexec", "format": 1, "cuda_graph": graph, "transfers": False, "typing": fact.get("typing", ""),
                "tf32": kit.target.precision != "fp32", "builds": 1, **asdict(kit.timing)}  # fmt: skip
    return Identity(str(kit.target), device, {"tensorrt": fact.get("trt", "unknown")}, 1, protocol)


def _drift(steps: list[Step], times: Mapping[str, list[float]]) -> dict[int, float]:
    """Return the blocks between two canaries of which one moved by more than `MAX_DRIFT` of the median canary."""
    seen = {step.block: float(np.median(times[step.name])) for step in steps if step.file.kind == CANARY and step.name in times}
    if not seen:
        return {}
    usual = float(np.median(list(seen.values())))
    off = {block: ms / usual - 1 for block, ms in seen.items() if abs(ms / usual - 1) > MAX_DRIFT}
    return off | {block - 1: by for block, by in off.items() if block - 1 not in off and block > 1}


def _rows(
    found: Ingested, step: Step, times: list[float], results: Path, *, busy: bool, floor: float | None, facts: dict[str, Any]
) -> None:
    try:
        shares = _shares(step.file, step.name, results, facts)
    except Unusable as error:
        found.lost.append(Lost(step.name, str(error), AGAIN))
        return
    if shares.shared > MAX_SHARED:
        reason = f"{shares.shared:.0%} of the profile names no single operator; at most {MAX_SHARED:.0%} can be shared out"
        found.lost.append(Lost(step.name, reason, ALONE))
        return
    p10, median, p90 = (float(value) for value in np.percentile(times, (10, 50, 90)))
    if floor is not None and median < 3 * floor:
        facts["near_floor"].append(step.name)
    for operator in step.file.operators:
        share = shares.of[operator.prefix] / operator.copies
        if share <= 0:
            found.lost.append(Lost(step.name, f"no layer of the profile names operator {operator.key}", ALONE))
            continue
        found.table.rows[operator.key] = Row(operator.op, share * median, share * p10, share * p90, len(times), 1, busy)


def _shares(file: KitFile, name: str, results: Path, facts: dict[str, Any]) -> Shares:
    prefixes = [operator.prefix for operator in file.operators]
    info = read_layers(results / f"{name}.layers.json", inputs_outputs(prefixes))
    try:
        shares = attribute(read_profile(results / f"{name}.profile.json"), prefixes, info)
    except Unusable:
        if len(prefixes) > 1:
            raise
        return Shares({prefixes[0]: 1.0}, 0.0, 0.0)  # a file of one operator needs no profile
    facts["shared"] |= {name: round(shares.shared, 4)} if shares.shared else {}
    facts["conversions"] |= {name: round(shares.conversions, 4)} if shares.conversions else {}
    return shares


def _networks(
    found: Ingested, steps: list[Step], states: Mapping[str, Mapping[str, str]], times: Mapping[str, list[float]],
    facts: dict[str, Any], moved: Mapping[int, float],
) -> None:  # fmt: skip
    for network in found.kit.networks:
        mine = [step for step in steps if step.file.network == network]
        if not all(step.name in times for step in mine):
            continue
        found.networks[network] = [times[step.name] for step in mine]
        notes = found.notes.setdefault(network, [])
        if any(step.block in moved for step in mine):
            notes.append("timed while the device's speed drifted (the canary moved by more than 3 %)")
        counts = [states[step.name].get("tactics_skipped", "") for step in mine]
        skipped = max(int(count) if count.isdecimal() else 0 for count in counts)
        if skipped:
            notes.append(f"the builder skipped {skipped} kernels for lack of memory")
        if any(states[step.name].get("graph") == "no" for step in mine):
            notes.append("timed without a CUDA graph")
        facts["networks"][network] = float(np.median([ms for turn in found.networks[network] for ms in turn]))


def _device(path: Path) -> list[str]:
    """Return the device's facts as the script noted them, before and after."""
    try:
        return path.read_text(errors="replace").splitlines()[:400]
    except FileNotFoundError:
        return []

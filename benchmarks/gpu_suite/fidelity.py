"""Part 3: profile the space `tiny` on this GPU, and hold predictions against fresh networks, as `benchmarks.fidelity` does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.fidelity import CALIBRATE, FRESH
from benchmarks.gpu_suite.records import LeftOut, Records
from benchmarks.gpu_suite.session import Session
from export.errors import Unavailable
from export.runtime import Runtime
from export.target import Target, format_size
from hyctas.calibrate import calibrate, measure_networks
from hyctas.engine.table import open_target
from hyctas.genotype import Genotype
from hyctas.plan import lower
from hyctas.space import tiny
from hyctas.workloads import draw_networks, units, workloads
from latency import LatencyTable, Protocol, judge, predict, profile
from latency.calibration import Calibration

KEYS = 200
"""Most keys that are profiled."""
CLASSES = 19
PROTOCOL = Protocol(warmup_ms=20, budget_ms=120)
REHEARSAL_PROTOCOL = Protocol(warmup_ms=0, budget_ms=1, min_samples=2, max_samples=2, retake_load=1.0)
TARGETS = ("torch-cuda:fp16", "tensorrt:fp16")


class TimeOver(LeftOut):
    """The part's time ended within a measurement; what was profiled is in the table's journal."""


def run(session: Session) -> None:
    """Profile, calibrate and judge every target that this machine offers."""
    for text in ("torch-cpu:fp32", TARGETS[1]) if session.place.rehearsal else TARGETS:
        try:
            runtime = open_target(Target.parse(text), 1)
        except Unavailable as error:
            session.records.keep(f"{text} profile", {"state": "left_out", "reason": f"{text} is unavailable: {error.reason}"})
            continue
        measure_target(session, text, runtime)
        judge_target(session.records, text)


def measure_target(session: Session, text: str, runtime: Runtime) -> None:
    """Measure one target: table, calibration, networks."""
    records, rehearsal = session.records, session.place.rehearsal
    size, batch, batches = ((32, 48), 5, 1) if rehearsal else ((512, 1024), 8, 3)
    path = session.folder / f"fidelity.{text.replace(':', '-')}.latency.json"

    def tick(*progress: Any) -> None:
        if records.seconds_left < 0:
            raise TimeOver("the part's time is over; the same command goes on from here")

    def profiled() -> dict[str, Any]:
        keys = tiny().keys(size, CLASSES)
        if len(keys) > KEYS:
            raise LeftOut(f"the space has {len(keys)} keys at {format_size(size)}; at most {KEYS} are profiled here")
        protocol = REHEARSAL_PROTOCOL if rehearsal else PROTOCOL
        table = profile(workloads(keys), runtime, path, protocol, progress=tick)
        busy = sum(row.busy for row in table.rows.values())
        return {"keys": len(keys), "rows": len(table.rows), "busy": busy, "size": list(size)}

    if records.attempt(f"{text} profile", profiled, needs=5.0)["state"] != "ok":
        return
    table = LatencyTable.load(path)

    def calibrated() -> dict[str, Any]:
        count = 5 if rehearsal else 24
        return {"calibration": calibrate(tiny(), table, runtime, size, CLASSES, count, CALIBRATE, tick).to_json()}

    record = records.attempt(f"{text} calibration", calibrated, needs=10.0)
    if record["state"] != "ok":
        return
    calibration = Calibration.from_json(record["calibration"])
    known = {genotype.id for genotype in draw_networks(tiny(), 500, 0, CALIBRATE)}
    fresh = [genotype for genotype in draw_networks(tiny(), 400, session.seed, FRESH) if genotype.id not in known]
    for number in range(batches):
        chosen = fresh[number * batch : (number + 1) * batch]
        records.attempt(
            f"{text} networks {number}",
            lambda chosen=chosen: networks(chosen, runtime, size, table, calibration, tick), needs=8.0,  # type: ignore[misc]
        )  # fmt: skip


def networks(
    chosen: Sequence[Genotype], runtime: Runtime, size: tuple[int, int], table: LatencyTable, calibration: Calibration, tick: Any
) -> dict[str, Any]:
    """Measure some networks twice, and predict them."""
    first, second = measure_networks(chosen, runtime, size, CLASSES, repeats=2, progress=tick)
    plans = [units(lower(genotype, size, CLASSES)) for genotype in chosen]
    return {
        "ids": [genotype.id for genotype in chosen], "measured_ms": first.tolist(), "repeat_ms": second.tolist(),
        "predicted_ms": [predict(plan, table, calibration) for plan in plans], "sum_ms": [predict(plan, table) for plan in plans],
    }  # fmt: skip


def judge_target(records: Records, text: str) -> None:
    """Judge the predictions of all networks that were measured on a target."""
    found = [r for name, r in records.records.items() if name.startswith(f"{text} networks") and r["state"] == "ok"]
    if found:
        predicted, plain, first, second = (
            [value for record in found for value in record[name]] for name in ("predicted_ms", "sum_ms", "measured_ms", "repeat_ms")
        )
        judgement, sums = judge(predicted, first, second), judge(plain, first)
        values = {"judgement": judgement.to_json(), "plain_sum": sums.to_json(), "text": judgement.to_markdown()}
        records.keep(f"{text} judgement", {"state": "ok", **values})

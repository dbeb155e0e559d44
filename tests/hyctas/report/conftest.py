"""Build synthetic run folders: every file that a report reads, from genotypes of a space, without training or timing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.bench_report import BenchReport, BenchResult
from export.bundle.manifest import write_manifest
from export.files import sha256, write_json, write_text
from export.target import format_size
from hyctas.data.labels import Labels
from hyctas.data.painting import STREET
from hyctas.plan import lower
from hyctas.search.finalists import Finalist, Round
from hyctas.search.history import Evaluation, History
from hyctas.search.limits import Limits
from hyctas.search.outcome import add_finalists, write_outcome
from hyctas.space import Space, tiny
from latency.accuracy import Fidelity
from latency.calibration import Calibration
from latency.identity import Identity
from latency.table import LatencyTable, Row

TARGET = "onnxruntime-cpu:fp32"
SIZE = (64, 96)
MACHINE = {
    "cpu": "Example CPU 3000", "instruction_sets": ["avx2"], "cores": 4, "usable_cores": 2, "architecture": "x86_64",
    "os": "Debian 12", "kernel": "Linux 6.1", "python": "3.11.7", "gpus": [],
}  # fmt: skip
VERSIONS = {"python": "3.11.7", "torch": "2.13.0", "onnxruntime": "1.32.0"}


def build_run(
    folder: Path, *, space: Space | None = None, size: tuple[int, int] = SIZE, labels: Labels = STREET, number: int = 12,
    speed: float = 2e6, seed: int = 0, limit: float = 0.6,
) -> Path:  # fmt: skip
    """Write a whole run folder, in which a searched finalist won; `limit` is the share of networks that keep it."""
    space = space or tiny()
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    drawn = {genotype.id: genotype for genotype in (space.sample(rng) for _ in range(6 * number))}
    plans = {id: lower(genotype, size, labels.num_classes) for id, genotype in drawn.items()}
    ms = {id: 0.4 + plan.macs / speed / 1e3 for id, plan in plans.items()}
    limits = Limits(latency_ms=float(np.quantile(list(ms.values()), limit)))
    kept = [id for id in sorted(drawn) if ms[id] <= (limits.latency_ms or 0)][: 2 * number]
    history = History(folder / "history.jsonl", {"seed": 0}, print)
    for index, id in enumerate(kept):
        kind = "search" if index < len(kept) // 2 else "screen"
        miou = min(0.95, 0.34 + 0.12 * np.log1p(ms[id]) + 0.02 * rng.standard_normal())
        plan = plans[id]
        history.add(Evaluation(kind, index // 4, id, drawn[id], float(miou), ms[id], plan.parameters, plan.macs, 12.5))
    facts = {"target": TARGET, "size": list(size), "calibration": f"{space.name}@{format_size(size)}"}
    measured = {id: ms[id] * float(rng.uniform(0.92, 1.06)) for id in kept}
    outcome = write_outcome(folder / "pareto.json", history, limits, 1.3 * (limits.latency_ms or 1), measured, facts)
    chosen = next(evaluation for evaluation in history.of("search") if evaluation.id == outcome["chosen"])
    others = [evaluation for evaluation in history.of("search") if evaluation.id != chosen.id]
    finalists = [Finalist(chosen, None), Finalist(others[0], "edge:plain"), Finalist(others[1], None), Finalist(others[2], None)]
    add_finalists(folder / "pareto.json", finalists, [Round(
        100, {f.id: measured[f.id] for f in finalists}, (others[1].id,), {chosen.id: 0.6, others[0].id: 0.5},
        {others[2].id: "the loss is not finite"}, (chosen.id,),
    )])  # fmt: skip
    write_text(folder / "genotype.json", chosen.genotype.to_json() + "\n")
    write_json(folder / "labels.json", labels.to_json())
    _write_scores(folder, chosen.id, labels.num_classes, rng)
    _write_table(folder, space, size, [plans[member["id"]] for member in outcome["front"]], speed)
    _write_bundle(folder, size)
    _write_bench(folder, size, measured[chosen.id])
    _write_records(folder)
    return folder


def _write_scores(folder: Path, id: str, classes: int, rng: np.random.Generator) -> None:
    def split(absent: int) -> dict[str, Any]:
        iou: list[float | None] = [float(value) for value in rng.uniform(0.2, 0.97, classes)]
        iou[absent] = None
        found = [value for value in iou if value is not None]
        present = [value is not None for value in iou]
        return {"miou": sum(found) / len(found), "iou": iou, "pixel_accuracy": 0.9, "present": present, "policy": "as usual"}

    write_json(folder / "scores.json", {"format_version": 1, "genotype": id, "size": None, "choose": split(1), "val": split(2)})


def _write_table(folder: Path, space: Space, size: tuple[int, int], plans: list[Any], speed: float) -> None:
    identity = Identity(TARGET, MACHINE, {"onnxruntime": "1.32.0"}, 2, {"budget_ms": 250.0})
    nodes = [node for plan in plans for node in plan.nodes]
    times = {node.key: 0.01 + node.macs / speed / 1e3 for node in nodes}
    rows = {key: Row("conv", t, 0.98 * t, 1.05 * t, 40, 1, index == 0) for index, (key, t) in enumerate(times.items())}
    name = f"{space.name}@{format_size(size)}"
    held = Fidelity(0.031, 0.83, 0.975, 0.996, 0.95, 40)
    calibration = Calibration(name, 0.1, 0.97, 40, held, space.hash, 0.04)
    LatencyTable(identity, rows, {name: calibration}).save(folder / "latency.json")


def _write_bundle(folder: Path, size: tuple[int, int]) -> None:
    bundle = folder / "bundle"
    bundle.mkdir(exist_ok=True)
    (bundle / "model.onnx").write_bytes(b"not a real model")
    parity = {"output": "native", "inputs": 5, "seed": 0, "finite": True, "max_abs_error": 1e-5, "relative_error": 2e-6,
              "label_agreement": 0.99998, "tolerance": 1e-3, "min_agreement": 0.999, "passed": True}  # fmt: skip
    write_json(bundle / "parity.json", parity)
    write_manifest(bundle, target=TARGET, size=size, output="native", extra={})


def _write_bench(folder: Path, size: tuple[int, int], ms: float) -> None:
    first = BenchResult(
        name="chosen", file="model.onnx", sha256=sha256(folder / "bundle" / "model.onnx"), size=format_size(size),
        output="native float32", n=1234, rounds=30, median_ms=ms, p90_ms=1.04 * ms, p95_ms=1.06 * ms, p99_ms=1.3 * ms,
        min_ms=0.97 * ms, cv=0.031, fps=1000 / ms, ratio_median=None, ratio_p10=None, ratio_p90=None,
    )  # fmt: skip
    rival = replace(
        first, name="rival <net>", sha256="0" * 64, median_ms=1.7 * ms, p90_ms=1.8 * ms, p95_ms=1.9 * ms, p99_ms=2 * ms,
        fps=1000 / ms / 1.7, ratio_median=1.7, ratio_p10=1.65,
        ratio_p90=1.76, notes=("its variation is high",),
    )  # fmt: skip
    report = BenchReport(TARGET, 2, "model", 3.0, {"onnxruntime": "1.32.0"}, MACHINE, 0.02, (first, rival))
    write_json(folder / "fps.json", json.loads(json.dumps(asdict(report) | {"format_version": 1})))


def _write_records(folder: Path) -> None:
    lines = {
        "profile": ["hyctas-profile", "--run", "runs/demo", "--space", "tiny"],
        "train-supernet": ["hyctas-train", "supernet", "--run", "runs/demo", "--data", "my data"],
        "search": ["hyctas-search", "--run", "runs/demo", "--limit", "fps=30"],
        "train-network": ["hyctas-train", "network", "--run", "runs/demo", "--init", "runs/demo"],
    }
    for index, (command, line) in enumerate(lines.items()):
        versions = VERSIONS if index else VERSIONS | {"torch": "2.12.0"}
        write_json(
            folder / f"{command}.json",
            {"format_version": 1, "command": command, "state": "done", "started": f"2026-11-22T1{index}:00:00Z",
             "finished": f"2026-11-22T1{index}:42:10Z", "command_line": line, "config": {"classes": 10}, "versions": versions,
             "machine": MACHINE, "results": {}},
        )  # fmt: skip


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run folder, built once; copy it before changing it."""
    return build_run(tmp_path_factory.mktemp("report") / "demo")


@pytest.fixture
def run(whole_run: Path, tmp_path: Path) -> Path:
    """A complete run folder of the test's own."""
    import shutil

    return Path(shutil.copytree(whole_run, tmp_path / "demo"))


@pytest.fixture
def change() -> Callable[[Path, Callable[[Any], None]], None]:
    """Change a JSON file in place."""

    def apply(path: Path, edit: Callable[[Any], None]) -> None:
        value = json.loads(path.read_text())
        edit(value)
        path.write_text(json.dumps(value))

    return apply

"""Write a device kit that times whole models, and turn what comes back into the ordinary FPS report."""

from __future__ import annotations

import functools
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from export.bench_report import MAX_CV, BenchReport, BenchResult, summarise
from export.bundle.bundle import read_bundle
from export.errors import InvalidInput
from export.files import sha256
from export.onnx.foreign import graph_inputs, load_model
from export.onnx.graph_split import spec_of
from export.onnx.static_shape import static_onnx
from export.target import format_size
from export.tensor_layout import image_input
from hyctas.cli.advice import command_line
from hyctas.cli.show import bar, say
from hyctas.cli.values import image_size
from hyctas.commands.kit_folder import advise, kit_target, purpose, refuse, report_lost
from hyctas.commands.model_files import BUNDLE, RUN, kind_of, named_models, names
from hyctas.commands.output_paths import check_writable
from hyctas.commands.timing_report import check_out, publish
from latency.kit.format import Timing
from latency.kit.ingest import Ingested, ingest
from latency.kit.write import write_kit

if TYPE_CHECKING:
    from hyctas.cli.bench import BenchJob

ROUNDS = 5
WARMUP_MS = 500
MIN_QUERIES = 50
Models = tuple[dict[str, Callable[[], "onnx.ModelProto"]], dict[str, dict[str, Any]]]
"""What makes each model, and what the report says of each, by name."""


def write_bench_kit(job: BenchJob) -> None:
    """Write a kit for the models given."""
    assert job.kit is not None
    refuse(job, "data", "out")
    if job.mode != "model":
        raise InvalidInput(f"--mode {job.mode}: trtexec times the network alone; take --mode model")
    paths = named_models(*(job.models or (job.run,)))
    check_writable(job.kit / "kit.json")
    target = kit_target(job.target)
    timing = Timing(warmup_ms=WARMUP_MS, duration_s=job.seconds / ROUNDS, iterations=MIN_QUERIES)
    then = command_line("bench", run=job.run, ingest=job.kit)
    with _models(paths, image_size(job.size) if job.size else None) as (make, facts), bar(f"write {len(paths)} models") as shown:
        about = {"purpose": "bench", "seconds": job.seconds, "models": facts}
        kit = write_kit(
            job.kit, [], make, target, about=about, cost_ms={}, rounds=ROUNDS, timing=timing, then=then,
            progress=lambda done, total: shown.update(done / total),
        )  # fmt: skip
    say(f"models: {', '.join(facts)}")
    advise(job.kit, kit, then)


def ingest_bench(job: BenchJob) -> None:
    """Write the FPS report of what a kit measured.

    Raises:
        InvalidInput: no kit or no results; or models without usable results, with the report of the others written.
        TableMismatch: results of different devices.
    """
    assert job.ingest is not None
    refuse(job, "kit", "models", "data")
    out = job.out or (job.run / "fps.json" if job.run else Path("bench.json"))
    check_out(out)
    found = ingest(job.ingest)
    about = purpose(found.kit, "bench", job.ingest)
    report_lost(found)
    again = f"run `sh run.sh` on the device again, copy its results/ back, and repeat hyctas-bench --ingest {job.ingest}"
    if not found.networks:
        raise InvalidInput(f"no model of {job.ingest} has usable results; {again}")
    report = make_report(found, about)
    publish(report, out, job.run)
    lost = [name for name in found.kit.networks if name not in found.networks]
    if lost:
        raise InvalidInput(f"the report lacks {', '.join(lost)}; {again}")


def make_report(found: Ingested, about: dict[str, Any]) -> BenchReport:
    """Reduce the times of a kit's models to a report."""
    names = list(found.networks)
    results = tuple(_result(found, name, names[0], about["models"][name]) for name in names)
    identity, provenance = found.table.identity, found.table.provenance[-1]
    warnings = [f"{result.name}: the coefficient of variation is {result.cv:.1%}; above {MAX_CV:.0%} is noisy"
                for result in results if result.cv > MAX_CV]  # fmt: skip
    warnings += [f"{lost.name}: {lost.reason}" for lost in found.lost]
    system = next((line.partition("=")[2] for line in provenance["device"] if line.startswith("system=")), "unknown system")
    mode = f"; power mode {identity.device['power_mode']}" if identity.device["power_mode"] else ""
    machine = {**identity.device, "os": f"{system}{mode}", "python": "not used (trtexec)"}
    return BenchReport(
        target=identity.target, threads=1, mode="model", seconds=about["seconds"], versions=dict(identity.versions),
        machine=machine, others_share=None, models=results, warnings=tuple(warnings),
    )  # fmt: skip


def _result(found: Ingested, name: str, first: str, facts: dict[str, Any]) -> BenchResult:
    rounds = found.networks[name]
    medians = [statistics.median(turn) for turn in rounds]
    reference = None if name == first else [statistics.median(turn) for turn in found.networks[first]]
    numbers = summarise([ms for turn in rounds for ms in turn], medians, reference)
    notes = ["GPU time without transfers, measured by trtexec", *facts["notes"], *found.notes.get(name, [])]
    return BenchResult(name=name, file=facts["file"], sha256=facts["sha256"], size=facts["size"], output=facts["output"],
                       notes=tuple(notes), **numbers)  # fmt: skip


@contextmanager
def _models(paths: Sequence[Path], size: tuple[int, int] | None) -> Iterator[Models]:
    """Bring every model into the form of a static fp32 ONNX file in a folder that goes away."""
    with tempfile.TemporaryDirectory(prefix="hyctas-kit-") as temporary:
        make: dict[str, Callable[[], onnx.ModelProto]] = {}
        facts: dict[str, dict[str, Any]] = {}
        for number, (path, name) in enumerate(zip(paths, names(paths), strict=True)):
            folder = Path(temporary) / str(number)
            folder.mkdir()
            file, facts[name] = _model(path, kind_of(path), size, folder)
            make[name] = functools.partial(load_model, file)
        yield make, facts


def _model(path: Path, kind: str, size: tuple[int, int] | None, folder: Path) -> tuple[Path, dict[str, Any]]:
    if kind == ".pt2":
        raise InvalidInput(f"{path}: trtexec does not read .pt2 files; give the .onnx file, the bundle or the run folder")
    source = _exported(path, size, folder) if kind == RUN else read_bundle(path).model if kind == BUNDLE else path
    file, notes = static_onnx(source, size, folder)
    model = load_model(file)
    if any(tensor.data_type == tensor.FLOAT16 for tensor in model.graph.initializer):
        notes.append("the file itself holds half-precision weights; they stay so")
    image = image_input([spec_of(info) for info in graph_inputs(model)])
    output = spec_of(model.graph.output[0])
    facts = {"file": source.name, "sha256": sha256(source), "size": format_size(image.size) if image else None,
             "output": f"{output.name}: {output.dtype} {output.shape}", "notes": notes}  # fmt: skip
    return file, facts


def _exported(run: Path, size: tuple[int, int] | None, folder: Path) -> Path:
    from export.onnx.exporter import export_onnx  # torch, which ONNX files and bundles do without
    from hyctas.artifacts.bundling import load_trained

    trained = load_trained(run)
    wanted = size or trained.size
    if wanted is None:
        raise InvalidInput(f"{run} does not say for which image size; give --size HEIGHTxWIDTH")
    return export_onnx(trained.network, wanted, folder / "model.onnx").path

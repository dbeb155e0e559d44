"""Export engines: a file of its own, one inside a bundle, and rebuilding one."""

from __future__ import annotations

import shlex
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from export.bundle.bundle import INT8_NAME
from export.bundle.bundle_engine import bundle_of, engine_listed, engine_replaced
from export.bundle.manifest import read_manifest
from export.errors import InvalidInput, Unavailable
from export.files import real_path
from export.runtimes import open_runtime
from export.target import Target, format_size
from export.trt.engine_file import check_free, needs_rebuild, required_manifest, save_engine
from export.trt.from_onnx import engine_from_onnx, open_host, options_of, rebuild_engine
from export.trt.options import BuildOptions, target_precision
from export.trt.rtx import RUNTIME, capabilities, check_buildable, import_rtx
from hyctas.artifacts.bundling import Trained, load_trained, write_file
from hyctas.cli.advice import command_line
from hyctas.cli.show import bar, say
from hyctas.cli.values import image_size
from hyctas.commands.export_int8 import writer
from hyctas.commands.sample_images import EXAMPLES, street_scenes
from hyctas.engine.context import named_context, open_context
from hyctas.engine.engine_export import EngineReport, write_engine
from hyctas.engine.settings import EngineSettings, built_precision

if TYPE_CHECKING:
    from hyctas.artifacts.int8_files import Int8Images
    from hyctas.cli.export import ExportJob

KEPT = ("file", "cuda_backend", "threads", "rebuild")
"""Flags that go with --rebuild; the manifest says everything else."""


def check_engine(job: ExportJob, path: Path, target: Target) -> None:
    """Refuse, before any work, an engine that cannot be built here or that would replace a file of the user's.

    Raises:
        Unavailable: TensorRT cannot be used here; says what builds an engine elsewhere.
        InvalidInput: a file stands in the way, or a setting is not allowed.
    """
    settings = job.engine()
    options = settings.options(built_precision(target.precision, settings), capabilities=capabilities_of(job))
    if target.runtime == RUNTIME:
        import_rtx()
        check_buildable(options, attention=False)
        check_free(path)
        return
    try:
        open_runtime(target, job.threads, backend=settings.cuda_backend)
    except Unavailable as error:
        onnx, engine = (shlex.quote(name) for name in (path.with_suffix(".onnx").name, path.name))
        raise Unavailable(
            f"{path} ({target})", f"{error.reason}; nothing else is written in its place",
            f"{error.install}\nOn the device itself: hyctas-export {onnx}, copy that and the folder export, and there run "
            f"`python3 -m export.trt.from_onnx {onnx} --precision {target.precision}`, or without Python "
            f"`trtexec --onnx={onnx} --saveEngine={engine}` (of TensorRT's system packages; it builds fp32), "
            f"or take a kit that builds and times {target} there: hyctas-bench {onnx} --target {target} --kit FOLDER",
        ) from None  # fmt: skip
    check_free(path)


def capabilities_of(job: ExportJob) -> tuple[int, ...]:
    """Return the compute capabilities of --gpu; none where it is not given.

    Raises:
        InvalidInput: one that TensorRT-RTX does not build for.
    """
    return capabilities(job.gpu) if job.gpu is not None else ()


def check_bundle(job: ExportJob, folder: Path) -> str:
    """Return a bundle's output; refuse an engine for it that is not of its own network, size and output.

    Raises:
        InvalidInput: something else is asked for.
        CorruptFile: the bundle's manifest is damaged.
    """
    manifest = read_manifest(folder)
    if any(real_path(source) != real_path(folder) for source in job.network):
        raise InvalidInput(f"{job.file} is part of the bundle {folder}, and is built from it; leave --network out, "
                           "or write the engine elsewhere")  # fmt: skip
    asked = image_size(job.size) if job.size else manifest.size
    if asked != manifest.size or job.output not in ("native", manifest.output):
        made = f"{format_size(manifest.size)}, output {manifest.output}"
        raise InvalidInput(f"{job.file} is part of a bundle made for {made}; leave --size and --output out, or write it elsewhere")
    return manifest.output


def write_engine_file(
    job: ExportJob, trained: Trained, path: Path, size: tuple[int, int], output: str, target: Target, source: Path,
    images: Int8Images | None = None,
) -> None:  # fmt: skip
    """Build an engine and write it with its ONNX file; inside a bundle, beside the one that is there. int8 needs images."""
    settings, home = job.engine(), bundle_of(path)
    if home is None:
        again = command_line(
            "export", path.name, network=source, target=target, output=output, size=format_size(size), checkpoint=job.checkpoint,
            classes=job.classes, random_weights=job.random_weights, gpu=job.gpu, data=job.data,
        )  # fmt: skip
    else:
        again = command_line("export", path, target=target, gpu=job.gpu)
    if target.precision == "int8":
        onnx = home / INT8_NAME if home is not None else path.with_suffix(".onnx")
        if home is None:
            assert images is not None, "they are opened before"
            write_file(trained, onnx, size, output, str(target), street_scenes(size, EXAMPLES), {"threads": job.threads},
                       writer(trained, target, images, job))  # fmt: skip
        _write_quantised(job, path, onnx, again)
        return
    context = named_context(capabilities_of(job)) if target.runtime == RUNTIME else open_context(settings)
    with bar(f"export {path.name}") as shown:
        report = write_engine(
            trained, path, size, output, target.precision, again, settings, context, street_scenes(size, EXAMPLES),
            {"threads": job.threads}, say, shown.count, home and home / "model.onnx",
        )  # fmt: skip
    beside = f"{path.name}.json" + (f"; and {report.onnx.name}" if home is None else "")
    say(f"wrote {path}: {len(report.build.plan) / 1e6:.2f} MB, {report.build.options.precision}, "
        f"built in {report.build.seconds:.0f} s; {beside}")  # fmt: skip
    _show_report(report)


def _write_quantised(job: ExportJob, path: Path, onnx: Path, again: str) -> None:
    """Build an engine from a quantised ONNX file.

    Raises:
        InvalidInput: a bundle without such a file, or settings that do not go with int8.
    """
    if not onnx.is_file():
        raise InvalidInput(f"{path} would be built from {onnx.name}, which {onnx.parent} has not; export the bundle again with "
                           f"--target tensorrt:int8 (or tensorrt-rtx:int8) and --data")  # fmt: skip
    settings, gpus = job.engine(), capabilities_of(job)
    options = settings.options(built_precision("int8", settings), capabilities=gpus)
    host = open_host(settings.cuda_backend, settings.cache(), gpus)
    with bar(f"export {path.name}") as shown:
        plan, manifest = engine_from_onnx(onnx, options, host, again, say, shown.count)
        save_engine(path, plan, manifest)
    say(f"wrote {path}: {len(plan) / 1e6:.2f} MB, int8; {path.name}.json; built from {onnx.name}")


def rebuild(job: ExportJob, path: Path) -> None:
    """Rebuild an engine as its manifest says, if it does not fit this machine: from its bundle, or from the ONNX file beside it.

    Raises:
        InvalidInput: other flags, or no engine's name.
        EngineRefused: it has no manifest.
        CorruptFile: the manifest, the bundle or the ONNX file is damaged.
    """
    _check_alone(job, path)
    options = options_of(path, required_manifest(path))
    settings, home = job.engine(), bundle_of(path)
    host = open_host(settings.cuda_backend, settings.cache(), options.capabilities)
    reason = needs_rebuild(path, host.machine)
    if reason is None and home is not None and not engine_listed(home):  # a kill while it was written
        with engine_replaced(home):
            say(f"{path} fits this machine; its bundle lists it again")
        return
    if reason is None:
        say(f"{path} fits this machine; nothing to do")
        return
    say(f"{path.name}: {reason}")
    if home is not None:
        _rebuild_from_bundle(job, path, home, options)
        return
    with bar(f"rebuild {path.name}") as shown:
        rebuild_engine(path, host, say, shown.count)
    say(f"wrote {path} and {path.name}.json")


def _check_alone(job: ExportJob, path: Path) -> None:
    if path.suffix.lower() != ".engine":
        raise InvalidInput(f"--rebuild is for engines; {path} is none")
    plain = type(job)(file=job.file)
    names = (field.name for field in fields(job) if field.name not in KEPT)
    other = [name for name in names if getattr(job, name) != getattr(plain, name)]
    if other:
        flag = "config" if other[0] in ("build", "int8") else other[0].replace("_", "-")
        raise InvalidInput(f"--rebuild builds what the manifest of {path.name} says; leave out --{flag}")


def _rebuild_from_bundle(job: ExportJob, path: Path, home: Path, options: BuildOptions) -> None:
    trained, about, mixed = load_trained(home), read_manifest(home), options.precision == "mixed"
    build = EngineSettings(preset=options.preset, workspace_mib=options.workspace_mib, tf32=options.tf32, mixed=mixed)
    gpu = ",".join(f"sm_{number}" for number in options.capabilities) or None
    target = Target("tensorrt-rtx" if gpu else "tensorrt", target_precision(options.precision))
    write_engine_file(replace(job, gpu=gpu, build=build), trained, path, about.size, about.output, target, home)


def _show_report(report: EngineReport) -> None:
    """Say how each attention is computed, and, where the engine was run, how right and how fast it is."""
    for choice in report.attention.choices:
        shown_times = ", ".join(f"{name} {ms:.3f} ms" for name, ms in choice.times_ms.items())
        say(f"attention of {choice.case}: {choice.implementation}, {choice.reason}" + (f" ({shown_times})" * bool(shown_times)))
        for name, why in choice.refused.items():
            say(f"  no {name}: {why}")
    if report.fused.verdict != "unknown":
        say(report.fused.summary())
    if report.parity is None or report.latency is None:
        say("parity not proven: not run on a GPU")
    else:
        say(report.parity.summary())
        times = report.latency
        say(f"latency: median {times.median_ms:.3f} ms, p99 {times.p99_ms:.3f} ms over {times.n} runs, without transfers")
    for note in report.notes:
        say(f"note: {note}")

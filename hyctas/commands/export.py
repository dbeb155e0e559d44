"""Write a trained network as an ONNX file, a torch.export file, a TensorRT engine or a bundle, with parity proof."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from export.bundle.bundle import INT8_NAME
from export.bundle.bundle_engine import ENGINE_NAME, bundle_of
from export.bundle.bundle_ladder import check_order, list_members, member_folder, miou_of
from export.errors import InvalidInput
from export.runtimes import open_runtime
from export.target import TENSORRT, Target, format_size
from hyctas.artifacts.bundling import PROOF, Trained, bundle_network, check_free, load_trained, proof_target, prove, write_file
from hyctas.artifacts.runs import newest_run
from hyctas.cli.advice import command_line
from hyctas.cli.show import bar, say
from hyctas.cli.values import image_size
from hyctas.commands.chosen_target import best_target
from hyctas.commands.export_engine import check_bundle, check_engine, rebuild, write_engine_file
from hyctas.commands.export_int8 import adder, open_images, sizes_note, writer
from hyctas.commands.output_paths import check_writable
from hyctas.commands.sample_images import EXAMPLES, street_scenes
from hyctas.plan import lower

if TYPE_CHECKING:
    from hyctas.artifacts.int8_files import Int8Images
    from hyctas.cli.export import ExportJob

BUNDLE, ENGINE = "bundle", ".engine"
RUNS_ON = {".onnx": ("onnxruntime-",), ".pt2": ("torch-", "aotinductor-"), ENGINE: TENSORRT, BUNDLE: ("onnxruntime-", "torch-")}
"""What runs each kind of output."""


def kind_of(file: str) -> str:
    """Return what is asked for: `.onnx`, `.pt2`, `.engine` or `bundle`.

    Raises:
        InvalidInput: a suffix that means nothing here.
    """
    path = Path(file)
    if file.endswith("/") or path.is_dir() or not path.suffix:
        return BUNDLE
    if path.suffix.lower() not in RUNS_ON:
        raise InvalidInput(f"{file}: suffix {path.suffix!r} is unknown; write .onnx, .pt2, .engine, or a folder ending in /")
    return path.suffix.lower()


def export_network(job: ExportJob) -> None:
    """Write OUTPUT."""
    kind, path = kind_of(job.file), Path(job.file)
    check_writable(path)
    if job.rebuild:
        rebuild(job, path)
        return
    size = image_size(job.size) if job.size else None
    target = choose_target(job.target, kind, path, job.gpu)
    home = bundle_of(path) if kind == ENGINE else None
    engine = path if kind == ENGINE else path / ENGINE_NAME if kind == BUNDLE and target.runtime in TENSORRT else None
    if job.gpu is not None and target.runtime != "tensorrt-rtx":
        raise InvalidInput(f"--gpu is for tensorrt-rtx, which builds for GPUs elsewhere; {target} is for what is here")
    if engine is not None:
        check_engine(job, engine, target)
    else:
        open_runtime(target, job.threads)
    if kind != BUNDLE and home is None:
        check_free(path.with_suffix(".onnx") if kind == ENGINE else path)
    output = job.output if home is None else check_bundle(job, home)
    sources = job.network or (home or newest_run(),)
    if len(sources) > 1 and kind != BUNDLE:
        raise InvalidInput(f"{path} holds one network; several make a ladder, which is a bundle: write a folder, such as ladder/")
    networks = [
        load_trained(source, job.classes, random_weights=job.random_weights, checkpoint=job.checkpoint) for source in sources
    ]
    size = size or networks[0].size
    if size is None:
        raise InvalidInput(f"{sources[0]} does not say for which image size; give --size HEIGHTxWIDTH")
    chosen = "" if job.network or home else " (the newest run)"
    for source, trained in zip(sources, networks, strict=True):
        say(f"network: {source}{chosen}, genotype {trained.genotype.id}, {trained.labels.num_classes} classes, "
            f"{trained.facts['weights']} weights")  # fmt: skip
    images = [_images(job, trained, source, target, size, home) for source, trained in zip(sources, networks, strict=True)]
    if kind == BUNDLE:
        write_bundles(job, list(map(str, sources)), networks, path, size, target, images)
    elif kind != ENGINE:
        _file(job, networks[0], path, size, target, images[0])
    if engine is not None and kind != BUNDLE:
        write_engine_file(job, networks[0], engine, size, output, target, sources[0], images[0])
    there = "" if target.runtime != "tensorrt-rtx" else ", on a machine with such a GPU: it proves parity first"
    say(f"next: {command_line('bench', path, target=target, threads=job.threads, trust=kind == '.pt2')}{there}")


def choose_target(text: str | None, kind: str, path: Path, gpu: str | None = None) -> Target:
    """Return the target asked for, or the best available one that runs such a file.

    Raises:
        InvalidInput: the target asked for does not run such a file.
    """
    if text is not None:
        target = Target.parse(text)
        if kind == ENGINE and target.runtime not in TENSORRT:
            raise InvalidInput(f"{target} does not run engines; take tensorrt:fp16, or write {path.with_suffix('.onnx')}")
        other = {".onnx": ".pt2", ".pt2": ".onnx"}.get(kind)
        if other and target.runtime.startswith(RUNS_ON[other]):
            raise InvalidInput(f"{target} does not run {kind} files; write {path.with_suffix(other)}, or a bundle")
        return target
    return Target("tensorrt-rtx" if gpu else "tensorrt", "fp16") if kind == ENGINE else best_target(RUNS_ON[kind])


def _images(
    job: ExportJob, trained: Trained, source: Path, target: Target, size: tuple[int, int], home: Path | None
) -> Int8Images | None:
    """Open the images that int8 needs; None for other precisions, and for the engine of a bundle, which is quantised already.

    Raises:
        InvalidInput: images are given and not needed, or needed and not there.
    """
    if target.precision != "int8" or home is not None:
        if job.data is not None:
            what = f"{target} needs none" if home is None else f"the engine is built from {home / INT8_NAME}"
            raise InvalidInput(f"--data is for int8, which is calibrated with images; {what}: leave it out")
        return None
    images = open_images(job, trained, source)
    if note := sizes_note(images, size):
        say(f"note: {note}")
    return images


def write_bundles(
    job: ExportJob, names: Sequence[str], networks: Sequence[Trained], path: Path, size: tuple[int, int], target: Target,
    images: Sequence[Int8Images | None],
) -> None:
    """Write a network's bundle; further networks are its members, which make it a ladder."""
    check_order(names, [lower(trained.genotype, size, trained.labels.num_classes).macs for trained in networks],
                [miou_of(dict(trained.facts)) for trained in networks])  # fmt: skip
    for name, trained in zip(names, networks, strict=True):
        if trained.labels != networks[0].labels:
            raise InvalidInput(f"{name} has other labels than {names[0]}: the networks of a ladder are for the same classes")
    for number, (trained, its_images) in enumerate(zip(networks, images, strict=True), 1):
        folder = path if number == 1 else member_folder(path, number)
        _bundle(job, trained, folder, size, target, its_images)
        if target.runtime in TENSORRT:
            write_engine_file(job, trained, folder / ENGINE_NAME, size, job.output, target, folder, its_images)
    if len(networks) > 1:
        list_members(path, len(networks))
        say(f"{path}/ is a ladder of {len(networks)} networks; whatever runs frames in time takes the best one that is fast enough")


def _bundle(
    job: ExportJob, trained: Trained, folder: Path, size: tuple[int, int], target: Target, images: Int8Images | None
) -> None:
    had_engine = (folder / ENGINE_NAME).exists()
    examples = street_scenes(size, EXAMPLES)
    with bar("export bundle"):
        report = bundle_network(
            trained, folder, size, job.output, str(target), examples, {"threads": job.threads},
            None if images is None else adder(trained, target, images, job),
        )  # fmt: skip
    onnx = report.onnx
    shape = "x".join(map(str, onnx.output.shape))
    say(f"wrote {folder}/: {megabytes(report.size_bytes)}; model.onnx {megabytes(onnx.size_bytes)}, opset {onnx.opset}, "
        f"image {format_size(size)}, {job.output} {shape}")  # fmt: skip
    say(report.parity.summary())
    if target.runtime not in TENSORRT and images is None:  # its engine, which follows, is compared by itself
        _prove_on_target(trained, folder / "model.onnx", size, job.output, target, examples)
    if had_engine and target.runtime not in TENSORRT and not (folder / ENGINE_NAME).exists():
        again = command_line("export", folder / ENGINE_NAME)
        say(f"note: the engine was of the bundle that was replaced, and is gone with it; a new one: {again}")
    say(f"try it: python {shlex.quote(str(folder / 'run.py'))} IMAGE_OR_FOLDER")


def _file(
    job: ExportJob, trained: Trained, path: Path, size: tuple[int, int], target: Target, images: Int8Images | None
) -> None:
    examples = street_scenes(size, EXAMPLES)
    with bar(f"export {path.name}"):
        report = write_file(
            trained, path, size, job.output, str(target), examples, {"threads": job.threads},
            None if images is None else writer(trained, target, images, job),
        )  # fmt: skip
    say(f"wrote {path}: {megabytes(report.size_bytes)}, image {format_size(size)}, {job.output}; and {report.manifest.name}")
    say(report.parity.summary() + " (before quantising)" * (images is not None))
    if images is None:
        _prove_on_target(trained, path, size, job.output, target, examples)


def _prove_on_target(
    trained: Trained, path: Path, size: tuple[int, int], output: str, target: Target, examples: Sequence[np.ndarray]
) -> None:
    """Check parity once more where the file will run, if that is not the CPU target that it was proven on."""
    kind = path.suffix.lower()
    if target == proof_target(path, target):
        return
    if target.precision != "fp32" or not target.runtime.startswith(RUNS_ON[kind]):
        say(f"note: the file is fp32 and was proven on {PROOF[kind]}; {target} was not compared")
        return
    parity = prove(trained, path, target, size, output, examples)
    parity.raise_if_failed()
    say(f"on {target}: {parity.summary()}")


def megabytes(count: int) -> str:
    """Write a file size for people."""
    return f"{count / 1e6:.2f} MB"

"""Find the images that int8 is made with, and write int8 files with them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.bundle.bundle import INT8_LOSS, INT8_NAME
from export.bundle.imaging import photographs
from export.errors import CorruptFile, Give, InvalidInput
from export.files import write_json
from export.target import Target, format_size
from hyctas.artifacts.bundling import Trained
from hyctas.artifacts.int8_files import Int8Images, Part, quantise_file
from hyctas.artifacts.runs import Record
from hyctas.cli.show import say
from hyctas.commands.datasets import SPLIT_SEED
from hyctas.data import Sample, Source, honest_split, open_source
from hyctas.data.images import read_image

if TYPE_CHECKING:
    from hyctas.cli.export import ExportJob


def open_images(job: ExportJob, trained: Trained, source: Path) -> Int8Images:
    """Open the images of --data, or those that the run was trained on.

    Raises:
        InvalidInput: none are named, there are none, or they are labelled with other classes than the network's.
    """
    spec = job.data or recorded_data(source)
    if spec is None:
        raise InvalidInput(f"int8 needs images to calibrate with, and {source} names none", Give("data", "DATA"))
    files = photographs(Path(spec).expanduser())
    found = _of_folder(spec, files) if files else images_of(open_source(spec), trained)
    say(f"images for int8: {found.name}, {found.calibration.count} to calibrate with, {found.judged.count} to judge by")
    return found


def recorded_data(source: Path) -> str | None:
    """Return the --data that a run's network was trained with; None where no run says so."""
    try:
        words = Record.read(source, "train-network").command_line
    except (FileNotFoundError, NotADirectoryError, CorruptFile):
        return None
    given = [word.partition("=")[2] for word in words if word.startswith("--data=")]
    given += [value for word, value in itertools.pairwise(words) if word == "--data"]
    return given[-1] if given else None


def writer(trained: Trained, target: Target, images: Int8Images, job: ExportJob) -> Callable[[Path], dict[str, Any]]:
    """Return what replaces an fp32 ONNX file by its int8 model, prints its loss, and returns what its manifest notes of that."""

    def change(path: Path) -> dict[str, Any]:
        loss = quantise_file(trained, path, target, images, job.int8, say)
        say(loss.summary())
        if loss.float_layers:
            say(f"in float: {', '.join(loss.float_layers)}")
        return {"int8": loss.to_json()}

    return change


def adder(trained: Trained, target: Target, images: Int8Images, job: ExportJob) -> Callable[[Path], None]:
    """Return what writes the int8 model of a bundle's ONNX file, and what it cost, into the bundle's folder."""

    def add(folder: Path) -> None:
        (folder / INT8_NAME).write_bytes((folder / "model.onnx").read_bytes())
        noted = writer(trained, target, images, job)(folder / INT8_NAME)
        write_json(folder / INT8_LOSS, noted["int8"])

    return add


def images_of(source: Source, trained: Trained) -> Int8Images:
    """Return a data set's images for int8: what weights are trained on calibrates, what choices are made by judges.

    Raises:
        InvalidInput: it has other classes than the network, or no train.
    """
    wanted, found = trained.labels, source.labels
    if found.num_classes != wanted.num_classes:
        raise InvalidInput(
            f"data {source.name} has {found.num_classes} classes, the network {wanted.num_classes}; give the data set that it was "
            "trained on, or a folder of images without labels", Give("data", "DATA"),
        )  # fmt: skip
    train = source.samples("train")
    if not train:
        raise InvalidInput(f"data {source.name}: int8 needs images to calibrate with, and its train is empty")
    try:
        split = honest_split(train, seed=SPLIT_SEED)
        calibration, judged = split.weights, split.choosing
    except InvalidInput:  # too few to leave something on both sides
        calibration = judged = train
    val = source.samples("val") if "val" in source.splits else ()
    return Int8Images(
        source.name, _part(source, "train", calibration), _part(source, "train", judged), _part(source, "val", val) if val else None
    )


def _part(source: Source, split: str, samples: Sequence[Sample]) -> Part:
    return Part(len(samples), lambda index: source.load(split, samples[index]))


def _of_folder(spec: str, files: Sequence[Path]) -> Int8Images:
    """Calibrate with every second image of a folder and judge by the others; with one alone by that."""
    first, second = files[::2], files[1::2] or files
    part = lambda chosen: Part(len(chosen), lambda index: (read_image(chosen[index]), None))  # noqa: E731
    return Int8Images(Path(spec).name, part(first), part(second))


def sizes_note(images: Int8Images, size: tuple[int, int]) -> str:
    """Say that images have another size than the network, which they are resized to; empty where they have its size."""
    found = images.calibration.load(0)[0].shape[:2]
    return "" if found == size else f"images of {format_size((found[0], found[1]))} are resized to {format_size(size)}"

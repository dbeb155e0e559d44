"""Write and read bundles: a folder with a network, everything needed to run it without us, and the proof that it is right.

A bundle is built in a sibling folder and swapped in whole (`export/swap.py`), so a kill never leaves half of one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import numpy as np
from msgspec import Meta

from export.bundle.bundle_engine import ENGINE_NAME, without_engine
from export.bundle.imaging import Preprocessing
from export.bundle.manifest import NAME, Manifest, read_manifest, verify, write_manifest
from export.codec import Byte, convert, decode, plain
from export.errors import CorruptFile, InvalidInput
from export.files import parse_json, read_json, real_path, write_bytes, write_json, write_text
from export.parity import ParityReport
from export.swap import previous_of, replaced_folder
from export.target import Target, format_size

if TYPE_CHECKING:
    from torch import nn

    from export.onnx.exporter import OnnxReport

T = TypeVar("T")
INT8_NAME, INT8_LOSS = "model.int8.onnx", "int8.json"
"""The ONNX file quantised to int8, where there is one, and what that cost."""
CONTENT = ("model.onnx", "genotype.json", "weights.safetensors", "labels.json", "parity.json", "run.py")


@dataclass(frozen=True)
class BundleReport:
    """What was written."""

    folder: Path
    size_bytes: int
    onnx: OnnxReport
    parity: ParityReport
    manifest: Manifest

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "folder": self.folder.name,
            "size_bytes": self.size_bytes,
            "onnx": self.onnx.to_json(),
            "parity": self.parity.to_json(),
            "manifest": self.manifest.to_json(),
        }


@dataclass(frozen=True)
class Bundle:
    """A bundle whose every file was compared with its hash, and whose files say the same of it."""

    folder: Path
    manifest: Manifest
    genotype_json: str
    labels: dict[str, Any]
    """`names`, `colours`, `ignore`."""
    parity: ParityReport
    preprocessing: Preprocessing
    """What the model's images need."""

    @property
    def model(self) -> Path:
        """The ONNX file."""
        return self.folder / "model.onnx"

    @property
    def int8_model(self) -> Path | None:
        """The ONNX file quantised to int8, if the bundle has one."""
        return self.folder / INT8_NAME if INT8_NAME in self.manifest.files else None

    @property
    def weights(self) -> Path:
        """The safetensors file."""
        return self.folder / "weights.safetensors"

    @property
    def engine(self) -> Path | None:
        """The TensorRT engine, if the bundle has one."""
        return self.folder / ENGINE_NAME if ENGINE_NAME in self.manifest.files else None


def write_bundle(
    folder: Path,
    *,
    module: nn.Module,
    size: tuple[int, int],
    labels: Mapping[str, Any],
    preprocessing: Mapping[str, Any],
    genotype_json: str,
    weights: bytes,
    output: str = "native",
    target: str,
    extra: Mapping[str, Any] | None = None,
    examples: Sequence[np.ndarray] = (),
    add: Callable[[Path], None] | None = None,
) -> BundleReport:
    """Write a bundle or replace one whole, once every step, parity included, succeeded; files of the user's own stay.

    Args:
        folder: the bundle; absent, empty, or an older bundle.
        module: the network; maps (1, 3, H, W) to logits.
        size: (H, W).
        labels: `names`, `colours` (one RGB triple per name), `ignore` (a label number or None).
        preprocessing: `mean`, `std` for RGB in 0..1, `layout` `NCHW`.
        genotype_json: the network's description, JSON text.
        weights: its safetensors file.
        output: `native`, `logits`, `labels` or `panoptic`.
        target: what the bundle is meant for; parity is proven on ONNX Runtime's CPU provider in any case.
        extra: noted in the manifest.
        examples: RGB images (h, w, 3) uint8 that parity is checked on besides random ones.
        add: writes further files into the folder that it is given, which has a proven model.onnx.

    Raises:
        CheckFailed: the exported model does not compute what the module computes.
        InvalidInput: an argument is wrong, or `folder` holds something that is not a bundle.
        Unavailable: onnxruntime is missing, so parity cannot be proven.
    """
    folder = real_path(folder)
    _check_arguments(genotype_json, weights, examples)
    labels, prepare = plain(convert(_Labels, dict(labels), "labels")), convert(Preprocessing, dict(preprocessing), "preprocessing")
    target = str(Target.parse(target))
    _check_replaceable(folder)
    metadata = {"preprocessing": json.dumps(prepare.to_json()), "labels": json.dumps(labels)}
    metadata |= {"genotype": genotype_json, "size": format_size(size), "output": output}
    with replaced_folder(folder, _unlisted) as building:
        onnx, parity = _write_model(building, module, size, output, metadata, prepare, examples)
        _check_classes(onnx, labels, output)
        write_bytes(building / "weights.safetensors", weights)
        write_text(building / "genotype.json", genotype_json)
        _write_plain(building, labels, parity)
        if add is not None:
            add(building)
        manifest = write_manifest(building, target=target, size=size, output=output, extra=dict(extra or {}))
    total = sum(path.stat().st_size for path in map(folder.joinpath, (*manifest.files, NAME)))
    return BundleReport(folder, total, onnx, parity, manifest)


def read_bundle(folder: Path, *, with_engine: bool = True) -> Bundle:
    """Read a bundle after comparing every file with its hash, and what they say with one another: hashes alone prove nothing,
    since whoever changes a file can hash it.

    Args:
        folder: the bundle.
        with_engine: false where its engine is not used: one that is damaged can be rebuilt from the rest.

    Raises:
        InvalidInput: no such folder.
        CorruptFile: names the file that is missing, changed, of an unknown format version, or contradicts the others.
    """
    folder = Path(folder)
    if not folder.is_dir():
        hint = f"; an interrupted write left it as {previous_of(folder)}: rename that" if previous_of(folder).is_dir() else ""
        raise InvalidInput(f"no bundle at {folder}{hint}")
    manifest = read_manifest(folder)
    for name in CONTENT:
        if name not in manifest.files:
            raise CorruptFile(folder / NAME, f"does not list {name}")
    if not with_engine:
        manifest = without_engine(manifest)
    verify(folder, manifest)
    parity, labels = _believed(ParityReport, folder / "parity.json"), plain(_believed(_Labels, folder / "labels.json"))
    _check_proof(folder / "parity.json", parity, manifest)
    read_json(folder / "genotype.json")
    genotype_json = (folder / "genotype.json").read_text(encoding="utf-8")
    preprocessing = _described(folder / "model.onnx", manifest, genotype_json, labels)
    return Bundle(folder, manifest, genotype_json, labels, parity, preprocessing)


def _believed(kind: type[T], path: Path) -> T:
    """Read a file of a bundle whose hash fits."""
    try:
        return decode(kind, path)
    except CorruptFile as error:
        raise CorruptFile(path, f"has the hash that the manifest names, and is wrong all the same: {error.reason}") from None


def _check_proof(path: Path, report: ParityReport, manifest: Manifest) -> None:
    if not report.passed:
        raise CorruptFile(path, f"says that parity failed ({report.summary()}); such a bundle is never written")
    if report.output != manifest.output:
        raise CorruptFile(path, f"is about an output {report.output!r}; the manifest says {manifest.output!r}")


def _described(path: Path, manifest: Manifest, genotype_json: str, labels: Mapping[str, Any]) -> Preprocessing:
    """Return what a bundle's model says of its images, once it says of itself what the other files do."""
    from export.trt.onnx_metadata import onnx_metadata

    metadata = onnx_metadata(path)
    others = {"size": format_size(manifest.size), "output": manifest.output, "genotype": genotype_json}
    for name, value in others.items():
        if metadata.get(name) != value:
            found, here = (str(text)[:60] for text in (metadata.get(name), value))
            raise CorruptFile(path, f"says in its metadata that its {name} is {found!r}, and the bundle's other files {here!r}; "
                                    "export it again")  # fmt: skip
    try:
        if plain(decode(_Labels, metadata["labels"])) != labels:
            raise ValueError("they are not those of labels.json")
        return decode(Preprocessing, metadata["preprocessing"])
    except (KeyError, ValueError) as error:
        raise CorruptFile(path, f"its metadata labels or preprocessing are wrong ({type(error).__name__}: {error})") from None


def _write_model(
    building: Path,
    module: nn.Module,
    size: tuple[int, int],
    output: str,
    metadata: dict[str, str],
    prepare: Preprocessing,
    examples: Sequence[np.ndarray],
) -> tuple[OnnxReport, ParityReport]:
    from PIL import Image

    from export.onnx.exporter import export_onnx
    from export.parity import check_parity

    report = export_onnx(module, size, building / "model.onnx", output, metadata)
    images = [prepare.apply(Image.fromarray(example), size) for example in examples]
    parity = check_parity(module, report.path, images, size)
    parity.raise_if_failed()
    return report, parity


def _write_plain(building: Path, labels: Mapping[str, Any], parity: ParityReport) -> None:
    write_json(building / "labels.json", labels)
    write_json(building / "parity.json", parity.to_json())
    write_text(building / "run.py", Path(__file__).with_name("run.py.txt").read_text())


def _unlisted(folder: Path) -> list[Path]:
    try:
        manifest = read_manifest(folder)
        listed = {*manifest.files, *(member.folder for member in manifest.members)}
    except CorruptFile:
        listed = set(CONTENT)
    return [entry for entry in folder.iterdir() if entry.name not in listed | {NAME}]


def _check_replaceable(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InvalidInput(f"{folder} is a file; a bundle is a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / NAME).is_file():
        raise InvalidInput(f"{folder} holds files but no {NAME}, so it is not a bundle; choose another folder or empty it")


def _check_arguments(genotype_json: str, weights: bytes, examples: Sequence[np.ndarray]) -> None:
    try:
        parse_json(genotype_json)
    except ValueError as error:
        raise InvalidInput(f"genotype_json is not JSON: {error}") from None
    if not weights:
        raise InvalidInput("weights are empty; give the content of a safetensors file")
    for example in examples:
        if example.dtype != np.uint8 or example.ndim != 3 or example.shape[2] != 3:
            raise InvalidInput(f"examples are (h, w, 3) uint8; got {example.dtype} of shape {example.shape}")


@dataclass(frozen=True)
class _Labels:
    """Names and colours of the classes, and the label of pixels that count for nothing."""

    names: tuple[str, ...]
    colours: tuple[tuple[Byte, Byte, Byte], ...]
    ignore: Annotated[int, Meta(ge=0, le=65535)] | None

    def __post_init__(self) -> None:
        if len(self.names) != len(self.colours):
            raise ValueError(f"{len(self.names)} names need as many colours; got {len(self.colours)}")


def _check_classes(onnx: OnnxReport, labels: Mapping[str, Any], output: str) -> None:
    classes = onnx.output.shape[1] - (3 if output == "panoptic" else 0)
    if output != "labels" and classes != len(labels["names"]):
        raise InvalidInput(f"the network has {classes} classes; labels name {len(labels['names'])}")

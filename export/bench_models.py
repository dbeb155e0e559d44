"""Open the models of a comparison, ours or foreign, and turn each into one thing that can be called and timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from msgspec import Meta

from export.bundle.bundle import INT8_NAME, Bundle, read_bundle
from export.bundle.imaging import Preprocessing, palette
from export.codec import Byte, decode
from export.errors import CorruptFile, InvalidInput, Perform
from export.files import sha256
from export.runtime import Runtime, Session, TensorSpec
from export.target import TENSORRT, Target, format_size
from export.tensor_layout import ImageInput, image_input

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class BenchModel:
    """A model to time: a file (`.onnx`, `.pt2`, `.engine`, `.plan`, or a bundle's folder) or a module."""

    name: str
    """Shown in the report."""
    path: Path | None = None
    """A file or bundle folder; exclusive with `module`."""
    module: nn.Module | None = None
    """Maps (1, 3, H, W) to logits; timed with its `forward_native` where it has one."""
    size: tuple[int, int] | None = None
    """(H, W); needed for modules and for files with a dynamic shape."""
    preprocessing: Preprocessing | None = None
    """Replaces what the file says; without either, RGB in 0..1."""
    colours: np.ndarray | None = None
    """RGB of each class, uint8 (C, 3); replaces what the file says; without either, generated ones."""

    def __post_init__(self) -> None:
        if (self.path is None) == (self.module is None):
            raise InvalidInput(f"model {self.name!r}: give either a path or a module")
        if self.module is not None and self.size is None:
            raise InvalidInput(f"model {self.name!r}: a module needs a size, (H, W)")


@dataclass
class OpenModel:
    """A model in a session, with what its images need."""

    name: str
    session: Session
    image: ImageInput | None
    """Its input that is an image, if any is."""
    preprocessing: Preprocessing
    colours: np.ndarray
    file: str | None = None
    sha256: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def takes_pictures(self) -> bool:
        """Whether its only input is one float32 image (1, 3, H, W)."""
        return self.image is not None and self.image.is_usual and len(self.session.inputs) == 1

    def usual_image(self) -> ImageInput:
        """Return the image that a picture can be made into.

        Raises:
            InvalidInput: the model takes something else.
        """
        if self.image is None or not self.takes_pictures:
            raise InvalidInput(
                "turning pictures into labels needs a model that takes one float32 image (1, 3, H, W); "
                f"its inputs are {listed(self.session.inputs)}"
            )
        return self.image

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader of the times should know; the session's own notes (no CUDA graph, chosen shapes) come with its use."""
        return tuple(dict.fromkeys([*self.notes, *getattr(self.session, "notes", ())]))

    def __enter__(self) -> OpenModel:
        return self

    def __exit__(self, *exception: object) -> None:
        self.session.close()


def open_models(models: Sequence[BenchModel], runtime: Runtime, folder: Path) -> list[OpenModel]:
    """Open every model on one runtime; if one fails, those already open are closed.

    Args:
        models: with unique names.
        runtime: where they run.
        folder: for temporary copies of files whose shape has to be fixed.
    """
    check_names(models)
    opened: list[OpenModel] = []
    try:
        for model in models:
            opened.append(_open_module(model, runtime) if model.module is not None else _open_file(model, runtime, folder))
    except BaseException:
        for done in opened:
            done.session.close()
        raise
    return opened


def check_names(models: Sequence[BenchModel]) -> None:
    """Refuse models that a report could not tell apart.

    Raises:
        InvalidInput: none, or two of one name.
    """
    names = [model.name for model in models]
    if not models or len(set(names)) != len(names):
        raise InvalidInput(f"a comparison needs at least one model, and different names; got {names}")


def _open_file(model: BenchModel, runtime: Runtime, folder: Path) -> OpenModel:
    assert model.path is not None
    notes = list[str]()
    original = _of_bundle(model.path, runtime.target, notes) if model.path.is_dir() else Path(model.path)
    session = runtime.load_file(runnable_file(replace(model, path=original), runtime.target, folder, notes))
    return replace(_described(model, session, notes), file=original.name, sha256=sha256(original))


def runnable_file(model: BenchModel, target: Target, folder: Path, notes: list[str]) -> Path:
    """Return the file that a target's runtime opens for a file or bundle.

    Args:
        model: with a path.
        target: where it runs.
        folder: for a temporary copy of a file whose shape has to be fixed.
        notes: what was chosen or changed is added to them.
    """
    assert model.path is not None
    path = _of_bundle(model.path, target, notes) if model.path.is_dir() else Path(model.path)
    if path.suffix.lower() not in (".pt2", ".engine", ".plan"):
        from export.onnx.static_shape import static_onnx

        path, changed = static_onnx(path, model.size, folder)
        notes += changed
    return path


def _open_module(model: BenchModel, runtime: Runtime) -> OpenModel:
    import torch

    from export.backends.torch_session import prepared
    from export.onnx.exporter import Output
    from export.onnx.tracing import evaluating

    assert model.module is not None and model.size is not None
    output = "native" if hasattr(model.module, "forward_native") else "logits"
    # TensorRT gets an export, and fused kernels are none
    device = "cpu" if runtime.target.runtime in TENSORRT else runtime.target.device
    network = Output(prepared(model.module, device), output)
    with evaluating(network):
        network.eval()
        session = runtime.load_modules([(network, (torch.zeros(1, 3, *model.size),))])[0]
    return _described(model, session, [f"run as a module with the output {output}"])


def _of_bundle(folder: Path, target: Target, notes: list[str]) -> Path:
    """Return what a target runs of a bundle: on TensorRT its engine, if it has one of this precision, else its ONNX file."""
    from export.bundle.bundle_engine import ENGINE_FILES, ENGINE_NAME

    try:
        bundle = read_bundle(folder, with_engine=target.runtime in TENSORRT)
    except CorruptFile as error:
        if error.path.name not in ENGINE_FILES:
            raise
        again = Perform("export", {"rebuild": True}, str(folder / ENGINE_NAME))
        raise CorruptFile(error.path, error.reason, error.line, again) from None
    if target.runtime not in TENSORRT or bundle.engine is None:
        return _model_of(bundle, target)
    from export.trt.engine_file import required_manifest

    found = required_manifest(bundle.engine).target
    if found == str(target):
        return bundle.engine
    notes.append(f"the bundle's engine is for {found}; this one was built for {target}")
    return _model_of(bundle, target)


def _model_of(bundle: Bundle, target: Target) -> Path:
    """Return a bundle's ONNX file for a target.

    Raises:
        InvalidInput: int8 is asked for, and it has no such file.
    """
    if target.precision != "int8":
        return bundle.model
    if bundle.int8_model is None:
        again = Perform("export", {"network": bundle.folder, "target": target, "data": "DATA"}, "NEW_BUNDLE/")
        raise InvalidInput(f"the bundle {bundle.folder} has no {INT8_NAME}, which {target} runs", again)
    return bundle.int8_model


def _described(model: BenchModel, session: Session, notes: list[str]) -> OpenModel:
    image = image_input(session.inputs)
    if model.size is not None and image is not None and model.size != image.size:
        session.close()
        raise InvalidInput(f"model {model.name!r} is made for {format_size(image.size)}; asked for {format_size(model.size)}")
    metadata: dict[str, str] = getattr(session, "metadata", {})
    opened = OpenModel(model.name, session, image, model.preprocessing or Preprocessing(), palette(256), notes=notes)
    if not opened.takes_pictures:
        notes.append(f"timed with random inputs: {listed(session.inputs)}")
        if image is not None and image.spec.shape[0] != 1:
            notes.append(f"a run computes {image.spec.shape[0]} images; times and FPS are of runs")
        return opened
    if len(session.outputs) > 1:
        notes.append(f"it has {len(session.outputs)} outputs: {listed(session.outputs)}")
    if model.preprocessing is None:
        opened.preprocessing = _preprocessing(metadata, notes)
    opened.colours = _colours(metadata, notes) if model.colours is None else model.colours
    return opened


def _preprocessing(metadata: Mapping[str, str], notes: list[str]) -> Preprocessing:
    """Return what a file says of its images; the times do not depend on it, so what cannot be read is noted and no error."""
    if "preprocessing" not in metadata:
        notes.append("no preprocessing metadata: images are scaled to 0..1 and not normalised")
        return Preprocessing()
    try:
        return decode(Preprocessing, metadata["preprocessing"])
    except ValueError:
        found = metadata["preprocessing"][:80]
        notes.append(f"its metadata preprocessing is not of hyctas ({found!r}): images are scaled to 0..1 and not normalised")
        return Preprocessing()


@dataclass(frozen=True)
class _Coloured:
    """What of a file's labels is painted with."""

    OPEN: ClassVar = True
    colours: Annotated[tuple[tuple[Byte, Byte, Byte], ...], Meta(min_length=1)]


def _colours(metadata: Mapping[str, str], notes: list[str]) -> np.ndarray:
    """Return a file's colours of classes; generated ones where it has none, with a note where it has other things."""
    if "labels" not in metadata:
        return palette(256)
    try:
        return np.array(decode(_Coloured, metadata["labels"]).colours, np.uint8)
    except ValueError:
        found = metadata["labels"][:80]
        notes.append(f"its metadata labels has no RGB colours as hyctas writes them ({found!r}): colours are generated")
        return palette(256)


def listed(specs: Sequence[TensorSpec]) -> str:
    """Name tensors with their types and shapes."""
    return ", ".join(f"{spec.name}: {spec.dtype} {spec.shape}" for spec in specs) or "none"

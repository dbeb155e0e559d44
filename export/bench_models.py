"""Open the models of a comparison, ours or foreign, and turn each into one thing that can be called and timed."""

from __future__ import annotations

import io
import json
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from export.errors import CorruptFile, InvalidInput
from export.files import sha256
from export.imaging import Preprocessing, decode, labels_of, overlay, palette
from export.runtime import Runtime, Session, TensorSpec
from export.target import TENSORRT, Target, format_size

if TYPE_CHECKING:
    from torch import nn

MODES = ("model", "labels", "end-to-end")


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
    size: tuple[int, int]
    preprocessing: Preprocessing
    colours: np.ndarray
    file: str | None = None
    sha256: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def input(self) -> TensorSpec:
        """The image input."""
        return self.session.inputs[0]

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader of the times should know; the session's own notes (no CUDA graph, chosen shapes) come with its use."""
        return tuple(dict.fromkeys([*self.notes, *getattr(self.session, "notes", ())]))

    def labels(self, tensor: np.ndarray) -> np.ndarray:
        """Run the model on an image (1, 3, H, W) and return labels (H, W)."""
        output = self.session.run({self.input.name: tensor})[0]
        panoptic = self.session.outputs[0].name == "panoptic"
        return labels_of(output[:, :-3] if panoptic else output, self.size)

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
    names = [model.name for model in models]
    if not models or len(set(names)) != len(names):
        raise InvalidInput(f"a comparison needs at least one model, and different names; got {names}")
    opened: list[OpenModel] = []
    try:
        for model in models:
            opened.append(_open_module(model, runtime) if model.module is not None else _open_file(model, runtime, folder))
    except BaseException:
        for done in opened:
            done.session.close()
        raise
    return opened


def _open_file(model: BenchModel, runtime: Runtime, folder: Path) -> OpenModel:
    assert model.path is not None
    path, notes = Path(model.path), list[str]()
    if path.is_dir():
        path = _of_bundle(path, runtime.target, notes)
    original = path
    if path.suffix not in (".pt2", ".engine", ".plan"):
        from export.onnx_shape import static_onnx

        path, changed = static_onnx(path, model.size, folder)
        notes += changed
    session = runtime.load_file(path)
    return replace(_described(model, session, notes), file=original.name, sha256=sha256(original))


def _open_module(model: BenchModel, runtime: Runtime) -> OpenModel:
    import torch

    from export.onnx_file import Output
    from export.onnx_trace import evaluating
    from export.torch_session import prepared

    assert model.module is not None and model.size is not None
    output = "native" if hasattr(model.module, "forward_native") else "logits"
    # TensorRT gets an export, and fused kernels are none
    device = "cpu" if runtime.target.runtime in TENSORRT else runtime.target.device
    network = Output(prepared(model.module, device), output)
    with evaluating(network):
        network.eval()
        session = runtime.load_modules([(network, (torch.zeros(1, 3, *model.size),))])[0]
    return _described(model, session, [f"timed as a module with the output {output}"])


def _of_bundle(folder: Path, target: Target, notes: list[str]) -> Path:
    """Return what a target runs of a bundle: on TensorRT its engine, if it has one of this precision, else its ONNX file."""
    from export.bundle import read_bundle
    from export.bundle_engine import ENGINE_FILES, ENGINE_NAME

    try:
        bundle = read_bundle(folder, with_engine=target.runtime in TENSORRT)
    except CorruptFile as error:
        if error.path.name not in ENGINE_FILES:
            raise
        again = shlex.join(["hyctas-export", str(folder / ENGINE_NAME), "--rebuild"])
        raise CorruptFile(error.path, f"{error.reason}; to build it anew: {again}") from None
    if target.runtime not in TENSORRT or bundle.engine is None:
        return bundle.model
    from export.trt.engine_file import required_manifest

    found = required_manifest(bundle.engine).target
    if found == str(target):
        return bundle.engine
    notes.append(f"the bundle's engine is for {found}; this one was built for {target}")
    return bundle.model


def _described(model: BenchModel, session: Session, notes: list[str]) -> OpenModel:
    shapes = [(spec.name, spec.dtype, spec.shape) for spec in session.inputs]
    if len(shapes) != 1 or shapes[0][1] != "float32" or len(shapes[0][2]) != 4 or shapes[0][2][:2] != (1, 3):
        session.close()
        raise InvalidInput(f"model {model.name!r}: a model to time takes one float32 image (1, 3, H, W); found {shapes}")
    height, width = shapes[0][2][2:]
    if model.size is not None and model.size != (height, width):
        session.close()
        asked = format_size(model.size)
        raise InvalidInput(f"model {model.name!r} is made for {format_size((height, width))}; asked for {asked}")
    if len(session.outputs) > 1:
        notes.append(f"it has {len(session.outputs)} outputs; labels come from {session.outputs[0].name!r}")
    metadata: dict[str, str] = getattr(session, "metadata", {})
    preprocessing = model.preprocessing
    if preprocessing is None and "preprocessing" in metadata:
        preprocessing = Preprocessing.from_json(_parsed(metadata, "preprocessing"))
    if preprocessing is None:
        notes.append("no preprocessing metadata: images are scaled to 0..1 and not normalised")
    labels = _parsed(metadata, "labels") if "labels" in metadata else None
    colours = labels["colours"] if isinstance(labels, dict) and labels.get("colours") else palette(256)
    return OpenModel(
        model.name, session, (height, width), preprocessing or Preprocessing(), np.asarray(colours, np.uint8), notes=notes
    )


def _parsed(metadata: dict[str, str], key: str) -> Any:
    try:
        return json.loads(metadata[key])
    except json.JSONDecodeError:
        raise InvalidInput(f"the model's metadata {key!r} is not JSON: {metadata[key][:80]!r}") from None


def frame(model: OpenModel, mode: str, jpegs: Sequence[bytes]) -> Callable[[], float]:
    """Return a function that processes one frame and returns milliseconds.

    `model` times `Session.step` alone. `labels` times a run from host memory to a label map. `end-to-end` times from JPEG bytes
    to an overlay at the image's size.
    """
    images = [decode(data) for data in jpegs]
    tensors = [model.preprocessing.apply(image, model.size) for image in images]
    if mode == "model":
        model.session.bind({model.input.name: tensors[0]})
        return model.session.step
    _check_output(model)
    work = _to_labels(model, tensors) if mode == "labels" else _end_to_end(model, jpegs)
    state = {"frame": 0}

    def timed() -> float:
        index, state["frame"] = state["frame"], (state["frame"] + 1) % len(jpegs)
        start = time.perf_counter_ns()
        work(index)
        return (time.perf_counter_ns() - start) / 1e6

    return timed


def _to_labels(model: OpenModel, tensors: Sequence[np.ndarray]) -> Callable[[int], np.ndarray]:
    return lambda index: model.labels(tensors[index])


def _end_to_end(model: OpenModel, jpegs: Sequence[bytes]) -> Callable[[int], np.ndarray]:
    def work(index: int) -> np.ndarray:
        image = decode(jpegs[index])
        tensor = model.preprocessing.apply(image, model.size)
        labels = model.labels(tensor)
        if (image.height, image.width) != labels.shape:
            labels = np.asarray(Image.fromarray(labels.astype(np.int32)).resize(image.size, Image.Resampling.NEAREST))
        return overlay(np.asarray(image), labels, model.colours)

    return work


def _check_output(model: OpenModel) -> None:
    spec = model.session.outputs[0]
    integer = np.issubdtype(np.dtype(spec.dtype), np.integer)
    if spec.shape[:1] != (1,) or not (len(spec.shape) == 4 or (len(spec.shape) == 3 and integer)):
        raise InvalidInput(
            f"model {model.name!r}: labels need an output of logits (1, C, h, w) or integer labels (1, H, W); "
            f"found {spec.name}: {spec.dtype} {spec.shape}"
        )


def synthetic_jpeg(size: tuple[int, int], seed: int) -> bytes:
    """Make a smooth random image (H, W) as JPEG bytes, about as compressible as a photograph."""
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()

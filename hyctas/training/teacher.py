"""Open any trained network as a teacher: a run folder, a bundle, an ONNX file, or several of these as an ensemble.

A teacher labels whole images softly: per cell of its output the probabilities of the classes at a temperature (Hinton et al.,
"Distilling the Knowledge in a Neural Network", 2015, section 2). Networks of ours see an image at its own size, and so does an
ONNX file of dynamic size; one of fixed size sees the image resized to that.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np
import torch
from PIL import Image

from export.bundle.imaging import Preprocessing, exact_stride
from export.codec import decode
from export.errors import CorruptFile, HyctasError, InvalidInput
from export.files import sha256
from export.onnx.foreign import graph_inputs, load_graph, metadata_of
from export.onnx.static_shape import static_onnx
from export.runtimes import available_targets, open_runtime
from export.target import Target, format_size
from hyctas.artifacts.bundling import RELEASED_PREPROCESSING, Trained, load_trained, weights_file
from hyctas.data import Labels
from hyctas.training.processes import default_device
from hyctas.training.soft_map import Grid, SoftMap, average, coarsened

if TYPE_CHECKING:
    from export.backends.onnxruntime_session import OnnxSession

ONNX_TARGETS = ("onnxruntime-cuda:fp32", "onnxruntime-cpu:fp32")
"""What an ONNX file runs on: the first that can run here."""


class Teacher(Protocol):
    """Says what it thinks of an image."""

    def soft_map(self, image: np.ndarray, temperature: float) -> SoftMap:
        """Label an RGB image, uint8 (H, W, 3), softly at a temperature."""


@dataclass(frozen=True)
class TeacherFile:
    """Where a teacher is, and what it is."""

    path: Path
    """Run folder, bundle or ONNX file."""
    sha256: str
    """Of its weights, or of the ONNX file."""


def find_teachers(paths: Sequence[Path]) -> tuple[TeacherFile, ...]:
    """Find the teachers that a user names, and hash their weights.

    Raises:
        InvalidInput: nothing there, or something else than a run with a trained network, a bundle or an ONNX file.
    """
    return tuple(TeacherFile(path, sha256(_weights(path))) for path in paths)


def _weights(path: Path) -> Path:
    allowed = "a teacher is a run folder with a trained network, a bundle's folder, or an .onnx file"
    if not path.exists():
        raise InvalidInput(f"teacher {path}: no such file or folder; {allowed}")
    if path.is_file():
        if path.suffix.lower() != ".onnx":
            raise InvalidInput(f"teacher {path}: {allowed}")
        return path
    file = weights_file(path)
    if not file.is_file():
        raise InvalidInput(f"teacher {path}: there is no {file.name} in it; {allowed}")
    return file


@contextmanager
def open_teachers(files: Sequence[TeacherFile], labels: Labels) -> Iterator[Teacher]:
    """Open one teacher, or several as an ensemble whose probabilities are averaged.

    Args:
        files: at least one.
        labels: the classes of the data; each teacher must have as many, and of the same names where it names them.

    Raises:
        InvalidInput: a teacher has other classes, or an ONNX file has other inputs or outputs or does not say how its images
            are normalised.
        CorruptFile: a file is damaged.
        Unavailable: ONNX Runtime is missing.
    """
    with ExitStack() as stack:
        opened: list[Teacher] = []
        for file in files:
            if file.path.is_dir():
                opened.append(NetworkTeacher(file.path, labels))
            else:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hyctas-teacher-")))
                teacher = OnnxTeacher(file.path, labels, folder)
                stack.callback(teacher.close)
                opened.append(teacher)
        yield Ensemble(opened)


class Ensemble:
    """Averages what its members think."""

    def __init__(self, members: Sequence[Teacher]) -> None:
        self.members = tuple(members)

    def soft_map(self, image: np.ndarray, temperature: float) -> SoftMap:
        """Label an image; the finest grid of the members counts."""
        return average([member.soft_map(image, temperature) for member in self.members])


class NetworkTeacher:
    """A network of a run folder or a bundle, on the GPU where there is one."""

    def __init__(self, path: Path, labels: Labels) -> None:
        trained: Trained = load_trained(path)
        check_classes(path, trained.labels.names, labels)
        self.preprocessing, self.device = trained.preprocessing, default_device()
        self.network = trained.network.folded().to(self.device)

    def soft_map(self, image: np.ndarray, temperature: float) -> SoftMap:
        """Label an image at its own size; see `Teacher`."""
        size = (image.shape[0], image.shape[1])
        tensor = torch.from_numpy(self.preprocessing.apply(Image.fromarray(image), size)).to(self.device)
        with torch.inference_mode():
            logits = self.network.forward_native(tensor)[0].float().cpu().numpy()  # (C, h, w)
        return _softened(logits, size, size, temperature)


class OnnxTeacher:
    """An ONNX file: one float32 image (1, 3, H, W) in, one tensor of logits or probabilities (1, C, h, w) out."""

    def __init__(self, path: Path, labels: Labels, folder: Path) -> None:
        self.path, self.labels, self.folder = path, labels, folder
        self.size, metadata = _described(path)
        self.preprocessing = _preprocessing(path, metadata)
        if (names := _names(path, metadata)) is not None:
            check_classes(path, names, labels)
        usable = {state.target for state in available_targets() if state.ok}
        name = next((name for name in ONNX_TARGETS if name in usable), ONNX_TARGETS[-1])
        self.runtime = open_runtime(Target.parse(name), torch.get_num_threads())
        self._session: OnnxSession | None = None
        self._opened: tuple[int, int] | None = None

    def soft_map(self, image: np.ndarray, temperature: float) -> SoftMap:
        """Label an image, resized where the file's size is fixed; see `Teacher`."""
        frame = (image.shape[0], image.shape[1])
        size = self.size or frame
        try:
            session = self._session_of(size)
            feeds = {session.inputs[0].name: self.preprocessing.apply(Image.fromarray(image), size)}
            output = session.run(feeds)[0][0].astype(np.float32)  # (C, h, w)
        except HyctasError:
            raise
        except Exception as error:  # ONNX Runtime raises many kinds
            text = str(error).strip().splitlines() or [type(error).__name__]
            raise InvalidInput(f"teacher {self.path}: it does not run on an image of {format_size(size)}: {text[0]}") from None
        if not np.isfinite(output).all():
            raise InvalidInput(f"teacher {self.path}: its output is not finite on an image of {format_size(size)}")
        return _softened(_logits(output), size, frame, temperature)

    def close(self) -> None:
        """Free the model."""
        if self._session is not None:
            self._session.close()
        self._session = self._opened = None

    def _session_of(self, size: tuple[int, int]) -> OnnxSession:
        if self._session is not None and self._opened == size:
            return self._session
        self.close()
        file, _ = static_onnx(self.path, size, self.folder)
        session: OnnxSession = self.runtime.load_file(file)  # type: ignore[assignment]
        shapes = [(spec.name, spec.dtype, spec.shape) for spec in session.outputs]
        good = len(shapes) == 1 and shapes[0][1] in ("float32", "float16") and len(shapes[0][2]) == 4
        if not good or shapes[0][2][1] != self.labels.num_classes:
            session.close()
            raise InvalidInput(
                f"teacher {self.path}: a teacher gives one tensor of logits, float (1, {self.labels.num_classes}, h, w) for these "
                f"{self.labels.num_classes} classes; it gives {shapes}. Labels alone (an argmax) cannot be distilled: export it "
                "with the output native or logits"
            )
        self._session, self._opened = session, size
        return session


def check_classes(path: Path, names: Sequence[str], labels: Labels) -> None:
    """Refuse a teacher of other classes.

    Raises:
        InvalidInput: another number of classes, or another name at some place (numbered classes fit any).
    """
    if len(names) != labels.num_classes:
        raise InvalidInput(
            f"teacher {path} has {len(names)} classes, the data set {labels.num_classes} ({', '.join(labels.names)}); "
            "a teacher must know the same classes in the same order"
        )
    for index, (theirs, ours) in enumerate(zip(names, labels.names, strict=True)):
        if theirs.casefold() not in (ours.casefold(), f"class {index}"):
            raise InvalidInput(
                f"teacher {path}: its class {index} is {theirs!r}, the data set's is {ours!r}; "
                "a teacher must know the same classes in the same order"
            )


def _softened(logits: np.ndarray, size: tuple[int, int], frame: tuple[int, int], temperature: float) -> SoftMap:
    """Return softmax(logits / temperature) (C, h, w), with its place on a frame that was seen at `size`."""
    scaled = logits / temperature
    scaled -= scaled.max(0)
    probabilities = np.exp(scaled)
    probabilities /= probabilities.sum(0)
    native = (logits.shape[1], logits.shape[2])
    stride = exact_stride(native, size)
    seen = (float(stride), float(stride)) if stride else (size[0] / native[0], size[1] / native[1])
    cell = (seen[0] * frame[0] / size[0], seen[1] * frame[1] / size[1])
    return coarsened(SoftMap(probabilities=probabilities, grid=Grid(size=native, cell=cell)))


def _logits(output: np.ndarray) -> np.ndarray:
    """Return logits: a file may end in a softmax, whose logarithm they are then."""
    if output.min() >= 0 and np.abs(output.sum(0) - 1).max() < 1e-3:
        return np.log(np.maximum(output, 1e-12))
    return output


def _described(path: Path) -> tuple[tuple[int, int] | None, dict[str, str]]:
    """Return the fixed (H, W) of a file's image, if it has one, and its metadata."""
    model = load_graph(path)
    image = next(iter(graph_inputs(model)), None)
    sides = [dim.dim_value for dim in image.type.tensor_type.shape.dim[2:]] if image is not None else []
    fixed = (sides[0], sides[1]) if len(sides) == 2 and min(sides) > 0 else None
    return fixed, metadata_of(model)


def _preprocessing(path: Path, metadata: dict[str, str]) -> Preprocessing:
    if "preprocessing" not in metadata:
        example = json.dumps(RELEASED_PREPROCESSING.to_json())
        raise InvalidInput(
            f"teacher {path} does not say how its images are normalised: give it the metadata preprocessing, for RGB in 0..1, "
            f"for instance {example}; in Python: model.metadata_props.add(key='preprocessing', value=...), then onnx.save"
        )
    try:
        return decode(Preprocessing, metadata["preprocessing"])
    except ValueError as error:
        raise CorruptFile(path, f"its metadata preprocessing is not usable ({error})") from None


@dataclass(frozen=True)
class _Names:
    """What of a file's labels is compared."""

    OPEN: ClassVar = True
    names: tuple[str, ...]


def _names(path: Path, metadata: dict[str, str]) -> list[str] | None:
    """Return the names of a file's classes where it has them."""
    if "labels" not in metadata:
        return None
    try:
        return list(decode(_Names, metadata["labels"]).names)
    except ValueError as error:
        raise CorruptFile(path, f"its metadata labels is not usable ({error})") from None

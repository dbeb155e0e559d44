"""Label every training image softly, once, and cut the soft labels with the crops.

The labels are kept in a folder: `teacher.json` says of which teacher and data they are, and `<index>.safetensors` holds one
frame's probabilities (C, h, w) fp16, with a checksum. Each file is written safely as soon as it is made, so a killed job
continues with the next frame. Several processes (torchrun) share the work.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from export.codec import plain
from export.errors import CorruptFile, InvalidInput, StartOver
from export.files import read_json, write_bytes, write_json
from hyctas.data import Frames, View
from hyctas.training.processes import barrier, start_processes
from hyctas.training.soft_map import Grid, SoftMap, cut
from hyctas.training.teacher import Teacher, TeacherFile, open_teachers

FORMAT_VERSION = 1
HEADER, TENSOR = "teacher.json", "probabilities"
AGAIN = (StartOver(), "delete that folder")


class SoftLabels:
    """The soft labels of a split's frames, read from their folder as they are needed.

    Args:
        folder: where `label_frames` wrote them, complete.
        temperature: at which they were made.
    """

    def __init__(self, folder: Path, temperature: float) -> None:
        self.folder, self.temperature = folder, temperature
        with _opened(frame_file(folder, 0)) as (_, grid):
            self.stride = max(1, round((grid.cell[0] * grid.cell[1]) ** 0.5))
            """Pixels of a crop per cell: the teacher's stride on the first frame, the same for all."""

    def cut(self, index: int, view: View) -> np.ndarray:
        """Return a frame's soft labels as a crop shows it.

        Returns:
            float32 (C, ceil(crop height / stride), ceil(crop width / stride)): probabilities that cover the crop evenly; 0 for
            all classes where it shows padding.

        Raises:
            CorruptFile: the frame's file is damaged.
        """
        size = (-(-view.crop[0] // self.stride), -(-view.crop[1] // self.stride))
        with _opened(frame_file(self.folder, index)) as (file, grid):
            return cut(file.get_slice(TENSOR).__getitem__, grid, view, size)


def label_frames(
    frames: Frames,
    files: Sequence[TeacherFile],
    folder: Path,
    temperature: float,
    status: Callable[[int, int], None] | None = None,
) -> SoftLabels:
    """Have a teacher label every frame whose soft labels are not there yet.

    Args:
        frames: the training images.
        files: the teacher, or the members of an ensemble.
        folder: where to keep the labels; made if need be.
        temperature: to soften the probabilities with, above 0.
        status: called with the frames done and their number (of this process).

    Raises:
        InvalidInput: the folder holds the labels of another teacher, temperature or data set, the disk is too small, or a
            teacher does not fit (see `open_teachers`).
        CorruptFile: a file in the folder, or of a teacher, is damaged.
        Unavailable: an ONNX teacher needs ONNX Runtime.
    """
    rank, world = start_processes()
    _claim(folder, {
        "teachers": [file.sha256 for file in files], "temperature": temperature, "data": _identity(frames),
    })  # fmt: skip
    share = range(rank, len(frames), world)
    missing = [index for index in share if not _intact(frame_file(folder, index))]
    with ExitStack() as stack:
        teacher: Teacher | None = None
        for done, index in enumerate(missing, len(share) - len(missing)):
            if teacher is None:
                teacher = stack.enter_context(open_teachers(files, frames.labels))
            data = _encoded(teacher.soft_map(frames[index][0], temperature))
            if index == missing[0]:
                _check_disk(folder, len(data) * len(missing) * world)
            write_bytes(frame_file(folder, index), data)
            if status is not None:
                status(done + 1, len(share))
    if world > 1:
        barrier()
    return SoftLabels(folder, temperature)


def frame_file(folder: Path, index: int) -> Path:
    """Return where the soft labels of a frame are."""
    return folder / f"{index:06d}.safetensors"


def _claim(folder: Path, content: dict[str, Any]) -> None:
    """Note what a folder holds, or check that it holds that already."""
    path = folder / HEADER
    if not path.exists():
        write_json(path, {"format_version": FORMAT_VERSION, **content})
        return
    found, wanted = read_json(path, FORMAT_VERSION), plain(content)
    if different := [name for name in content if found.get(name) != wanted[name]]:
        words = {"teachers": "another teacher", "temperature": "another temperature", "data": "other images"}
        raise InvalidInput(f"{folder} holds soft labels of {' and '.join(words[name] for name in different)}", *AGAIN)


def _identity(frames: Frames) -> dict[str, Any]:
    names = "\n".join(f"{sample.clip}/{sample.name}" for sample in frames.samples)
    return {
        **frames.source.fingerprint((frames.split,)), "split": frames.split, "resized": frames.size,
        "samples": hashlib.sha256(names.encode()).hexdigest(),
    }  # fmt: skip


def _encoded(soft: SoftMap) -> bytes:
    from safetensors.numpy import save

    values = np.ascontiguousarray(soft.probabilities.astype(np.float16))
    metadata = {"cell": json.dumps(soft.grid.cell), "crc32": str(zlib.crc32(values.tobytes()))}
    data: bytes = save({TENSOR: values}, metadata)
    return data


def _intact(path: Path) -> bool:
    """Say whether a frame is labelled already.

    Raises:
        CorruptFile: its file is not what was written.
    """
    if not path.exists():
        return False
    with _opened(path) as (file, _):
        values, metadata = np.ascontiguousarray(file.get_tensor(TENSOR)), file.metadata()
    if metadata.get("crc32") != str(zlib.crc32(values.tobytes())):
        raise CorruptFile(path, "its checksum does not fit its content", None, *AGAIN)
    return True


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Grid]]:
    """Open a frame's file, and say where its cells lie.

    Raises:
        CorruptFile: missing, truncated, or not of this kind.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            yield file, _grid(path, file)
    except (SafetensorError, OSError) as error:
        raise CorruptFile(path, f"is not a whole file of soft labels ({error})", None, *AGAIN) from None


def _grid(path: Path, file: Any) -> Grid:
    try:
        _, rows, columns = file.get_slice(TENSOR).get_shape()
        height, width = json.loads(file.metadata()["cell"])
        return Grid(size=(rows, columns), cell=(float(height), float(width)))
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFile(path, f"does not hold one frame's soft labels ({error!r})", None, *AGAIN) from None


def _check_disk(folder: Path, size_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if size_bytes > free:
        raise InvalidInput(
            f"the soft labels need about {size_bytes >> 20:,} MiB in {folder}, and {free >> 20:,} MiB are free; choose a run "
            "folder on a larger disk, or smaller images"
        )

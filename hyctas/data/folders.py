"""Recognise a folder by the table of layouts, list its samples, and read them strictly.

Opening only lists file names; every complaint about a single file comes from `FileSource.load`, so that `hyctas.data.verify`
can name it and count the others.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.bundle.imaging import IMAGE_SUFFIXES, is_photograph
from export.errors import CorruptFile, InvalidInput
from hyctas.data.classes_file import has_classes, read_classes
from hyctas.data.coding import Coding
from hyctas.data.images import is_turned_sideways, read_image, read_label, read_palette
from hyctas.data.labels import Colour, Labels
from hyctas.data.layouts import LAYOUTS, Layout, describe_layouts
from hyctas.data.sample import Sample

NEEDED = ("train", "val")
LISTED = (*NEEDED, "test")
"""Splits that a layout with lists may have; other lists (VOC's trainval) repeat these."""
_LABEL_SUFFIX = ".png"
_LOOKED_AT = 20
"""Label files that are read to say what a split holds."""


@dataclass(frozen=True)
class Pair:
    """The two files of one sample; None where one is missing, `problem` where listing already shows a fault."""

    image: Path | None
    label: Path | None
    problem: str | None = None
    """A sentence that begins with a path."""


@dataclass(frozen=True, eq=False)
class FileSource:
    """A data set in files."""

    kind: str
    """The layout, as fingerprints name it."""
    layout: str
    """The layout in words, to print."""
    root: Path
    coding: Coding
    files: dict[str, dict[Sample, Pair]]
    """Per split, the samples in order."""

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.root.resolve().name

    @property
    def labels(self) -> Labels:
        """The classes."""
        return self.coding.labels

    @property
    def expects_all(self) -> bool:
        """Classes are named because they occur."""
        return True

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that the folder holds."""
        return tuple(self.files)

    def samples(self, split: str) -> tuple[Sample, ...]:
        """List a split by clip and index, samples with a missing or doubled file included: `load` reports those."""
        return tuple(self._split(split))

    def load(self, split: str, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """Read and check one sample; see `hyctas.data.sample.Source.load`."""
        image_path, label_path = self._paths(split, sample)
        image, values = read_image(image_path), self._values(label_path)
        if image.shape[:2] != values.shape[:2]:
            turned = image.shape[1::-1] == values.shape[:2] and is_turned_sideways(image_path)
            hint = "; the image was turned as its EXIF orientation asks: turn the label too, or remove that tag" if turned else ""
            raise InvalidInput(
                f"{label_path}: is {values.shape[0]}x{values.shape[1]} (HEIGHTxWIDTH), but its image {image_path.name} is "
                f"{image.shape[0]}x{image.shape[1]}; an image and its label must have one size{hint}"
            )
        try:
            return image, self.coding.train_ids(values)
        except InvalidInput as error:
            raise InvalidInput(f"{label_path}: {error}") from None

    def palette(self, split: str, sample: Sample) -> dict[int, Colour]:
        """Return the colours that a palette file gives to the numbers it holds; empty where they say nothing or are what counts."""
        return {} if self.coding.palettes == "colours" else read_palette(self._paths(split, sample)[1])

    def held(self, split: str) -> str:
        """Say what the label files of a split hold and what it stands for; the first ones are read."""
        return self.coding.describe(self._values(self._paths(split, sample)[1]) for sample in self.samples(split)[:_LOOKED_AT])

    def fingerprint(self, splits: Sequence[str] | None = None) -> dict[str, Any]:
        """Identify the data set by layout, folder name, classes, and a digest of all file names and sizes."""
        chosen = {split: self._split(split) for split in (self.files if splits is None else splits)}
        digest = hashlib.sha256()
        for split, pairs in chosen.items():
            for sample, pair in pairs.items():
                sizes = [p.stat().st_size if p is not None and p.exists() else -1 for p in (pair.image, pair.label)]
                digest.update(f"{split}/{sample.clip}/{sample.name}:{sizes}\n".encode())
        return {
            "kind": self.kind,
            "name": self.name,
            "classes": list(self.labels.names),
            "counts": {split: len(pairs) for split, pairs in chosen.items()},
            "files_sha256": digest.hexdigest(),
        }

    def _split(self, split: str) -> dict[Sample, Pair]:
        if split not in self.files:
            raise InvalidInput(f"{self.root}: no split {split!r}; it has: {', '.join(self.files)}")
        return self.files[split]

    def _paths(self, split: str, sample: Sample) -> tuple[Path, Path]:
        pair = self._split(split).get(sample)
        if pair is None:
            raise InvalidInput(f"{self.root}: split {split!r} has no sample {sample.name!r} in clip {sample.clip!r}")
        if pair.problem is not None or pair.image is None or pair.label is None:
            raise InvalidInput(pair.problem or f"{pair.image or pair.label}: is not one of a pair")
        return pair.image, pair.label

    def _values(self, path: Path) -> np.ndarray:
        label = read_label(path)
        return label.colours if label.palette is not None and self.coding.palettes == "colours" else label.values


def open_folder(root: Path) -> FileSource:
    """List a folder in one of the known layouts.

    Raises:
        InvalidInput: no such folder, no known layout, or a part of the layout is missing.
    """
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise InvalidInput(f"data folder {root} {what}; give a folder in one of these layouts, or `scenes`:\n{describe_layouts()}")
    layout = recognise(root)
    own = layout.coding is None or has_classes(root)
    coding = read_classes(root) if own or layout.coding is None else layout.coding
    words = f"{layout.title} layout" + (", its own classes" if own and layout.coding is not None else "")
    return FileSource(layout.kind, words, root, coding, {name: _list(root, layout, name) for name in _splits(root, layout)})


def recognise(root: Path) -> Layout:
    """Return the layout of a folder.

    Raises:
        InvalidInput: it has none, or lacks a part of the one that it resembles.
    """
    whole = [layout for layout in LAYOUTS if not _lacking(root, layout)]
    for layout in whole:
        if _has_labels(root, layout):
            return layout
    for layout in whole:  # no label file yet that is named as it should be: `load` will say so of each image
        if layout.marks:
            return layout
    for layout in LAYOUTS:
        if any((root / mark).is_dir() for mark in layout.marks):
            raise InvalidInput(
                f"{root} looks like the {layout.title} layout but lacks {', '.join(_lacking(root, layout))}. The layouts that "
                f"are known:\n{describe_layouts()}"
            )
    found = sorted(p.name + ("/" if p.is_dir() else "") for p in root.iterdir() if not p.name.startswith("."))
    shown = ", ".join(found[:12]) + (f" and {len(found) - 12} more" if len(found) > 12 else "")
    raise InvalidInput(f"{root} is in none of the layouts that are known:\n{describe_layouts()}\nFound there: {shown or 'nothing'}")


def _lacking(root: Path, layout: Layout) -> list[str]:
    """Name the folders and lists of a layout that are not there."""
    folders = {template.format(split=_folder(layout, split)): None for template in (layout.images, layout.labels)
               for split in NEEDED}  # fmt: skip
    lists = [layout.lists.format(split=split) for split in NEEDED] if layout.lists else []
    return [f"{name}/" for name in folders if not (root / name).is_dir()] + [name for name in lists if not (root / name).is_file()]


def _has_labels(root: Path, layout: Layout) -> bool:
    folder = root / layout.labels.format(split=_folder(layout, "train"))
    return any(_is_label(path) and path.stem.endswith(layout.label_ending) for path in _walk(folder))


def _folder(layout: Layout, split: str) -> str:
    return layout.splits[split] if layout.splits else split


def _splits(root: Path, layout: Layout) -> list[str]:
    """List the splits of a folder that is known to have `train` and `val`."""
    if layout.splits:
        return list(layout.splits)
    if layout.lists:
        return [split for split in LISTED if (root / layout.lists.format(split=split)).is_file()]
    parent, _, pattern = layout.images.rpartition("/")
    before, after = pattern.split("{split}")
    names = [
        folder.name.removeprefix(before).removesuffix(after)
        for folder in (root / parent).iterdir()
        if folder.is_dir() and not folder.name.startswith(".")
    ]
    both = [name for name in names if all((root / part.format(split=name)).is_dir() for part in (layout.images, layout.labels))]
    return sorted(both, key=lambda name: (name != "train", name != "val", name))


def _list(root: Path, layout: Layout, split: str) -> dict[Sample, Pair]:
    """Pair the images of a split with its labels, and number the samples of each clip in natural order."""
    image_root, label_root = (root / part.format(split=_folder(layout, split)) for part in (layout.images, layout.labels))
    images, labels = _by_key(image_root, layout.image_ending), _by_key(label_root, layout.label_ending)
    if layout.lists:
        keys = _read_list(root / layout.lists.format(split=split))
    else:
        keys = list({key for key in images if any(map(is_photograph, images[key]))}
                    | {key for key in labels if any(map(_is_label, labels[key]))})  # fmt: skip
    pairs: dict[Sample, Pair] = {}
    position: dict[str, int] = {}
    for key in sorted(keys, key=lambda key: (_natural(layout.clip(key, split)), _natural(key))):
        clip = layout.clip(key, split)
        index = position[clip] = position.get(clip, -1) + 1
        expected = (image_root / f"{key}{layout.image_ending}", label_root / f"{key}{layout.label_ending}")
        pairs[Sample(key, clip, index)] = _pair(images.get(key, []), labels.get(key, []), *expected)
    return pairs


def _pair(images: list[Path], labels: list[Path], image_name: Path, label_name: Path) -> Pair:
    """Pair the files of one key; other files of that name explain what is missing."""
    found, annotated = [p for p in images if is_photograph(p)], [p for p in labels if _is_label(p)]
    image, label = next(iter(found), None), next(iter(annotated), None)
    for several in (found, annotated):
        if len(several) > 1:
            return Pair(image, label, f"{several[0]}: another file has the same name ({several[1].name}); keep one of them")
    if label is None:
        what = f"{image}: image without a label" if image else f"{image_name}: is named, but there is no such image"
        return Pair(image, label, f"{what}; expected {label_name.name}{_LABEL_SUFFIX} below {label_name.parent}{_unfit(labels)}")
    if image is None:
        wanted = f"expected {image_name.name} below {image_name.parent} as {', '.join(IMAGE_SUFFIXES)}"
        other = f" ({images[0].name} does not serve: convert it)" if images else ""
        return Pair(image, label, f"{label}: label without an image; {wanted}{other}")
    return Pair(image, label)


def _unfit(labels: list[Path]) -> str:
    """Explain why a file that has a label's name does not serve."""
    if not labels:
        return ""
    lossy = labels[0].suffix.lower() in (".jpg", ".jpeg")
    why = "JPEG alters the values; save labels as PNG" if lossy else "labels are read from PNG only; convert it"
    return f" ({labels[0].name} does not serve: {why})"


def _is_label(path: Path) -> bool:
    return path.suffix.lower() == _LABEL_SUFFIX


def _walk(folder: Path) -> Iterator[Path]:
    """List all files below a folder; linked folders are followed once, hidden files and folders left out (`._x.png`)."""
    seen = set()
    for here, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(here)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(here, name) for name in names if not name.startswith("."))


def _by_key(root: Path, ending: str) -> dict[str, list[Path]]:
    """Group files by their path below `root`, without suffix and `ending`; files of another ending are left out."""
    groups: dict[str, list[Path]] = {}
    for path in sorted(_walk(root)):
        if path.stem.endswith(ending):
            key = path.relative_to(root).with_suffix("").as_posix().removesuffix(ending)
            groups.setdefault(key, []).append(path)
    return groups


def _read_list(path: Path) -> list[str]:
    """Read a list of names, a line each; suffixes of images are dropped."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise CorruptFile(path, "not a text file in UTF-8") from None
    names = [str(Path(line).with_suffix("")) if is_photograph(Path(line)) else line for line in lines if line]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidInput(f"{path}: names {twice} more than once")
    return names


def _natural(text: str) -> tuple[tuple[int, str], ...]:
    """Sort key in which `frame_9` comes before `frame_10`."""
    parts = [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]
    return (*parts, (-2, text))

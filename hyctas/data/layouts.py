"""Recognise the folder layouts of labelled images and read them strictly.

Three layouts are known (`LAYOUTS` is their description for users). Opening only lists file names; every complaint about
a single file comes from `FileSource.load`, so that `hyctas.data.verify` can name it and count the others.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.errors import InvalidInput
from hyctas.data.classes_file import read_classes
from hyctas.data.images import read_image, read_label
from hyctas.data.labels import CAMVID, CITYSCAPES, CITYSCAPES_IDS, IGNORE, Labels
from hyctas.data.sample import Sample

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
LAYOUTS = """\
  CamVid      train/ trainannot/ val/ valannot/ (test/ testannot/): jpg or png images, 8-bit PNG labels, 11 = ignored
  Cityscapes  leftImg8bit/{train,val}/<city>/*_leftImg8bit.png and gtFine/{train,val}/<city>/*_gtFine_labelIds.png
  plain       images/{train,val}/ and labels/{train,val}/ with files of equal names, and classes.txt (a class name per
              line, optionally followed by #rrggbb; optionally a line ignore=255) or classes.json"""
_NOT_IN_TABLE = -1


@dataclass(frozen=True)
class Pair:
    """The two files of one sample; None where one is missing, `problem` where listing already shows a fault."""

    image: Path | None
    label: Path | None
    problem: str | None = None


@dataclass(frozen=True, eq=False)
class FileSource:
    """A data set in files."""

    kind: str
    """The layout: `camvid`, `cityscapes` or `plain`."""
    root: Path
    labels: Labels
    train_ids: np.ndarray
    """int16 (256,): the train id of each value found in a label file; -1 for a value that must not occur."""
    files: dict[str, dict[Sample, Pair]]
    """Per split, the samples in order."""

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.root.resolve().name

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that the folder holds."""
        return tuple(self.files)

    def samples(self, split: str) -> tuple[Sample, ...]:
        """List a split by clip and index, samples with a missing or doubled file included: `load` reports those."""
        return tuple(self._split(split))

    def load(self, split: str, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """Read and check one sample; see `hyctas.data.sample.Source.load`."""
        pair = self._split(split).get(sample)
        if pair is None:
            raise InvalidInput(f"{self.root}: split {split!r} has no sample {sample.name!r} in clip {sample.clip!r}")
        if pair.problem is not None or pair.image is None or pair.label is None:
            raise InvalidInput(f"{pair.image or pair.label}: {pair.problem or 'is not one of a pair'}")
        image, raw = read_image(pair.image), read_label(pair.label)
        if image.shape[:2] != raw.shape:
            raise InvalidInput(
                f"{pair.label}: is {raw.shape[0]}x{raw.shape[1]} (HEIGHTxWIDTH), but its image {pair.image.name} is "
                f"{image.shape[0]}x{image.shape[1]}; an image and its label must have one size"
            )
        label = self.train_ids[raw]
        if label.min() < 0:
            values = ", ".join(str(v) for v in np.unique(raw[label < 0]))
            allowed = ", ".join(_ranges(np.flatnonzero(self.train_ids >= 0).tolist()))
            raise InvalidInput(f"{pair.label}: holds the values {values}, which are no class; allowed: {allowed}")
        return image, label.astype(np.uint8)

    def fingerprint(self) -> dict[str, Any]:
        """Identify the data set by layout, folder name, classes, and a digest of all file names and sizes."""
        digest = hashlib.sha256()
        for split, pairs in self.files.items():
            for sample, pair in pairs.items():
                sizes = [p.stat().st_size if p is not None and p.exists() else -1 for p in (pair.image, pair.label)]
                digest.update(f"{split}/{sample.clip}/{sample.name}:{sizes}\n".encode())
        return {
            "kind": self.kind,
            "name": self.name,
            "classes": list(self.labels.names),
            "counts": {split: len(pairs) for split, pairs in self.files.items()},
            "files_sha256": digest.hexdigest(),
        }

    def _split(self, split: str) -> dict[Sample, Pair]:
        if split not in self.files:
            raise InvalidInput(f"{self.root}: no split {split!r}; it has: {', '.join(self.files)}")
        return self.files[split]


def open_folder(root: Path) -> FileSource:
    """List a folder in one of the known layouts.

    Raises:
        InvalidInput: no such folder, no known layout, or a part of the layout is missing.
    """
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise InvalidInput(f"data folder {root} {what}; give a folder in one of these layouts, or `scenes`:\n{LAYOUTS}")
    if (root / "leftImg8bit").is_dir() or (root / "gtFine").is_dir():
        return _cityscapes(root)
    if (root / "images").is_dir() or (root / "labels").is_dir():
        return _plain(root)
    if (root / "trainannot").is_dir() or (root / "valannot").is_dir():
        return _camvid(root)
    found = sorted(p.name + ("/" if p.is_dir() else "") for p in root.iterdir())
    shown = ", ".join(found[:12]) + (f" and {len(found) - 12} more" if len(found) > 12 else "")
    raise InvalidInput(f"{root} is in none of the layouts that are known:\n{LAYOUTS}\nFound there: {shown or 'nothing'}")


def _camvid(root: Path) -> FileSource:
    _need(root, "CamVid", ["train", "trainannot", "val", "valannot"])
    splits = ["train", "val"] + (["test"] if (root / "test").is_dir() and (root / "testannot").is_dir() else [])
    files = {
        split: _listing(
            _by_key(_walk(root / split), IMAGE_SUFFIXES, root / split),
            _by_key(_walk(root / f"{split}annot"), (".png",), root / f"{split}annot"),
            lambda key, split=split: key.rpartition("/")[2].partition("_")[0] if "_" in key else split,  # type: ignore[misc]
            root / f"{split}annot",
        )
        for split in splits
    }
    return FileSource("camvid", root, CAMVID, _table(range(CAMVID.num_classes), [CAMVID.num_classes, IGNORE]), files)


def _cityscapes(root: Path) -> FileSource:
    _need(root, "Cityscapes", [f"{part}/{split}" for part in ("leftImg8bit", "gtFine") for split in ("train", "val")])
    files = {}
    for split in ("train", "val"):
        image_root, label_root = root / "leftImg8bit" / split, root / "gtFine" / split
        images = (p for p in _walk(image_root) if p.stem.endswith("_leftImg8bit"))
        labels = (p for p in _walk(label_root) if p.stem.endswith("_gtFine_labelIds"))
        files[split] = _listing(
            _by_key(images, (".png",), image_root, "_leftImg8bit"),
            _by_key(labels, (".png",), label_root, "_gtFine_labelIds"),
            lambda key: key.rpartition("/")[0] or key.partition("_")[0],
            label_root,
        )
    table = _table(CITYSCAPES_IDS, [*(i for i in range(34) if i not in CITYSCAPES_IDS), IGNORE])
    return FileSource("cityscapes", root, CITYSCAPES, table, files)


def _plain(root: Path) -> FileSource:
    _need(root, "plain", [f"{part}/{split}" for part in ("images", "labels") for split in ("train", "val")])
    labels, ignored = read_classes(root)
    files = {}
    for split in sorted(
        (p.name for p in (root / "images").iterdir() if p.is_dir() and (root / "labels" / p.name).is_dir()),
        key=lambda name: (name != "train", name != "val", name),
    ):
        image_root, label_root = root / "images" / split, root / "labels" / split
        files[split] = _listing(
            _by_key(_walk(image_root), IMAGE_SUFFIXES, image_root),
            _by_key(_walk(label_root), (".png",), label_root),
            lambda key, split=split: key.rpartition("/")[0] or key.rpartition("_")[0] or split,  # type: ignore[misc]
            label_root,
        )
    return FileSource("plain", root, labels, _table(range(labels.num_classes), [ignored]), files)


def _need(root: Path, layout: str, folders: list[str]) -> None:
    missing = [f"{folder}/" for folder in folders if not (root / folder).is_dir()]
    if missing:
        raise InvalidInput(
            f"{root} looks like the {layout} layout but lacks {', '.join(missing)}. The layouts that are known:\n{LAYOUTS}"
        )


def _table(class_values: Iterable[int], ignored: Iterable[int]) -> np.ndarray:
    """Return int16 (256,): train id per file value, `IGNORE` for ignored values, -1 for what must not occur."""
    table = np.full(256, _NOT_IN_TABLE, np.int16)
    table[list(ignored)] = IGNORE
    for train_id, value in enumerate(class_values):
        table[value] = train_id
    return table


def _walk(folder: Path) -> list[Path]:
    """List all files below a folder; linked folders are followed once, hidden files left out (`._x.png`)."""
    found, seen = [], set()
    for here, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(here)) in seen:
            folders.clear()
            continue
        seen.add(real)
        found += [Path(here, name) for name in names if not name.startswith(".")]
    return found


def _by_key(paths: Iterable[Path], suffixes: tuple[str, ...], root: Path, ending: str = "") -> dict[str, list[Path]]:
    """Group files by their path below `root`, without suffix and `ending`; other suffixes are left out."""
    groups: dict[str, list[Path]] = {}
    for path in sorted(paths):
        if path.suffix.lower() in suffixes:
            key = path.relative_to(root).with_suffix("").as_posix().removesuffix(ending)
            groups.setdefault(key, []).append(path)
    return groups


def _listing(
    images: dict[str, list[Path]], labels: dict[str, list[Path]], clip: Callable[[str], str], label_root: Path
) -> dict[Sample, Pair]:
    """Pair images with labels and number the samples of each clip in natural order."""
    pairs: dict[Sample, Pair] = {}
    position: dict[str, int] = {}
    for key in sorted(images.keys() | labels.keys(), key=lambda key: (_natural(clip(key)), _natural(key))):
        found, annotated = images.get(key, []), labels.get(key, [])
        problem = None
        if len(found) > 1 or len(annotated) > 1:
            both = found if len(found) > 1 else annotated
            problem = f"has a rival of the same name ({both[1].name}); keep one of them"
        elif not annotated:
            lossy = [p.name for s in IMAGE_SUFFIXES[1:] if (p := label_root / f"{key}{s}").exists()]
            hint = f" ({lossy[0]} does not serve: JPEG alters the values; save labels as PNG)" if lossy else ""
            problem = f"image without a label; expected one below {label_root}{hint}"
        elif not found:
            problem = "label without an image"
        index = position.get(clip(key), 0)
        position[clip(key)] = index + 1
        pairs[Sample(key, clip(key), index)] = Pair(next(iter(found), None), next(iter(annotated), None), problem)
    return pairs


def _natural(text: str) -> tuple[tuple[int, str], ...]:
    """Sort key in which `frame_9` comes before `frame_10`."""
    parts = [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]
    return (*parts, (-2, text))


def _ranges(values: list[int]) -> list[str]:
    """Shorten sorted integers: [0, 1, 2, 255] gives ["0..2", "255"]."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return [str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs]

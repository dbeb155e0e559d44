"""List what a bundle holds: the sha256 of every file, and the versions, target and size that it was made for."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from export.errors import CorruptFile, InvalidInput
from export.files import read_json, sha256, write_json
from export.target import Target, parse_size

T = TypeVar("T")

FORMAT_VERSION = 1
NAME = "manifest.json"
OUTPUTS = ("native", "logits", "labels", "panoptic")
"""What a network's file can give."""
_SHA256, _MEMBER = re.compile("[0-9a-f]{64}"), re.compile("member-[2-9]")


@dataclass(frozen=True)
class Member:
    """A faster network for the same task, in a folder of the bundle that is a bundle itself."""

    folder: str
    model_sha256: str
    """Of its `model.onnx`."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of `manifest.json`."""

    target: str
    """What the bundle was made for, for instance `onnxruntime-cpu:fp32`."""
    size: tuple[int, int]
    """(H, W) of the model's input."""
    output: str
    """One of `OUTPUTS`."""
    versions: dict[str, str]
    """Of this package, Python, torch, onnx and onnxruntime."""
    files: dict[str, dict[str, Any]]
    """File name -> `sha256`, `size_bytes`; every file of the bundle but the manifest."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What the maker of the bundle wanted to note."""
    members: tuple[Member, ...] = ()
    """Of a ladder: the networks besides the bundle's own, each faster and less accurate than the one before."""

    def __post_init__(self) -> None:
        Target.parse(self.target)
        if self.output not in OUTPUTS:
            raise InvalidInput(f"output {self.output!r} is unknown; write one of {', '.join(OUTPUTS)}")
        if min(self.size) < 1:
            raise InvalidInput(f"size {self.size} is no height and width")
        for name, entry in self.files.items():
            if PurePosixPath(name).name != name or name in ("", ".", "..") or "\\" in name:
                raise InvalidInput(f"it lists {name!r}, which is not a plain file name")
            if not _SHA256.fullmatch(entry["sha256"]) or entry["size_bytes"] < 0:
                raise InvalidInput(f"{name!r} has {entry['size_bytes']} bytes of the sha256 {entry['sha256']!r}")
        for member in self.members:
            if not _MEMBER.fullmatch(member.folder) or not _SHA256.fullmatch(member.model_sha256):
                raise InvalidInput(f"it lists the member {member.folder!r} with a model of sha256 {member.model_sha256!r}")

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "format_version": FORMAT_VERSION,
            "target": self.target,
            "size": f"{self.size[0]}x{self.size[1]}",
            "output": self.output,
            "versions": self.versions,
            "files": self.files,
            "extra": self.extra,
            **({"members": [asdict(member) for member in self.members]} if self.members else {}),
        }


def versions() -> dict[str, str]:
    """Return the versions of the packages that had a part in a bundle, without importing them."""
    found = {"python": platform.python_version()}
    for package in ("hyctas", "torch", "onnx", "onnxruntime", "numpy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def write_manifest(folder: Path, *, target: str, size: tuple[int, int], output: str, extra: dict[str, Any]) -> Manifest:
    """Hash every file in `folder` and write its manifest."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != NAME)
    files = {name: entry_of(folder / name) for name in names}
    manifest = Manifest(target=target, size=size, output=output, versions=versions(), files=files, extra=extra)
    write_json(folder / NAME, manifest.to_json())
    return manifest


def entry_of(path: Path) -> dict[str, Any]:
    """Return what a manifest says of a file."""
    return {"sha256": sha256(path), "size_bytes": path.stat().st_size}


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's manifest without looking at the files it lists.

    Raises:
        CorruptFile: missing, not JSON, of another format version, or fields are wrong.
    """
    path = folder / NAME
    if not path.is_file():
        raise CorruptFile(path, "is missing, so this folder is no bundle or an incomplete copy of one")
    value = read_json(path, FORMAT_VERSION)
    try:
        manifest = Manifest(
            target=_of(str, value["target"]),
            size=parse_size(_of(str, value["size"])),
            output=_of(str, value["output"]),
            versions={name: _of(str, version) for name, version in value["versions"].items()},
            files={name: _entry(entry) for name, entry in value["files"].items()},
            extra=_of(dict, value["extra"]),
            members=tuple(Member(_of(str, m["folder"]), _of(str, m["model_sha256"])) for m in _of(list, value.get("members", []))),
        )
    except (KeyError, TypeError, ValueError, AttributeError, InvalidInput) as error:
        raise CorruptFile(path, f"a field is missing or wrong ({type(error).__name__}: {error})") from None
    return manifest


def _entry(value: Any) -> dict[str, Any]:
    return {"sha256": _of(str, value["sha256"]), "size_bytes": _of(int, value["size_bytes"])}


def _of(kind: type[T], value: Any) -> T:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


def verify(folder: Path, manifest: Manifest) -> None:
    """Compare every listed file with its hash.

    Raises:
        CorruptFile: names the first file that is missing or differs.
    """
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise CorruptFile(path, "is listed in the manifest but missing")
        if path.stat().st_size != entry["size_bytes"] or sha256(path) != entry["sha256"]:
            raise CorruptFile(path, "differs from the manifest (changed or truncated since the bundle was written)")

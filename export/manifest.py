"""List what a bundle holds: the sha256 of every file, and the versions, target and size that it was made for."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from export.errors import CorruptFile
from export.files import read_json, sha256, write_json

FORMAT_VERSION = 1
NAME = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of `manifest.json`."""

    target: str
    """What the bundle was made for, for instance `onnxruntime-cpu:fp32`."""
    size: tuple[int, int]
    """(H, W) of the model's input."""
    output: str
    """`native`, `logits` or `labels`."""
    versions: dict[str, str]
    """Of this package, Python, torch, onnx and onnxruntime."""
    files: dict[str, dict[str, Any]]
    """File name -> `sha256`, `size_bytes`; every file of the bundle but the manifest."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What the maker of the bundle wanted to note."""

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
        height, width = (int(part) for part in value["size"].split("x"))
        manifest = Manifest(
            target=str(value["target"]),
            size=(height, width),
            output=str(value["output"]),
            versions=dict(value["versions"]),
            files={name: _entry(entry) for name, entry in value["files"].items()},
            extra=dict(value["extra"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise CorruptFile(path, f"a field is missing or wrong ({type(error).__name__}: {error})") from None
    for name in manifest.files:
        if PurePosixPath(name).name != name or name in ("", ".", "..") or "\\" in name:
            raise CorruptFile(path, f"lists {name!r}, which is not a plain file name")
    return manifest


def _entry(value: Any) -> dict[str, Any]:
    return {"sha256": str(value["sha256"]), "size_bytes": int(value["size_bytes"])}


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

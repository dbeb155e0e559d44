"""Keep a bundle's manifest right while its TensorRT engine is written, by whatever writes it. No torch, ONNX or Pillow here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from export.bundle.manifest import NAME, Manifest, entry_of, read_manifest
from export.errors import CorruptFile
from export.files import write_json

ENGINE_NAME = "model.engine"
"""The TensorRT engine of a bundle that has one; its manifest (`export.trt.engine_file`) stands beside it."""
ENGINE_FILES = (ENGINE_NAME, f"{ENGINE_NAME}.json")


def bundle_of(path: Path) -> Path | None:
    """Return the bundle that an engine is to be part of, if it is one's."""
    return path.parent if path.name == ENGINE_NAME and (path.parent / NAME).is_file() else None


def without_engine(manifest: Manifest) -> Manifest:
    """Return a bundle's manifest without what it lists of an engine."""
    return replace(manifest, files={name: entry for name, entry in manifest.files.items() if name not in ENGINE_FILES})


def engine_listed(folder: Path) -> bool:
    """Say whether a bundle's manifest lists the engine that is there, with its manifest.

    Raises:
        CorruptFile: the bundle's manifest is damaged.
    """
    files = read_manifest(folder).files
    return all((folder / name).is_file() and files.get(name) == entry_of(folder / name) for name in ENGINE_FILES)


@contextmanager
def engine_replaced(folder: Path) -> Iterator[None]:
    """Let a bundle's engine and its manifest be written inside; after a kill meanwhile the bundle is whole and lists no engine.

    A manifest that is damaged, or somebody else's, stays as it is.
    """
    try:
        manifest = without_engine(read_manifest(folder))
    except CorruptFile:
        yield
        return
    write_json(folder / NAME, manifest.to_json())
    try:
        yield
    finally:  # what failed before it wrote anything leaves the old engine, which is listed again
        if all((folder / name).is_file() for name in ENGINE_FILES):
            engine = {name: entry_of(folder / name) for name in ENGINE_FILES}
            write_json(folder / NAME, replace(manifest, files=manifest.files | engine).to_json())

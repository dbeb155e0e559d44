"""Keep what all parts of one `--out` share: machine, versions, sources, the seed. No torch here."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.gpu_suite.records import FORMAT_VERSION, check_identity
from export.files import read_json, write_json
from export.machine import fingerprint

ROOT = Path(__file__).parents[2]
SOURCES = ("hyctas/attention", "benchmarks/gpu_suite")
PACKAGES = ("torch", "triton", "numpy", "onnx", "tensorrt")


@dataclass(frozen=True)
class Suite:
    """The content of `suite.json`."""

    identity: dict[str, Any]
    """What must be equal for results to stand in one folder."""
    machine: dict[str, Any]
    """Fingerprint of the first run."""
    seed: int
    command: str


def open_suite(folder: Path, device: str, gpu: str, command: str) -> Suite:
    """Return a folder's suite, made now where there is none.

    Args:
        folder: `--out`.
        device: `cuda` or `cpu`.
        gpu: its name.
        command: the command line.

    Raises:
        InvalidInput: the folder holds results of another machine, of other versions or of other sources.
        CorruptFile: its file cannot be read.
    """
    machine = fingerprint()
    drivers = [found["driver"] for found in machine["gpus"]]
    identity = {"device": device, "gpu": gpu, "driver": drivers[0] if drivers else "none",
                **{name: _version(name) for name in ("torch", "triton")}, "sources": sources()}  # fmt: skip
    path = folder / "suite.json"
    if path.exists():
        known = read_suite(folder)
        check_identity(known.identity, identity, path)
        return known
    packages = {name: _version(name) for name in PACKAGES}
    made = Suite(identity, {**machine, "packages": packages}, secrets.randbelow(2**31), command)
    write_json(path, {"format_version": FORMAT_VERSION, **asdict(made)})
    return made


def read_suite(folder: Path) -> Suite:
    """Read what `open_suite` wrote."""
    value = read_json(folder / "suite.json", FORMAT_VERSION)
    return Suite(value["identity"], value["machine"], value["seed"], value["command"])


def sources(folders: Sequence[str] = SOURCES) -> str:
    """Hash the code that is measured, so that results of different kernels never share a folder."""
    digest = hashlib.sha256()
    for folder in folders:
        for file in sorted((ROOT / folder).glob("*.py")):
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"

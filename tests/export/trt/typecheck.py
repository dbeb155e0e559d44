"""Check types against TensorRT's real classes: dump stubs of a release's bindings into the tests' cache, and run mypy with them."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.export.trt.bindings import ROOT, Bindings, Unobtainable, made_once
from tests.export.trt.stub_fixes import fixed

REFUSED = Path(__file__).with_name("refused_code.py")
STUB = "tensorrt_bindings/tensorrt.pyi"
CONFIG = """
[mypy]
follow_imports = silent
show_error_codes = true
check_untyped_defs = true
disallow_untyped_defs = true
[mypy-torch.*,triton.*,onnx.*,onnxruntime.*,onnxscript.*,openvino.*,pycuda.*,cuda.*]
ignore_missing_imports = true
follow_imports = skip
"""
"""Packages that do not matter here are not read: torch alone takes a minute."""
PACKAGE = {
    "tensorrt_bindings/__init__.pyi": """import typing
from .tensorrt import *
from .tensorrt import DataType
__version__: str
def volume(iterable: typing.Iterable[int]) -> int: ...
def nptype(trt_type: DataType) -> typing.Any: ...
""",
    "tensorrt/plugin/__init__.pyi": "import typing\ndef __getattr__(name: str) -> typing.Any: ...\n",
    "tensorrt/__init__.pyi": """from tensorrt_bindings import *
from tensorrt_bindings import __version__ as __version__, volume as volume, nptype as nptype
""",
}
"""The packages around the extension module; what uses `tensorrt.plugin` is run for real by other tests, not typed."""


@dataclass(frozen=True)
class Complaint:
    """One error of mypy's."""

    file: str
    line: int
    text: str


def dumped_stubs(bindings: Bindings) -> Path:
    """Return a folder for MYPYPATH with stubs of `tensorrt`, made once per release and recipe.

    Raises:
        Unobtainable: pybind11-stubgen is not installed, or the cache cannot be written.
    """
    try:
        tool = importlib.metadata.version("pybind11-stubgen")
    except importlib.metadata.PackageNotFoundError:
        raise Unobtainable("pybind11-stubgen is not installed (pip install -e '.[dev]')") from None
    recipe = [tool, str(PACKAGE), Path(__file__).with_name("stub_fixes.py").read_text()]
    key = hashlib.sha256("\0".join(recipe).encode()).hexdigest()[:12]
    return made_once(f"{bindings.folder.name}-stubs-{key}", lambda folder: _dump(bindings, folder))


def complaints(bindings: Bindings, scratch: Path) -> list[Complaint]:
    """Return what mypy says of `export/trt`, of its protocols against the real classes, and of `refused_code.py`.

    Args:
        bindings: the release.
        scratch: a folder for files that are made; those of the protocols' checks are called `fits_*.py`.

    Raises:
        Unobtainable: as `dumped_stubs`.
        RuntimeError: mypy itself failed.
    """
    stubs = dumped_stubs(bindings)
    config = scratch / "mypy.ini"
    config.write_text(CONFIG)
    made = [_protocol_checks(path, scratch) for path in protocol_files()]
    options = [f"--config-file={config}", f"--cache-dir={stubs / 'mypy-cache'}", "--no-pretty", "--no-error-summary"]
    command = [sys.executable, "-m", "mypy", *options, "export/trt", str(REFUSED), *map(str, made), str(stubs / STUB)]
    environment = {**os.environ, "MYPYPATH": os.pathsep.join([str(stubs), str(ROOT)])}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"mypy ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    found = [re.fullmatch(r"(.+?):(\d+): error: (.*)", line) for line in done.stdout.splitlines()]
    return [Complaint(Path(match[1]).name, int(match[2]), match[3]) for match in found if match]


def protocol_files() -> list[Path]:
    """Return our files that say as protocols what is used of TensorRT's objects."""
    return sorted((ROOT / "export/trt").glob("api_*.py"))


def protocols(path: Path) -> set[str]:
    """Return the names of the protocols that a file defines."""
    classes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    return {node.name for node in classes if any("Protocol" in ast.unparse(base) for base in node.bases)}


def real_classes(path: Path) -> dict[str, str]:
    """Return a file's `REAL`: the name of TensorRT's class by that of the protocol it must fit.

    Raises:
        AssertionError: the file has none.
    """
    real = literal(path, "REAL")
    assert real, f"{path} has no REAL, a dict from the names of its protocols to those of TensorRT's classes"
    return dict(real)


def literal(path: Path, name: str) -> Any:
    """Return what a Python file assigns to a name of its top level, without running it; None if it assigns nothing."""
    for node in ast.parse(path.read_text()).body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        if [ast.unparse(target) for target in targets] == [name] and isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
            return ast.literal_eval(node.value)
    return None


def refused_lines(version: str) -> set[int]:
    """Return the lines of `refused_code.py` that say that a release must refuse them."""
    marks = [line.partition("# refused:")[2].split() for line in REFUSED.read_text().splitlines()]
    return {number for number, versions in enumerate(marks, 1) if version in versions}


def _protocol_checks(path: Path, scratch: Path) -> Path:
    """Write a file in which mypy must find every real class to fit its protocol."""
    lines = ["import tensorrt as trt", f"from export.trt import {path.stem} as ours"]
    for number, (protocol, real) in enumerate(real_classes(path).items()):
        lines.append(f"def fits_{number}(real: trt.{real}) -> ours.{protocol}: return real")
    made = scratch / f"fits_{path.stem}.py"
    made.write_text("\n".join(lines) + "\n")
    return made


def _dump(bindings: Bindings, folder: Path) -> None:
    raw = folder / "raw"
    _run([sys.executable, "-m", "pybind11_stubgen", "tensorrt_bindings.tensorrt", "-o", str(raw), "--ignore-all-errors"], bindings)
    for name, text in PACKAGE.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / STUB).write_text(fixed((raw / STUB).read_text()))


def _run(command: list[str], bindings: Bindings) -> None:
    done = subprocess.run(command, env=bindings.environment(), capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")

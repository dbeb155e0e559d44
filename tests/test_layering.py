"""Hold the import directions: export <- latency <- hyctas <- benchmarks, and what must import without torch or without extras."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("export", "latency", "hyctas", "benchmarks")
"""Each may import itself and what stands before it."""

TORCH_FREE = """
    hyctas.training.config hyctas.arch.genotype hyctas.plan hyctas.arch.operators hyctas.space hyctas.spaces.space_file
    hyctas.artifacts.runs hyctas.artifacts.choice hyctas.spaces.grid hyctas.spaces.members export.codec hyctas.arch.node
    hyctas.arch.lowering hyctas.arch.heads hyctas.spaces.slots hyctas.spaces.search_space hyctas.presets hyctas.report.diagram
    hyctas.data export export.errors export.target export.files export.bundle.bundle export.bundle.manifest export.swap
    export.bundle.imaging export.machine export.runtime export.runtimes export.bench_report
    latency latency.table latency.journal latency.profiling latency.predictor
""".split()
"""Besides these, every module of hyctas/cli, and every module that says so itself, is held to it."""
CLAIM = "No torch here"

BARE = ("arch", "nn", "plan", "spaces", "network", "attention", "training", "pretrained")
"""Parts of hyctas that run from a bare checkout, as do export, latency and (where it exists) benchmarks.gpu_suite."""
NOT_NEEDED = ("tyro", "rich", "pymoo", "sklearn", "matplotlib", "timm", "cv2")

PROBE = """
import importlib, importlib.abc, json, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

BLOCKED, names = json.loads(sys.argv[1])
sys.meta_path.insert(0, Blocked())
failed = {}
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        failed[name] = str(error)
print(json.dumps(failed))
"""


def modules(folder: str) -> dict[str, Path]:
    """Map the names of a package's modules to their files."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = {name: path for layer in LAYERS for name, path in modules(layer).items()}


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, module) of every import, lazy ones and importlib.import_module("...") included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or "")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            literal = node.args[0] if node.args else None
            if isinstance(literal, ast.Constant):
                yield node.lineno, str(literal.value)


def failures(blocked: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Import modules in a fresh process where some packages cannot be found; return what failed, by module."""
    command = [sys.executable, "-c", PROBE, json.dumps([list(blocked), list(names)])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_no_arrow_points_back() -> None:
    wrong = []
    for name, path in MODULES.items():
        layer = LAYERS.index(name.partition(".")[0])
        for line, target in imported(ast.parse(path.read_text())):
            package = target.partition(".")[0]
            backwards = package in LAYERS and LAYERS.index(package) > layer
            if backwards or package == "tests" or target.startswith("."):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_the_library_imports_no_command() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {target}"
        for name, path in MODULES.items()
        if not name.startswith(("hyctas.cli", "benchmarks"))
        for line, target in imported(ast.parse(path.read_text()))
        if target.startswith("hyctas.cli")
    ]
    assert not wrong, "\n".join(wrong)


def test_every_folder_is_a_package() -> None:
    lacking = {path.parent for path in MODULES.values() if not (path.parent / "__init__.py").exists()}
    assert not lacking, "a folder without __init__.py is left out of the wheel"


def test_torch_free_modules() -> None:
    claiming = [name for name, path in MODULES.items() if CLAIM in (ast.get_docstring(ast.parse(path.read_text())) or "")]
    commands = [name for name in MODULES if name.startswith("hyctas.cli")]
    assert len(claiming) >= 10, f'modules say "{CLAIM}" in their docstring'
    assert failures(["torch"], sorted({*TORCH_FREE, *claiming, *commands})) == {}


@pytest.mark.parametrize("blocked", [NOT_NEEDED, ("onnxruntime",)], ids="-".join)
def test_what_runs_from_a_bare_checkout(blocked: tuple[str, ...]) -> None:
    names = [name for name in MODULES if name.startswith(("export", "latency", "benchmarks.gpu_suite"))]
    names += [name for name in MODULES if name.startswith("hyctas.") and name.split(".")[1] in BARE]
    assert failures(blocked, names) == {}

"""Hold the import directions: export <- latency <- hyctas <- benchmarks, without circles; and what must import without torch.

Where a file's name tells what is in it, too: no two files share one.
"""

from __future__ import annotations

import ast
import collections
import dataclasses
import functools
import graphlib
import importlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

from export.ranges import Settings

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
    hyctas.commands.bench hyctas.commands.doctor hyctas.commands.predict
""".split()
"""Besides these, every module that says so itself is held to it. The commands among them work without torch."""
HEAVY = ("torch", "numpy", "onnx", "onnxruntime", "pymoo", "sklearn", "matplotlib", "PIL")
"""What no module of hyctas/cli imports: --help answers at once."""
PROGRAMS = ("export.trt.run", "export.trt.from_onnx", "hyctas.attention.triton.gate")
"""Modules with a command line of their own, which speak of its flags."""
ONE_NAME = {"__init__.py", "__main__.py", "conftest.py", "README.md", "py.typed"}
"""Names that say what a file is for its folder: several may have them."""
COMMANDS = ("hyctas.cli", "hyctas.commands")
TORCH_LATER = {f"hyctas.commands.{name}" for name in ("bench_kit", "model_files", "run_report")}
"""What they use of torch they import inside functions, so that the commands above do without it."""
CLAIM = "No torch here"

BARE = ("arch", "nn", "plan", "spaces", "network", "attention", "training", "pretrained")
"""Parts of hyctas that run from a bare checkout, as do export, latency and (where it exists) benchmarks.gpu_suite."""
NOT_NEEDED = ("tyro", "rich", "pymoo", "sklearn", "matplotlib", "timm", "cv2", "onnxruntime")

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


@functools.cache
def parsed(path: Path) -> ast.Module:
    """Parse a module, for all tests once."""
    return ast.parse(path.read_text())


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


def imported_modules(name: str) -> set[str]:
    """Return the modules of the project that a module imports when it is used, inside functions too; not those for types alone."""
    tree = parsed(MODULES[name])
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for statement in block.body
        for node in ast.walk(statement)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom):
            found |= {
                f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in MODULES else str(node.module)
                for alias in node.names
            }
        else:
            found |= (
                {target for _, target in imported(ast.Module([node], []))} if isinstance(node, (ast.Import, ast.Call)) else set()
            )
    return {target for target in found if target in MODULES} - {name}


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
        for line, target in imported(parsed(path)):
            package = target.partition(".")[0]
            backwards = package in LAYERS and LAYERS.index(package) > layer
            if backwards or package == "tests" or target.startswith("."):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_the_library_imports_no_command() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {target}"
        for name, path in MODULES.items()
        if not name.startswith((*COMMANDS, "benchmarks"))
        for line, target in imported(parsed(path))
        if target.startswith(COMMANDS)
    ]
    assert not wrong, "\n".join(wrong)


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of every string of a module, docstrings and the parts of f-strings included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def test_libraries_name_no_command_and_no_flag() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    jobs = {
        kind
        for name in scripts.values()
        for kind in vars(importlib.import_module(name.partition(":")[0])).values()
        if isinstance(kind, type) and issubclass(kind, Settings) and dataclasses.is_dataclass(kind)
    }
    flags = {field.name.replace("_", "-") for job in jobs for field in dataclasses.fields(job)}
    named = re.compile(rf"(?<![\w/-])({'|'.join(scripts)}|--({'|'.join(flags | {'config'})}))(?![\w-])")
    wrong = [
        f"{path.relative_to(ROOT)}:{line} says {found[0]}; raise data, which hyctas/cli/advice.py puts into words"
        for name, path in MODULES.items()
        if not name.startswith((*COMMANDS, "benchmarks")) and name not in PROGRAMS
        for line, text in texts(parsed(path))
        if (found := named.search(text))
    ]
    assert not wrong, "\n".join(wrong)


def test_commands_import_at_the_top() -> None:
    inside = {
        name
        for name, path in MODULES.items()
        if name.startswith("hyctas.commands")
        for function in ast.walk(parsed(path))
        if isinstance(function, ast.FunctionDef) and list(imported(ast.Module(function.body, [])))
    }
    assert inside == TORCH_LATER


def test_no_import_circles() -> None:
    order = graphlib.TopologicalSorter({name: imported_modules(name) for name in MODULES})
    order.prepare()  # CycleError names the modules of a circle


def test_no_two_files_share_a_name() -> None:
    files = [path for folder in (*LAYERS, "tests") for path in (ROOT / folder).rglob("*") if path.is_file()]
    places = collections.defaultdict(list)
    for path in files:
        halves = path.parent.name == "commands" and (path.parents[1] / "cli" / path.name).exists()
        if not ({"__pycache__", "results"} & {*path.parts} or halves):
            places[path.name].append(str(path.relative_to(ROOT)))
    shared = {name: found for name, found in places.items() if len(found) > 1 and name not in ONE_NAME}
    assert not shared, "a name says what is in a file; two files of one name are told apart by their folders alone"


def test_every_folder_is_a_package() -> None:
    lacking = {path.parent for path in MODULES.values() if not (path.parent / "__init__.py").exists()}
    assert not lacking, "a folder without __init__.py is left out of the wheel"


def test_torch_free_modules() -> None:
    says = {name for name, path in MODULES.items() if CLAIM in (ast.get_docstring(parsed(path)) or "")}
    claiming = [name for name in MODULES if any(name == one or name.startswith(f"{one}.") for one in says)]
    assert len(claiming) >= 100, f'packages and modules say "{CLAIM}" in their docstring'
    assert failures(["torch"], sorted({*TORCH_FREE, *claiming})) == {}


def test_the_command_line_imports_nothing_heavy() -> None:
    assert failures(HEAVY, [name for name in MODULES if name.startswith("hyctas.cli")]) == {}


def test_ray_is_imported_only_to_open_a_cluster() -> None:
    found = {name for name, path in MODULES.items() for _, target in imported(parsed(path)) if target.partition(".")[0] == "ray"}
    assert found == {"hyctas.ray_cluster"}
    assert failures(["ray"], ["hyctas.commands.search", "hyctas.commands.profile"]) == {}


def test_what_runs_from_a_bare_checkout() -> None:
    names = [name for name in MODULES if name.startswith(("export", "latency", "benchmarks.gpu_suite"))]
    names += [name for name in MODULES if name.startswith("hyctas.") and name.split(".")[1] in BARE]
    assert failures(NOT_NEEDED, names) == {}

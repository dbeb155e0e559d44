"""Check that every set of packages in docs/tensorrt.md resolves, with this project and PyTorch, for each Python and machine there.

    pip install uv
    python -m benchmarks.check_install_sets

Only metadata is read, and nothing is installed: uv's resolver takes the few kB of a wheel that describe it. (Where a package index
answers no partial requests, uv would download whole wheels; then do not run this.) Two things cannot be read from the index:

* `tensorrt-cu*-libs` is a stub there; the wheel with the libraries lies on an index of NVIDIA's own, and pip fetches it from there
  while it installs the stub. The stub repeats the wheel's metadata: 10.16.1 and 11.4.0 ask for nothing. Since resolvers may build
  a stub to learn that, it is written here, beside what 10.14 asked for, in case that returns (`LIBS_ASK`).
* PyTorch builds for CUDA 12 lie on PyTorch's own index. What they ask for is written here as in its build matrix (`TORCH_CUDA12`).

The reverse is checked as well: beside the PyTorch that `pip install torch` takes, which is for CUDA 13, a set for CUDA 12 must not
resolve, or the document would warn for nothing.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs/tensorrt.md"
LIBS_ASK = {"13": ("", "cuda-toolkit[cudart]>=13,<14"), "12": ("", "cuda-toolkit[cudart]>=12,<13")}
"""By CUDA version, what the libraries' wheel asks for."""
_PARTS = "nvrtc,cudart,cupti,cufft,curand,cusolver,cusparse,cublas,cufile,nvjitlink,nvtx"
TORCH_CUDA12 = {
    f"torch for CUDA {version}": (f"cuda-toolkit[{_PARTS}]=={version}", "cuda-bindings>=12.9.4,<13")
    for version in ("12.6.3", "12.9.1")
}
"""What PyTorch's builds for CUDA 12 ask for besides what every build does."""
TORCH_CUDA13 = {"torch 2.11": ("torch==2.11.*",), "newest torch": ("torch>=2.11",)}
PLATFORMS = {"x86-64": "x86_64-manylinux_2_28", "aarch64": "aarch64-manylinux_2_35"}
SHOWN = re.compile(r"^(tensorrt-cu\d\d|cuda-bindings|nvidia-cuda-runtime(?:-cu\d\d)?|torch|onnxruntime-gpu|numpy)==(\S+)", re.M)


@dataclass(frozen=True)
class InstallSet:
    """One row of the document's table."""

    cuda: str
    """Major version."""
    label: str
    requirements: tuple[str, ...]
    pythons: tuple[str, ...]
    machines: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """What is resolved at once."""

    title: str
    requirements: tuple[str, ...]
    python: str
    machine: str
    libs: str
    """The package with TensorRT's libraries."""
    libs_ask: str
    """What it asks for."""
    resolves: bool = True
    """What must come out."""


def main() -> None:
    """Print a verdict per row, Python, machine and PyTorch; exit 1 where one is not as documented, 3 without uv."""
    if importlib.util.find_spec("uv") is None:
        print("error: the resolver is not installed: pip install uv", file=sys.stderr)
        sys.exit(3)
    good = [checked(case) for row in install_sets(DOCUMENT.read_text()) for case in cases(row, base_requirements())]
    print(f"{sum(good)} of {len(good)} as documented")
    sys.exit(0 if good and all(good) else 1)


def install_sets(document: str) -> list[InstallSet]:
    """Read the rows with an install command from the table of the section Install: CUDA, packages, Python, machines, ..."""
    section = document.partition("# Install\n")[2].partition("\n#")[0]
    found = []
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        command = re.search(r"`pip install ([^`]+)`", cells[1]) if line.startswith("|") and len(cells) >= 4 else None
        if command:
            packages, machines = tuple(shlex.split(command[1])), tuple(re.split(r",\s*", cells[3]))
            found.append(InstallSet(cells[0][:2], cells[0], packages, _pythons(cells[2]), machines))
    return found


def base_requirements() -> tuple[str, ...]:
    """Return what this project needs, without torch, which is added for each CUDA version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return tuple(line for line in project["dependencies"] if not re.match(r"torch\b", line))


def cases(row: InstallSet, base: Sequence[str]) -> Iterator[Case]:
    """Yield what a row promises, and for CUDA 12 what it warns of."""
    wanted = (*row.requirements, *base, *(["onnxruntime-gpu[cuda,cudnn]"] if "ONNX Runtime" in row.label else []))
    libs = f"tensorrt-cu{row.cuda}-libs"
    for python in row.pythons:
        for machine in row.machines:
            for name, torch in (TORCH_CUDA13 if row.cuda == "13" else TORCH_CUDA12).items():
                for asked in LIBS_ASK[row.cuda]:
                    yield Case(f"CUDA {row.label}; {name}", (*wanted, *torch), python, machine, libs, asked)
    if row.cuda == "12":
        title, torch = f"CUDA {row.label}; torch for CUDA 13, which must not fit", TORCH_CUDA13["newest torch"]
        yield Case(title, (*wanted, *torch), row.pythons[0], row.machines[0], libs, LIBS_ASK["12"][0], resolves=False)


def checked(case: Case) -> bool:
    """Resolve a case, and print what came out."""
    versions, said = resolve(case)
    good = bool(versions) if case.resolves else "No solution found" in said  # and not, for instance, a network that is away
    asked = f"libraries ask for {case.libs_ask or 'nothing'}"
    print(f"{'ok' if good else 'FAILED'}: {case.title}; Python {case.python}, {case.machine}, {asked}")
    print(f"    {', '.join(f'{name} {version}' for name, version in versions.items()) or said}", flush=True)
    return good


def resolve(case: Case) -> tuple[dict[str, str], str]:
    """Ask uv for versions that fit together; return those worth showing, or none and its reason."""
    with tempfile.TemporaryDirectory(prefix="hyctas-sets-") as folder:
        config = Path(folder, "uv.toml")
        # so told, uv does not build the stub to learn it
        asked = f'"{case.libs_ask}"' if case.libs_ask else ""
        config.write_text(f'[[dependency-metadata]]\nname = "{case.libs}"\nrequires-dist = [{asked}]\n')
        command = [sys.executable, "-m", "uv", "pip", "compile", "--config-file", str(config), "--no-header", "--no-annotate"]
        command += ["--no-progress", "--no-python-downloads", "--python-version", case.python]
        command += ["--python-platform", PLATFORMS[case.machine], "-"]
        done = subprocess.run(command, input="\n".join(case.requirements), capture_output=True, text=True)
    if done.returncode == 0:
        return dict(SHOWN.findall(done.stdout)), ""
    return {}, " ".join(line.strip() for line in done.stderr.splitlines() if not line.startswith("warning"))[:500]


def _pythons(cell: str) -> tuple[str, ...]:
    first, last = re.findall(r"3\.(\d+)", cell)
    return tuple(f"3.{minor}" for minor in range(int(first), int(last) + 1))


if __name__ == "__main__":
    main()

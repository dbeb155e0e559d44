"""Say what can run on this machine, what is missing, and how to get it."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from export.machine import fingerprint, load_average
from export.platform import platform_kind
from export.runtimes import PREFERRED, available_targets
from hyctas.cli.streams import printable

if TYPE_CHECKING:
    from hyctas.cli.doctor import DoctorJob

FORMAT_VERSION = 1
PACKAGES = (
    "hyctas", "torch", "numpy", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt",
    "tensorrt-rtx-cu13-bindings", "opencv-python-headless", "safetensors",
    "pillow", "pymoo", "matplotlib", "rich", "tyro", "ray",
)  # fmt: skip
OPTIONAL = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx-cu13-bindings", "opencv-python-headless", "ray")
"""Packages that only some targets, videos and cameras, or clusters need; those say so themselves."""


def examine(job: DoctorJob) -> None:
    """Print the findings; a missing thing is a finding, not a failure."""
    found = findings()
    if job.json:
        print(json.dumps(found, indent=1))
    else:
        _show(found)


def findings() -> dict[str, Any]:
    """Return everything that `hyctas-doctor` knows, as plain values."""
    machine, kind = fingerprint(), platform_kind()
    states = available_targets()
    able = {state.target for state in states if state.ok}
    default = next((name for name in PREFERRED if name in able), None)
    found = {
        "format_version": FORMAT_VERSION,
        "default_target": default,
        "targets": [state.to_json() for state in states],
        "machine": machine | _memory() | {
            "platform": kind, "jetson": kind == "jetson", "load": load_average(),
            "disk_free_gib": round(shutil.disk_usage(".").free / 2**30, 1),
        },
        "virtual_environment": in_virtual_environment(),
        "versions": versions(),
    }  # fmt: skip
    return found | {"advice": advice(found)}


def advice(found: dict[str, Any]) -> list[str]:
    """Return what the user should change, most important first."""
    machine, lines = found["machine"], list[str]()
    missing = [name for name, version in found["versions"].items() if version is None and name not in (*OPTIONAL, "hyctas")]
    if missing:
        lines.append(f"required packages are missing: pip install {' '.join(missing)}")
    if found["default_target"] is None:
        lines.append("no target can run: install one of those above")
    if not found["virtual_environment"]:
        lines.append("no virtual environment is active; the packages export and latency have common names, so make one: "
                     "python3 -m venv .venv")  # fmt: skip
    if machine["memory_available_gib"] is not None and machine["memory_available_gib"] < 2:
        lines.append(f"only {machine['memory_available_gib']} GiB of memory are free; training wants 2 or more")
    if machine["disk_free_gib"] < 2:
        lines.append(f"only {machine['disk_free_gib']} GiB are free on this disk; a run wants 2 or more")
    if machine["load"] is not None and machine["load"] > 0.5 * machine["usable_cores"]:
        lines.append(f"the load average is {machine['load']} on {machine['usable_cores']} cores: wait before you measure")
    return lines


def in_virtual_environment() -> bool:
    """Say whether Python runs in a venv or a conda environment."""
    return sys.prefix != sys.base_prefix or (Path(sys.prefix) / "conda-meta").is_dir()


def versions() -> dict[str, str | None]:
    """Return the installed version of every package that matters, None where it is missing; imports none of them."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _memory(meminfo: Path = Path("/proc/meminfo")) -> dict[str, float | None]:
    """Read total and available memory in GiB; None where the system does not tell."""
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        values = [int(lines[key].split()[0]) for key in ("MemTotal", "MemAvailable")]
    except (OSError, KeyError, ValueError, IndexError):
        return {"memory_gib": None, "memory_available_gib": None}
    return {"memory_gib": round(values[0] / 2**20, 1), "memory_available_gib": round(values[1] / 2**20, 1)}


def _show(found: dict[str, Any]) -> None:
    machine, versions = found["machine"], found["versions"]
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    gpus = ", ".join(f"{gpu['name']} (driver {gpu['driver']}, {gpu['memory']})" for gpu in machine["gpus"])
    installed = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    missing = ", ".join(name for name, version in versions.items() if not version)
    facts = {
        "Machine": f"{machine['cpu']}, {machine['usable_cores']} of {machine['cores']} cores, {machine['architecture']}"
        + (", NVIDIA Jetson" if machine["jetson"] else ""),
        "Memory": f"{_gib(machine['memory_available_gib'])} of {_gib(machine['memory_gib'])} free",
        "Disk": f"{machine['disk_free_gib']} GiB free here",
        "GPU": gpus or "none (nvidia-smi finds no NVIDIA GPU)",
        "System": f"{machine['os']}, Python {machine['python']}, virtual environment "
        + ("active" if found["virtual_environment"] else "not active"),
        "Installed": installed,
        "Not installed": missing or "nothing is missing",
    }
    grid = Table.grid(padding=(0, 2))
    for name, text in facts.items():
        grid.add_row(f"[bold]{name}[/]", _safe(text))
    console.print(grid)
    console.print()
    for able, group in itertools.groupby(_grouped(found["targets"]), key=lambda item: item[1]["ok"]):
        for names, state in group:
            if able:
                console.print(f"[green]✓[/] [bold]{names}[/] available")
            else:
                console.print(f"[red]✗[/] [bold]{names}[/] unavailable because {_safe(state['reason'])}")
                line = f"[dim]→[/] {_safe(state['install'])}"
                console.print(Padding(line, (0, 0, 0, 4)) if console.is_terminal else f"    {line}")
    console.print()
    default = found["default_target"]
    console.print(f"Without --target, commands take [bold]{default}[/]." if default else "No target can run on this machine.")
    for line in found["advice"]:
        console.print(f"[yellow]![/] {_safe(line)}")


def _safe(text: str) -> str:
    """Write text of files and of the environment so that a terminal and rich show it as it is."""
    return escape(printable(text))


def _grouped(targets: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Join the precisions of a runtime that share one finding, those available first."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for state in sorted(targets, key=lambda state: not state["ok"]):
        runtime = state["target"].partition(":")[0]
        groups.setdefault((runtime, state["ok"], state["reason"], state["install"]), []).append(state)
    return [
        (f"{runtime}:{'|'.join(state['target'].partition(':')[2] for state in group)}", group[0])
        for (runtime, *_), group in groups.items()
    ]


def _gib(value: float | None) -> str:
    return "unknown" if value is None else f"{value} GiB"

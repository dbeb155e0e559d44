"""Describe this machine without naming it: no host name, user or path leaves this module."""

from __future__ import annotations

import functools
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

_EXTENSIONS = "avx2 avx512f avx512_bf16 avx512_vnni avx_vnni amx_bf16 amx_int8 asimd asimddp asimdhp bf16 i8mm sve sve2".split()
"""The instruction sets that decide which kernels a CPU runtime picks."""


def hardware() -> dict[str, Any]:
    """Return what decides the speed of a runtime: CPU model, instruction sets, cores, NVIDIA GPUs with their driver."""
    model, flags = _cpu()
    return {
        "cpu": model,
        "instruction_sets": [name for name in _EXTENSIONS if name in flags],
        "cores": os.cpu_count() or 1,
        "usable_cores": usable_cores(),
        "architecture": platform.machine(),
        "gpus": gpus(),
    }


@functools.cache
def instruction_sets() -> frozenset[str]:
    """Return those of `_EXTENSIONS` that this CPU has; none where that cannot be told."""
    return frozenset(_EXTENSIONS) & _cpu()[1]


def fingerprint() -> dict[str, Any]:
    """Return the hardware, operating system and Python; equal on every call."""
    system = {"os": _os(), "kernel": f"{platform.system()} {platform.release()}", "python": platform.python_version()}
    return {**hardware(), **system}


def usable_cores() -> int:
    """Count the cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_average() -> float | None:
    """Return the one-minute load average, or None where the system has none."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def resident_mib(field: str, status: Path = Path("/proc/self/status")) -> float | None:
    """Return this process's resident memory in MiB, now (`VmRSS`) or at its peak (`VmHWM`); None where the system does not say."""
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB$", status.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) / 1024 if found else None


def gpus() -> list[dict[str, str]]:
    """List NVIDIA GPUs with name, driver and memory as `nvidia-smi` gives them; a Jetson by its board."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return _jetson()
    query = [tool, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[part.strip() for part in line.split(",")] for line in answer.splitlines()]
    return [dict(zip(("name", "driver", "memory"), row, strict=True)) for row in rows if len(row) == 3]


def _jetson(board: Path = Path("/proc/device-tree/model"), release: Path = Path("/etc/nv_tegra_release")) -> list[dict[str, str]]:
    """Describe a Jetson board, whose older releases have no `nvidia-smi`."""
    try:
        name = board.read_text(errors="replace").strip("\0\n ")
        driver = release.read_text(errors="replace").splitlines()[0].strip("# ")
    except (OSError, IndexError):
        return []
    return [{"name": name, "driver": driver, "memory": "shared"}]


def _cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, set[str]]:
    try:
        text = cpuinfo.read_text(errors="replace")
    except OSError:
        text = ""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    # x86 says "model name" and "flags", Arm boards "Features" and, at best, the board under "Model" or "Hardware"
    names = (fields.get(key) for key in ("model name", "model", "hardware"))
    model = next((name for name in names if name and not name.isdecimal()), "") or platform.processor()
    return model or platform.machine(), set((fields.get("flags") or fields.get("features") or "").split())


def _os() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        return platform.system()

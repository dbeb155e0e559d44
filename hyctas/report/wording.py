"""Write numbers, machines and commands the same way everywhere in a report."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from hyctas.report.document import percent as percent


def ms(value: float | None) -> str:
    """Write milliseconds with three significant digits at least."""
    if value is None:
        return "not measured"
    return f"{value:.1f} ms" if value >= 100 else f"{value:.2f} ms" if value >= 1 else f"{value:.3f} ms"


def fps(value: float) -> str:
    """Write frames per second."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def count(value: float) -> str:
    """Write a large number in thousands, millions or thousands of millions."""
    for factor, unit in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if value >= factor:
            return f"{value / factor:#.3g} {unit}".replace(". ", " ")
    return f"{value:g}"


def signed(share: float | None) -> str:
    """Write a relative error."""
    if share is None:
        return ""
    return "0.0 %" if abs(share) < 0.0005 else f"{100 * share:+.1f} %".replace("-", "−")


def plural(number: int, noun: str) -> str:
    """Write a number with its noun."""
    ending = "" if number == 1 else "es" if noun.endswith("ch") else "s"
    return f"{number:,} {noun}{ending}"


def size_of(size_bytes: int) -> str:
    """Write the size of a file."""
    for factor, unit in ((1e6, "MB"), (1e3, "kB")):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes} B"


def device(machine: Mapping[str, Any], target: str) -> str:
    """Name what a target ran on: the GPU, or the CPU with its cores."""
    gpus = [str(gpu.get("name", "GPU")) for gpu in machine.get("gpus", ()) if isinstance(gpu, Mapping)]
    if gpus and "-cpu" not in target:
        return gpus[0]
    return str(machine.get("cpu", "an unknown CPU"))


def machine(values: Mapping[str, Any]) -> str:
    """Describe a machine in one line."""
    gpus = [f"{gpu.get('name')} (driver {gpu.get('driver')})" for gpu in values.get("gpus", ()) if isinstance(gpu, Mapping)]
    parts = [
        str(values.get("cpu", "unknown CPU")),
        f"{values.get('usable_cores', '?')} of {values.get('cores', '?')} cores",
        *gpus,
        *(str(values[name]) for name in ("os", "kernel", "architecture") if name in values),
    ]
    return ", ".join(parts)


def took(started: str, finished: str | None) -> str:
    """Write how long a command took, from two UTC times; empty where that is unknown."""
    try:
        form = "%Y-%m-%dT%H:%M:%SZ"
        span = datetime.datetime.strptime(finished or "", form) - datetime.datetime.strptime(started, form)
    except ValueError:
        return ""
    minutes, seconds = divmod(int(span.total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"

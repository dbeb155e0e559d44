"""Keep what `make fuzz` and `make torture` measured, and write benchmarks/results/cpu/reliability.md from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def record(part: str, result: dict[str, Any], folder: Path = Path("benchmarks/results/cpu")) -> None:
    """Keep the result of a part, "fuzz" or "torture"."""

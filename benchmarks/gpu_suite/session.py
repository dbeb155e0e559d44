"""What a part gets to work with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu_suite.place import Place
from benchmarks.gpu_suite.records import Records


@dataclass(frozen=True, kw_only=True)
class Session:
    """One part in one process."""

    place: Place
    records: Records
    folder: Path
    """`--out`."""
    seed: int
    """Drawn anew for every folder."""
    seconds: float
    """The part's budget."""
    command: str
    """The suite's command line."""
    workers: int | None = None
    """Compiling processes; None: as many as cores allow."""

"""Hold what was measured against what was aimed at. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Record = Mapping[str, Any]
RIVALS = ("naive", "flash", "efficient", "cudnn", "math", "compiled", "drop_in")
OURS = {"forward": ("ours",), "backward": ("ours",), "block": ("ours", "steps")}
"""Ways of ours that the dispatch can choose, by step."""
FLOOR = {64: 0.5, 128: 0.6, 256: 0.6, 512: 0.6}
"""Least share of the floor of arithmetic, by C, from FLOOR_FROM positions on."""
FLOOR_FROM, POSITIONS_FROM = 8192, 2048
MEMORY, BACKWARD = 1.2, 2.7
"""Most peak memory over inputs and outputs; most time of a backward pass over a forward pass."""


@dataclass(frozen=True)
class Goal:
    """One aim at one shape."""

    aim: str
    where: str
    found: str
    met: bool


def best(record: Record, names: Iterable[str]) -> tuple[str, float] | None:
    """Return the fastest of some contenders with its median, or None where none was timed."""
    times = {name: record["times"][name]["median_ms"] for name in names if name in record["times"]}
    return min(times.items(), key=lambda pair: pair[1]) if times else None


def goals(records: Iterable[Record]) -> list[Goal]:
    """Return every goal that these records of the part `attention` can decide."""
    return [goal for record in records if "times" in record for goal in _of(record)]


def _of(record: Record) -> Iterable[Goal]:
    step, where = record["step"], f"{record['dtype']} C={record['C']} N={record['N']}"
    ours, other = best(record, OURS[step]), best(record, RIVALS)
    if ours is not None and other is not None and record["N"] >= POSITIONS_FROM:
        ratio, than = other[1] / ours[1], "what torch.compile makes" if record["id"].startswith("compiled") else "all of PyTorch"
        yield Goal(f"{step}: faster than {than}", where, f"{ratio:.2f}x, {other[0]}", ratio > 1)
    share, wanted = record.get("floor_share"), FLOOR.get(record["C"])
    if share is not None and wanted is not None and record["N"] >= FLOOR_FROM:
        yield Goal(f"{step}: at least {wanted:.0%} of the floor", where, f"{share:.0%}", share >= wanted)
    memory: float | None = record.get("peak_over_io")
    if memory is not None:
        yield Goal(f"{step}: at most {MEMORY}x inputs and outputs in memory", where, f"{memory:.2f}x", memory <= MEMORY)
    times: float | None = record.get("backward_over_forward")
    if times is not None:
        yield Goal(f"backward pass: at most {BACKWARD}x the forward pass", where, f"{times:.2f}x", times <= BACKWARD)

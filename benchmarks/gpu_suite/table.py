"""Write what was fastest as the table that the dispatch reads (`hyctas.attention.measured`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu_suite.session import Session
from hyctas.attention.measured import Entry, slug, write_table
from hyctas.attention.tiles import Tile

STEPS = {"forward": ("ours", "drop_in"), "backward": ("ours_backward", "drop_in_backward"), "block": ("ours", "steps")}
"""The two ways that the dispatch chooses between: our kernels, and PyTorch's memory-efficient attention (a block's steps)."""


def path(session: Session) -> Path:
    """Return where the table of this GPU lies."""
    return session.folder / "tables" / f"{slug(session.place.name)}.json"


def write(session: Session) -> None:
    """Write the table anew, with every comparison that came out so far."""
    records = (record for record in session.records.records.values() if record["state"] == "ok")
    entries = [entry for record in records if (entry := entry_of(record)) is not None]
    if entries:
        provenance = {**session.records.identity, "command": session.command}
        write_table(path(session), session.place.name, entries, provenance)


def entry_of(record: Mapping[str, Any]) -> Entry | None:
    """Return the entry that a comparison gives, or None where it is no comparison of ways that the dispatch has."""
    if record.get("step") not in STEPS or record["id"].split()[0] != record["step"]:
        return None
    step, times = record["step"], record["times"]
    ours, other = STEPS[step]
    known = {way: times[name]["median_ms"] for way, name in (("triton", ours), ("other", other)) if name in times}
    if not known:
        return None
    way = min(known, key=lambda name: known[name])
    kernels = {"forward": ("forward",), "backward": ("grad_v", "grad_qk"), "block": ("block",)}[step]
    tiles = {name: Tile.from_json(tile) for name, tile in record["tiles"].items() if name in kernels}
    return Entry(
        backward=step == "backward", block=step == "block", dtype=record["dtype"], qk_channels=record["d"],
        value_channels=record["C"], batch=1, queries=record["N"], keys=record["N"],
        implementation=way if way == "triton" else "steps" if step == "block" else "sdpa",
        ms=known[way], tiles=tiles if way == "triton" else {},
    )  # fmt: skip

"""Keep what a profiling run has measured so far beside its table, so that a kill at any moment loses no row.

`<table>.journal.jsonl`: line 1 is a header with the identity and the run's provenance, each further line a row or a
note. Each line is handed to the operating system at once (it survives kill -9) and to the disk every few lines (it
survives a power loss).
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.codec import Count, Text, cut_off, decode, elided, plain, reading, whole_lines
from latency.identity import Identity
from latency.table import LatencyTable, Row, join_rows

log = logging.getLogger(__name__)
FORMAT_VERSION = 2
SYNC_EVERY = 8


def journal_path(table: Path) -> Path:
    """Name the journal of a table."""
    return table.with_name(f"{table.name}.journal.jsonl")


@dataclass
class JournalContent:
    """What a journal holds."""

    identity: Identity
    run: dict[str, Any]
    """Provenance of the run that wrote it."""
    visits: dict[str, dict[int, Row]] = field(default_factory=dict)
    """By key and pass; later lines replace earlier ones."""
    notes: list[str] = field(default_factory=list)

    @property
    def rows(self) -> dict[str, Row]:
        """One row per key."""
        return {key: Row.joined(list(rows.values())) for key, rows in self.visits.items()}


@dataclass(frozen=True)
class _Header:
    identity: Identity
    run: dict[str, Any]


@dataclass(frozen=True)
class _Entry:
    """A row or a note."""

    key: Text | None = elided(None)
    row: Row | None = elided(None)
    turn: Count = elided(0)
    """Of the passes over all operators."""
    note: str | None = elided(None)

    def __post_init__(self) -> None:
        if (self.key is None) != (self.row is None) or (self.row is None) == (self.note is None):
            raise ValueError("neither a row nor a note")


class Journal:
    """Appends to a new journal, or to a stopped run's. Use as a context manager.

    Args:
        path: its file.
        identity: of the table.
        run: provenance.
        resume: append to a journal that stands there, whose torn end is cut off.
    """

    def __init__(self, path: Path, identity: Identity, run: dict[str, Any], *, resume: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        continued = resume and path.exists()
        if continued:
            cut_off(path)
            continued = path.stat().st_size > 0
        exclusive = 0 if resume else os.O_EXCL
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | exclusive | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._unsynced = 0
        if continued:
            self.note(f"continued: {json.dumps(run)}")
        else:
            self._write({"format_version": FORMAT_VERSION, **plain(_Header(identity, run))})
        self.sync()

    def row(self, key: str, row: Row, turn: int = 0) -> None:
        """Keep a row; one for the same key and pass that comes later replaces it."""
        self._write(plain(_Entry(key, row, turn)))

    def note(self, text: str) -> None:
        """Keep a remark for the table's provenance."""
        self._write(plain(_Entry(note=text)))

    def sync(self) -> None:
        """Bring everything to the disk."""
        os.fsync(self._handle)
        self._unsynced = 0

    def _write(self, value: dict[str, Any]) -> None:
        data = (json.dumps(value, allow_nan=False) + "\n").encode()
        while data:
            data = data[os.write(self._handle, data) :]
        self._unsynced += 1
        if self._unsynced >= SYNC_EVERY:
            self.sync()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self.sync()
        finally:
            os.close(self._handle)


def read_journal(path: Path, notice: Callable[[str], None] = log.warning) -> JournalContent | None:
    """Read a journal; None where not even its header was completed.

    What follows the last whole line was torn by a kill and is dropped; `notice` is told.

    Raises:
        FileNotFoundError: there is none.
        CorruptFile: any other bad line, with its number.
    """
    lines, torn = whole_lines(path)
    content: JournalContent | None = None
    for number, line in lines:
        with reading(path, number):
            if content is None:
                header = decode(_Header, line, FORMAT_VERSION)
                content = JournalContent(header.identity, header.run)
                continue
            entry = decode(_Entry, line)
            if entry.key is not None and entry.row is not None:
                content.visits.setdefault(entry.key, {})[entry.turn] = entry.row
            elif entry.note is not None:
                content.notes.append(entry.note)
    if torn:
        notice(f"{path}, line {len(lines) + 1}: dropped, it was torn when the last run was stopped")
    return content


def fold(path: Path, identity: Identity, notice: Callable[[str], None] = log.warning) -> LatencyTable:
    """Open the table at `path` for `identity`, moving the rows of a journal into it; an absent table starts empty.

    Killed half-way, it can be repeated: the table is replaced before the journal goes, and a run enters provenance
    once.

    Raises:
        TableMismatch: table or journal was made under other conditions.
        CorruptFile: table or journal is damaged.
    """
    table, content = standing(path, identity, notice)
    if content is not None and (content.visits or content.notes):
        table.rows = join_rows(table.rows, content.rows)
        entry = content.run | {"rows": len(content.visits), "notes": content.notes}
        if entry not in table.provenance:
            table.provenance.append(entry)
        table.save(path)
    journal_path(path).unlink(missing_ok=True)
    return table


def standing(
    path: Path, identity: Identity, notice: Callable[[str], None] = log.warning
) -> tuple[LatencyTable, JournalContent | None]:
    """Read the table at `path`, empty where there is none, and what its journal holds, None where there is none.

    Raises:
        TableMismatch: table or journal was made under other conditions.
        CorruptFile: table or journal is damaged.
    """
    table = LatencyTable.load(path) if path.exists() else LatencyTable(identity)
    table.identity.check(identity, str(path))
    journal = journal_path(path)
    content = read_journal(journal, notice) if journal.exists() else None
    if content is not None:
        content.identity.check(identity, str(journal))
    return table, content

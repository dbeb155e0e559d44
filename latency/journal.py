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

from export.errors import CorruptFile
from export.files import parse_json
from latency.identity import Identity
from latency.table import LatencyTable, Row, join_rows

log = logging.getLogger(__name__)
FORMAT_VERSION = 1
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
    rows: dict[str, Row] = field(default_factory=dict)
    """Later lines replace earlier ones of the same key."""
    notes: list[str] = field(default_factory=list)


class Journal:
    """Appends to a new journal. Use as a context manager."""

    def __init__(self, path: Path, identity: Identity, run: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._unsynced = 0
        self._write({"format_version": FORMAT_VERSION, "identity": identity.to_json(), "run": run})
        self.sync()

    def row(self, key: str, row: Row) -> None:
        """Keep a row; one for the same key that comes later replaces it."""
        self._write({"key": key, "row": row.to_json()})

    def note(self, text: str) -> None:
        """Keep a remark for the table's provenance."""
        self._write({"note": text})

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

    A last line that is not JSON was torn by a kill and is dropped; `notice` is told.

    Raises:
        FileNotFoundError: there is none.
        CorruptFile: any other bad line, with its number.
    """
    lines = path.read_bytes().split(b"\n")
    if not lines[-1]:
        lines.pop()
    content: JournalContent | None = None
    for number, line in enumerate(lines, 1):
        try:
            value = parse_json(line.decode())
        except (json.JSONDecodeError, UnicodeDecodeError):
            if number == len(lines):
                notice(f"{path}, line {number}: dropped, it was torn when the last run was stopped")
                break
            raise CorruptFile(path, "not valid JSON", number) from None
        except ValueError as error:  # whole, and no number that is written here
            raise CorruptFile(path, str(error), number) from None
        try:
            if content is None:
                content = _header(value)
            else:
                _entry(value, content)
        except ValueError as error:
            raise CorruptFile(path, str(error), number) from None
    return content


def _header(value: Any) -> JournalContent:
    if not isinstance(value, dict) or value.get("format_version") != FORMAT_VERSION:
        found = value.get("format_version") if isinstance(value, dict) else None
        raise ValueError(f"has format_version {found!r}; this release reads {FORMAT_VERSION}")
    if not isinstance(value.get("run"), dict):
        raise ValueError("the header has no run")
    return JournalContent(Identity.from_json(value.get("identity")), value["run"])


def _entry(value: Any, content: JournalContent) -> None:
    match value:
        case {"note": str(note), **rest} if not rest:
            content.notes.append(note)
        case {"key": str(key), "row": row, **rest} if not rest and key:
            try:
                content.rows[key] = Row.from_json(row)
            except ValueError as error:
                raise ValueError(f"row {key}: {error}") from None
        case _:
            raise ValueError("neither a row nor a note")


def fold(path: Path, identity: Identity, notice: Callable[[str], None] = log.warning) -> LatencyTable:
    """Open the table at `path` for `identity`, moving the rows of a journal into it; an absent table starts empty.

    Killed half-way, it can be repeated: the table is replaced before the journal goes, and a run enters provenance
    once.

    Raises:
        TableMismatch: table or journal was made under other conditions.
        CorruptFile: table or journal is damaged.
    """
    table = LatencyTable.load(path) if path.exists() else LatencyTable(identity)
    table.identity.check(identity, str(path))
    journal = journal_path(path)
    if not journal.exists():
        return table
    content = read_journal(journal, notice)
    if content is not None:
        content.identity.check(identity, str(journal))
        if content.rows or content.notes:
            table.rows = join_rows(table.rows, content.rows)
            entry = content.run | {"rows": len(content.rows), "notes": content.notes}
            if entry not in table.provenance:
                table.provenance.append(entry)
            table.save(path)
    journal.unlink()
    return table

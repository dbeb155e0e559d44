"""Keep measured latencies: one JSON file per target, machine, thread count and protocol."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from export.codec import Count, NotNegative, Positive, Text, decode, elided, encode
from export.errors import InvalidInput, MissingKeys, Perform, Remedy
from latency.calibration import Calibration
from latency.identity import Identity
from latency.measure import Measurement

FORMAT_VERSION = 2


@dataclass(frozen=True)
class Row:
    """The latency of one key."""

    op: Text
    median_ms: Positive
    p10_ms: Positive
    p90_ms: Positive
    n: Count
    """Samples of all builds together."""
    builds: Count
    busy: bool
    """Measured beside other processes because no quiet time came."""
    spread: NotNegative | None = elided(None)
    """Of several builds: the range of their medians, as a share of `median_ms`; None for a single build."""

    @classmethod
    def of(cls, op: str, measurements: Sequence[Measurement]) -> Row:
        """Take the median over builds of each figure, and their spread; busy where any build was."""
        rows = [cls(op, m.median_ms, m.p10_ms, m.p90_ms, m.n, 1, busy=False) for m in measurements]
        return replace(cls.joined(rows), busy=any(m.busy for m in measurements))

    @classmethod
    def joined(cls, rows: Sequence[Row]) -> Row:
        """Take the median of each figure over the quiet rows of a key, or over all where none is, and their spread."""
        if len(rows) == 1:
            return rows[0]
        rows = [row for row in rows if not row.busy] or rows
        middle = {name: statistics.median(getattr(row, name) for row in rows) for name in ("median_ms", "p10_ms", "p90_ms")}
        medians = [row.median_ms for row in rows]
        spread = (max(medians) - min(medians)) / middle["median_ms"] if len(medians) > 1 else None
        return cls(rows[0].op, **middle, n=sum(row.n for row in rows), builds=len(rows), busy=rows[0].busy, spread=spread)

    def scaled(self, factor: float) -> Row:
        """Return the row with its times multiplied."""
        times = {name: factor * getattr(self, name) for name in ("median_ms", "p10_ms", "p90_ms")}
        return replace(self, **times)

    def __post_init__(self) -> None:
        if not self.p10_ms <= self.median_ms <= self.p90_ms:
            raise ValueError(f"p10 {self.p10_ms}, median {self.median_ms}, p90 {self.p90_ms} are not in ascending order")


@dataclass(frozen=True)
class _Content:
    """A table's file, in the order in which it is written."""

    identity: Identity
    provenance: list[dict[str, Any]]
    calibrations: dict[str, Calibration]
    rows: dict[str, Row]


@dataclass
class LatencyTable:
    """Latencies by key, with the conditions they hold under and the calibrations fitted on them."""

    identity: Identity
    rows: dict[str, Row] = field(default_factory=dict)
    calibrations: dict[str, Calibration] = field(default_factory=dict)
    """By name, for instance `edge@360x480`."""
    provenance: list[dict[str, Any]] = field(default_factory=list)
    """One entry per profiling run: when, under which load, what drifted."""

    def __contains__(self, key: str) -> bool:
        return key in self.rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def busy(self) -> int:
        """Operators that were measured beside other processes."""
        return sum(row.busy for row in self.rows.values())

    @classmethod
    def load(cls, path: Path) -> LatencyTable:
        """Read and validate a table.

        Raises:
            InvalidInput: there is no such file.
            CorruptFile: truncated, of an unknown format version, or holding an impossible value.
        """
        try:
            content = decode(_Content, path, FORMAT_VERSION)
        except FileNotFoundError:
            raise InvalidInput(f"there is no latency table at {path}", Perform("profile")) from None
        return cls(content.identity, content.rows, content.calibrations, content.provenance)

    def save(self, path: Path) -> None:
        """Write the table so that a kill leaves the old file or the new one."""
        calibrations, rows = dict(sorted(self.calibrations.items())), dict(sorted(self.rows.items()))
        encode(path, _Content(self.identity, self.provenance, calibrations, rows), FORMAT_VERSION)

    def merge(self, other: LatencyTable) -> LatencyTable:
        """Join two tables of the same identity. Where both have a key, a quiet row beats a busy one, then `other` wins.

        Raises:
            TableMismatch: naming the first field of the identities that differs, with both values.
        """
        self.identity.check(other.identity, "these latency tables cannot be merged")
        return replace(
            self,
            rows=join_rows(self.rows, other.rows),
            calibrations=self.calibrations | other.calibrations,
            provenance=self.provenance + [entry for entry in other.provenance if entry not in self.provenance],
        )

    def missing(self, keys: Iterable[str]) -> list[str]:
        """List the keys that have no row, each once, in the order given."""
        return [key for key in dict.fromkeys(keys) if key not in self.rows]

    def require(self, keys: Iterable[str], remedy: Remedy) -> None:
        """Require a row for every key.

        Args:
            keys: what is needed.
            remedy: what measures them, for the error.

        Raises:
            MissingKeys: with all the missing keys.
        """
        if missing := self.missing(keys):
            raise MissingKeys(missing, remedy)


def join_rows(old: Mapping[str, Row], new: Mapping[str, Row]) -> dict[str, Row]:
    """Join rows: a quiet row beats a busy one; otherwise the new row wins."""
    joined = dict(old)
    for key, row in new.items():
        if key not in joined or joined[key].busy or not row.busy:
            joined[key] = row
    return joined

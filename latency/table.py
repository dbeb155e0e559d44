"""Keep measured latencies: one JSON file per target, machine, thread count and protocol."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from export.errors import CorruptFile, InvalidInput, MissingKeys, Perform, Remedy
from export.files import read_json, write_json
from latency.calibration import Calibration
from latency.identity import Identity
from latency.measure import Measurement

FORMAT_VERSION = 1
FIELDS = ("format_version", "identity", "provenance", "rows", "calibrations")


@dataclass(frozen=True)
class Row:
    """The latency of one key."""

    op: str
    median_ms: float
    p10_ms: float
    p90_ms: float
    n: int
    """Samples of all builds together."""
    builds: int
    busy: bool
    """Measured beside other processes because no quiet time came."""
    spread: float | None = None
    """Of several builds: the range of their medians, as a share of `median_ms`; None for a single build."""

    @classmethod
    def of(cls, op: str, measurements: list[Measurement]) -> Row:
        """Take the median over builds of each figure, and their spread; busy where any build was."""
        middle = {name: _median([getattr(m, name) for m in measurements]) for name in ("median_ms", "p10_ms", "p90_ms")}
        busy = any(m.busy for m in measurements)
        medians = [m.median_ms for m in measurements]
        spread = (max(medians) - min(medians)) / middle["median_ms"] if len(medians) > 1 else None
        return cls(op, **middle, n=sum(m.n for m in measurements), builds=len(medians), busy=busy, spread=spread)

    def scaled(self, factor: float) -> Row:
        """Return the row with its times multiplied."""
        times = {name: factor * getattr(self, name) for name in ("median_ms", "p10_ms", "p90_ms")}
        return replace(self, **times)

    @classmethod
    def from_json(cls, value: object) -> Row:
        """Read what `to_json` wrote.

        Raises:
            ValueError: a field is missing, unknown or impossible; the text says which.
        """
        names = tuple(cls.__dataclass_fields__)
        if not isinstance(value, dict) or {*value, "spread"} != set(names):  # tables of a single build may lack it
            raise ValueError(f"a row must hold exactly {', '.join(names)}")
        if not isinstance(value["op"], str) or not value["op"]:
            raise ValueError(f"op is {value['op']!r}, not a name")
        for name in ("median_ms", "p10_ms", "p90_ms"):
            ms = value[name]
            if isinstance(ms, bool) or not isinstance(ms, (int, float)) or not 0 < ms <= sys.float_info.max:
                raise ValueError(f"{name} is {ms!r}, not a positive finite number")
        if not value["p10_ms"] <= value["median_ms"] <= value["p90_ms"]:
            raise ValueError(
                f"p10 {value['p10_ms']}, median {value['median_ms']}, p90 {value['p90_ms']} are not in ascending order"
            )
        for name in ("n", "builds"):
            if isinstance(value[name], bool) or not isinstance(value[name], int) or value[name] < 1:
                raise ValueError(f"{name} is {value[name]!r}, not a positive integer")
        if not isinstance(value["busy"], bool):
            raise ValueError(f"busy is {value['busy']!r}, neither true nor false")
        spread = value.get("spread")
        if spread is not None and (isinstance(spread, bool) or not isinstance(spread, (int, float)) or not 0 <= spread < math.inf):
            raise ValueError(f"spread is {spread!r}, neither null nor a finite number of at least 0")
        return cls(**value)

    def to_json(self) -> dict[str, Any]:
        """Give plain data for JSON."""
        value = asdict(self)
        return value if self.spread is not None else {name: item for name, item in value.items() if name != "spread"}


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


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

    @classmethod
    def load(cls, path: Path) -> LatencyTable:
        """Read and validate a table.

        Raises:
            InvalidInput: there is no such file.
            CorruptFile: truncated, of an unknown format version, or holding an impossible value.
        """
        try:
            value = read_json(path, FORMAT_VERSION)
        except FileNotFoundError:
            raise InvalidInput(f"there is no latency table at {path}", Perform("profile")) from None
        except CorruptFile:
            raise
        except (ValueError, RecursionError) as error:  # an integer of thousands of digits, endless nesting
            raise CorruptFile(path, f"not a latency table ({error})") from None
        try:
            return cls._from_json(value)
        except ValueError as error:
            raise CorruptFile(path, str(error)) from None

    @classmethod
    def _from_json(cls, value: dict[str, Any]) -> LatencyTable:
        if set(value) != set(FIELDS):
            raise ValueError(
                f"a latency table must hold exactly {', '.join(FIELDS)}; found {', '.join(map(str, value))}"
            )
        for name, kind in (("provenance", list), ("rows", dict), ("calibrations", dict)):
            if not isinstance(value[name], kind):
                raise ValueError(f"{name} is not a JSON {'array' if kind is list else 'object'}")
        if not all(isinstance(entry, dict) for entry in value["provenance"]):
            raise ValueError("provenance must hold objects only")
        table = cls(Identity.from_json(value["identity"]), provenance=value["provenance"])
        for key, row in value["rows"].items():
            try:
                table.rows[key] = Row.from_json(row)
            except ValueError as error:
                raise ValueError(f"row {key}: {error}") from None
        for name, calibration in value["calibrations"].items():
            try:
                table.calibrations[name] = Calibration.from_json(calibration)
            except ValueError as error:
                raise ValueError(f"calibration {name}: {error}") from None
        return table

    def save(self, path: Path) -> None:
        """Write the table so that a kill leaves the old file or the new one."""
        write_json(
            path,
            {
                "format_version": FORMAT_VERSION,
                "identity": self.identity.to_json(),
                "provenance": self.provenance,
                "calibrations": {name: self.calibrations[name].to_json() for name in sorted(self.calibrations)},
                "rows": {key: self.rows[key].to_json() for key in sorted(self.rows)},
            },
        )

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

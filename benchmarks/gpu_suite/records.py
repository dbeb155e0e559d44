"""Keep what a part measured: one JSON file per part, written after every measurement continued by the next run. No torch here."""

from __future__ import annotations

import math
import os
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from export.errors import InvalidInput
from export.files import read_json, write_json

FORMAT_VERSION = 1
STATES = ("ok", "failed", "error", "left_out")
"""Of a record: measured or held; a check that did not hold; an exception, with its text; not done, with the reason."""
FINAL = ("ok", "failed")
"""States that a later run does not try again."""
BROKEN = 75
"""Exit code of a part whose GPU context died: the next process goes on behind the measurement that killed it."""
ITSELF, REST = "the part itself", "the rest"
"""Records of an error outside any measurement, and of what a part that died too often did not come to."""
TEXT = 900
"""Characters kept of an error."""


class LeftOut(Exception):
    """Something cannot be measured here for a known reason, which is recorded; not an error."""


class Broken(Exception):
    """The GPU context is unusable after an error; nothing more can be measured in this process."""


class Records:
    """The records of one part.

    Args:
        folder: where the part's file lies.
        part: its name.
        identity: machine, versions and sources; a file of others is refused.
        run: this invocation; what another one left out or failed to measure is tried again.
        seconds: time from now on.
        healthy: says after an error whether the device can go on.
        suite: process id of the suite in whose child this is; without that process nothing is measured or written any more.

    Raises:
        CorruptFile: the part's file cannot be read.
        InvalidInput: it was made on another machine, by other versions or by other sources.
    """

    def __init__(
        self, folder: Path, part: str, identity: Mapping[str, Any], run: str, seconds: float = math.inf,
        healthy: Callable[[], bool] = lambda: True, suite: int | None = None,
    ) -> None:  # fmt: skip
        self.path, self.marker = folder / f"{part}.json", folder / f".{part}.current"
        self.part, self.identity, self.run, self.healthy = part, dict(identity), run, healthy
        self.deadline, self.suite, self._written = time.monotonic() + seconds, suite, 0.0
        self.records: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            value = read_json(self.path, FORMAT_VERSION)
            check_identity(value["identity"], self.identity, self.path)
            self.records = {record["id"]: record for record in value["records"]}

    @property
    def seconds_left(self) -> float:
        """Seconds of the part's budget."""
        return self.deadline - time.monotonic()

    def done(self, name: str) -> bool:
        """Return whether a measurement needs no more doing, in this run at least."""
        known = self.records.get(name)
        return known is not None and (known["state"] in FINAL or known["run"] == self.run)

    def found(self, name: str) -> dict[str, Any] | None:
        """Return a measurement that came out, or None."""
        known = self.records.get(name)
        return known if known is not None and known["state"] == "ok" else None

    def attempt(self, name: str, measure: Callable[[], Mapping[str, Any]], needs: float = 0.0) -> dict[str, Any]:
        """Measure, unless that is done, and keep what was found or why it was not.

        Args:
            name: of the measurement.
            measure: returns plain values; `state` among them says `failed` where a check did not hold.
            needs: seconds that it takes; it is left out where fewer remain.

        Returns:
            the record, with its `state`.

        Raises:
            Broken: the device is unusable now. The record of the error is kept, unless `measure` raised `Broken` itself, having
                seen to it that another attempt fares better.
        """
        if self.done(name):
            return self.records[name]
        self.check_suite()
        if self.seconds_left <= needs:
            return self.keep(name, {"state": "left_out", "reason": "the part's time is over"})
        self.marker.write_text(name)
        start = time.monotonic()
        try:
            values = {"state": "ok", **measure()}
        except Broken:
            self.marker.unlink(missing_ok=True)
            raise
        except LeftOut as error:
            values = {"state": "left_out", "reason": str(error)[:TEXT]}
        except Exception as error:  # whatever a kernel, a driver or a backend raises is a result of the suite
            values = {"state": "error", "error": describe(error)}
        record = self.keep(name, {**values, "seconds": round(time.monotonic() - start, 3)})
        self.marker.unlink(missing_ok=True)
        if record["state"] == "error" and not self.healthy():
            raise Broken(record["error"])
        return record

    def keep(self, name: str, values: Mapping[str, Any], *, later: bool = False) -> dict[str, Any]:
        """Write a record down; `later`: within a second or with the next `write`, for many records at a time."""
        record = plain({"id": name, "run": self.run, **values})
        assert record["state"] in STATES
        self.records[name] = record
        if not later or time.monotonic() - self._written > 1:
            self.write()
        return dict(record)

    def check_suite(self) -> None:
        """End this process where the suite that started it is gone."""
        if self.suite is not None and os.getppid() != self.suite:
            raise SystemExit("the suite has ended; so does this part")

    def forget(self, name: str) -> None:
        """Drop a record, if there is one."""
        if self.records.pop(name, None) is not None:
            self.write()

    def write(self) -> None:
        """Write the file."""
        self.check_suite()  # its successor may be writing already
        value = {"format_version": FORMAT_VERSION, "part": self.part, "identity": self.identity}
        write_json(self.path, {**value, "records": list(self.records.values())})
        self._written = time.monotonic()


def check_identity(ours: Mapping[str, Any], theirs: Mapping[str, Any], path: Path) -> None:
    """Require that results were made under the conditions of now.

    Raises:
        InvalidInput: naming the fields that differ.
    """
    differing = [f"{name}: {ours.get(name)!r} there, {theirs.get(name)!r} now"
                 for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]  # fmt: skip
    if differing:
        raise InvalidInput(f"{path} was made under other conditions ({'; '.join(differing)}); give another --out")


def describe(error: BaseException) -> str:
    """Return an error's type, text and place, short enough for a table of errors."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" (at {Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:TEXT]}{where}"


def plain(value: Any) -> Any:
    """Return values as JSON knows them: numbers that are not finite become text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value

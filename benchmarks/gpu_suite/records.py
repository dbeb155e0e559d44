"""Keep what was measured: what all parts of one `--out` share, and one file of records per part. No torch here."""

from __future__ import annotations

import hashlib
import math
import secrets
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from export.codec import decode, encode
from export.errors import InvalidInput
from export.files import read_json, write_json
from export.machine import fingerprint

ROOT = Path(__file__).parents[2]
FORMAT_VERSION = 1
SOURCES = ("hyctas/attention", "benchmarks/gpu_suite")
PACKAGES = ("torch", "triton", "numpy", "onnx", "tensorrt")
STATES = ("ok", "failed", "error", "left_out")
"""Of a record: measured or held; a check that did not hold; an exception, with its text; not done, with the reason."""
REST = "the rest of the part"
"""Record of an error outside any measurement, or of what a part that died too often did not come to."""
TIME_OVER = "the part's time is over; the same command goes on from here"
TEXT = 900
"""Characters kept of an error."""


class LeftOut(Exception):
    """Something cannot be measured here for a known reason, which is recorded; not an error."""


class BrokenContext(Exception):
    """The GPU's context is unusable after an error; nothing more can be measured in this process."""


@dataclass(frozen=True)
class Suite:
    """The content of `suite.json`."""

    identity: dict[str, Any]
    """What must be equal for results to stand in one folder."""
    machine: dict[str, Any]
    """Fingerprint of the first run."""
    seed: int
    command: str


def open_suite(folder: Path, device: str, gpu: str, command: str) -> Suite:
    """Return a folder's suite, made now where there is none.

    Raises:
        InvalidInput: the folder holds results of another machine, of other versions or of other sources.
        CorruptFile: its file cannot be read.
    """
    machine, path = fingerprint(), folder / "suite.json"
    driver = machine["gpus"][0]["driver"] if machine["gpus"] else "none"
    installed = {distribution.name: distribution.version for distribution in distributions()}
    versions = {name: installed.get(name, "none") for name in PACKAGES}
    identity = {"device": device, "gpu": gpu, "driver": driver, **{name: versions[name] for name in ("torch", "triton")},
                "sources": sources()}  # fmt: skip
    if path.exists():
        known = read_suite(folder)
        if other := [f"{name}: {known.identity[name]!r} there, {now!r} now" for name, now in identity.items()
                     if known.identity[name] != now]:  # fmt: skip
            raise InvalidInput(f"{path} was made under other conditions ({'; '.join(other)}); give another --out")
        return known
    made = Suite(identity, {**machine, "packages": versions}, secrets.randbelow(2**31), command)
    encode(path, made, FORMAT_VERSION)
    return made


def read_suite(folder: Path) -> Suite:
    """Read what `open_suite` wrote."""
    return decode(Suite, folder / "suite.json", FORMAT_VERSION)


def sources(folders: Sequence[str] = SOURCES) -> str:
    """Hash the code that is measured, so that results of different kernels never share a folder."""
    digest = hashlib.sha256()
    for folder in folders:
        for file in sorted((ROOT / folder).glob("*.py")):
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


class Records:
    """The records of one part.

    Args:
        folder: where the part's file lies.
        part: its name.
        run: this invocation; what another one left out or failed to measure is tried again.
        deadline: by `time.monotonic`, after which nothing more is begun.
        healthy: says after an error whether the device can go on.
    """

    def __init__(
        self, folder: Path, part: str, run: str, deadline: float = math.inf, healthy: Callable[[], bool] = lambda: True
    ) -> None:
        self.path, self.marker = folder / f"{part}.json", folder / f".{part}.current"
        self.part, self.run, self.deadline, self.healthy = part, run, deadline, healthy
        self.records: dict[str, dict[str, Any]] = {record["id"]: record for record in read_records(folder, part)}

    @property
    def seconds_left(self) -> float:
        """Seconds of the part's time."""
        return self.deadline - time.monotonic()

    def done(self, name: str) -> bool:
        """Return whether a measurement came out, or was tried in this run."""
        known = self.records.get(name)
        return known is not None and (known["state"] in ("ok", "failed") or known["run"] == self.run)

    def found(self, name: str) -> dict[str, Any] | None:
        """Return a measurement that came out, or None."""
        known = self.records.get(name)
        return known if known is not None and known["state"] == "ok" else None

    def attempt(self, name: str, measure: Callable[[], Mapping[str, Any]], needs: float = 0.0) -> dict[str, Any]:
        """Measure, unless that is done; keep, and return, what was found (a `state` in it wins over `ok`) or why it was not.

        It is left out where fewer seconds remain than it `needs`.

        Raises:
            BrokenContext: the device is unusable now. The error is kept, unless `measure` raised `BrokenContext` itself, having
                seen to it that another attempt fares better.
        """
        if self.done(name):
            return self.records[name]
        if self.seconds_left <= needs:
            return self.keep(name, {"state": "left_out", "reason": TIME_OVER})
        self.marker.write_text(name)
        start = time.monotonic()
        try:
            values = {"state": "ok", **measure()}
        except BrokenContext:
            self.marker.unlink()
            raise
        except LeftOut as error:
            values = {"state": "left_out", "reason": str(error)[:TEXT]}
        except Exception as error:  # whatever a kernel, a driver or a backend raises is a result of the suite
            values = {"state": "error", "error": describe(error)}
        record = self.keep(name, {**values, "seconds": round(time.monotonic() - start, 3)})
        if record["state"] == "error" and not self.healthy():
            raise BrokenContext(record["error"])
        return record

    def keep(self, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Write a record down, and return it."""
        record: dict[str, Any] = _plain({"id": name, "run": self.run, **values})
        assert record["state"] in STATES
        self.records[name] = record
        self.write()
        self.marker.unlink(missing_ok=True)
        return record

    def write(self) -> None:
        """Write the file."""
        records = list(self.records.values())
        write_json(self.path, {"format_version": FORMAT_VERSION, "part": self.part, "records": records})


def read_records(folder: Path, part: str) -> list[dict[str, Any]]:
    """Return the records of a part; none where it has not run."""
    path = folder / f"{part}.json"
    return list(read_json(path, FORMAT_VERSION)["records"]) if path.exists() else []


def describe(error: BaseException) -> str:
    """Return an error's type, text and place, short enough for a table of errors."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" (at {Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:TEXT]}{where}"


def _plain(value: Any) -> Any:
    """Return values as JSON knows them: numbers that are not finite become text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value

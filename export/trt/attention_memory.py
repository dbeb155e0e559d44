"""Keep which attention was chosen on a machine, so that tables, searches and their repetitions use the same.

One file stands beside each timing cache, since choices hold for the same TensorRT, GPU and driver. What else decides a choice
(options of the build, the kernels' source, what it was chosen among) is part of an entry's name, so entries that no longer apply
are not found. A process keeps to what it chose or found first, whatever happens to the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from export.codec import decode, elided, encode, plain
from export.errors import CorruptFile
from export.files import move_aside
from export.trt.attention_case import AttentionCase

FORMAT_VERSION = 1


@dataclass(frozen=True)
class _Kept:
    """What is kept of a `export.trt.choose.Choice`."""

    implementation: str
    reason: str
    times_ms: dict[str, Any] | None = elided(None)
    refused: dict[str, Any] | None = elided(None)


@dataclass(frozen=True)
class _Content:
    choices: dict[str, _Kept]


class AttentionMemory:
    """What was chosen, in a file, there or not; one that cannot be read is moved aside and measured again.

    `conditions` are what else decides a choice, as plain values; `on_status` is told of a file that was moved aside.
    """

    def __init__(self, path: Path, conditions: Mapping[str, Any], on_status: Callable[[str], None]) -> None:
        self.path, self._on_status = path, on_status
        self._conditions = json.dumps(dict(conditions), sort_keys=True)
        self._used: dict[str, _Kept] = {}

    def get(self, case: AttentionCase, offered: Sequence[str]) -> dict[str, Any] | None:
        """Return what was chosen for a case among some implementations; None where nothing was."""
        name = self._name(case, offered)
        if name not in self._used and (found := self._read().get(name)) is not None:
            self._used[name] = found
        return {**plain(self._used[name]), "parity": {}} if name in self._used else None

    def put(self, case: AttentionCase, offered: Sequence[str], chosen: Mapping[str, Any]) -> None:
        """Keep what was chosen, beside what other processes kept meanwhile; a file that cannot be written is told."""
        name = self._name(case, offered)
        self._used[name] = _Kept(**{field.name: chosen[field.name] for field in fields(_Kept) if field.name in chosen})
        try:
            encode(self.path, _Content({**self._read(), name: self._used[name]}), FORMAT_VERSION)
        except OSError as error:
            self._on_status(f"{self.path.name} was not written ({error.strerror}): the next command chooses attention again")

    def _name(self, case: AttentionCase, offered: Sequence[str]) -> str:
        return f"{json.dumps(asdict(case), sort_keys=True)} {self._conditions} of {','.join(offered)}"

    def _read(self) -> dict[str, _Kept]:
        if not self.path.is_file():
            return {}
        try:
            return decode(_Content, self.path, FORMAT_VERSION).choices
        except (CorruptFile, OSError) as error:
            moved = ""
            with suppress(OSError):
                moved = f" and was moved to {move_aside(self.path).name}"
            self._on_status(f"{self.path.name} cannot be read{moved} ({error})")
            return {}

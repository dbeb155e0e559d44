"""Keep which attention was chosen on a machine, so that tables, searches and their repetitions use the same. No torch here.

One file stands beside each timing cache, since choices hold for the same TensorRT, GPU and driver. What else decides a choice
(options of the build, the kernels' source, what it was chosen among) is part of an entry's name, so entries that no longer apply
are not found. A process keeps to what it chose or found first, whatever happens to the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from export.errors import CorruptFile
from export.files import move_aside, read_json, write_json
from export.trt.attention_case import AttentionCase

FORMAT_VERSION = 1
_FIELDS: dict[str, type] = {"implementation": str, "reason": str, "times_ms": dict, "refused": dict}
"""What is kept of a `export.trt.choose.Choice`."""


class AttentionMemory:
    """What was chosen, in a file, there or not; one that cannot be read is moved aside: it is quicker measured anew than mended.

    `conditions` are what else decides a choice, as plain values; `tell` is told of a file that was moved aside.
    """

    def __init__(self, path: Path, conditions: Mapping[str, Any], tell: Callable[[str], None]) -> None:
        self.path, self._tell = path, tell
        self._conditions = json.dumps(dict(conditions), sort_keys=True)
        self._used: dict[str, dict[str, Any]] = {}

    def get(self, case: AttentionCase, offered: Sequence[str]) -> dict[str, Any] | None:
        """Return what was chosen for a case among some implementations; None where nothing was."""
        name = self._name(case, offered)
        if name not in self._used and (found := self._read().get(name)) is not None:
            self._used[name] = found
        return {**self._used[name], "parity": {}} if name in self._used else None

    def put(self, case: AttentionCase, offered: Sequence[str], chosen: Mapping[str, Any]) -> None:
        """Keep what was chosen, beside what other processes kept meanwhile; a file that cannot be written is told."""
        name = self._name(case, offered)
        self._used[name] = {field: chosen[field] for field in _FIELDS if field in chosen}
        try:
            write_json(self.path, {"format_version": FORMAT_VERSION, "choices": {**self._read(), name: self._used[name]}})
        except OSError as error:
            self._tell(f"{self.path.name} was not written ({error.strerror}): the next command chooses attention anew")

    def _name(self, case: AttentionCase, offered: Sequence[str]) -> str:
        return f"{json.dumps(asdict(case), sort_keys=True)} {self._conditions} of {','.join(offered)}"

    def _read(self) -> dict[str, dict[str, Any]]:
        if not self.path.is_file():
            return {}
        try:
            choices = read_json(self.path, FORMAT_VERSION)["choices"]
            for entry in choices.values():
                typed = all(isinstance(entry.get(name, kind()), kind) for name, kind in _FIELDS.items())
                if not (typed and {"implementation", "reason"} <= set(entry) <= set(_FIELDS)):
                    raise CorruptFile(self.path, "holds an entry with other fields")
            return dict(choices)
        except (CorruptFile, OSError, KeyError, TypeError, AttributeError) as error:
            moved = ""
            with suppress(OSError):
                moved = f" and was moved to {move_aside(self.path).name}"
            self._tell(f"{self.path.name} cannot be read{moved} ({error})")
            return {}

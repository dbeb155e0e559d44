"""Keep which attention was chosen on a machine, so that tables, searches and their repetitions use the same. No torch here.

One file stands beside each timing cache, since choices hold for the same TensorRT, GPU and driver. What else decides a choice
(options of the build, the kernels' source, what may be taken) is part of an entry's name, so entries that no longer apply are not
found.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from export.errors import CorruptFile
from export.files import read_json, write_json
from export.trt.attention_case import AttentionCase

FORMAT_VERSION = 1
_FIELDS = ("implementation", "reason", "times_ms", "refused")
"""What is kept of a `export.trt.choose.Choice`."""


class AttentionMemory:
    """A `export.trt.choose.Memory` in a file.

    Args:
        path: the file, there or not. One that cannot be read is moved aside: it is quicker measured anew than mended.
        conditions: what else decides a choice, as plain values.
        tell: is told of a file that was moved aside.
    """

    def __init__(self, path: Path, conditions: Mapping[str, Any], tell: Callable[[str], None]) -> None:
        self.path, self._tell = path, tell
        self._conditions = json.dumps(dict(conditions), sort_keys=True)

    def get(self, case: AttentionCase) -> dict[str, Any] | None:
        """Return what was chosen for a case; None where nothing was."""
        found = self._read().get(self._name(case))
        return None if found is None else {**found, "parity": {}}

    def put(self, case: AttentionCase, chosen: Mapping[str, Any]) -> None:
        """Keep what was chosen, beside what other processes kept meanwhile.

        Raises:
            OSError: the file cannot be written.
        """
        entry = {field: chosen[field] for field in _FIELDS if field in chosen}
        write_json(self.path, {"format_version": FORMAT_VERSION, "choices": {**self._read(), self._name(case): entry}})

    def _name(self, case: AttentionCase) -> str:
        return f"{json.dumps(asdict(case), sort_keys=True)} {self._conditions}"

    def _read(self) -> dict[str, dict[str, Any]]:
        if not self.path.is_file():
            return {}
        try:
            choices = read_json(self.path, FORMAT_VERSION)["choices"]
            if not all({"implementation", "reason"} <= set(entry) <= set(_FIELDS) for entry in choices.values()):
                raise CorruptFile(self.path, "holds an entry with other fields")
        except (CorruptFile, KeyError, TypeError, AttributeError) as error:
            aside = self.path.with_name(self.path.name + ".unusable")
            with contextlib.suppress(FileNotFoundError):  # another process was quicker
                os.replace(self.path, aside)
            self._tell(f"{self.path.name} cannot be read and was moved to {aside.name} ({error})")
            return {}
        return dict(choices)

"""Leave what was added later out of canonical JSON while at its default, so that ids and keys stay. No torch here."""

from __future__ import annotations

import dataclasses
from typing import Any


def elided(default: Any) -> Any:
    """Declare a dataclass field that canonical JSON leaves out while it is at its default."""
    return dataclasses.field(default=default, metadata={"elided": True})


def written(instance: Any) -> dict[str, Any]:
    """Return a dataclass as plain values, without the elided fields that are at their default; dataclasses inside likewise."""
    values = {}
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if not (field.metadata.get("elided") and value == field.default):
            values[field.name] = _plain(value)
    return values


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return written(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value

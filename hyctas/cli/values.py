"""Fill dataclasses from the plain values of a TOML file, and refuse what does not fit. No torch here."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

from export.errors import InvalidInput, InvalidSetting
from export.ranges import describe, fits, hints

R = TypeVar("R")


def fill(kind: type[R], values: dict[str, Any]) -> R:
    """Build a recipe from plain values.

    Raises:
        InvalidInput: an unknown name.
        InvalidSetting: a value of the wrong type or outside its range; the text says what is allowed.
    """
    known = hints(kind)
    if unknown := sorted(set(values) - set(known)):
        raise InvalidInput(f"unknown settings {unknown}; known: {', '.join(sorted(known))}")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def flag_arguments(kind: type, name: str, value: Any) -> list[str]:
    """Return what a TOML file gives a flag as it is written on the command line.

    Raises:
        InvalidSetting: the flag takes no such value; `false` is none of a number's.
    """
    hint, flag = hints(kind)[name], f"--{name.replace('_', '-')}"
    items = tuple(value) if isinstance(value, list) else value
    as_path = tuple(map(Path, items)) if isinstance(items, tuple) and all(isinstance(item, str) for item in items) else (
        Path(items) if isinstance(items, str) else items)  # fmt: skip
    written = (items, as_path, (items,), (as_path,))  # a path is text in TOML, and one value may stand for a list of one
    if not any(fits(form, hint) for form in written):
        raise InvalidSetting(name, value, describe(hint))
    if isinstance(value, bool):
        return [flag] if value else []
    return [flag, *map(str, value if isinstance(value, list) else [value])]


def field_names(kind: type) -> set[str]:
    """Return the names that a TOML file may set for a job: its flags and its recipe's settings."""
    positional = {field.name for field in dataclasses.fields(kind) if "Positional" in str(field.type)}
    names = {field.name for field in dataclasses.fields(kind)} - {"expert"} - positional
    settings = getattr(kind, "settings", None)
    return names | ({field.name for field in dataclasses.fields(settings())} if settings else set())

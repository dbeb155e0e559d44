"""Fill dataclasses from the plain values of a TOML file, and refuse what does not fit. No torch here."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, TypeVar

from export.errors import InvalidInput

R = TypeVar("R")


def fill(kind: type[R], values: dict[str, Any]) -> R:
    """Build a recipe from plain values.

    Raises:
        InvalidInput: an unknown name or a value of the wrong type; the text says what is allowed.
    """
    hints = typing.get_type_hints(kind)
    if unknown := sorted(set(values) - set(hints)):
        raise InvalidInput(f"unknown settings {unknown}; known: {', '.join(sorted(hints))}")
    converted: dict[str, Any] = {}
    for name, value in values.items():
        value = tuple(value) if isinstance(value, list) else value
        if not _fits(value, hints[name]):
            shown = str(hints[name]) if typing.get_origin(hints[name]) else hints[name].__name__
            raise InvalidInput(f"{name} must be {shown}, found {value!r}")
        converted[name] = value
    return kind(**converted)


def _fits(value: object, hint: Any) -> bool:
    """Say whether a plain value has the type of a dataclass field."""
    if isinstance(hint, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        items = typing.get_args(hint)
        return isinstance(value, tuple) and len(value) == len(items) and all(map(_fits, value, items))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def field_names(kind: type) -> set[str]:
    """Return the names that a TOML file may set for a job: its flags and its recipe's settings."""
    positional = {field.name for field in dataclasses.fields(kind) if "Positional" in str(field.type)}
    names = {field.name for field in dataclasses.fields(kind)} - {"expert"} - positional
    settings = getattr(kind, "settings", None)
    return names | ({field.name for field in dataclasses.fields(settings())} if settings else set())

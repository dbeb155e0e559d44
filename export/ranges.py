"""State beside each setting what values it may have, and hold every configuration to that before anything starts.

    @dataclass(frozen=True, kw_only=True)
    class Recipe(Settings):
        clip: Annotated[float, Range(above=0, at_most=1e6)] = 5.0

Type and range come from the annotation alone: `Settings` checks them when an instance is made, messages and the documentation
read them from the same place. What concerns two settings at once stays in a class's own `__post_init__`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

from export.errors import InvalidSetting


@runtime_checkable
class Bound(Protocol):
    """What a value of the right type must keep besides."""

    def holds(self, value: Any) -> bool: ...

    def __str__(self) -> str: ...


@dataclass(frozen=True)
class Range:
    """Numbers from `at_least` (or `above`) to `at_most` (or `below`); infinity and NaN are in no range."""

    at_least: float | None = None
    at_most: float | None = None
    above: float | None = dataclasses.field(default=None, kw_only=True)
    below: float | None = dataclasses.field(default=None, kw_only=True)

    def holds(self, value: float) -> bool:
        """Say whether a number is inside."""
        return (
            abs(value) <= sys.float_info.max  # JSON and TOML have integers that no float can hold
            and (self.at_least is None or value >= self.at_least) and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most) and (self.below is None or value < self.below)
        )  # fmt: skip

    def __str__(self) -> str:
        if self.at_least is not None and self.at_most is not None:
            return f"{_number(self.at_least)} to {_number(self.at_most)}"
        sides = {"at least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below}
        return ", ".join(f"{word} {_number(limit)}" for word, limit in sides.items() if limit is not None)


@dataclass(frozen=True)
class OneOf:
    """One of a few values."""

    values: tuple[str, ...]

    def holds(self, value: object) -> bool:
        """Say whether a value is one of them."""
        return value in self.values

    def __str__(self) -> str:
        return ", ".join(self.values)


Seed = Annotated[int, Range(0, 2**32 - 1)]
Threads = Annotated[int, Range(1, 1024)]
Side = Annotated[int, Range(32, 16384)]
"""Height or width of an image that a network gets: networks halve it five times."""
Minutes = Annotated[float, Range(above=0, at_most=1e5)]
Classes = Annotated[int, Range(1, 255)]
"""A label is a byte, and 255 means none."""


_hints: dict[type, dict[str, Any]] = {}


class Settings:
    """Base of configuration dataclasses: an instance whose values do not keep what its annotations state is never made."""

    def __post_init__(self) -> None:
        for name, hint in hints(type(self)).items():
            value = getattr(self, name)
            if not fits(value, hint):
                raise InvalidSetting(name, value, describe(hint))


def hints(kind: type) -> dict[str, Any]:
    """Return the annotation of every field of a dataclass, by name, with what it states besides the type."""
    if kind not in _hints:
        found = typing.get_type_hints(kind, include_extras=True)
        _hints[kind] = {field.name: found[field.name] for field in dataclasses.fields(kind)}
    return _hints[kind]


def fits(value: object, hint: Any) -> bool:
    """Say whether a value has the type that an annotation gives, and keeps its bounds."""
    if hint is Any or isinstance(hint, typing.TypeVar):
        return True
    origin, items = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return fits(value, items[0]) and all(mark.holds(value) for mark in items[1:] if isinstance(mark, Bound))
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in items)
    if origin is Literal:
        return any(type(value) is type(option) and value == option for option in items)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(items) == 2 and items[1] is Ellipsis:
            return all(fits(item, items[0]) for item in value)
        return len(value) == len(items) and all(map(fits, value, items))
    if origin is not None:  # dict[str, X]
        return isinstance(value, origin) and all(fits(k, items[0]) and fits(v, items[1]) for k, v in value.items())
    if hint is float:  # JSON has integers that no float can hold
        return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 1023)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def check_types(value: Any) -> None:
    """Check the fields of a dataclass that was filled from a file.

    Raises:
        ValueError: a field is not of its type; the text names it.
    """
    for name, hint in hints(type(value)).items():
        if not fits(found := getattr(value, name), hint):
            raise ValueError(f"{name} is {str(found)[:80]!r}, not {describe(hint)}")


def argument(hint: Any) -> Callable[[str], Any]:
    """Return what `ArgumentParser.add_argument(type=)` takes for a number that an annotation describes."""
    kind = typing.get_args(hint)[0]

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = text
        if not fits(value, hint):
            raise argparse.ArgumentTypeError(f"{text!r} is not allowed: {describe(hint)}")
        return value

    return parse


def describe(hint: Any) -> str:
    """Write for people what an annotation allows: "a number, above 0, at most 10"."""
    origin, items = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        marks = [str(mark) for mark in items[1:] if isinstance(mark, Bound)]
        listed = any(isinstance(mark, OneOf) for mark in items[1:])
        return ", ".join(marks) if listed else ", ".join((describe(items[0]), *marks))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(option) for option in items if option is not type(None))
    if origin is Literal:
        return ", ".join(str(option) for option in items)
    if origin is tuple:
        if len(items) == 2 and items[1] is Ellipsis:
            return f"any number of: {describe(items[0])}"
        return f"{len(items)} values, each {describe(items[0])}"
    named = {float: "a number", int: "an integer", str: "text", bool: "true or false"}
    return named.get(hint, getattr(hint, "__name__", str(hint)))


def limits(hint: Any) -> str:
    """Return only the bounds that an annotation states, of the first value where it is a tuple; empty where it states none."""
    origin, items = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return ", ".join(str(mark) for mark in items[1:] if isinstance(mark, Bound)) or limits(items[0])
    if origin is Literal:
        return ", ".join(str(option) for option in items)
    if origin in (typing.Union, types.UnionType, tuple):
        return limits(items[0]) if items else ""
    return ""


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:g}"

"""Decode every file that we read into frozen dataclasses, and encode them; what does not fit says its place in the file.

A format is a dataclass beside its owner. Types, missing and unknown fields and the bounds below are checked here, by msgspec; what
concerns several fields at once stands in the class's own `__post_init__`, as ValueError or InvalidInput. A class that is written in
another way, or once was, has a classmethod `before_decoding`, which turns the plain values of its object into those of its fields.
One that has `OPEN: ClassVar = True` describes a part of an object: other fields are passed over.

    @dataclass(frozen=True)
    class Row:
        op: Text
        median_ms: Positive
        spread: NotNegative | None = elided(None)

    decode(dict[str, Row], path, 1)   # CorruptFile: "$['k'].median_ms is -1; expected `float` > 0.0"

What runs on a bare device (`export.trt.run`, `export.trt.from_onnx`) has no msgspec and does not import this. No torch here.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path, PurePath
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import inspect

from export.errors import CorruptFile, InvalidInput
from export.files import check_version, parse_json, read_text, write_json

T = TypeVar("T")

Text = Annotated[str, msgspec.Meta(min_length=1)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Number = Annotated[int, msgspec.Meta(ge=0)]
Byte = Annotated[int, msgspec.Meta(ge=0, le=255)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Size = tuple[Count, Count]
"""Height and width."""


class Misfit(InvalidInput, ValueError):
    """Plain values are not of the format that they were read as.

    Attributes:
        place: what is wrong, as a path from the root `$`.
        reason: what is wrong with it.
    """

    def __init__(self, place: str, reason: str) -> None:
        self.place, self.reason = place, reason
        super().__init__(f"{place} {reason}")


def elided(default: Any) -> Any:
    """Declare a dataclass field that is written only where it is not at its default, as fields are that came later."""
    return dataclasses.field(default=default, metadata={"elided": True})


def plain(value: Any) -> Any:
    """Return what JSON gives back of a value: dataclasses and mappings as objects, sequences as lists, paths as text."""
    if dataclasses.is_dataclass(value):
        return {
            field.name: plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if not field.metadata.get("elided") or getattr(value, field.name) != field.default
        }
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, PurePath) else value


def encode(path: Path, value: Any, format_version: int) -> None:
    """Replace a file with a dataclass as JSON, its `format_version` first, safely."""
    write_json(path, {"format_version": format_version, **plain(value)})


def convert(kind: type[T], value: Any, place: str = "$") -> T:
    """Make an instance of plain values.

    Raises:
        Misfit: they are not of the format.
    """
    return _converted(kind, _built(_structure(kind), value, place), place)  # type: ignore[arg-type]  # mypy: type[T] has no hash


def decode(kind: type[T], source: Path | str | bytes, *format_versions: int) -> T:
    """Read a JSON file, or the text of one.

    Args:
        kind: the format.
        source: a file's path, or JSON.
        format_versions: those that are read; without any, the format has none.

    Raises:
        FileNotFoundError: no such file.
        CorruptFile: the file is not JSON, of another version, or not of the format.
        ValueError: the text is not JSON, of another version, or (`Misfit`) not of the format.
    """
    if isinstance(source, Path):
        with reading(source):
            return decode(kind, read_text(source), *format_versions)
    value = parse_json(source)
    if format_versions:
        check_version(value, format_versions)
        del value["format_version"]
    return convert(kind, value)


def decode_toml(kind: type[T], path: Path) -> T:
    """Read a TOML file.

    Raises:
        FileNotFoundError: no such file.
        CorruptFile: it is not TOML, holds what JSON does not (a date, infinity), or is not of the format.
    """
    with reading(path):
        return convert(kind, parse_json(json.dumps(tomllib.loads(read_text(path)), default=_refuse)))


def whole_lines(path: Path) -> tuple[list[tuple[int, bytes]], bytes]:
    """Return the numbered lines of a file that is only appended to, and what a kill left behind the last whole one.

    A line is decoded inside `reading(path, number)`.
    """
    *lines, cut_off = path.read_bytes().split(b"\n")
    return list(enumerate(lines, 1)), cut_off


def cut_off(path: Path) -> None:
    """Take away what a kill left behind the last whole line of a file, so that it can be appended to."""
    os.truncate(path, path.stat().st_size - len(whole_lines(path)[1]))


@contextmanager
def reading(path: Path, line: int | None = None) -> Iterator[None]:
    """Turn what decoding raises inside into a `CorruptFile` of that file and line."""
    try:
        yield
    except json.JSONDecodeError as error:
        raise CorruptFile(path, f"not valid JSON ({error.msg})", line or error.lineno) from None
    except RecursionError:
        raise CorruptFile(path, "nested too deeply", line) from None
    except (ValueError, InvalidInput) as error:
        raise CorruptFile(path, str(error), line) from None


def _refuse(value: Any) -> Any:
    raise ValueError(f"holds {value}, a {type(value).__name__}, which no setting is")


@cache
def _structure(kind: Any) -> inspect.Type:
    return inspect.type_info(kind)


def _built(node: inspect.Type, value: Any, place: str) -> Any:
    """Make the dataclasses inside a value, innermost first, so that each error names its place."""
    match node:
        case inspect.Metadata(type=inner):
            return _built(inner, value, place)
        case inspect.UnionType(types=options):
            for option in options:
                if isinstance(value, dict) or not isinstance(option, inspect.DataclassType):
                    value = _built(option, value, place)
        case inspect.DataclassType(cls=kind, fields=fields):
            if not isinstance(value, dict):
                return _converted(kind, value, place)
            value = _rewritten(kind, value, place)
            known = {field.encode_name: field.type for field in fields}
            unknown = sorted(value.keys() - known.keys())
            if unknown and not getattr(kind, "OPEN", False):
                raise Misfit(place, f"has unknown fields {', '.join(map(repr, unknown))}; known: {', '.join(known)}")
            inside = {name: _built(known[name], item, f"{place}.{name}") for name, item in value.items() if name in known}
            return _converted(kind, inside, place)
        case inspect.DictType(value_type=item) if isinstance(value, dict):
            return {name: _built(item, one, f"{place}[{name!r}]") for name, one in value.items()}
        case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item) if isinstance(value, list):
            return [_built(item, one, f"{place}[{index}]") for index, one in enumerate(value)]
    return value


def _rewritten(kind: Any, value: dict[str, Any], place: str) -> dict[str, Any]:
    try:
        return kind.before_decoding(value) if hasattr(kind, "before_decoding") else value
    except (ValueError, InvalidInput) as error:
        raise Misfit(place, f"is no {kind.__name__}: {error}") from None


def _converted(kind: type[T], value: Any, place: str) -> T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        reason, _, inside = str(error).partition(" - at `$")
        if not inside and isinstance(value, dict):
            missing = reason.partition("missing required field ")[2]
            raise Misfit(place, f"lacks the field {missing}" if missing else f"is no {kind.__name__}: {reason}") from None
        found = value
        for name, index in re.findall(r"\.(\w+)|\[(\d+)\]", inside.partition("[...]")[0]):
            found = found[name or int(index)]
        raise Misfit(place + inside.rstrip("`"), f"is {found!r:.80}; {reason[0].lower()}{reason[1:]}") from None
    except InvalidInput as error:
        raise Misfit(place, f"is no {kind.__name__}: {error}") from None

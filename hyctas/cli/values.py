"""Read the values of a TOML file for the settings of a job, and refuse what does not fit."""

from __future__ import annotations

import dataclasses
import re
import tomllib
import typing
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import tyro

from export.errors import InvalidInput, InvalidSetting
from export.ranges import Settings, describe, fits, hints
from export.target import parse_size

T = TypeVar("T")
Job = TypeVar("Job", bound=Settings)


def image_size(text: str) -> tuple[int, int]:
    """Parse HEIGHTxWIDTH; at least 32 pixels each way.

    Raises:
        InvalidInput: not a size, or too small.
    """
    size = parse_size(text)
    if min(size) < 32:
        raise InvalidInput(f"size {text} is too small: networks halve the image five times; use at least 32x32")
    return size


def duration(text: str) -> float:
    """Parse 90s, 10m or 1.5h, of 2 seconds to a day; return seconds.

    Raises:
        InvalidInput: not a duration, or too short or long.
    """
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    try:
        seconds = float(text[:-1]) * units[text[-1:]]
    except (ValueError, KeyError):
        seconds = 0.0
    if not 2.0 <= seconds <= 86400.0:
        raise InvalidInput(f"duration {text!r} is not a number with s, m or h, for instance 90s, 10m or 1.5h, from 2s to 24h")
    return seconds


def read_toml(path: Path, job: type) -> dict[str, Any]:
    """Return what a TOML file sets of a job, by field: flags, and settings that are no flags, grouped in fields of their own.

    Raises:
        InvalidInput: no TOML, or an unknown name.
        InvalidSetting: a value of the wrong type or outside its range.
    """
    found, nested = _settings(str(path), load_toml(path), _own_fields(job), _nested_fields(job))
    for name, kind in _nested_fields(job).items():
        found[name] = nested[name] if bare(hints(job)[name]) is not kind else kind(**nested[name])
    return found


def _settings(
    where: str, given: Mapping[str, Any], fields: Mapping[str, Any], kinds: Mapping[str, type]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:  # fmt: skip
    """Return what a table of a TOML file sets: of a job's own fields, and of its nested settings by their fields.

    Raises:
        InvalidInput: an unknown name.
        InvalidSetting: a value of the wrong type or outside its range.
    """
    known = fields.keys() | {name for kind in kinds.values() for name in hints(kind)}
    if unknown := sorted(given.keys() - known):
        raise InvalidInput(f"{where} has unknown keys {unknown}; known: {', '.join(sorted(known))}")
    own = {name: fitting(name, value, fields[name]) for name, value in given.items() if name in fields}
    rest = given.keys() - fields.keys()
    nested = {
        field: {name: fitting(name, given[name], hint) for name, hint in hints(kind).items() if name in rest}
        for field, kind in kinds.items()
    }
    return own, nested


def load_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        InvalidInput: no TOML.
    """
    try:
        return tomllib.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # no TOML; endless nesting
        raise InvalidInput(f"{path} is not valid TOML: {error}") from None


def read_tables(path: Path, job: Job, common: Collection[str]) -> dict[str, Job]:
    """Return a job per table of a TOML file, by the table's name: the job given, with what the table sets.

    Args:
        path: the file.
        job: what tables do not set.
        common: fields that no table may set.

    Raises:
        InvalidInput: no TOML, no table, something outside of tables, a name that is none for a folder, or an unknown key.
        InvalidSetting: a value of the wrong type or outside its range.
    """
    tables = load_toml(path)
    fields = {name: hint for name, hint in _own_fields(type(job)).items() if name not in common}
    if not tables:
        raise InvalidInput(f"{path} holds no table; give one per search, for instance [phone], with settings under it")
    found = {}
    for name, given in tables.items():
        if not isinstance(given, dict):
            raise InvalidInput(f"{path}: {name} stands outside of a table; settings stand under the [name] of a search")
        if not re.fullmatch(r"\w[\w-]*", name, re.ASCII):
            raise InvalidInput(f"{path}: the table {name!r} names a folder; use letters, digits, - and _")
        own, nested = _settings(f"{path}: [{name}]", given, fields, _nested_fields(type(job)))
        inner = {field: dataclasses.replace(getattr(job, field), **settings) for field, settings in nested.items()}
        found[name] = type(job)(**{**vars(job), **own, **inner})
    return found


def fill(kind: type[T], values: Mapping[str, object]) -> T:
    """Make a dataclass of the plain values of a TOML or JSON file.

    Raises:
        InvalidSetting: a value of the wrong type or outside its range.
    """
    return kind(**{name: fitting(name, value, hints(kind)[name]) for name, value in values.items()})


def fitting(name: str, value: object, hint: Any) -> Any:
    """Return a value of a TOML file as the annotation of a setting has it.

    Lists become tuples and text becomes paths or, written HEIGHTxWIDTH, sizes; one value may stand for a list of one.

    Raises:
        InvalidSetting: it fits in no form.
    """
    plain = tuple(value) if isinstance(value, list) else value
    forms = [plain, (plain,)]
    if isinstance(plain, str):
        forms += [Path(plain), (Path(plain),)]
    elif isinstance(plain, tuple) and all(isinstance(item, str) for item in plain):
        forms.append(tuple(map(Path, plain)))
    for form in forms:
        if fits(form, hint):
            return form
    if isinstance(plain, str) and fits((32, 32), hint):
        return image_size(plain)
    raise InvalidSetting(name, plain, describe(hint))


def bare(hint: Any) -> Any:
    """Return a type without what annotates it."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint


def _own_fields(job: type) -> dict[str, Any]:
    """Return the annotations of the fields that a TOML file sets by their names: neither positional ones nor nested settings."""
    nested = _nested_fields(job)
    return {name: hint for name, hint in hints(job).items() if tyro.conf.Positional not in _marks(hint) and name not in nested}


def _nested_fields(job: type) -> dict[str, type]:
    """Return the dataclasses whose settings a job holds in one field each, by that field's name."""
    found = {name: bare(hint) for name, hint in hints(job).items()}
    recipe = {name: job.RECIPE for name, kind in found.items() if typing.get_origin(kind) is dict}  # type: ignore[attr-defined]
    return {name: kind for name, kind in found.items() if dataclasses.is_dataclass(kind)} | recipe


def _marks(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint)[1:] if typing.get_origin(hint) is typing.Annotated else ()

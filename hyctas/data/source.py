"""Open a data set by what a user types: a folder, or `scenes` for generated street scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from export.errors import InvalidInput
from export.target import parse_size
from hyctas.data.folders import open_folder
from hyctas.data.sample import Sample, Source
from hyctas.data.scenes import Scenes

__all__ = ["Sample", "Source", "open_source"]


def open_source(spec: str) -> Source:
    """Open the data set that `spec` names.

    Args:
        spec: `scenes`, `scenes:seed=1,train=200,val=40,size=96x128` (any of the four keys), or a folder in one of the
            layouts of `hyctas.data.layouts`. A folder that is itself called `scenes` is written `./scenes`.

    Raises:
        InvalidInput: an unknown key or value of `scenes`, no such folder, or a folder in no known layout.
    """
    kind, colon, settings = spec.partition(":")
    if kind == "scenes":
        return _scenes(spec, settings if colon else "")
    if not spec.strip():
        raise InvalidInput("no data set given; name a folder, or `scenes` for generated street scenes")
    return open_folder(Path(spec).expanduser())


def _scenes(spec: str, settings: str) -> Scenes:
    given: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in settings.split(","))):
        key, equals, value = item.partition("=")
        if key not in ("seed", "train", "val", "size") or not equals:
            raise InvalidInput(
                f"data {spec!r}: {item!r} is not understood; allowed: seed=N, train=N, val=N, size=HEIGHTxWIDTH, "
                "for instance scenes:seed=1,train=200,val=40,size=96x128"
            )
        if key in given:
            raise InvalidInput(f"data {spec!r}: {key} is given twice")
        if key == "size":
            given[key] = parse_size(value)
        elif value.isascii() and value.isdecimal():
            given[key] = int(value)
        else:
            raise InvalidInput(f"data {spec!r}: {key}={value!r} is not a whole number of 0 or more")
    return Scenes(**given)

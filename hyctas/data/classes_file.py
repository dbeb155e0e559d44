"""Read the class list of the plain layout: `classes.txt` or `classes.json`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from export.errors import CorruptFile, InvalidInput
from hyctas.data.labels import IGNORE, Colour, Labels, default_colours

_COLOUR = re.compile(r"#([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})")


def read_classes(root: Path) -> tuple[Labels, int]:
    """Read the classes of a folder, and the value that its label files use for ignored pixels (255 unless stated).

    `classes.txt` has a class name per line, optionally followed by `#rrggbb`; `ignore=11` states the ignored value;
    empty lines and lines that begin with `#` are skipped. `classes.json` is a list of names, or of {"name", "colour"}, or
    an object {"classes": that list, "ignore": 11}, or the `labels.json` of a bundle.

    Raises:
        InvalidInput: neither file, both files, or a list that makes no label set.
        CorruptFile: a line or an entry is not understood.
    """
    text, data = root / "classes.txt", root / "classes.json"
    if text.is_file() and data.is_file():
        raise InvalidInput(f"{root} has both classes.txt and classes.json; keep one")
    if not text.is_file() and not data.is_file():
        raise InvalidInput(
            f"{root} lacks classes.txt (one class name per line, optionally #rrggbb after it; optionally ignore=255)"
        )
    path = text if text.is_file() else data
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise CorruptFile(path, "not a text file in UTF-8") from None
    entries, ignored = _from_text(path, content) if path is text else _from_json(path, content)
    if not entries:
        raise InvalidInput(f"{path} names no class")
    if not len(entries) <= ignored <= 255:
        raise InvalidInput(f"{path}: ignore={ignored} must lie above the {len(entries)} class numbers and be at most 255")
    fallback = default_colours(len(entries))
    try:
        colours = tuple(colour or fallback[i] for i, (_, colour) in enumerate(entries))
        return Labels(tuple(name for name, _ in entries), colours), ignored
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from None


def _from_text(path: Path, content: str) -> tuple[list[tuple[str, Colour | None]], int]:
    entries: list[tuple[str, Colour | None]] = []
    ignored = IGNORE
    for number, line in enumerate(content.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if setting := re.fullmatch(r"ignore\s*=\s*(.*)", line):
            if not setting[1].isascii() or not setting[1].isdecimal():
                raise CorruptFile(path, f"ignore={setting[1]!r} is not a whole number", number)
            ignored = int(setting[1])
            continue
        name, hash_sign, colour = line.partition("#")
        if not hash_sign:
            entries.append((line, None))
            continue
        entries.append((name.strip(), _colour(path, f"#{colour.strip()}", number)))
    return entries, ignored


def _from_json(path: Path, content: str) -> tuple[list[tuple[str, Colour | None]], int]:
    try:
        value = json.loads(content)
    except json.JSONDecodeError as error:
        raise CorruptFile(path, f"not valid JSON ({error.msg})", error.lineno) from None
    if isinstance(value, dict) and "names" in value:
        labels = Labels.from_json(value)
        return list(zip(labels.names, labels.colours, strict=True)), labels.ignore
    ignored: Any = IGNORE
    entries: Any = value
    if isinstance(value, dict):
        if unknown := set(value) - {"classes", "ignore"}:
            raise CorruptFile(path, f"unknown keys {', '.join(sorted(unknown))}; allowed: classes, ignore")
        entries, ignored = value.get("classes"), value.get("ignore", IGNORE)
    if not isinstance(ignored, int) or isinstance(ignored, bool):
        raise CorruptFile(path, f"ignore is {ignored!r}; wanted a whole number")
    if not isinstance(entries, list):
        raise CorruptFile(path, "wanted a list of class names")
    return [_entry(path, item) for item in entries], ignored


def _entry(path: Path, item: Any) -> tuple[str, Colour | None]:
    if isinstance(item, str):
        return item, None
    if not isinstance(item, dict) or not isinstance(item.get("name"), str) or set(item) - {"name", "colour"}:
        raise CorruptFile(path, f'{item!r} is no class; wanted a name or {{"name": ..., "colour": "#rrggbb"}}')
    return item["name"], None if item.get("colour") is None else _colour(path, item["colour"])


def _colour(path: Path, text: Any, line: int | None = None) -> Colour:
    match = _COLOUR.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise CorruptFile(path, f"{text!r} is no colour; wanted #rrggbb", line)
    return int(match[1], 16), int(match[2], 16), int(match[3], 16)

"""Read a folder's own class list: `classes.txt` or `classes.json`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from export.codec import convert, reading
from export.errors import CorruptFile, InvalidInput
from export.files import parse_json
from hyctas.data.coding import LARGEST, Coding, numbered
from hyctas.data.labels import IGNORE, Colour, Labels, default_colours

NAMES = ("classes.txt", "classes.json")
PALETTES = ("indices", "colours")
_COLOUR = re.compile(r"#([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})")


@dataclass
class _ClassList:
    """What a class file says."""

    entries: list[tuple[str, Colour | None]] = field(default_factory=list)
    ignored: list[int | Colour] = field(default_factory=list)
    palettes: str = PALETTES[0]


def has_classes(root: Path) -> bool:
    """Say whether a folder has a class file."""
    return any((root / name).is_file() for name in NAMES)


def read_classes(root: Path) -> Coding:
    """Read the classes of a folder, and how its label files denote them.

    `classes.txt` has a class name per line, optionally followed by `#rrggbb`: the colour it is drawn in, and, where every class
    has one, the colour that it has in colour-coded label files. Empty lines and lines that begin with `#` are skipped.
    `ignore=11` or `ignore=#000000` states what ignored pixels hold (255 unless a number is stated; with 0, classes count from
    1), `palette=colours` that in palette files the colours count, not the indices. `classes.json` is a list of names, or of
    {"name", "colour"}, or an object {"classes": that list, "ignore": 11 or "#000000" or a list of such, "palette": ...}, or the
    `labels.json` of a bundle.

    Raises:
        InvalidInput: neither file, both files, or a list that makes no label set.
        CorruptFile: a line or an entry is not understood.
    """
    text, data = (root / name for name in NAMES)
    if text.is_file() and data.is_file():
        raise InvalidInput(f"{root} has both classes.txt and classes.json; keep one")
    if not has_classes(root):
        raise InvalidInput(
            f"{root} lacks classes.txt (one class name per line, optionally #rrggbb after it; optionally ignore=255)"
        )
    path = text if text.is_file() else data
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise CorruptFile(path, "not a text file in UTF-8") from None
    return _coding(path, _from_text(path, content) if path is text else _from_json(path, content))


def _coding(path: Path, found: _ClassList) -> Coding:
    if not found.entries:
        raise InvalidInput(f"{path} names no class")
    numbers = [value for value in found.ignored if isinstance(value, int)] or [IGNORE]
    first = 1 if 0 in numbers else 0
    count = len(found.entries)
    for number in numbers:
        if number and not first + count <= number <= LARGEST:
            raise InvalidInput(
                f"{path}: ignore={number} must lie above the {count} class numbers {first}..{first + count - 1} and be at most "
                f"{LARGEST}; or be 0, and the classes count from 1"
            )
    fallback = default_colours(count)
    given = [colour for _, colour in found.entries if colour is not None]
    if found.palettes != PALETTES[0] and len(given) < count:
        raise InvalidInput(f"{path}: palette=colours needs the colour of every class: NAME #rrggbb")
    try:
        colours = tuple(colour or fallback[i] for i, (_, colour) in enumerate(found.entries))
        return numbered(
            Labels(tuple(name for name, _ in found.entries), colours), range(first, first + count), numbers,
            given if len(given) == count and (len(set(given)) == count or found.palettes == "colours") else None,
            [value for value in found.ignored if not isinstance(value, int)],
            "colours" if found.palettes == "colours" else "indices",
        )  # fmt: skip
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from None


def _from_text(path: Path, content: str) -> _ClassList:
    found = _ClassList()
    for number, line in enumerate(content.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if setting := re.fullmatch(r"(ignore|palette)\s*=\s*(.*)", line):
            if setting[1] == "palette":
                if setting[2] not in PALETTES:
                    raise CorruptFile(path, f"palette is {setting[2]!r}; allowed: {', '.join(PALETTES)}", number)
                found.palettes = setting[2]
            elif setting[2].isascii() and setting[2].isdecimal():
                found.ignored.append(int(setting[2]))
            elif setting[2].startswith("#"):
                found.ignored.append(_colour(path, setting[2], number))
            else:
                raise CorruptFile(path, f"ignore={setting[2]!r} is not a whole number and no colour #rrggbb", number)
            continue
        name, hash_sign, colour = line.partition("#")
        if not hash_sign:
            found.entries.append((line, None))
            continue
        found.entries.append((name.strip(), _colour(path, f"#{colour.strip()}", number)))
    return found


@dataclass(frozen=True)
class _Entry:
    name: str
    colour: str | None = None


@dataclass(frozen=True)
class _Listed:
    """The content of classes.json, where it is not that of labels.json."""

    classes: tuple[str | _Entry, ...]
    ignore: tuple[int | str, ...] = ()
    palette: Literal["indices", "colours"] = "indices"

    @classmethod
    def before_decoding(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Take a single ignored value, too."""
        return {**value, "ignore": [value["ignore"]]} if isinstance(value.get("ignore"), (int, str)) else value


def _from_json(path: Path, content: str) -> _ClassList:
    with reading(path):
        value = parse_json(content)
        if isinstance(value, dict) and "names" in value:
            labels = convert(Labels, value)
            return _ClassList(list(zip(labels.names, labels.colours, strict=True)), [labels.ignore])
        listed = convert(_Listed, value if isinstance(value, dict) else {"classes": value})
    entries = [_Entry(entry) if isinstance(entry, str) else entry for entry in listed.classes]
    return _ClassList(
        [(entry.name, None if entry.colour is None else _colour(path, entry.colour)) for entry in entries],
        [_colour(path, value) if isinstance(value, str) else value for value in listed.ignore],
        listed.palette,
    )


def _colour(path: Path, text: str, line: int | None = None) -> Colour:
    match = _COLOUR.fullmatch(text)
    if match is None:
        raise CorruptFile(path, f"{text!r} is no colour; wanted #rrggbb", line)
    return int(match[1], 16), int(match[2], 16), int(match[3], 16)

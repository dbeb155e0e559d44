"""The blocks that a report is made of, and how Markdown shows them (`page.py` shows the same ones as HTML).

Blocks hold plain text; each renderer escapes it. Only a `Picture` carries finished markup, which our own code made.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias

from export.bench_report import escape_markdown, markdown_rows

Colour: TypeAlias = tuple[int, int, int]


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Note:
    """A paragraph that stands out."""

    text: str
    level: str = "info"
    """One of info, good, warn, bad."""


@dataclass(frozen=True)
class Tile:
    """One number with what it is."""

    label: str
    value: str
    detail: str
    level: str = ""
    """Empty, good, warn or bad."""


@dataclass(frozen=True)
class Tiles:
    """The numbers that matter most."""

    items: tuple[Tile, ...]


@dataclass(frozen=True)
class Row:
    """A row of a table."""

    cells: tuple[str, ...]
    anchor: str | None = None
    """What links elsewhere on the page point to."""
    marked: bool = False


@dataclass(frozen=True)
class Table:
    """Rows and columns; all columns but the first `left` ones hold numbers."""

    head: tuple[str, ...]
    rows: tuple[Row, ...]
    left: int = 1


@dataclass(frozen=True)
class Bar:
    """One class with one share (0..1) per series; None: absent."""

    name: str
    colour: Colour
    shares: tuple[float | None, ...]


@dataclass(frozen=True)
class Bars:
    """Horizontal bars."""

    series: tuple[str, ...]
    items: tuple[Bar, ...]


@dataclass(frozen=True)
class Terms:
    """Words with their meaning, folded away where the format can."""

    title: str
    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Code:
    """Lines to copy."""

    text: str


@dataclass(frozen=True)
class Swatches:
    """Colours with their names."""

    items: tuple[tuple[str, Colour], ...]


@dataclass(frozen=True)
class Picture:
    """Markup that our own code made."""

    html: str
    markdown: str
    """What Markdown shows in its place; may be empty."""
    kind: str
    """CSS class: plot, diagram or overlay."""


Block: TypeAlias = Text | Note | Tiles | Table | Bars | Terms | Code | Swatches | Picture


@dataclass(frozen=True)
class Section:
    """A titled part of the report."""

    id: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """A whole report."""

    kicker: str
    title: str
    lead: str
    sections: tuple[Section, ...]
    """The first one has no heading of its own: it follows the lead."""


def to_markdown(document: Document) -> str:
    """Render a report as Markdown (GitHub flavour)."""
    parts = [f"# {escape_markdown(document.title)}", escape_markdown(document.kicker), escape_markdown(document.lead)]
    for index, section in enumerate(document.sections):
        if index:
            parts.append(f"## {escape_markdown(section.title)}")
        parts += [text for block in section.blocks if (text := _block(block))]
    return "\n\n".join(parts) + "\n"


def percent(share: float | None) -> str:
    """Write a share as a percentage."""
    return "absent" if share is None else f"{100 * share:.1f} %"


def _block(block: Block) -> str:
    match block:
        case Text(text):
            return escape_markdown(text)
        case Note(text, level):
            word = {"warn": "**Warning:** ", "bad": "**Warning:** "}.get(level, "")
            return f"> {word}{escape_markdown(text)}"
        case Tiles(items):
            return markdown_rows([("", "", ""), *((tile.label, tile.value, tile.detail) for tile in items)], 3)
        case Table(head, rows, left):
            return markdown_rows([head, *(row.cells for row in rows)], left)
        case Bars(series, bars):
            return markdown_rows([("class", *series), *((bar.name, *map(percent, bar.shares)) for bar in bars)])
        case Terms(_, terms):
            return "\n".join(f"- {escape_markdown(term)}: {escape_markdown(meaning)}" for term, meaning in terms)
        case Code(text):
            fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
            return f"{fence}sh\n{text}\n{fence}"
        case Picture(_, markdown, _):
            return markdown
        case Swatches():
            return ""

"""Show a report's blocks as one self-contained HTML page: no script, nothing fetched, light and dark."""

from __future__ import annotations

import html
import importlib.resources
import re
from collections.abc import Sequence
from string import Template

from hyctas.report.document import (
    Bar,
    Bars,
    Block,
    Code,
    Colour,
    Document,
    Note,
    Picture,
    Row,
    Section,
    Swatches,
    Table,
    Terms,
    Text,
    Tile,
    Tiles,
    percent,
)

WORDY = 40
"""Cells of text longer than this may wrap."""


def to_html(document: Document) -> str:
    """Render a report as an HTML page."""
    folder = importlib.resources.files("hyctas.report")
    template = Template(folder.joinpath("page.html").read_text(encoding="utf-8"))
    nav = "".join(f'<a href="#{section.id}">{escape(section.title)}</a>' for section in document.sections[1:])
    return template.substitute(
        title=escape(document.title),
        css=folder.joinpath("page.css").read_text(encoding="utf-8"),
        kicker=escape(document.kicker),
        lead=escape(document.lead),
        nav=nav,
        main="\n".join(_section(section, first=index == 0) for index, section in enumerate(document.sections)),
    )


def escape(text: str) -> str:
    """Escape text for content and for attributes."""
    return html.escape(text, quote=True)


def _section(section: Section, *, first: bool) -> str:
    heading = "" if first else f"<h2>{escape(section.title)}</h2>\n"
    name = ' class="first"' if first else ""
    body = "\n".join(_block(block) for block in section.blocks)
    return f'<section id="{section.id}"{name}>\n{heading}{body}\n</section>'


def _block(block: Block) -> str:
    match block:
        case Text(text):
            return f"<p>{escape(text)}</p>"
        case Note(text, level):
            return f'<p class="note {level}">{escape(text)}</p>'
        case Tiles(items):
            return '<div class="tiles">' + "".join(map(_tile, items)) + "</div>"
        case Table():
            return _table(block)
        case Bars(series, items):
            return _key(series) + '<div class="bars">' + "".join(map(_bar, items)) + "</div>"
        case Terms(title, terms):
            rows = "".join(f"<dt>{escape(term)}</dt><dd>{escape(meaning)}</dd>" for term, meaning in terms)
            return f"<details><summary>{escape(title)}</summary><dl>{rows}</dl></details>"
        case Code(text):
            return f"<pre>{escape(text)}</pre>"
        case Swatches(items):
            spans = (f"<span>{_swatch(colour)}{escape(name)}</span>" for name, colour in items)
            return f'<div class="key">{"".join(spans)}</div>'
        case Picture(markup, _, kind):
            return f'<figure class="{kind}">{markup}</figure>'


def _tile(tile: Tile) -> str:
    number, _, unit = tile.value.partition(" ")
    if re.match(r"[\d.,]", number) and unit:  # the unit is set smaller than its number
        value = f"{escape(number)} <small>{escape(unit)}</small>"
    else:
        value = escape(tile.value)
    return (
        f'<div class="tile {tile.level}"><b>{escape(tile.label)}</b><strong>{value}</strong>'
        f"<span>{escape(tile.detail)}</span></div>"
    )


def _table(table: Table) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        names = [("l w" if len(cell) > WORDY else "l") if i < table.left else "" for i, cell in enumerate(cells)]
        pairs = zip(cells, names, strict=True)
        return "".join(f'<{tag} class="{name}">{escape(c)}</{tag}>' if name else f"<{tag}>{escape(c)}</{tag}>" for c, name in pairs)

    def row(value: Row) -> str:
        anchor = f' id="{escape(value.anchor)}"' if value.anchor else ""
        marked = ' class="marked"' if value.marked else ""
        return f"<tr{anchor}{marked}>{line('td', value.cells)}</tr>"

    body = "".join(map(row, table.rows))
    return f'<div class="wide"><table><thead><tr>{line("th", table.head)}</tr></thead><tbody>{body}</tbody></table></div>'


def _key(series: Sequence[str]) -> str:
    names = ("", "second")
    spans = (f'<span class="{names[min(i, 1)]}"><i></i>{escape(name)}</span>' for i, name in enumerate(series))
    return f'<div class="key">{"".join(spans)}</div>'


def _bar(bar: Bar) -> str:
    lines = []
    for index, share in enumerate(bar.shares):
        kinds = ["bar", *(["second"] if index else []), *(["absent"] if share is None else [])]
        fill = "" if share is None else f'<span class="fill" style="width:{100 * share:.1f}%;background:{_rgb(bar.colour)}"></span>'
        lines.append(
            f'<div class="{" ".join(kinds)}"><div class="track">{fill}</div><output>{percent(share)}</output></div>'
        )
    return f'<div class="name">{_swatch(bar.colour)}{escape(bar.name)}</div><div>{"".join(lines)}</div>'


def _swatch(colour: Colour) -> str:
    return f'<span class="swatch" style="background:{_rgb(colour)}"></span>'


def _rgb(colour: Colour) -> str:
    red, green, blue = (int(value) for value in colour)
    return f"rgb({red} {green} {blue})"

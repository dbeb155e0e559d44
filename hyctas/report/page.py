"""Show a report's blocks as one self-contained HTML page: no script, nothing fetched, light and dark."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined

from hyctas.report.document import Document, percent


def to_html(document: Document) -> str:
    """Render a report as an HTML page: page.html.j2, with a macro of blocks.html.j2 for every class of block."""
    loader = PackageLoader("hyctas.report", "")
    jinja = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    jinja.filters |= {"kind": lambda block: type(block).__name__, "percent": percent}
    page = jinja.get_template("page.html.j2")
    return page.render(
        title=document.title,
        kicker=document.kicker,
        lead=document.lead,
        sections=document.sections,
        show=jinja.get_template("blocks.html.j2").module.__dict__,
    )

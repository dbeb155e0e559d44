"""Report on several searches over one supernet: their fronts side by side, and what each has chosen. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from export.files import write_text
from export.target import format_size
from hyctas.artifacts.choice import Outcome
from hyctas.report.document import Document, Note, Picture, Row, Section, Table, Text, to_markdown
from hyctas.report.page import to_html
from hyctas.report.run_data import RunData
from hyctas.report.wording import count, ms, percent, plural

HEAD = ("search", "target", "size", "limit", "network", "mIoU", "latency", "parameters")
PICTURE = "searches.svg"


def chosen_rows(outcomes: Mapping[str, Outcome]) -> list[tuple[str, ...]]:
    """Return the chosen network of each search as a table, its head first."""
    return [HEAD, *(_row(name, outcome) for name, outcome in outcomes.items())]


def _row(name: str, outcome: Outcome) -> tuple[str, ...]:
    choice, limits = outcome.choice, outcome.limits
    parts = [ms(limits.latency_ms)] if limits.latency_ms is not None else []
    parts += [f"{count(limits.parameters)} parameters"] if limits.parameters is not None else []
    parts += [f"{limits.memory_mib:g} MiB"] if limits.memory_mib is not None else []
    trained = choice.ended.trained_miou[-1:] if choice.ended else ()
    miou = f"{percent(trained[0])} trained" if trained else f"{percent(choice.evaluation.miou)} shared weights"
    how = "predicted" if choice.measured_ms is None else "measured"
    handmade = f" ({choice.ended.handmade})" if choice.ended and choice.ended.handmade else ""
    return (
        name, outcome.targets, format_size(outcome.size), ", ".join(parts) or "none", f"{choice.id}{handmade}", miou,
        f"{ms(choice.latency_ms)} {how}", count(choice.evaluation.parameters),
    )  # fmt: skip


def write_report_of_searches(run: Path, found: Mapping[str, RunData]) -> Path:
    """Write RUN/searches.md, RUN/searches.html and RUN/searches.svg; return the page's path.

    Args:
        run: the run folder that the searches are in.
        found: what the run folder of each finished search holds, by its name.
    """
    from hyctas.report.plot import fronts_figure, svg

    drawing = svg(fronts_figure(found))
    write_text(run / PICTURE, drawing)
    document = _document(run, found, drawing[drawing.index("<svg") :])
    write_text(run / "searches.md", to_markdown(document))
    page = run / "searches.html"
    write_text(page, to_html(document))
    return page


def _document(run: Path, found: Mapping[str, RunData], drawing: str) -> Document:
    outcomes = {name: data.outcome for name, data in found.items() if data.outcome is not None}
    head, *rows = chosen_rows(outcomes)
    late = [
        Note(f"{name}: the chosen network needs {ms(outcome.choice.latency_ms)}, more than the limit", "warn")
        for name, outcome in outcomes.items()
        if outcome.limits.latency_ms is not None and outcome.choice.latency_ms > outcome.limits.latency_ms
    ]
    distinct = {outcome.chosen for outcome in outcomes.values()}
    scored = sum(outcome.evaluations.search for outcome in outcomes.values())
    computed = {evaluation.id for data in found.values() for evaluation in data.points}
    lead = (
        f"{plural(len(outcomes), 'search')} over the supernet of {run.name} chose {plural(len(distinct), 'network')} among "
        f"{plural(len(computed), 'different network')} ({scored} scored in all)."
    )
    picture = Picture(drawing, f"![Accuracy over latency of every search]({PICTURE})", "plot")
    table = Table(head, tuple(Row(row) for row in rows), left=5)
    fronts = Text("Each drawing is one search: all networks that it scored, its front, its limit and its choice (★).")
    chosen = Section("chosen", "Chosen networks", (table, *late))
    return Document("hyctas", f"Searches of {run.name}", lead, (chosen, Section("fronts", "Fronts", (fronts, picture))))

"""Write the report of a run folder: report.md, report.html and pareto.svg."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from export.errors import InvalidInput
from export.files import write_text
from hyctas.data.labels import default_colours
from hyctas.report.answer import document
from hyctas.report.collect import collect
from hyctas.report.diagram import diagram_svg
from hyctas.report.document import Document, Picture, Section, to_markdown
from hyctas.report.evidence import (
    classes_section,
    examples_section,
    finalists_section,
    front_section,
    network_section,
    speed_section,
    trust_section,
)
from hyctas.report.overlays import ROWS, overlays
from hyctas.report.page import to_html
from hyctas.report.provenance import files_section, reproduce_section
from hyctas.report.run_data import RunData
from hyctas.report.wording import ms, percent

Example = tuple[np.ndarray, np.ndarray]
FIGURE = "pareto.svg"


def write_report(
    run: Path, examples: Sequence[Example] = (), predictions: Sequence[np.ndarray] = (), step_name: Callable[[str], str] = str
) -> Path:
    """Write RUN/report.md, RUN/report.html and (after a search) RUN/pareto.svg.

    Args:
        run: a run folder; what it lacks is left out of the report, with a line that says so.
        examples: images uint8 (H, W, 3) with labels uint8 (H, W); the first 6 are shown.
        predictions: the network's labels for them, (H, W).
        step_name: gives the name under which the reader knows a step of the job.

    Returns:
        The path of report.html.

    Raises:
        InvalidInput: nothing to report, or examples and predictions do not fit together.
        CorruptFile: a file of the folder cannot be used.
    """
    data = collect(run, step_name)
    if len(examples) != len(predictions):
        raise InvalidInput(f"got {len(examples)} examples and {len(predictions)} predictions; give one prediction per example")
    report = _compose(data, _example_pictures(data, examples[:ROWS], predictions[:ROWS]))
    if data.outcome is not None:
        from hyctas.report.plot import pareto_figure, svg

        write_text(data.folder / FIGURE, svg(pareto_figure(data)))
    write_text(data.folder / "report.md", to_markdown(report))
    page = data.folder / "report.html"
    write_text(page, to_html(report))
    return page


def _compose(data: RunData, pictures: Sequence[Picture]) -> Document:
    """Put all sections in order; those that have nothing to show become a line of the last one."""
    times = _times(data)
    front = None if data.outcome is None else Picture(_figure(data), f"![Accuracy over latency]({FIGURE})", "plot")
    drawing = "" if data.plan is None else diagram_svg(data.plan, times)
    network = Picture(drawing, "The diagram is in report.html.", "diagram") if drawing else None
    found: list[Section | str | None] = [
        speed_section(data),
        front_section(data, front),
        finalists_section(data),
        network_section(data, network, timed=times is not None),
        classes_section(data),
        examples_section(data, pictures),
        trust_section(data),
        reproduce_section(data),
    ]
    written = ["report.html", "report.md", *([FIGURE] if data.outcome is not None else [])]
    left_out = [line for line in found if isinstance(line, str)]
    if data.parity is None:
        left_out.append(f"Parity: there is no bundle/parity.json ({data.step_name('export')} writes it)")
    sections = [section for section in found if isinstance(section, Section)]
    return document(data, (*sections, files_section(data, written, left_out)))


def _figure(data: RunData) -> str:
    """Draw the front for the page: in its colour of text, without a size of its own, a tooltip on every network."""
    from hyctas.report.plot import INK, anchor, pareto_figure, svg

    assert data.outcome is not None
    text = svg(pareto_figure(data), links=True)
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="\S+" height="\S+"', r"\1", text, count=1)
    label = html.escape(f"Accuracy over latency of {data.outcome.evaluations.search} networks, with the front", quote=True)
    text = text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    for member in data.outcome.front:
        link = f'<a xlink:href="#{anchor(member.id)}"'
        known = f"{ms(member.evaluation.predicted_ms)} predicted"
        if member.measured_ms is not None:
            known += f", {ms(member.measured_ms)} measured"
        title = html.escape(f"{member.id}: {percent(member.evaluation.miou)} mIoU, {known}")
        text = re.sub(rf"{link}[^>]*>", f"{link}><title>{title}</title>", text)
    return text.replace('<style type="text/css">*{', "<style>.plot *{")


def _times(data: RunData) -> dict[str, float] | None:
    """Return the measured time of every operator of the network by node name; None where the table lacks one."""
    if data.plan is None or data.table is None:
        return None
    rows = data.table.rows
    if any(node.key not in rows for node in data.plan.nodes):
        return None
    return {node.name: rows[node.key].median_ms for node in data.plan.nodes}


def _example_pictures(data: RunData, examples: Sequence[Example], predictions: Sequence[np.ndarray]) -> list[Picture]:
    if not examples:
        return []
    most = max(int(array[array < 255].max(initial=0)) for array in (*(label for _, label in examples), *predictions))
    colours = data.labels.colours if data.labels else default_colours(data.classes or most + 1)
    painted = overlays([image for image, _ in examples], [label for _, label in examples], predictions, colours)
    heads = '<div class="panels"><span>image</span><span>labels</span><span>prediction</span></div>'
    pictures = []
    for number, jpeg in enumerate(painted, 1):
        source = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
        image = f'<img alt="Example {number}: image, labels, prediction" src="{source}">'
        first = number == 1
        pictures.append(Picture(heads + image if first else image, "The examples are in report.html." if first else "", "overlay"))
    return pictures

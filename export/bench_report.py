"""Hold and render what a bench measured: JSON for machines, Markdown and one self-contained HTML page for people."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from export.codec import Count, NotNegative, Positive, Share, elided, plain
from export.curves import CSS as CURVES
from export.target import parse_size

FORMAT_VERSION = 1
MAX_CV = 0.05
"""Coefficient of variation above which a result carries a warning."""
MAX_LOAD = 0.1
"""Load by cores above which the report warns that other processes were running."""
_CSS = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:64rem;padding:0 1rem;color:#1c2330;background:#fff}"
    "h1{font-size:1.4rem;margin:0 0 .2rem}.sub{color:#5b6575;margin:0 0 1.2rem}.wide{overflow-x:auto}"
    "table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}th,td{padding:.45rem .7rem;text-align:right;"
    "white-space:nowrap;border-bottom:1px solid #e3e7ee}th{color:#5b6575;font-weight:600}td:first-child,th:first-child"
    "{text-align:left}tbody tr:hover{background:#f5f7fb}.warn{color:#8a4b00}li{margin:.15rem 0}"
    "@media(prefers-color-scheme:dark){body{background:#14181f;color:#e4e8ef}th,.sub{color:#9aa5b5}th,td{border-color:#2b323d}"
    "tbody tr:hover{background:#1c222b}.warn{color:#f0b35e}}"
    + CURVES
)


@dataclass(frozen=True)
class BenchResult:
    """One model's times, and how they relate to the first model's in the same rounds."""

    name: str
    file: str | None
    sha256: str | None
    size: str | None
    """HEIGHTxWIDTH of the image; None for a model without one."""
    output: str
    """Name, dtype and shape of the first output."""
    n: Count
    """Samples."""
    rounds: int
    median_ms: Positive
    p90_ms: Positive
    p95_ms: Positive
    p99_ms: Positive
    min_ms: Positive
    cv: NotNegative
    """Standard deviation by mean."""
    fps: Positive
    """1000 / median."""
    ratio_median: float | None
    """Time of this model by that of the first, per round; None for the first."""
    ratio_p10: float | None
    ratio_p90: float | None
    notes: tuple[str, ...] = ()
    memory_mib: NotNegative | None = elided(None)
    """Most host memory beyond the runtime's own, where it was measured."""
    device_memory_mib: NotNegative | None = elided(None)
    """The same of the GPU's memory."""

    def __post_init__(self) -> None:
        if self.size is not None:
            parse_size(self.size)
        if not self.min_ms <= self.median_ms <= self.p90_ms <= self.p95_ms <= self.p99_ms:
            raise ValueError(f"the times of {self.name!r} are not in ascending order")
        if abs(self.fps * self.median_ms / 1000 - 1) > 0.01:
            raise ValueError(f"{self.name!r} has {self.fps} FPS at a median of {self.median_ms} ms")


class TimingReport:
    """Pages of a report: its title, table, remarks and curves, the same way for every kind of report."""

    target: str
    threads: int
    mode: str
    versions: dict[str, str]
    machine: dict[str, Any]
    others_share: float | None

    @property
    def title(self) -> str:
        """Where and what was timed."""
        return f"{self.target}, {self.threads} thread{'s' * (self.threads != 1)}, mode {self.mode}"

    def rows(self) -> list[list[str]]:
        """Return the table's cells, its head first."""
        raise NotImplementedError(type(self).__name__)

    def remarks(self) -> list[str]:
        """Return what a reader of the numbers should know."""
        raise NotImplementedError(type(self).__name__)

    def curves(self) -> str:
        """Return the curves of all models as HTML; none here."""
        return ""

    def to_markdown(self) -> str:
        """Return a table and the circumstances, GitHub flavour."""
        return markdown_table(self.title, self._place(), self.rows(), self.remarks())

    def to_html(self) -> str:
        """Return one page without scripts or outside resources."""
        return page(self.title, self._place(), self.rows(), self.remarks(), self.curves())

    def _place(self) -> str:
        return circumstances(self.machine, self.versions, self.others_share)


@dataclass(frozen=True)
class BenchReport(TimingReport):
    """A whole comparison."""

    target: str
    threads: int
    mode: str
    seconds: float
    """Asked for, per model."""
    versions: dict[str, str]
    machine: dict[str, Any]
    others_share: Share | None
    """Share of the cores, 0 to 1, that other processes used meanwhile; None where the machine does not tell."""
    models: Annotated[tuple[BenchResult, ...], Meta(min_length=1)]
    warnings: tuple[str, ...] = ()
    command_line: tuple[str, ...] = elided(())

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"format_version": FORMAT_VERSION, **plain(self)}

    def memory_fields(self) -> list[str]:
        """Name the fields of `MEMORY` that a model has."""
        return [field for field in MEMORY if any(getattr(result, field) is not None for result in self.models)]

    def rows(self) -> list[list[str]]:
        """Return the table's cells, its head first."""
        memory = self.memory_fields()
        return [[*_HEAD, *(MEMORY[field] for field in memory)], *(
            [
                result.name,
                result.size or "no image",
                f"{result.fps:.1f}",
                *(f"{ms:.3f}" for ms in (result.median_ms, result.p90_ms, result.p95_ms, result.p99_ms, result.min_ms)),
                f"{result.cv:.1%}",
                str(result.n),
                "1" if result.ratio_median is None else _ratio(result),
                *(cell_of(getattr(result, field)) for field in memory),
            ]
            for result in self.models
        )]  # fmt: skip

    def remarks(self) -> list[str]:
        """Return the warnings, and what is noted of the models."""
        return [*self.warnings, *(f"{result.name}: {note}" for result in self.models for note in result.notes)]


MEMORY = {"memory_mib": "memory MiB", "device_memory_mib": "GPU memory MiB"}
"""Of the fields of a result that only some reports have: their columns."""
_HEAD = ["model", "size", "FPS", "median ms", "p90", "p95", "p99", "min", "CV", "n", "time by first [p10, p90]"]


def cell_of(mib: float | None) -> str:
    """Write memory for a table."""
    return "" if mib is None else f"{mib:.1f}"


def _ratio(result: BenchResult) -> str:
    return f"{result.ratio_median:.3f} [{result.ratio_p10:.3f}, {result.ratio_p90:.3f}]"


def circumstances(machine: Mapping[str, Any], versions: Mapping[str, str], others_share: float | None) -> str:
    """Describe where and under which load something was timed."""
    named = ", ".join(f"{name} {value}" for name, value in versions.items())
    gpus = "".join(f"; {gpu['name']} (driver {gpu['driver']})" for gpu in machine.get("gpus", ()))
    place = f"{machine['cpu']}, {machine['usable_cores']} of {machine['cores']} cores{gpus}"
    load = "load by others unknown" if others_share is None else f"others used {others_share:.0%} of the cores"
    return f"{place}; {machine['os']}, Python {machine['python']}; {named}; {load}"


def load_remark(others_share: float | None) -> list[str]:
    """Return what a reader should know of the load by other processes; nothing where there was little."""
    if others_share is None or others_share <= MAX_LOAD:
        return []
    return [f"other processes used {others_share:.0%} of the cores during the measurement"]


def markdown_table(title: str, subtitle: str, rows: Sequence[Sequence[str]], remarks: Sequence[str]) -> str:
    """Return a title, a table whose first row is its head, and remarks, GitHub flavour."""
    lines = [f"# {escape_markdown(title)}", "", escape_markdown(subtitle), "", markdown_rows(rows)]
    if remarks:
        lines += ["", *(f"- {escape_markdown(remark)}" for remark in remarks)]
    return "\n".join(lines) + "\n"


def markdown_rows(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return a table whose first row is its head; all columns but the first `left` ones hold numbers."""
    head, *body = ([escape_markdown(cell) for cell in row] for row in rows)
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *body))


def page(title: str, subtitle: str, rows: Sequence[Sequence[str]], remarks: Sequence[str], more: str = "") -> str:
    """Return the same as one page of HTML without scripts or outside resources, with more HTML at its end."""
    head, body = _cells(rows[0], "th"), "".join(f"<tr>{_cells(row, 'td')}</tr>" for row in rows[1:])
    listed = "".join(f'<li class="warn">{html.escape(remark)}</li>' for remark in remarks)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{_CSS}</style><h1>{html.escape(title)}</h1>"
        f'<p class="sub">{html.escape(subtitle)}</p><div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div><ul>{listed}</ul>{more}</html>\n"
    )


def _cells(row: Sequence[str], tag: str) -> str:
    return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)


def escape_markdown(text: str) -> str:
    """Escape what Markdown, or HTML within it, would take for markup, and control characters."""
    plain = re.sub(r"([\\`*|\[])", r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;"))
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "\ufffd", " ".join(plain.split()))


def summarise(samples: Sequence[float], medians: Sequence[float], reference: Sequence[float] | None) -> dict[str, Any]:
    """Reduce one model's samples (ms), and its rounds' medians against the reference model's, to a result's numbers."""
    values = np.asarray(samples)
    p50, p90, p95, p99 = (float(value) for value in np.percentile(values, (50, 90, 95, 99)))
    ratios: tuple[float | None, ...] = (None, None, None)
    if reference is not None:
        found = np.percentile(np.asarray(medians) / np.asarray(reference), (50, 10, 90))
        ratios = tuple(float(value) for value in found)
    return {
        "n": len(values),
        "rounds": len(medians),
        "median_ms": p50,
        "p90_ms": p90,
        "p95_ms": p95,
        "p99_ms": p99,
        "min_ms": float(values.min()),
        "cv": float(values.std() / values.mean()),
        "fps": 1000 / p50,
        "ratio_median": ratios[0],
        "ratio_p10": ratios[1],
        "ratio_p90": ratios[2],
    }

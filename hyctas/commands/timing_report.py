"""Write and print what timing has found."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from export.bench_report import FORMAT_VERSION, MEMORY, BenchReport, cell_of
from export.errors import CorruptFile, InvalidInput
from export.files import read_json, write_json, write_text
from export.paced_report import PacedReport
from export.sustained_report import SustainedReport
from hyctas.cli.show import say
from hyctas.cli.streams import printable
from hyctas.commands.output_paths import check_writable
from hyctas.commands.run_report import report_run


def check_out(out: Path) -> None:
    """Refuse a report file that cannot be written, or that would replace something else.

    Raises:
        InvalidInput: no .json file, not writable, or taken.
    """
    if out.suffix != ".json":
        raise InvalidInput(f"--out {out}: the report's name ends in .json; .md and .html files appear beside it")
    check_writable(out)
    taken = [path for path in (out, out.with_suffix(".md"), out.with_suffix(".html")) if path.exists()]
    if not taken:
        return
    try:
        ours = {"target", "models", "mode"} <= set(read_json(out, FORMAT_VERSION))
    except (OSError, CorruptFile):
        ours = False
    if not ours:
        raise InvalidInput(f"{taken[0]} exists and is no report of hyctas-bench; choose another --out or move it away")


Report = BenchReport | PacedReport | SustainedReport


def publish(report: Report, out: Path, run: Path | None) -> None:
    """Print a report, and write it and that of the run which it belongs to."""
    if isinstance(report, BenchReport):
        print_report(report)
    else:
        print_over_time(report)
    for path in write_report(report, out):
        say(f"wrote {path}")
    if run and (run / "train-network.json").exists():
        say(f"wrote {report_run(run)}")


def write_report(report: Report, out: Path) -> tuple[Path, Path, Path]:
    """Write FILE.json, FILE.md and FILE.html."""
    paths = out, out.with_suffix(".md"), out.with_suffix(".html")
    write_json(paths[0], {**report.to_json(), "command_line": [Path(sys.argv[0]).name, *sys.argv[1:]]})
    write_text(paths[1], report.to_markdown())
    write_text(paths[2], report.to_html())
    return paths


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))


def _printed(table: Table) -> Console:
    """Print a table, and return where its notes follow."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    console.print(table)
    return console


def print_over_time(report: PacedReport | SustainedReport) -> None:
    """Print what `--pace` or `--sustained` found."""
    table = _table(report.title)
    head, *rows = report.rows()
    for index, name in enumerate(head):
        table.add_column(name, justify="right" if index else "left", overflow="fold", no_wrap=index > 0)
    for row in rows:
        table.add_row(*(escape(printable(cell)) for cell in row))
    console = _printed(table)
    for remark in report.remarks():
        console.print(printable(f"note: {remark}"), soft_wrap=True, markup=False)


def print_report(report: BenchReport) -> None:
    sizes = sorted({result.size or "no image" for result in report.models})
    title = f"{report.target}, {report.threads} thread{'s' * (report.threads != 1)}, mode {report.mode}, {', '.join(sizes)}"
    table = _table(title)
    table.add_column("model", overflow="fold", min_width=8)
    columns = ("size",) * (len(sizes) > 1) + ("FPS", "median ms", "p90", "p95", "p99", "CV", "time by first")
    memory = report.memory_fields()
    for name in (*columns, *(MEMORY[field] for field in memory)):
        table.add_column(name, justify="right", no_wrap=True)
    for result in report.models:
        ratio = "1" if result.ratio_median is None else f"{result.ratio_median:.3f}"
        if result.ratio_p10 is not None:
            ratio += f" [{result.ratio_p10:.3f}, {result.ratio_p90:.3f}]"
        times = [f"{ms:.3f}" for ms in (result.median_ms, result.p90_ms, result.p95_ms, result.p99_ms)]
        cells = [f"{result.fps:.1f}", *times, f"{result.cv:.1%}", escape(ratio), *(cell_of(getattr(result, f)) for f in memory)]
        table.add_row(escape(printable(result.name)), *([result.size or "no image"] if len(sizes) > 1 else []), *cells)
    console = _printed(table)
    for warning in report.warnings:
        console.print(f"[yellow]warning:[/] {escape(printable(warning))}", soft_wrap=True)
    for result in report.models:
        for note in result.notes:
            console.print(printable(f"note: {result.name}: {note}"), soft_wrap=True, markup=False)

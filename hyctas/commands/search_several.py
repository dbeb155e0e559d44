"""Do several searches over one supernet: for several devices, limits or seeds, each a run folder of its own in RUN/searches."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from export.files import sha256
from hyctas.artifacts.choice import Outcome, read_outcome
from hyctas.cli.advice import command_line
from hyctas.cli.values import read_tables
from hyctas.commands.search_workers import SUPERNET_FILES
from hyctas.report.collect import collect
from hyctas.report.searches import chosen_rows, write_report_of_searches

if TYPE_CHECKING:
    from hyctas.cli.search import SearchJob

COMMON = ("run", "space", "data", "several", "workers", "ray", "restart")
"""What all searches of a file have in common."""
FOLDER = "searches"


def several_jobs(job: SearchJob) -> dict[str, SearchJob]:
    """Return the searches of a file, by name; each gets its run folder, with the supernet in it.

    Raises:
        InvalidInput, InvalidSetting: the file is no list of searches.
    """
    assert job.several is not None
    jobs = {}
    for name, one in read_tables(job.several, job, COMMON).items():
        folder = job.run / FOLDER / name
        link_supernet(job.run, folder)
        jobs[name] = replace(one, run=folder, several=None, table=one.table or (job.run / "latency.json",))
    return jobs


def link_supernet(run: Path, folder: Path) -> None:
    """Put a run's supernet into another run folder, without a second copy where the file system has links."""
    for name in SUPERNET_FILES:
        source, place = run / name, folder / name
        if not source.exists() or (place.exists() and (place.samefile(source) or sha256(place) == sha256(source))):
            continue
        folder.mkdir(parents=True, exist_ok=True)
        beside = place.with_name(f".{name}.part")
        beside.unlink(missing_ok=True)
        try:
            os.link(source, beside)
        except OSError:
            shutil.copyfile(source, beside)
        beside.replace(place)


def write_searches(run: Path, folders: Mapping[str, Path]) -> str:
    """Write RUN/searches.md, .html and .svg; return what is shown of them."""
    page = write_report_of_searches(run, {name: collect(folder, command_line) for name, folder in folders.items()})
    outcomes = {name: read_outcome(folder) for name, folder in folders.items()}
    return "\n".join([*_lines(outcomes), f"wrote {page}"])


def _lines(outcomes: Mapping[str, Outcome]) -> list[str]:
    head, *rows = chosen_rows(outcomes)
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)]

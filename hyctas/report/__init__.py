"""Turn a run folder into a report for people: RUN/report.md, RUN/report.html and RUN/pareto.svg. No torch here.

    run_data   what a report knows of a run, as frozen data
    collect    run folder -> RunData: every file read and checked once
    answer     RunData -> the first section: what was found, and whether it meets the limit
    evidence   RunData -> the sections that show why to believe it
    document   the blocks that sections are made of, and Markdown
    page       the same blocks as one self-contained HTML page (page.html.j2, blocks.html.j2, page.css)
    plot, diagram, overlays   the pictures
    write      all of it, to files

The report is written once, as blocks; Markdown and HTML only differ in how they show them, so they cannot disagree. Only
`plot` imports matplotlib.
"""

from hyctas.report.collect import collect
from hyctas.report.report_files import write_report
from hyctas.report.run_data import RunData

__all__ = ["RunData", "collect", "write_report"]

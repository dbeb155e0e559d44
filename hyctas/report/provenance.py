"""Say how to get the same result again: commands, versions, machines, files."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from hyctas.report.document import Block, Code, Row, Section, Table, Text
from hyctas.report.run_data import FILES, Record, RunData
from hyctas.report.wording import machine, size_of, took

WRITTEN = {"report.html": "this report as a page", "report.md": "this report as Markdown", "pareto.svg": "the figure of the front"}


def reproduce_section(data: RunData) -> Section | str:
    """List the exact commands with versions and machines."""
    if not data.records:
        return "How to reproduce: the folder holds no record of a command (train-supernet.json, search.json, ...)"
    lines = _commands(data.records)
    if data.bench is not None and data.bench.command_line:
        lines += ["# bench", shlex.join(data.bench.command_line)]
    versions = {record.command: record.versions for record in data.records}
    machines = {record.command: {"machine": machine(record.machine)} for record in data.records}
    settings = ", ".join(f"{record.command}.json" for record in data.records)
    blocks: list[Block] = [
        Text("The commands as they were typed, in order. An equal configuration continues or repeats; nothing is lost."),
        Code("\n".join(lines)),
        Table(("package", "version"), tuple(_merged(versions)), left=2),
        Text(" ".join(f"{'Machine' if i == 0 else 'Also'}: {row.cells[1]}." for i, row in enumerate(_merged(machines)))),
        *_data(data),
        Text(f"All settings, with those from TOML files: {settings}."),
    ]
    return Section("reproduce", "Do it again", tuple(blocks))


def files_section(data: RunData, written: Sequence[str], left_out: Sequence[str]) -> Section:
    """List the files of the run folder, and what the report leaves out."""
    rows = [Row((name, what, size_of(data.sizes[name]))) for name, what in FILES.items() if name in data.sizes]
    rows += [Row((name, WRITTEN[name], "")) for name in written]
    blocks: list[Block] = [Text(f"In {data.folder}:"), Table(("file", "what it is", "size"), tuple(rows), left=2)]
    if left_out:
        lines = (line.partition(": ") for line in left_out)
        blocks.append(Table(("left out of this report", "why"), tuple(Row((what, why)) for what, _, why in lines), left=2))
    return Section("files", "Files", tuple(blocks))


def _data(data: RunData) -> list[Text]:
    found = data.data
    counts = found["counts"] if isinstance(found.get("counts"), dict) else {}
    parts = [(found.get("train"), "to train on"), (found.get("choose"), "to choose by"), (counts.get("val"), "to report (val)")]
    known = [f"{number} images {purpose}" for number, purpose in parts if isinstance(number, int)]
    if not known:
        return []
    cut = f" Training and choosing images were cut apart by {found['method']}." if found.get("method") else ""
    return [Text(f"Data ({found.get('kind', 'unknown kind')}): {', '.join(known)}.{cut}")]


def _commands(records: Sequence[Record]) -> list[str]:
    """List command lines, each under what it did; one that did several jobs stands there once."""
    lines = []
    for index, record in enumerate(records):
        time = took(record.started, record.finished)
        state = f"took {time}" if time and record.state == "done" else record.state
        lines.append(" ".join(f"# {record.command}: started {record.started}, {state}".split()))
        following = records[index + 1].command_line if index + 1 < len(records) else None
        if record.command_line != following:
            lines.append(shlex.join(record.command_line))
    return lines


def _merged(values: Mapping[str, Mapping[str, str]]) -> list[Row]:
    """List name and value; where commands differ, each value with its commands."""
    names = sorted({name for found in values.values() for name in found})
    rows = []
    for name in names:
        commands: dict[str, list[str]] = {}
        for command, found in values.items():
            if name in found:
                commands.setdefault(found[name], []).append(command)
        texts = [value if len(commands) == 1 else f"{value} ({', '.join(users)})" for value, users in commands.items()]
        rows.append(Row((name, "; ".join(texts))))
    return rows

"""Keep what `make fuzz` and `make torture` did, and write benchmarks/results/cpu/reliability.md from it."""

from __future__ import annotations

import datetime
import platform
import subprocess
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

FOLDER = Path("benchmarks/results/cpu")
FOUND = Path(__file__).with_name("found.toml")
HEAD = """# Nothing is lost, nothing passes silently

Written by `make fuzz FUZZ=--record` and `make torture TORTURE=--record`; what they do is described in `tests/fuzz`. The numbers
are in `reliability.json`.
"""


def facts() -> dict[str, str]:
    """Say when, with which Python and of which commit a run is; ask at its beginning, since both may change meanwhile."""
    asked = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"], capture_output=True, text=True)
    return {"date": f"{datetime.date.today()}", "commit": asked.stdout.strip() or "unknown", "python": platform.python_version()}


def record(part: str, result: Mapping[str, Any], facts: Mapping[str, str], folder: Path = FOLDER) -> None:
    """Keep the result of a part, "fuzz" or "torture", and write the report anew; kinds of files that were not run now stay.

    Args:
        part: which.
        result: what came of it.
        facts: as `facts` gave them when it began.
        folder: of the report.
    """
    from export.files import read_json, write_json, write_text

    path = folder / "reliability.json"
    known: dict[str, Any] = read_json(path, 1) if path.exists() else {"format_version": 1}
    result = {**facts, **result}
    if part == "fuzz":
        result["kinds"] = _joined(known.get("fuzz", {}).get("kinds", []), [{**kind, **facts} for kind in result["kinds"]])
    known[part] = result
    write_json(path, known)
    lines = [HEAD, *_fuzz(known.get("fuzz")), *_torture(known.get("torture")), *_found()]
    write_text(folder / "reliability.md", "\n".join(lines) + "\n")


def _joined(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Replace kinds by name, in the order in which they were first run."""
    later = {kind["kind"]: kind for kind in new}
    return [later.pop(kind["kind"], kind) for kind in old] + list(later.values())


def _fuzz(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return ["## Mutations of files", "", "Not run yet.", ""]
    total = Counter[str]()
    rows, commits = [], _commits(kind["commit"] for kind in found["kinds"])
    for kind in found["kinds"]:
        read, command = Counter(kind["read"]), Counter(kind["command"])
        total += read + command
        cells = [kind["kind"], read.total(), read["refused"], read["same"], read["other"]]
        cells += [command.total(), command["refused"], command["accepted"], len(kind["faults"])]
        rows.append(f"| {' | '.join(map(str, cells))} |")
    without = [kind["kind"] for kind in found["kinds"] if not Counter(kind["command"]).total()]
    return [
        "## Mutations of files", "",
        f"{total.total():,} mutations of {len(rows)} kinds of files, seed {found['seed']}, {commits}, "
        f"{found['date']}: {total['fault']} faults. Kinds that had faults were run again once these were mended.", "",
        "*refused*: one sentence, exit code 1, 2 or 3. *the same*: read as the unmutated file. *another*: read as another value, "
        "whose types, units, ranges and relations hold (a digit changed in a file without a hash is another file). A *fault* is a "
        "traceback, exit code 70, a hang, control characters on the terminal, more than 3 GiB of memory, or a number that is "
        "silently wrong.", "",
        "| kind of file | in one process | refused | the same | another | by command | refused | accepted | faults |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|", *rows, "",
        *([f"Not run through a command: {', '.join(without)}.", ""] if without else []),
        *_faults(found["kinds"]),
    ]  # fmt: skip


def _commits(names: Iterable[str]) -> str:
    found = [f"`{name}`" for name in dict.fromkeys(names)]
    return f"commit{'s' * (len(found) > 1)} {', '.join(found)}"


def _faults(kinds: list[dict[str, Any]]) -> list[str]:
    groups = Counter((kind["kind"], fault["what"].splitlines()[0][:140]) for kind in kinds for fault in kind["faults"])
    if not groups:
        return []
    lines = [f"* {kind}, {count}x: {what.replace('|', '/').replace('<', '&lt;')}" for (kind, what), count in groups.items()]
    return ["Faults that stand:", "", *lines, ""]


def _torture(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return ["## Kills and other troubles", "", "Not run yet.", ""]
    kills, commits = found["kills"], _commits(found.get("commits", [found["commit"]]))
    return [
        "## Kills and other troubles", "",
        f"{sum(kills.values())} SIGKILLs at random moments in {found['chains']} jobs (profile, both trainings, search, export, "
        f"bench; space tiny, fixed latency table, budgets in steps), seed {found['seed']}, {commits}, "
        f"{found['date']}: {len(found['faults'])} faults. Each command was repeated until it ended; then all files had to be those "
        "of an undisturbed run: the same weights, history, front, scores and bundle, and no file more.", "",
        "| command | undisturbed, s | kills |", "|---|--:|--:|",
        *(f"| {name} | {seconds} | {kills.get(name, 0)} |" for name, seconds in found["seconds"].items()), "",
        f"In the system's temporary folder, killed processes left {found['temporary']} entries, which only the system removes.", "",
        "| trouble | what came of it |", "|---|---|",
        *(f"| {name} | {said.replace('|', '&#124;')} |" for name, said in found["troubles"].items()), "",
        *(["Faults that stand:", "", *(f"* {f.splitlines()[0][:300]}" for f in found["faults"]), ""] if found["faults"] else []),
    ]  # fmt: skip


def _found() -> list[str]:
    """List what was found on the way and what became of it."""
    found = tomllib.loads(FOUND.read_text())
    lines = ["## Found on the way", "", f"{len(found['mended'])} mended:", ""]
    lines += [f"* {text}" for text in found["mended"]]
    lines += ["", "Not run: " + " ".join(found["not_run"])]
    return lines

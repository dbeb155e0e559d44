"""Write `summary.md` from the files of all parts, after every part. No torch here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_suite.goals import OURS, RIVALS, Goal, best, goals
from benchmarks.gpu_suite.records import FORMAT_VERSION, ITSELF
from benchmarks.gpu_suite.suite import read_suite
from export.files import read_json, write_text

PARTS = ("numerics", "attention", "fidelity", "end_to_end", "tests")
Record = Mapping[str, Any]


def write_summary(out: Path) -> None:
    """Write what is known so far."""
    suite = read_suite(out)
    records = {part: read_records(out, part) for part in PARTS}
    packages = ", ".join(f"{name} {found}" for name, found in suite.machine["packages"].items() if found != "none")
    identity = suite.identity
    parts = [
        f"# GPU suite: {identity['gpu']}\n",
        f"Driver {identity['driver']}, {packages}, Python {suite.machine['python']}; {suite.machine['cpu']}, "
        f"{suite.machine['usable_cores']} cores. Sources {identity['sources']}; seed {suite.seed}.\n",
        f"```\n{suite.command}\n```\n",
        *(["**A rehearsal on a CPU: no figure here means anything.**\n"] if identity["device"] == "cpu" else []),
        _states(records),
        _goals(goals(records["attention"])),
        _numerics(records["numerics"]),
        _attention(records["attention"]),
        _tiles(records["attention"], out, identity["gpu"]),
        _fidelity(records["fidelity"]),
        _end_to_end(records["end_to_end"]),
        _tests(records["tests"]),
        _problems(records),
    ]
    write_text(out / "summary.md", "\n".join(part for part in parts if part))


def failures(out: Path) -> list[str]:
    """Return the numeric checks and tests that did not hold, or could not be computed."""
    records = [*read_records(out, "numerics"), *read_records(out, "tests")]
    return [record["id"] for record in records if record["state"] in ("failed", "error")]


def defects(out: Path) -> list[str]:
    """Return the parts that ended with an error outside any measurement."""
    return [part for part in PARTS if any(record["id"] == ITSELF for record in read_records(out, part))]


def read_records(out: Path, part: str) -> list[Record]:
    """Return the records of a part; none where it has not run."""
    path = out / f"{part}.json"
    return list(read_json(path, FORMAT_VERSION)["records"]) if path.exists() else []


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """Write a Markdown table; all columns but the first `left` are numbers."""
    lines = [head, ["---"] * left + ["---:"] * (len(head) - left), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines) + "\n"


def _states(records: Mapping[str, Sequence[Record]]) -> str:
    rows = []
    for part, found in records.items():
        count = Counter(record["state"] for record in found)
        seconds = sum(record.get("seconds", 0.0) for record in found)
        counts = [str(count[state]) for state in ("ok", "failed", "error", "left_out")]
        rows.append([part, *counts, f"{seconds:.0f}" if found else "not run"])
    return "## Parts\n\n" + table(["part", "ok", "failed", "errors", "left out", "seconds"], rows)


def _goals(found: Sequence[Goal]) -> str:
    if not found:
        return ""
    rows = []
    for aim in dict.fromkeys(goal.aim for goal in found):
        ones = [goal for goal in found if goal.aim == aim]
        missed = [f"{goal.where}: {goal.found}" for goal in ones if not goal.met]
        shown = "; ".join(missed[:6]) + (f"; and {len(missed) - 6} more" if len(missed) > 6 else "")
        rows.append([aim, "not met" if missed else "met", f"{len(ones) - len(missed)} of {len(ones)}", shown])
    return "## Goals\n\n" + table(["goal", "", "shapes", "where not"], rows, left=4)


def _numerics(found: Sequence[Record]) -> str:
    worst: dict[tuple[str, str], tuple[float, float]] = {}
    for record in found:
        for name, error in record.get("errors", {}).items():
            key = (record.get("step", record["id"]), record.get("dtype", ""))
            limit = record["limits"][name]
            share = float(error) / limit
            if share >= worst.get(key, (-1.0, 0.0))[0]:
                worst[key] = (share, float(error))
    rows = [[f"{step} {dtype}".strip(), f"{error:.1e}", f"{share:.0%}"] for (step, dtype), (share, error) in worst.items()]
    poisoned = [record["poisoned"] for record in found if "poisoned" in record]
    lines = [f"Outputs' memory was seen to hold NaN before {sum(poisoned)} of {len(poisoned)} launches.\n"] if poisoned else []
    failed = [[record["id"], record.get("shape", ""), "; ".join(record.get("why", [])) or record.get("error", "")]
              for record in found if record["state"] in ("failed", "error")]  # fmt: skip
    lines += [table(["failed", "shape", "why"], failed, left=3)] if failed else []
    if not rows and not failed:
        return ""
    return "## Numerics\n\n" + table(["against float64", "worst error", "of its limit"], rows) + "\n" + "\n".join(lines)


def _attention(found: Sequence[Record]) -> str:
    text = ""
    compiled = {record["id"].removeprefix("compiled "): record for record in found if record["id"].startswith("compiled ")}
    titles = {"forward": "Forward pass", "block": "Whole block", "backward": "Training step (forward and backward)"}
    for step, title in titles.items():
        timed = [record for record in found if record["id"].startswith(f"{step} ") and "times" in record]
        names = [name for name in dict.fromkeys(name for record in timed for name in record["times"]) if name not in RIVALS]
        names += [name for name in RIVALS if any(name in record["times"] for record in timed)]
        rows = []
        for record in timed:
            cells = [_ms(record, name) for name in names]
            cells += [_ms(compiled.get(record["id"], {}), "compiled")]
            ours, other = best(record, OURS[step]), best(record, RIVALS)
            cells += [f"{other[1] / ours[1]:.2f}x" if ours and other else ""]
            cells += [f"{record['floor_share']:.0%}" if "floor_share" in record else "", _ratio(record, "peak_over_io")]
            rows.append([f"{record['dtype']} C={record['C']} N={record['N']}", *cells])
        if rows:
            head = ["shape", *names, "compiled", "best other / ours", "of floor", "memory / in+out"]
            text += f"\n### {title}, ms\n\n" + table(head, rows)
    refused = sorted({f"{record['id'].split()[0]}, C={record['C']}, {name}: {why[:260]}"
                      for record in found for name, why in record.get("refused", {}).items() if isinstance(why, str)})  # fmt: skip
    if refused:
        text += "\nBackends that refuse:\n\n" + "\n".join(f"* {line}" for line in refused) + "\n"
    missing = {record["floor_missing"] for record in found if "floor_missing" in record}
    return "## Attention\n" + text + "".join(f"\nNo floor: {why}.\n" for why in missing) if text else ""


def _ms(record: Record, name: str) -> str:
    found = record.get("times", {}).get(name)
    return f"{found['median_ms']:.4g}" if found else ""


def _ratio(record: Record, name: str) -> str:
    return f"{record[name]:.2f}" if name in record else ""


def _tiles(found: Sequence[Record], out: Path, gpu: str) -> str:
    rows = []
    for record in found:
        if record["id"].startswith("tune ") and record["state"] == "ok":
            best = record["best"]
            tile = f"{best['rows']}x{best['columns']}x{best['channels']} w{best['warps']} s{best['stages']} splits {best['splits']}"
            tried, refused = record["tried"], record["refused"]
            spread = f"{tried[0]['ms']:.4g} - {tried[-1]['ms']:.4g}" if tried else ""
            rows.append([record["id"].removeprefix("tune "), tile, str(len(tried)), spread,
                         "; ".join(f"{count} {why}" for why, count in refused.items())])  # fmt: skip
    tables = sorted((out / "tables").glob("*.json"))
    if not rows:
        return ""
    install = "".join(
        f"\nTable of {gpu} for the dispatch: `{path.name}`. To install it: `cp {path} hyctas/attention/tables/`, or set "
        f"`HYCTAS_ATTENTION_TABLES={path.parent}`.\n" for path in tables
    )  # fmt: skip
    head = ["kernel and shape", "best tile", "tried", "ms, best - worst", "not tried"]
    return "## Tiles\n\n" + table(head, rows, left=2) + install


def _fidelity(found: Sequence[Record]) -> str:
    texts = [f"{record['id'].removesuffix(' judgement')}:\n\n{record['text']}" for record in found
             if record["id"].endswith(" judgement") and record["state"] == "ok"]  # fmt: skip
    return "## Predicted against measured latency, space `tiny`\n\n" + "\n".join(texts) if texts else ""


def _end_to_end(found: Sequence[Record]) -> str:
    rows = []
    for record in found:
        for name, ms in record.get("ms", {}).items():
            rows.append([f"{record['id']}, {name}", f"{ms['median']:.3f}", f"{ms['p99']:.3f}", f"{1e3 / ms['median']:.0f}",
                         f"{float(record['difference'][name]):.1e}"])  # fmt: skip
        rows += [[f"{record['id']}, {name}: {why[:200]}", "", "", "", ""] for name, why in record.get("errors", {}).items()]
    if not rows:
        return ""
    sizes = {f"{record['size'][0]}x{record['size'][1]}, {record['target']}" for record in found if "size" in record}
    title = f"## End to end, {'; '.join(sorted(sizes))}\n\n"
    return title + table(["network and attention", "median ms", "p99 ms", "FPS", "difference from the first"], rows)


def _tests(found: Sequence[Record]) -> str:
    rows = [[record["id"], record["state"], str(record.get("tests", "")), str(record.get("skipped", "")), "; ".join(record["why"])]
            for record in found if "why" in record]  # fmt: skip
    return "## Tests marked gpu\n\n" + table(["file", "", "tests", "skipped", "failed"], rows, left=2) if rows else ""


def _problems(records: Mapping[str, Sequence[Record]]) -> str:
    text = ""
    for state, title, key in (("error", "Errors", "error"), ("left_out", "Left out", "reason")):
        lines = [f"* {part}, {record['id']}: {str(record.get(key, ''))[:400]}" for part, found in records.items()
                 for record in found if record["state"] == state]  # fmt: skip
        text += f"## {title}\n\n" + "\n".join(lines) + "\n\n" if lines else ""
    inner = [f"* {record['id']}, {name}: {str(why)[:300]}" for record in records["attention"]
             for name, why in (record.get("errors") or {}).items() if isinstance(record.get("errors"), dict)]  # fmt: skip
    return text + ("## Contenders that failed\n\n" + "\n".join(inner) + "\n" if inner else "")

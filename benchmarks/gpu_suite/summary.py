"""Write `summary.md` from the files of all parts, after every part: goals reached or missed, tables, errors. No torch here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_suite.records import REST, STATES, read_records, read_suite
from export.bench_report import markdown_rows
from export.files import write_text

PARTS = ("numerics", "attention", "fidelity", "end_to_end")
TITLES = {"forward": "Forward pass", "block": "Whole block", "backward": "Training step (forward and backward)"}
BASELINES = ("naive", "flash", "efficient", "cudnn", "math", "compiled", "drop_in")
OURS = {"forward": ("ours",), "backward": ("ours",), "block": ("ours", "steps")}
"""Ways of ours that the dispatch can choose, by step."""
FLOOR, FLOOR_FROM = {64: 0.5, 128: 0.6, 256: 0.6, 512: 0.6}, 8192
"""Goal: least share of the floor of arithmetic, by C, from so many positions on."""
MOST = {"peak_over_io": (1.2, "peak memory over in- and output"), "backward_over_forward": (2.7, "backward over forward pass")}
"""Goals: at most."""
Record = Mapping[str, Any]


def write_summary(out: Path) -> None:
    """Write what is known so far."""
    suite, records = read_suite(out), {part: read_records(out, part) for part in PARTS}
    packages = ", ".join(f"{name} {found}" for name, found in suite.machine["packages"].items() if found != "none")
    about = (f"Driver {suite.identity['driver']}, {packages}, Python {suite.machine['python']}; {suite.machine['cpu']}, "
             f"{suite.machine['usable_cores']} cores. Sources {suite.identity['sources']}; seed {suite.seed}.")  # fmt: skip
    rehearsal = "**A rehearsal on a CPU: no figure here means anything.**" if suite.identity["device"] == "cpu" else ""
    sections = [
        f"# GPU suite: {suite.identity['gpu']}", about, f"```\n{suite.command}\n```", rehearsal,
        table("Parts", ["part", *STATES, "seconds"], (
            [part, *(Counter(record["state"] for record in found)[state] for state in STATES),
             f"{sum(record.get('seconds', 0.0) for record in found):.0f}" if found else "not run"]
            for part, found in records.items())),
        table("Goals", ["goal", "", "shapes", "where not"], _goals(records["attention"]), left=4),
        table("Numerics", ["against float64", "worst error", "of its limit"], _worst(records["numerics"])),
        table("Checks that failed", ["check", "shape", "why"], (
            [record["id"], record.get("shape", ""), "; ".join(record["why"])]
            for record in records["numerics"] if record["state"] == "failed"), left=3),
        *(_attention(step, records["attention"]) for step in TITLES),
        table("Tiles", ["kernel and shape", "best tile", "tried", "ms", "not tried"], _tiles(records["attention"]), left=2),
        *(f"The dispatch's table: `cp {path} hyctas/attention/tables/`, or set `HYCTAS_ATTENTION_TABLES={path.parent}`."
          for path in sorted((out / "tables").glob("*.json"))),
        *(f"## Predicted against measured latency of `tiny`, {record['id']}\n\n{record['text']}"
          for record in records["fidelity"] if "text" in record),
        table("End to end", ["network, attention", "median ms", "p99 ms", "FPS", "difference from the first"], (
            [f"{record['id']}, {name}", f"{ms['median']:.3f}", f"{ms['p99']:.3f}", f"{1e3 / ms['median']:.0f}",
             f"{float(record['difference'][name]):.1e}"]
            for record in records["end_to_end"] for name, ms in record.get("ms", {}).items())),
        table("Errors", ["part", "measurement", "error"], _reasons(records, "error", "error"), left=3),
        table("Left out", ["part", "measurement", "reason"], _reasons(records, "left_out", "reason"), left=3),
        table("Ways that failed or refuse", ["measurement", "way", "why"], sorted({
            (record["id"].rpartition(" ")[0], name, str(why)[:300])
            for record in (*records["attention"], *records["end_to_end"]) if record["id"][:5] != "tune "
            for name, why in {**record.get("errors", {}), **record.get("refused", {})}.items()}), left=3),
    ]  # fmt: skip
    write_text(out / "summary.md", "\n\n".join(section for section in sections if section) + "\n")


def failures(out: Path) -> list[str]:
    """Return the checks of part 1 that did not hold, or could not be computed."""
    return [record["id"] for record in read_records(out, "numerics") if record["state"] in ("failed", "error")]


def defects(out: Path) -> list[str]:
    """Return the parts that ended with an error outside any measurement."""
    return [part for part in PARTS for record in read_records(out, part) if (record["id"], record["state"]) == (REST, "error")]


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[object]], left: int = 1) -> str:
    """Write a Markdown table under a title, or nothing without rows; all columns but the first `left` are numbers."""
    lines = [[str(cell) for cell in line] for line in (head, *rows)]
    return f"## {title}\n\n{markdown_rows(lines, left)}" if len(lines) > 1 else ""


def goals(record: Record) -> Iterator[tuple[str, str, bool]]:
    """Yield each goal that a comparison can decide, what was found, and whether that is enough."""
    step, times = record["step"], {name: time["median_ms"] for name, time in record["times"].items()}
    ours, others = [times[name] for name in OURS[step] if name in times], [name for name in BASELINES if name in times]
    compiled = record["id"].startswith("compiled")
    if ours and others:
        best = min(others, key=lambda name: times[name])
        than = "what torch.compile makes" if compiled else "all of PyTorch"
        yield f"{step}: faster than {than}", f"{times[best] / min(ours):.2f}x, {best}", times[best] > min(ours)
    if "floor_share" in record and record["N"] >= FLOOR_FROM and not compiled:
        share, wanted = record["floor_share"], FLOOR[record["C"]]
        yield f"{step}: at least {wanted:.0%} of the floor", f"{share:.0%}", share >= wanted
    for key, (most, what) in MOST.items():
        if key in record and not compiled:
            yield f"{step}: {what} at most {most}", f"{record[key]:.2f}", record[key] <= most


def _goals(found: Sequence[Record]) -> Iterator[Sequence[object]]:
    judged: dict[str, list[str]] = {}
    for record in found:
        for goal, value, met in goals(record) if "times" in record else ():
            judged.setdefault(goal, []).append("" if met else f"{_shape(record)}: {value}")
    for goal, texts in judged.items():
        missed = [text for text in texts if text]
        more = [f"and {len(missed) - 6} more"] if len(missed) > 6 else []
        reached = f"{len(texts) - len(missed)} of {len(texts)}"
        yield goal, "missed" if missed else "reached", reached, "; ".join(missed[:6] + more)


def _shape(record: Record) -> str:
    return f"{record['dtype']} C={record['C']} N={record['N']}"


def _worst(found: Sequence[Record]) -> Iterator[Sequence[object]]:
    worst: dict[str, tuple[float, float]] = {}
    for record in found:
        for name, error in record.get("errors", {}).items():
            key, share = f"{record['step']} {record['dtype']}", float(error) / record["limits"][name]
            worst[key] = max(worst.get(key, (0.0, 0.0)), (share, float(error)))
    yield from ([key, f"{error:.1e}", f"{share:.0%}"] for key, (share, error) in worst.items())


def _attention(step: str, found: Sequence[Record]) -> str:
    timed = [record for record in found if record["id"].startswith(f"{step} ") and "times" in record]
    compiled = {record["id"]: record.get("times", {}) for record in found if record["id"].startswith("compiled ")}
    names, rows = [*dict.fromkeys(name for record in timed for name in record["times"]), "compiled"], []
    for record in timed:
        times = {**compiled.get(f"compiled {record['id']}", {}), **record["times"]}
        cells = [f"{times[name]['median_ms']:.4g}" if name in times else "" for name in names]
        shares = [f"{record[name]:.2f}" if name in record else "" for name in ("floor_share", "peak_over_io")]
        rows.append([_shape(record), *cells, *shares])
    return table(f"{TITLES[step]}, ms", ["shape", *names, "share of the floor", "memory / in+out"], rows)


def _tiles(found: Sequence[Record]) -> Iterator[Sequence[object]]:
    for record in found:
        if record["id"].startswith("tune ") and record["state"] == "ok":
            times = [tried["ms"] for tried in record["tried"]]
            best = ", ".join(f"{name} {value}" for name, value in record["best"].items())
            spread = f"{min(times):.4g} - {max(times):.4g}" if times else ""
            reasons = "; ".join(f"{count} {why}" for why, count in record["refused"].items())
            yield record["id"].removeprefix("tune "), best, len(times), spread, reasons


def _reasons(records: Mapping[str, Sequence[Record]], state: str, key: str) -> Iterator[Sequence[object]]:
    """Yield why measurements have no result, each reason of a part once."""
    for part, found in records.items():
        reasons: dict[str, list[str]] = {}
        for record in found:
            if record["state"] == state:
                reasons.setdefault(str(record.get(key, ""))[:400], []).append(record["id"])
        for why, ids in reasons.items():
            yield part, ids[0] + (f" and {len(ids) - 1} more" if len(ids) > 1 else ""), why

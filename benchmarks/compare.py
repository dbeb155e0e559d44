"""Write down a finished run beside the yardstick: the committed account of a run on real data.

    python -m benchmarks.compare --run runs/camvid --yardstick runs/yardstick --bench runs/camvid/against.json \\
        --out benchmarks/results/cpu/camvid.md

Every number comes from files that the commands wrote; nothing is computed here but differences.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.failures import one_sentence
from export.bench_report import markdown_rows
from export.files import read_json, write_text
from hyctas.artifacts.choice import READ_VERSIONS
from hyctas.artifacts.runs import FORMAT_VERSION


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--yardstick", type=Path, required=True)
    parser.add_argument("--bench", type=Path, required=True, help="report of hyctas-bench on both networks")
    parser.add_argument("--fidelity", type=Path, help="report of benchmarks.fidelity")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with one_sentence():
        write_text(arguments.out, account(arguments))
    print(f"wrote {arguments.out}")


def account(arguments: argparse.Namespace) -> str:
    """Return the account as Markdown."""
    run, other = arguments.run, arguments.yardstick
    names = ("profile", "train-supernet", "search", "train-network")
    records = {name: read_json(run / f"{name}.json", FORMAT_VERSION) for name in names}
    yardstick = read_json(other / "yardstick.json", FORMAT_VERSION)
    scores, bench = read_json(run / "scores.json", 1), read_json(arguments.bench)
    outcome = read_json(run / "pareto.json", *READ_VERSIONS)
    machine = records["search"]["machine"]
    data = records["search"]["config"]["data"]
    parts = [
        f"# {data['name']}: search, chosen network and yardstick\n",
        f"{machine['cpu']}, {outcome['threads']} threads, {outcome['target']}, {outcome['size'][0]}x{outcome['size'][1]}. "
        f"Weights were trained on {data['train']} images of *train* and everything was chosen on {data['choose']} others (cut by "
        f"{data['method']}); *val* is only reported. For the yardstick, see `benchmarks/yardstick.py`.\n",
        _summary(scores, yardstick["results"]["scores"], bench),
        _commands([*records.values(), yardstick, bench]),
        _against(records["train-network"], yardstick, scores, bench),
        _classes(data["classes"], scores, yardstick["results"]["scores"]),
        _front(outcome),
        _trust(outcome, arguments.fidelity),
    ]
    return "\n".join(parts)


def _summary(scores: dict[str, Any], other: dict[str, Any], bench: dict[str, Any]) -> str:
    ours, theirs = (model["median_ms"] for model in bench["models"])
    gaps = [100 * (scores[split]["miou"] - other[split]["miou"]) for split in ("choose", "val")]
    return (
        f"The chosen network takes {ours / theirs:.2f} of the yardstick's time, and its mIoU differs by {gaps[0]:+.1f} points on "
        f"the choosing split and {gaps[1]:+.1f} points on val, after equal minutes of training from random weights.\n"
    )


def _commands(records: list[dict[str, Any]]) -> str:
    lines = [_command(record["command_line"]) for record in records]
    return "## Commands\n\n`DATA` is the data set's folder.\n\n```\n" + "\n".join(lines) + "\n```\n"


def _command(words: list[str]) -> str:
    """Return a command line to repeat, without the place of the data set."""
    shown = ["DATA" if before == "--data" else word for before, word in zip(["", *words], words, strict=False)]
    if shown[0].endswith(".py"):
        shown[:1] = ["python", "-m", f"benchmarks.{shown[0].removesuffix('.py')}"]
    return " ".join(shown)


def _against(network: dict[str, Any], yardstick: dict[str, Any], scores: dict[str, Any], bench: dict[str, Any]) -> str:
    rows = []
    for name, record, found in (("chosen network", network, scores), ("yardstick", yardstick, yardstick["results"]["scores"])):
        recipe = record["config"]["recipe"]
        rows.append([name, f"{recipe['minutes']:g}", str(record["results"]["crops"]),
                     f"{100 * found['choose']['miou']:.1f}", f"{100 * found['val']['miou']:.1f}"])  # fmt: skip
    figures = ("median_ms", "p90_ms", "p99_ms", "fps")
    times = [[model["name"], *(f"{model[figure]:.2f}" for figure in figures)] for model in bench["models"]]
    return (
        "## Against the yardstick\n\n"
        + _table(["", "minutes", "crops", "mIoU %, choosing split", "mIoU %, val"], rows)
        + "\nTimed interleaved (native output):\n\n"
        + _table(["model", "median ms", "p90", "p99", "FPS"], times)
    )


def _classes(names: list[str], scores: dict[str, Any], other: dict[str, Any]) -> str:
    rows = [
        [name, *(_percent(found[split]["iou"][i]) for found in (scores, other) for split in ("choose", "val"))]
        for i, name in enumerate(names)
    ]
    head = ["IoU %", "chosen: choosing split", "chosen: val", "yardstick: choosing split", "yardstick: val"]
    return "## Per class\n\n" + _table(head, rows)


def _front(outcome: dict[str, Any]) -> str:
    rows = [
        [
            member["id"] + (" (chosen)" if member["id"] == outcome["chosen"] else ""), str(member["branches"]),
            f"{100 * member['miou']:.1f}", f"{member['predicted_ms']:.2f}",
            f"{member['measured_ms']:.2f}" if member["measured_ms"] else "-",
            f"{100 * (member['predicted_ms'] / member['measured_ms'] - 1):+.1f}" if member["measured_ms"] else "-",
            f"{member['parameters'] / 1e6:.2f}", f"{member['macs'] / 1e9:.2f}",
        ]
        for member in outcome["front"]
    ]  # fmt: skip
    return (
        "## Front (shared weights, choosing split)\n\n"
        + _table(["network", "branches", "mIoU %", "predicted ms", "measured ms", "error %", "M params", "GMAC"], rows)
        + f"\nHypervolume (reference: mIoU 0, {outcome['reference_ms']:.2f} ms): {outcome['hypervolume']['search']:.4f} after "
        f"{outcome['evaluations']['search']} networks.\n"
    )


def _trust(outcome: dict[str, Any], fidelity: Path | None) -> str:
    held = outcome["calibration"]["holdout"]
    text = (
        f"## Latency prediction\n\nCalibrated on {held['n']} networks, hold-out: MAPE {100 * held['mape']:.1f} %, "
        f"{100 * held['within5']:.0f} % within 5 %, {100 * held['within10']:.0f} % within 10 %, Spearman {held['spearman']:.3f}.\n"
    )
    if fidelity is not None:
        found = read_json(fidelity)["judgement"]["fidelity"]
        text += (
            f"On {found['n']} fresh networks (`{fidelity.name}`): MAPE {100 * found['mape']:.1f} %, {100 * found['within5']:.0f} % "
            f"within 5 %, {100 * found['within10']:.0f} % within 10 %, Spearman {found['spearman']:.3f}.\n"
        )
    return text


def _percent(share: float | None) -> str:
    return "absent" if share is None else f"{100 * share:.1f}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    return markdown_rows([head, *rows]) + "\n"


if __name__ == "__main__":
    main()

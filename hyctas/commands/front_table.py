"""Show the outcome of a search as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from export.errors import CorruptFile
from export.files import read_json
from hyctas.artifacts.choice import READ_VERSIONS
from hyctas.cli.advice import command_line


def show_front(run: Path) -> str:
    """Return RUN/pareto.json as a table for people.

    Raises:
        CorruptFile: it is damaged.
    """
    outcome = read_json(run / "pareto.json", *READ_VERSIONS)
    try:
        return "\n".join([*_front_lines(outcome), *_finalist_lines(outcome, run), *_limit_lines(outcome)])
    except (KeyError, TypeError, ValueError, StopIteration) as error:
        raise CorruptFile(run / "pareto.json", f"a field is missing or wrong ({type(error).__name__}: {error})") from None


def _front_lines(outcome: dict[str, Any]) -> list[str]:
    lines = [f"front on {outcome['target']} ({outcome['threads']} threads), mIoU with shared weights:",
             "  network        branches   mIoU   predicted ms   measured ms   params"]  # fmt: skip
    for member in outcome["front"]:
        star = "  <- chosen" if member["id"] == outcome["chosen"] else ""
        lines.append(f"  {member['id']}   {member['branches']:8d}  {member['miou']:5.3f}   {member['predicted_ms']:12.2f}   "
                     f"{_ms(member)}   {member['parameters'] / 1e6:5.2f}M{star}")  # fmt: skip
    return [*lines, f"hypervolume {outcome['hypervolume']['search']:.4f} after {outcome['evaluations']['search']} networks"]


def _finalist_lines(outcome: dict[str, Any], run: Path) -> list[str]:
    finalists = outcome.get("finalists", ())
    if not finalists:
        return []
    rounds = max(len(finalist["trained_miou"]) for finalist in finalists)
    lines = ["finalists, mIoU on the choosing split with shared weights and after each round of training:",
             "  network       shared" + "".join(f"  round {n + 1}" for n in range(rounds)) + "   measured ms"]  # fmt: skip
    for finalist in finalists:
        trained = "".join(f"    {miou:5.3f}" for miou in finalist["trained_miou"]).ljust(9 * rounds)
        ends = {"won": "  <- chosen", "slow": "  above the limit", "failed": "  its training failed", "worse": ""}
        name = f"  {finalist['handmade']}" if finalist["handmade"] else ""
        lines.append(f"  {finalist['id']}   {finalist['miou']:5.3f}{trained}   {_ms(finalist)}{name}{ends[finalist['end']]}")
    winner = next((finalist for finalist in finalists if finalist["end"] == "won"), None)
    if winner is None:
        return [*lines, "warning: no finalist keeps the limit when measured; the choice is the one by shared weights"]
    if winner["handmade"]:
        lines.append(f"the hand-made network {winner['handmade']} beat all that the search found, and is the answer")
    return [*lines, f"to train it on: {command_line('train network', run=run, init=run)}"]


def _limit_lines(outcome: dict[str, Any]) -> list[str]:
    lines, limit_ms = [], outcome["limits"]["latency_ms"]
    chosen = next(m for m in (*outcome.get("finalists", ()), *outcome["front"]) if m["id"] == outcome["chosen"])
    latency_ms = chosen["measured_ms"] or chosen["predicted_ms"]
    if limit_ms is not None and latency_ms > limit_ms:
        lines.append(f"warning: no measured network of the front keeps {limit_ms:.2f} ms; the fastest needs {latency_ms:.2f} ms. "
                     "Repeat the search with a tighter limit.")  # fmt: skip
    if limit_ms is not None and (times := [m["measured_ms"] for m in outcome["front"] if m["measured_ms"] is not None]):
        kept = sum(time <= limit_ms for time in times)
        how = f"searched on the bound of {outcome['confidence']:.0%}" if outcome["confidence"] else "searched on the prediction"
        lines.append(f"{kept} of {len(times)} measured networks keep {limit_ms:.2f} ms ({how})")
    return lines


def _ms(member: dict[str, Any]) -> str:
    return f"{member['measured_ms']:11.2f}" if member["measured_ms"] else "          -"

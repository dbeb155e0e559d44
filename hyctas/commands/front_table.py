"""Show the outcome of a search as a table."""

from __future__ import annotations

from pathlib import Path

from hyctas.artifacts.choice import Member, Outcome, read_outcome
from hyctas.cli.advice import command_line
from hyctas.report.wording import plural


def show_front(run: Path) -> str:
    """Return RUN/pareto.json as a table for people.

    Raises:
        CorruptFile: it is damaged.
    """
    outcome = read_outcome(run)
    return "\n".join([*_front_lines(outcome), *_finalist_lines(outcome, run), *_limit_lines(outcome)])


def _front_lines(outcome: Outcome) -> list[str]:
    targets = " and ".join([f"{outcome.target} ({plural(outcome.threads or 1, 'thread')})", *outcome.beside])
    slowest = "; latency: the longest" if outcome.beside else ""
    lines = [f"front on {targets}, mIoU with shared weights{slowest}:",
             "  network        branches   mIoU   predicted ms   measured ms   params"]  # fmt: skip
    for member in outcome.front:
        found, star = member.evaluation, "  <- chosen" if member.id == outcome.chosen else ""
        lines.append(f"  {member.id}   {member.branches:8d}  {found.miou:5.3f}   {found.predicted_ms:12.2f}   "
                     f"{_ms(member)}   {found.parameters / 1e6:5.2f}M{star}")  # fmt: skip
    return [*lines, f"hypervolume {outcome.hypervolume.search:.4f} after {outcome.evaluations.search} networks"]


def _finalist_lines(outcome: Outcome, run: Path) -> list[str]:
    finalists = [(member, member.ended) for member in outcome.finalists if member.ended is not None]
    if not finalists:
        return []
    rounds = max(len(ended.trained_miou) for _, ended in finalists)
    lines = ["finalists, mIoU on the choosing split with shared weights and after each round of training:",
             "  network       shared" + "".join(f"  round {n + 1}" for n in range(rounds)) + "   measured ms"]  # fmt: skip
    for finalist, ended in finalists:
        trained = "".join(f"    {miou:5.3f}" for miou in ended.trained_miou).ljust(9 * rounds)
        ends = {"won": "  <- chosen", "slow": "  above the limit", "failed": "  its training failed", "worse": ""}
        name = f"  {ended.handmade}" if ended.handmade else ""
        lines.append(f"  {finalist.id}   {finalist.evaluation.miou:5.3f}{trained}   {_ms(finalist)}{name}{ends[ended.end]}")
    winner = next((ended for _, ended in finalists if ended.end == "won"), None)
    if winner is None:
        return [*lines, "warning: no finalist meets the limit when measured; the choice is the one by shared weights"]
    if winner.handmade:
        lines.append(f"the hand-made network {winner.handmade} beat all that the search found, and is the answer")
    return [*lines, f"to train it on: {command_line('train network', run=run, init=run)}"]


def _limit_lines(outcome: Outcome) -> list[str]:
    lines, limit_ms = list[str](), outcome.limits.latency_ms
    if limit_ms is None:
        return lines
    if outcome.choice.latency_ms > limit_ms:
        lines.append(f"warning: no measured network of the front meets {limit_ms:.2f} ms; the fastest needs "
                     f"{outcome.choice.latency_ms:.2f} ms. Repeat the search with a tighter limit.")  # fmt: skip
    if times := [member.measured_ms for member in outcome.front if member.measured_ms is not None]:
        kept = sum(time <= limit_ms for time in times)
        how = f"searched on the bound of {outcome.confidence:.0%}" if outcome.confidence else "searched on the prediction"
        lines.append(f"{kept} of {len(times)} measured networks meet {limit_ms:.2f} ms ({how})")
    return lines


def _ms(member: Member) -> str:
    return f"{member.measured_ms:11.2f}" if member.measured_ms else "          -"

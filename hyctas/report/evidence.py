"""Show why to believe the answer: the front, the finalists, the classes, and how far the predictions can be trusted.

Every function returns its section, or one line that says why it is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

from export.bench_report import BenchResult
from export.target import format_size
from hyctas.data.labels import default_colours
from hyctas.report.answer import MODES
from hyctas.report.document import Bar, Bars, Block, Note, Picture, Row, Section, Swatches, Table, Text
from hyctas.report.run_data import SPLITS, Member, Outcome, RunData
from hyctas.report.wording import count, fps, machine, ms, percent, plural, signed
from latency.calibration import Calibration

SPLIT_NAMES = {"val": "val", "choose": "choosing split"}


def speed_section(data: RunData) -> Section | str:
    """Show what the bench measured."""
    bench, result = data.bench, data.result
    if bench is None or result is None:
        return f"Measured speed: there is no fps.json and no bench.json ({data.step_name('bench')} writes one, given this run)"
    head = ("model", "FPS", "median", "p90", "p99", "fastest", "variation", "images")
    rows = tuple(Row(_speed_cells(model), marked=model is result and len(bench.models) > 1) for model in bench.models)
    mode = MODES.get(bench.mode, bench.mode)
    load = "" if bench.others_share is None else f" Other processes used {bench.others_share:.0%} of the cores meanwhile."
    same = " The timed file is the bundle's (equal hash)." if data.is_bundled(result) else ""
    size = result.size or "no image size"
    text = f"Timed: {mode}, at {size}, on {bench.target} with {plural(bench.threads, 'thread')}.{same}{load}"
    text += " Variation is the standard deviation by the mean; below 5 % is steady."
    notes = [warning[:1].upper() + warning[1:] for warning in bench.warnings]
    notes += [f"{model.name}: {note}" for model in bench.models for note in model.notes]
    blocks: list[Block] = [Text(text), Table(head, rows), *(Note(note, "warn") for note in notes)]
    if others := [model for model in bench.models if model.ratio_median is not None]:
        blocks.append(Table(("model", f"time relative to {bench.models[0].name}", "p10", "p90"), tuple(map(_ratio_row, others))))
    return Section("speed", "Measured speed", tuple(blocks))


def _speed_cells(model: BenchResult) -> tuple[str, ...]:
    times = (model.median_ms, model.p90_ms, model.p99_ms, model.min_ms)
    return (model.name, fps(model.fps), *map(ms, times), percent(model.cv), f"{model.n:,}")


def _ratio_row(model: BenchResult) -> Row:
    ratios = (model.ratio_median, model.ratio_p10, model.ratio_p90)
    return Row((model.name, *("" if ratio is None else f"{ratio:.3f}" for ratio in ratios)))


def front_section(data: RunData, picture: Picture | None) -> Section | str:
    """Show the networks that no other beats."""
    if data.outcome is None:
        return f"The front and the finalists: there is no pareto.json ({data.step_name('search')} writes it)"
    outcome = data.outcome
    text = (
        "Each row is a network that no other evaluated one beats in both accuracy and speed. The accuracy ranks networks: it is "
        "found with the weights that all networks share during the search, on the choosing split."
    )
    if data.member is not None and "choose" in data.scores:
        text += (
            f" The network of this report has {percent(data.member.evaluation.miou)} there, and "
            f"{percent(data.scores['choose'].miou)} after training alone."
        )
    text += " Branches are the parallel paths of a network at different resolutions. ★: the chosen network."
    head = ("network", "branches", "mIoU", "predicted", "measured", "error", "parameters", "MACs")
    rows = tuple(_front_row(member, outcome) for member in outcome.front)
    scored, screened = outcome.evaluations.search, outcome.evaluations.screen
    first = f" {plural(screened, 'network')} had been screened on a few images first." if screened else ""
    volume = (
        f"{plural(scored, 'network')} {'was' if scored == 1 else 'were'} scored.{first} Hypervolume "
        f"{outcome.hypervolume.search:.4f}: the share of the area between 0 and 100 % mIoU and between 0 and "
        f"{ms(outcome.reference_ms)} that they cover."
    )
    checks = Text(f"{_front_check(outcome)} {volume}")
    blocks: list[Block] = [Text(text), *([picture] if picture else []), Table(head, rows), checks]
    return Section("front", "The front", tuple(blocks))


def _front_row(member: Member, outcome: Outcome) -> Row:
    found, chosen = member.evaluation, member.id == outcome.choice.id
    name = f"{member.id} ★" if chosen else member.id
    measured = "" if member.measured_ms is None else ms(member.measured_ms)
    cells = (name, str(member.branches), percent(found.miou), ms(found.predicted_ms), measured, signed(member.error),
             count(found.parameters), count(found.macs))  # fmt: skip
    return Row(cells, anchor=f"network-{member.id}", marked=chosen)


def _front_check(outcome: Outcome) -> str:
    errors = [abs(member.error) for member in outcome.front if member.error is not None]
    total = plural(len(outcome.front), "network")
    if not errors:
        return f"None of the {total} was measured whole; latencies are predictions."
    mean, worst = percent(sum(errors) / len(errors)), percent(max(errors))
    return (
        f"{len(errors)} of the {total} were measured whole on {outcome.targets}; the predictions are off by {mean} on average, "
        f"{worst} at worst. Error: predicted by measured, minus one."
    )


def finalists_section(data: RunData) -> Section | str | None:
    """Show how the network was chosen by training."""
    if data.outcome is None:
        return None  # said with the front
    finalists = data.outcome.finalists
    if not finalists:
        some = f"{data.step_name('search')} trains some, asked for finalists"
        return f"The finalists: none were trained, the network was chosen by shared weights ({some})"
    rounds = max(len(member.ended.trained_miou) for member in finalists if member.ended)
    head = ("network", "", "shared weights", *(f"round {number + 1}" for number in range(rounds)), "measured", "")
    rows = tuple(_finalist_row(member, rounds) for member in finalists)
    text = (
        "Shared weights rank networks only roughly, so the best ones and the best hand-made ones within the limits were trained: "
        "in each round for twice as long as in the one before, after which the worse half left. The figures are mIoU on the "
        "choosing split. Before each round they were measured, where the device is here, and those above the limit left."
    )
    return Section("finalists", "The finalists", (Text(text), Note(*_verdict(finalists)), Table(head, rows, left=2)))


def _finalist_row(member: Member, rounds: int) -> Row:
    assert member.ended is not None
    ended = member.ended
    trained = [percent(miou) for miou in ended.trained_miou]
    words = {"won": "★ chosen", "slow": "above the limit", "failed": f"its training failed: {ended.failure}", "worse": ""}
    kind = ended.handmade or "searched"
    cells = (member.id, kind, percent(member.evaluation.miou), *trained, *[""] * (rounds - len(trained)),
             "" if member.measured_ms is None else ms(member.measured_ms), words[ended.end])  # fmt: skip
    return Row(cells, marked=ended.end == "won")


def _verdict(finalists: Sequence[Member]) -> tuple[str, str]:
    """Say who won, and how strongly to say so."""
    winner = next((member.ended for member in finalists if member.ended and member.ended.end == "won"), None)
    if winner is None:
        return "No finalist meets the limit when measured; the choice is the one by shared weights.", "warn"
    if winner.handmade:
        return f"The hand-made network {winner.handmade} beat all that the search found, so it is the answer.", "warn"
    return "A network that the search found won.", "good"


def classes_section(data: RunData) -> Section | str:
    """Show the accuracy per class."""
    if not data.scores:
        return f"Accuracy per class: there is no scores.json ({data.step_name('train network')} writes it)"
    splits = [split for split in SPLITS if split in data.scores]
    number = len(data.scores[splits[0]].iou)
    names = data.labels.names if data.labels else tuple(f"class {index}" for index in range(number))
    colours = data.labels.colours if data.labels else default_colours(number)
    bars = [
        Bar(name, colour, tuple(data.scores[split].iou[index] for split in splits))
        for index, (name, colour) in enumerate(zip(names, colours, strict=True))
    ]
    bars.sort(key=lambda bar: tuple(-1.0 if share is None else -share - 1 for share in bar.shares))
    text = "IoU per class, best first: 100 % where prediction and truth cover the same pixels."
    if any(share is None for bar in bars for share in bar.shares):
        text += " Absent: the split holds no pixel of the class and none was predicted; it is left out of the mean."
    only = [
        f"{names[index]} ({SPLIT_NAMES[split]})" for split in splits
        for index, there in enumerate(data.scores[split].present) if not there and data.scores[split].iou[index] is not None
    ]  # fmt: skip
    blocks: list[Block] = [Text(text), Bars(tuple(SPLIT_NAMES[split] for split in splits), tuple(bars))]
    if only:
        blocks.append(Note(f"Predicted where the truth has none of it, which counts as 0: {', '.join(only)}."))
    return Section("classes", "Accuracy per class", tuple(blocks))


def examples_section(data: RunData, pictures: Sequence[Picture]) -> Section | str:
    """Show predictions beside the truth."""
    if not pictures:
        return "Examples: no images were given to the report"
    text = "Left the image, in the middle the labels, right the prediction. Hatched in grey: pixels without a label."
    colours = () if data.labels is None else tuple(zip(data.labels.names, data.labels.colours, strict=True))
    return Section("examples", "Examples", (Text(text), *pictures, Swatches(colours)))


def network_section(data: RunData, picture: Picture | None, *, timed: bool) -> Section | str:
    """Show the network's operators."""
    if data.plan is None or picture is None:
        return "The network's diagram: it needs genotype.json or pareto.json, the input size and the number of classes"
    nodes, branches = len(data.plan.nodes), len(data.plan.genotype.branches)
    attention = sum(node.operator.label == "attention" for node in data.plan.nodes)
    with_attention = f", {attention} of them self-attention" if attention else ", none of them self-attention"
    text = (
        f"{plural(nodes, 'operator')} in {plural(branches, 'branch')}{with_attention}. Read from left to right; each row is a "
        "resolution, as a share of the image's height and width. Cells that branches share are drawn once. "
        "Rest on a box for its shape and cost."
    )
    if data.plan.padded != data.plan.size:
        text += f" Inside, the image is padded to {format_size(data.plan.padded)}, a multiple of the largest stride."
    if timed:
        text += " Times are those that the latency table holds for the operators."
    return Section("network", "The network", (Text(text), picture))


def trust_section(data: RunData) -> Section | str:
    """Show how well whole networks are predicted from the latency table."""
    if data.table is None:
        return f"Trust in the latency predictions: there is no latency.json ({data.step_name('profile')} writes it)"
    table, identity = data.table, data.table.identity
    busy = table.busy
    threads = plural(identity.threads, "thread")
    held = f"The table holds {plural(len(table), 'operator')}, measured on {identity.target} with {threads} "
    held += f"({machine(identity.device)})."
    if busy:
        held += f" {plural(busy, 'operator')} {'was' if busy == 1 else 'were'} timed while other processes ran."
    calibration = _calibration(data)
    if calibration is None:
        note = "No calibration: predictions are plain sums of operators, and their error is unknown."
        return Section("trust", "Can the predictions be trusted?", (Text(held), Note(note, "warn")))
    return Section("trust", "Can the predictions be trusted?", (Text(held), *_trust(calibration)))


def _calibration(data: RunData) -> Calibration | None:
    """Return the calibration that the search used; without a search, the table's only one."""
    found = data.table.calibrations if data.table else {}
    if data.outcome is not None:
        return found.get(data.outcome.calibration.name) if data.outcome.calibration else None
    return next(iter(found.values())) if len(found) == 1 else None


def _trust(calibration: Calibration) -> tuple[Block, ...]:
    f = calibration.holdout
    text = (
        "A network's latency is predicted by the sum of its operators' times, multiplied by a factor, plus a constant, fitted on "
        f"{plural(calibration.n, 'whole network')} ({calibration.name}). "
        "The errors below are of networks that the formula had not seen."
    )
    rows = (
        ("mean error (MAPE)", percent(f.mape), "how far a prediction is off, on average, as a share of the measured time"),
        ("within 5 %", percent(f.within5), "of the networks are predicted to within 5 % of the measured time"),
        ("within 10 %", percent(f.within10), "of the networks are predicted to within 10 %"),
        ("Spearman correlation", f"{f.spearman:.3f}", "1: the predictions put all networks in the right order; 0: no relation"),
        ("networks", f"{f.n}", "measured whole for this check"),
    )
    level = "good" if f.mape <= 0.05 else "info" if f.mape <= 0.1 else "warn"
    verdicts = {
        "good": f"Predictions are off by {percent(f.mape)} on average: good enough to choose by.",
        "info": f"Predictions are off by {percent(f.mape)} on average: measure a network before relying on it.",
        "warn": f"Predictions are off by {percent(f.mape)} on average: too far to choose by; go by measured latencies.",
    }
    return Text(text), Note(verdicts[level], level), Table(("", "", "meaning"), tuple(map(Row, rows)), left=3)

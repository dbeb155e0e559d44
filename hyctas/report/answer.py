"""Say first what was found: the chosen network's speed, accuracy and cost, and whether it keeps what was asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from export.bench_report import BenchReport, BenchResult
from export.target import format_size
from hyctas.report.document import Block, Document, Note, Section, Terms, Tile, Tiles
from hyctas.report.run_data import Outcome, RunData
from hyctas.report.wording import count, device, fps, ms, percent, plural

TERMS = (
    ("FPS", "frames per second: 1000 divided by the median latency in milliseconds"),
    ("median latency", "half of all images took less time than this; p99: 99 of 100 images took less"),
    ("mIoU", "mean intersection over union: for each class, the area that prediction and truth share by the area that either "
             "covers; then the mean over the classes. 100 % is perfect"),
    ("val", "labelled images that nothing was trained on or chosen by: the fair number"),
    ("choosing split", "images cut from the training data (whole clips or blocks) that networks are compared on; since the best "
                       "is picked by it, it flatters a little"),
    ("parameters", "trained numbers in the network; four bytes each at fp32"),
    ("multiply-accumulates", "products and sums for one image, a measure of work that does not depend on the device"),
    ("parity", "the exported file was run beside the PyTorch network, and their outputs were compared"),
)  # fmt: skip
MODES = {
    "model": "the network alone, without reading the image or drawing the result",
    "labels": "from an image in memory to a label for every pixel",
    "end-to-end": "from a JPEG file in memory to the painted overlay",
}


@dataclass(frozen=True)
class Speed:
    """The best known latency of the network."""

    ms: float
    how: str
    """How it is known: "measured", "measured during the search" or "predicted"."""

    @property
    def fps(self) -> float:
        return 1000 / self.ms


def document(data: RunData, sections: tuple[Section, ...]) -> Document:
    """Put the answer before the other sections of a report."""
    genotype = data.genotype
    title = "No network chosen yet" if genotype is None else f"Network {genotype.id}"
    size = f" · {format_size(data.size)} (height x width)" if data.size else ""
    kicker = f"hyctas report · {data.folder}{size}"
    return Document(kicker, title, _lead(data), (Section("answer", "Answer", _answer(data)), *sections))


def speed(data: RunData) -> Speed | None:
    """Return the network's latency as it is best known."""
    if data.result is not None:
        return Speed(data.result.median_ms, "measured")
    if data.member is None:
        return None
    if data.member.measured_ms is not None:
        return Speed(data.member.measured_ms, "measured during the search")
    return Speed(data.member.evaluation.predicted_ms, "predicted")


def limits_met(data: RunData) -> tuple[list[str], list[str]] | None:
    """Compare the network with each limit; return which are met and which are exceeded, in words; None where no limit was set."""
    outcome, member, found = data.outcome, data.member, speed(data)
    if outcome is None:
        return None
    limits = outcome.limits
    parameters = data.plan.parameters if data.plan else member.evaluation.parameters if member else None
    memory = member.evaluation.memory_mib if member else None
    met, exceeded = list[str](), list[str]()
    latency = found.ms if found else None
    for value, limit, text in (
        (latency, limits.latency_ms, ms),
        (parameters, limits.parameters, lambda x: f"{count(x)} parameters"),
        (memory, limits.memory_mib, lambda x: f"{x:.3g} MiB"),
    ):
        if limit is not None and value is not None:
            (met if value <= limit else exceeded).append(f"{text(value)}, limit {text(limit)}")
    return (met, exceeded) if met or exceeded else None


def _lead(data: RunData) -> str:
    if data.genotype is None:
        return "This run folder holds no search result and no trained network yet. Below is what it does hold."
    found, sentences = speed(data), []
    size = f"{format_size(data.size)} image" if data.size else "image"
    if found is None:
        sentences.append(f"It labels every pixel of an {size}; its speed has not been measured yet.")
    elif data.bench is not None:
        place = f"{device(data.bench.machine, data.bench.target)} ({data.bench.target}, {plural(data.bench.threads, 'thread')})"
        sentences.append(f"It labels every pixel of a {size} in {ms(found.ms)}: {fps(found.fps)} frames per second on {place}.")
    else:
        target = f" on {data.outcome.targets}" if data.outcome else ""
        how = "It is predicted to take" if found.how == "predicted" else "Measured during the search with random weights, it takes"
        sentences.append(f"{how} {ms(found.ms)} per {size}{target}: {fps(found.fps)} frames per second.")
    if data.member is not None and data.member.ended and data.member.ended.end == "won" and data.member.ended.handmade:
        sentences.append(f"It is the hand-made network {data.member.ended.handmade}, which beat all that the search found.")
    limits = limits_met(data)
    if limits and found is not None and data.outcome and (limit := data.outcome.limits.latency_ms) is not None:
        verb = "meets" if found.ms <= limit else "exceeds"
        sentences.append(f"That {verb} the limit of {ms(limit)} ({fps(1000 / limit)} frames per second).")
    if "val" in data.scores:
        sentences.append(f"On images that nothing was trained on or chosen by, it reaches {percent(data.scores['val'].miou)} mIoU.")
    elif data.member is not None:
        miou = percent(data.member.evaluation.miou)
        sentences.append(f"It has not been trained alone yet; with the shared weights of the search it reaches {miou} mIoU.")
    return " ".join(sentences)


def _answer(data: RunData) -> tuple[Block, ...]:
    blocks: list[Block] = []
    if data.genotype is not None:
        blocks.append(Tiles((*_speed_tiles(data), *_score_tiles(data), _limit_tile(data), _parity_tile(data), *_cost_tiles(data))))
    blocks += [Note(text, "warn") for text in warnings(data)]
    blocks.append(Terms("What these words mean", TERMS))
    return tuple(blocks)


def _speed_tiles(data: RunData) -> tuple[Tile, Tile]:
    found = speed(data)
    if found is None:
        nothing = f"{data.step_name('bench')} has not been run"
        return Tile("Speed", "unknown", nothing, "warn"), Tile("Median latency", "unknown", nothing, "warn")
    level = "warn" if found.how == "predicted" else ""
    if data.bench is not None and data.result is not None:
        where = f"{data.bench.target}, {plural(data.bench.threads, 'thread')}, {device(data.bench.machine, data.bench.target)}"
        spread = f"p99 {ms(data.result.p99_ms)}, {plural(data.result.n, 'image')} timed"
        if data.bench.warnings or data.result.notes:
            level, spread = "warn", f"{spread}; take it with care, see Measured speed"
    else:
        where = f"{found.how}, {data.outcome.targets if data.outcome else ''}"
        spread = f"{found.how}; {data.step_name('bench')} measures it"
    return Tile("Speed", f"{fps(found.fps)} FPS", where, level), Tile("Median latency", ms(found.ms), spread, level)


def _score_tiles(data: RunData) -> tuple[Tile, Tile]:
    texts = {"val": "images kept from training and choosing", "choose": "images that networks were compared on"}
    tiles = []
    for split, name in (("val", "mIoU, val"), ("choose", "mIoU, choosing split")):
        score = data.scores.get(split)
        if score is None:
            tiles.append(Tile(name, "not scored", f"{data.step_name('train network')} has not finished", "warn"))
        else:
            detail = f"{texts[split]}; {percent(score.pixel_accuracy)} of the pixels are right"
            tiles.append(Tile(name, percent(score.miou), detail))
    return tiles[0], tiles[1]


def _limit_tile(data: RunData) -> Tile:
    limits, found = limits_met(data), speed(data)
    if limits is None:
        return Tile("Limit met", "no limit", "none was set, or the network's costs are unknown")
    met, exceeded = limits
    if exceeded:
        return Tile("Limit met", "✗ no", "; ".join(exceeded), "bad")
    if found is not None and found.how == "predicted":
        return Tile("Limit met", "✓ yes", "; ".join(met) + " (by prediction only)", "warn")
    return Tile("Limit met", "✓ yes", "; ".join(met), "good")


def _parity_tile(data: RunData) -> Tile:
    if data.parity is None:
        return Tile("Parity with PyTorch", "not checked", f"{data.step_name('export')} has not been run", "warn")
    share = math.floor(data.parity.label_agreement * 1e5) / 1e3  # rounded down: 100 means every pixel
    agreement = f"{share:.3f} % of the pixels get the same label, {plural(data.parity.inputs, 'image')}"
    if data.parity.passed:
        return Tile("Parity with PyTorch", "✓ passed", agreement, "good")
    return Tile("Parity with PyTorch", "✗ failed", f"{agreement}; required {100 * data.parity.min_agreement:.3f} %", "bad")


def _cost_tiles(data: RunData) -> tuple[Tile, Tile]:
    member = data.member.evaluation if data.member else None
    parameters = data.plan.parameters if data.plan else member.parameters if member else None
    macs = data.plan.macs if data.plan else member.macs if member else None
    unknown = "input size or classes are unknown"
    weights = unknown if parameters is None else f"{4 * parameters / 1e6:.2f} MB of weights at fp32"
    return (
        Tile("Parameters", "unknown" if parameters is None else count(parameters), weights),
        Tile("Multiply-accumulates", "unknown" if macs is None else count(macs), unknown if macs is None else "for one image"),
    )


def warnings(data: RunData) -> list[str]:
    """List where the parts of a run do not fit together, and other reasons for care."""
    found = list(data.notices)
    genotype, outcome = data.genotype, data.outcome
    if genotype and outcome and genotype.id != outcome.choice.id:
        found.append(f"the trained network {genotype.id} is not the one that the search chose ({outcome.choice.id})")
    if genotype and data.scored and data.scored != genotype.id:
        found.append(f"scores.json belongs to network {data.scored}, not to {genotype.id}")
    if genotype and data.manifest and data.manifest.extra.get("genotype", genotype.id) != genotype.id:
        found.append(f"the bundle holds another network, {data.manifest.extra['genotype']}; export again")
    if data.data.get("kind") == "camvid" and "val" in data.scores:
        found.append("CamVid's own val is a few seconds of a drive that is also in its training images, so its score flatters")
    if outcome:
        found += _search_warnings(outcome)
    if data.bench is not None and data.result is not None:
        found += _bench_warnings(data, data.bench, data.result)
    return [text[0].upper() + text[1:] + "." for text in found]


def _search_warnings(outcome: Outcome) -> list[str]:
    limit, chosen = outcome.limits.latency_ms, outcome.choice
    if limit is None or chosen.measured_ms is None or chosen.measured_ms <= limit:
        return []
    return [
        f"no measured network of the front meets the limit of {ms(limit)}; the fastest one was taken ({ms(chosen.measured_ms)}). "
        "Repeat the search with a stricter limit, to leave room for the error of the prediction"
    ]


def _bench_warnings(data: RunData, bench: BenchReport, result: BenchResult) -> list[str]:
    found, outcome = [], data.outcome
    if outcome and bench.target not in outcome.targets:
        found.append(f"the network was searched for {outcome.targets} and timed on {bench.target}")
    if outcome and result.size != format_size(outcome.size):
        found.append(f"the network was searched for {format_size(outcome.size)} and timed at {result.size or 'no image'}")
    if data.manifest is not None and result.sha256 is not None and not data.is_bundled(result):
        found.append(f"the timed file ({result.name}) is none of the bundle's, going by its hash")
    limit = outcome.limits.latency_ms if outcome else None
    if limit is not None and result.median_ms <= limit < result.p99_ms:
        share = "one image in a hundred" if result.p95_ms <= limit else "more than one image in twenty"
        found.append(f"the median meets the limit, but {share} takes longer than {ms(limit)} (p99 {ms(result.p99_ms)})")
    return found

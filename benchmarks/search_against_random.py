"""Is the search worth its time? Search against random draws on one supernet, at equal numbers of scored networks.

    python -m benchmarks.search_against_random --run RUN --data FOLDER --limit ms=12 [--evaluations 200] [--seeds 5]
    python -m benchmarks.search_against_random --table

Per seed both sides screen and score equally many networks; no hand-made network is given to either. Each side's answer is its
most accurate network by shared weights between 0.85 and 1.0 of the limit; both are then scored on those images of the choosing
split that neither side saw. Every finished seed appends a line to the results file and is skipped then; a killed one continues
from its histories.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.failures import one_sentence
from benchmarks.screening import append, read_results
from export.bench_report import markdown_rows
from export.errors import CheckFailed, InvalidInput
from export.files import sha256, write_text
from hyctas.arch.genotype import Genotype
from hyctas.artifacts.inherit import SupernetRecord
from hyctas.artifacts.runs import recorded_preprocessing
from hyctas.cli.search import SearchJob
from hyctas.cli.show import bar
from hyctas.commands.datasets import open_dataset
from hyctas.commands.search import OptimiserMaker
from hyctas.commands.search_scorer import NORM_BATCHES, open_scorer
from hyctas.cost.workloads import CostModel, only_calibrated_size
from hyctas.data import Frames
from hyctas.search.driver import SURVIVING, search
from hyctas.search.history import SEARCH, Evaluation, History
from hyctas.search.limits import Limits
from hyctas.search.optimise import RandomDraws
from hyctas.search.score import Scorer, drawn_samples
from latency import LatencyTable

RESULTS = Path(__file__).parent / "results/cpu/search_against_random.jsonl"
BAND = (0.85, 1.0)
"""Shares of the limit between which an answer lies: what is much faster wastes what was allowed."""
Side = Callable[[CostModel, Limits, int, int], tuple[CostModel, OptimiserMaker | None]]
"""Makes, from costs, limits, seed and networks at a time, the costs and the optimiser of a search; none: the search's own."""


class Draws:
    """Random networks, as an `Optimiser`.

    Args:
        model: predicts costs.
        limits: what networks meet.
        seed: of the draws.
        batch: networks at a time.
    """

    def __init__(self, model: CostModel, limits: Limits, seed: int, batch: int) -> None:
        self.draws, self.batch = RandomDraws(model, limits, seed), batch

    def ask(self) -> list[Genotype]:
        """Return the networks of the next generation."""
        return [self.draws.next() for _ in range(self.batch)]

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Learn nothing."""


def search_of_all(model: CostModel, limits: Limits, seed: int, batch: int) -> tuple[CostModel, OptimiserMaker | None]:
    """Search as users do."""
    return model, None


def random_draws(model: CostModel, limits: Limits, seed: int, batch: int) -> tuple[CostModel, OptimiserMaker | None]:
    """Draw at random instead."""
    return model, lambda first: Draws(model, limits, seed, batch)


SIDES: dict[str, Side] = {"search": search_of_all, "random": random_draws}


def best_in_band(evaluations: Sequence[Evaluation], limit_ms: float) -> Evaluation:
    """Return the most accurate network in the band below the limit.

    Raises:
        CheckFailed: there is none.
    """
    inside = [e for e in evaluations if BAND[0] * limit_ms <= e.predicted_ms <= BAND[1] * limit_ms]
    if not inside:
        raise CheckFailed(f"none of {len(evaluations)} networks lies between {BAND[0]:g} and {BAND[1]:g} of {limit_ms:g} ms")
    return max(inside, key=lambda e: (e.miou, e.id))


def paired(differences: Sequence[float], confidence: float = 0.95, *, one_sided: bool = False) -> tuple[float, float, float]:
    """Return the mean of paired differences with the ends of its confidence interval (Student's t; one-sided: no upper end)."""
    from scipy.stats import t

    mean, count = float(np.mean(differences)), len(differences)
    if count < 2:
        return mean, float("-inf"), float("inf")
    reach = t.ppf(confidence if one_sided else 0.5 + confidence / 2, count - 1) * np.std(differences, ddof=1) / count**0.5
    return mean, mean - float(reach), float("inf") if one_sided else mean + float(reach)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_search_arguments(parser)
    parser.add_argument("--work", type=Path, default=Path("runs/search_against_random"), help="folder of the histories")
    parser.add_argument("--results", type=Path, default=RESULTS, help="results file")
    parser.add_argument("--table", action="store_true", help="write the results file's table beside it instead")
    arguments = parser.parse_args()
    with one_sentence():
        if arguments.table:
            write_text(arguments.results.with_suffix(".md"), table(read_results(arguments.results)))
            return
        if arguments.run is None or arguments.limit is None:
            raise InvalidInput("give --run and --limit, or --table")
        for seed in range(arguments.seeds):
            compare(arguments, seed, SIDES, arguments.results)


def add_search_arguments(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    """Give a parser what says which searches are compared."""
    parser.add_argument("--run", type=Path, required=required, help="run folder with a trained supernet and a latency table")
    parser.add_argument("--data", help="data set; default: the one that the supernet was trained on")
    parser.add_argument("--limit", required=required, help="ms=... or fps=...")
    parser.add_argument("--evaluations", type=int, default=200, help="networks that each side scores")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", type=int, default=60, help="images that networks are scored on")


def compare(arguments: argparse.Namespace, seed: int, sides: Mapping[str, Side], results: Path) -> None:
    """Run all sides of a seed, and append what their answers reach on images that none saw.

    Args:
        arguments: those of `add_search_arguments`, and `work`, the folder of the histories.
        seed: of both.
        sides: what is compared.
        results: file to which a line is appended, unless it stands there.

    Raises:
        InvalidInput: no limit on latency, or no image of the choosing split is left unseen.
        CheckFailed: a side found nothing near the limit.
    """
    job = SearchJob(run=arguments.run, evaluations=arguments.evaluations, images=arguments.images, seed=seed)
    limits = Limits.parse([arguments.limit])
    if limits.latency_ms is None:
        raise InvalidInput(f"--limit {arguments.limit} is not one on latency; give ms=... or fps=...")
    supernet, preprocessing = SupernetRecord.read(job.run), recorded_preprocessing(job.run / "train-supernet.json")
    data, path = open_dataset(arguments.data or supernet.data, check=False), job.run / "latency.json"
    space, latency = supernet.space(), LatencyTable.load(path)
    size = only_calibrated_size(space, latency)
    case = {
        "seed": seed, "supernet_sha256": sha256(supernet.path), "table_sha256": sha256(path), "limit_ms": limits.latency_ms,
        "evaluations": job.evaluations, "images": job.images, **asdict(job.settings),
    }  # fmt: skip
    if case in [line["case"] for line in read_results(results)]:
        return
    _, unseen = drawn_samples(data.choose, seed, job.images)
    if not unseen:
        raise InvalidInput(f"all {len(data.choose)} images of the choosing split are scored on; give fewer --images")
    model = CostModel(space, latency, size, data.num_classes)
    scorer = open_scorer(job, supernet, data, preprocessing)
    settings = job.settings
    batch = round(max(2, settings.population // 3) / SURVIVING)
    answers = {}
    for side, make in sides.items():
        costs, optimiser = make(model, limits, seed, batch)
        folder = arguments.work / f"seed{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        history = History(folder / f"{side}.jsonl", {**case, "side": side}, print)
        with bar(f"seed {seed}, {side}") as shown:
            search(
                costs, limits, scorer, history, evaluations=job.evaluations, population=settings.population, seed=seed,
                reference_ms=limits.latency_ms, screen=scorer.screen, candidates=settings.candidates, optimiser=optimiser,
                progress=lambda done, total, volume: shown.update(done / total, f"{done}/{total}, hypervolume {volume:.4f}"),
            )  # fmt: skip
        answers[side] = best_in_band(history.of(SEARCH), limits.latency_ms)
    parts = (Frames(data.source, "train", samples, size=supernet.size) for samples in (data.train, unseen))
    judge = Scorer(
        scorer.supernet, *parts, preprocessing=preprocessing, seed=seed, norm_batches=NORM_BATCHES, threads=settings.threads
    )
    line = {"case": case, "unseen_images": len(unseen), "size": size}
    for side, answer in answers.items():
        known = {"id": answer.id, "genotype": json.loads(answer.genotype.to_json()), "predicted_ms": answer.predicted_ms}
        line[side] = {**known, "seen_miou": answer.miou, "unseen_miou": judge(answer.genotype)}
    append(results, line)


def table(lines: list[dict[str, Any]]) -> str:
    """Return the results as Markdown."""
    return (
        "# Search against random\n\nPrinted by `python -m benchmarks.search_against_random --table` from "
        "`search_against_random.jsonl`. " + answers_table(lines, "search", "random")
    )


def answers_table(lines: list[dict[str, Any]], one: str, other: str) -> str:
    """Return two sides' results as Markdown: a line per seed, and the mean difference with its interval of 95 %."""
    rows = [["seed", "network", "ms predicted", "mIoU %, seen", "mIoU %, unseen"]]
    for line in lines:
        for side in (one, other):
            found = line[side]
            scores = (f"{100 * found[name]:.1f}" for name in ("seen_miou", "unseen_miou"))
            rows.append([str(line["case"]["seed"]), f"{side}: {found['id']}", f"{found['predicted_ms']:.2f}", *scores])
    mean, low, high = paired([100 * (line[one]["unseen_miou"] - line[other]["unseen_miou"]) for line in lines])
    first = lines[0]["case"]
    return (
        f"One supernet, {first['evaluations']} scored networks per side and seed, limit {first['limit_ms']:.2f} ms; each "
        f"side's best by shared weights at {BAND[0]:g} to {BAND[1]:g} of the limit, on images of the choosing split that neither "
        "saw.\n\n" + markdown_rows(rows, 2)
        + f"\n\n{one.capitalize()} minus {other} on unseen images: {mean:+.2f} points, 95 % interval "
        f"{low:+.2f} to {high:+.2f} ({len(lines)} seeds).\n"
    )  # fmt: skip


if __name__ == "__main__":
    main()

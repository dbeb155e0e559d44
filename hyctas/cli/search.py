"""hyctas-search: find the networks that no other beats in both mIoU and latency, and choose one of them by training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyctas.cli.entry import command
from hyctas.cli.jobs import SearchJob, image_size
from hyctas.cli.show import Show, bar, say

if TYPE_CHECKING:
    from export.bundle.imaging import Preprocessing
    from hyctas.artifacts.inherit import SupernetRecord
    from hyctas.artifacts.runs import Run
    from hyctas.cli.datasets import DataSet
    from hyctas.cost.workloads import CostModel
    from hyctas.search.history import Evaluation, History
    from hyctas.search.limits import Limits
    from hyctas.search.score import Scorer
    from hyctas.spaces.search_space import SearchSpace
    from latency import LatencyTable

SCORE_THREADS, NORM_BATCHES = 2, 2
"""Fixed, and noted in the history: recorded values depend on them in the last digits."""


def main() -> None:
    """Run the command line."""
    command(
        run_search, SearchJob, "Search the space of a trained supernet: RUN/pareto.json.",
        name="hyctas-search", example="--run runs/mine --limit fps=30",
    )  # fmt: skip


def run_search(job: SearchJob) -> None:
    """Fill RUN/history.jsonl and write RUN/pareto.json and RUN/pareto.svg."""
    from export.files import sha256
    from hyctas.artifacts.choice import HANDMADE
    from hyctas.artifacts.inherit import SupernetRecord
    from hyctas.artifacts.runs import Run, recorded_preprocessing
    from hyctas.cli.datasets import open_dataset
    from hyctas.cli.train_finalists import choose_by_training
    from hyctas.cost.workloads import CostModel
    from hyctas.search.driver import search
    from hyctas.search.history import History
    from hyctas.search.limits import Limits
    from hyctas.spaces.members import members_of
    from latency import LatencyTable

    limits = Limits.parse(job.limit)
    record_path, table_path = job.run / "train-supernet.json", job.table or job.run / "latency.json"
    supernet, preprocessing = SupernetRecord.read(job.run), recorded_preprocessing(record_path)
    space, table = supernet.space(job.space), LatencyTable.load(table_path)
    size = _size(job, space, table, table_path)
    data = open_dataset(job.data or supernet.data, check=False)
    confidence = None if job.confidence is None else job.confidence / 100
    model = CostModel(space, table, size, data.num_classes, confidence)
    _check_error(model, job.max_error, table_path)
    limits.check_feasible(model)
    if supernet.band and (warning := supernet.band.warning(limits.latency_ms, size, sha256(table_path))):
        say(warning)
    settings = job.search()
    eval_size = settings.eval_size or supernet.size
    members, screened = members_of(space), min(settings.screen_images, job.images)
    config = {
        "space_hash": space.hash, "size": size, "limits": asdict(limits), "confidence": confidence, "evaluations": job.evaluations,
        "population": settings.population, "candidates": settings.candidates, "images": job.images, "screen_images": screened,
        "members": [genotype.id for genotype in members.values()], "eval_size": eval_size, "seed": job.seed,
        "data": data.trained(), "supernet_sha256": sha256(supernet.path),
        "table_sha256": sha256(table_path), "threads": SCORE_THREADS, "norm_batches": NORM_BATCHES,
        "preprocessing": preprocessing.to_json(),
    }  # fmt: skip
    former = {**config, "data": data.identity()}
    run = Run(job.run, "search", config, ("history.jsonl", "pareto.json", "pareto.svg", "finalists"),
              restart=job.restart, formerly={**former, "measure": job.measure})  # fmt: skip
    reference_ms = limits.latency_ms or model.costs(space.largest()).bound_ms
    history = History(
        run.file("history.jsonl"), {**config, "reference_ms": reference_ms}, say, {**former, "reference_ms": reference_ms}
    )
    measured = run.record["results"].get("measure", job.measure) if run.done else None
    if measured == job.measure and run.file("pareto.json").exists():
        say(f"{run.file('pareto.json')} is already there with this configuration")
    else:
        if history.evaluations:
            say(f"continuing: {len(history.evaluations)} evaluations are recorded")
        scorer = open_scorer(job, supernet, data, preprocessing)
        with bar(f"search {job.evaluations} networks") as shown:
            search(
                model, limits, scorer, history, evaluations=job.evaluations, population=settings.population, seed=job.seed,
                reference_ms=reference_ms, screen=scorer.screen if screened else None, members=list(members.values()),
                candidates=settings.candidates,
                progress=lambda done, total, volume: shown.update(done / total, f"{done}/{total}, hypervolume {volume:.4f}"),
            )  # fmt: skip
        facts = {"space": supernet.space_name, "num_classes": data.num_classes, "eval_size": eval_size, "images": job.images}
        _conclude(run, history, model, limits, reference_ms, job.measure, facts)
    if job.finalists:
        names = {genotype.id: f"{HANDMADE}{name}" for name, genotype in members.items()}
        choose_by_training(job, run, history, limits, model, data, names)
    say(show_front(run.folder))


def _conclude(
    run: Run, history: History, model: CostModel, limits: Limits, reference_ms: float, measure: int, facts: dict[str, Any]
) -> None:
    """Measure the front, and write what the search found."""
    from export.files import write_text
    from hyctas.report.collect import collect
    from hyctas.report.plot import pareto_figure, svg
    from hyctas.search.front import pareto, spread
    from hyctas.search.history import SEARCH
    from hyctas.search.outcome import write_outcome

    table, calibration = model.table, model.calibration
    members = spread(pareto(history.of(SEARCH)), measure) if measure else []
    measured = measure_evaluations("front", members, model)
    facts = {"target": table.identity.target, "threads": table.identity.threads, "size": model.size, **facts,
             "calibration": calibration, "confidence": model.confidence,
             "bound_factor": model.bound_factor}  # fmt: skip
    outcome = write_outcome(run.file("pareto.json"), history, limits, reference_ms, measured, facts)
    write_text(run.file("pareto.svg"), svg(pareto_figure(collect(run.folder))))
    run.finish(chosen=outcome["chosen"], hypervolume=outcome["hypervolume"], measure=measure)


def _check_error(model: CostModel, max_error: float, path: Path) -> None:
    """Say how good the latency table is, and refuse one that is not good enough.

    Raises:
        CheckFailed: its hold-out error exceeds the limit.
    """
    from export.errors import CheckFailed

    if model.calibration is None:
        say(f"warning: {path} is not calibrated on whole networks, so the error of its predictions is unknown")
        return
    held = model.calibration.holdout
    say(f"latency table {path}: hold-out error MAPE {held.mape:.1%}, {held.within10:.0%} within 10 %, "
        f"Spearman {held.spearman:.3f} ({held.n} networks)")  # fmt: skip
    if 100 * held.mape > max_error:
        raise CheckFailed(
            f"the predictions of {path} are off by {held.mape:.1%} on average, allowed are {max_error:g} %: a search would choose "
            "by noise. Measure it again on a quiet machine (hyctas-profile --restart, more --networks), or accept it with "
            f"--max-error {100 * held.mape + 1:.0f}"
        )
    if model.confidence is not None:
        say(f"limits on latency hold for the upper bound of {model.confidence:.0%}: {model.bound_factor:.3f} x prediction")


def _size(job: SearchJob, space: SearchSpace, table: LatencyTable, table_path: Path) -> tuple[int, int]:
    """Return the size asked for, or the one that the table was calibrated for."""
    from export.errors import InvalidInput
    from hyctas.cost.workloads import calibrated_sizes

    if job.size:
        return image_size(job.size)
    found = calibrated_sizes(space, table)
    if len(found) != 1:
        raise InvalidInput(
            f"{table_path} is calibrated for {len(found)} sizes of space {space.name} ({', '.join(found) or 'none'}); give --size"
        )
    return image_size(found[0])


def open_scorer(job: SearchJob, supernet: SupernetRecord, data: DataSet, preprocessing: Preprocessing) -> Scorer:
    """Return what scores networks by shared weights, on `SCORE_THREADS` threads."""
    from hyctas.data import Frames
    from hyctas.search.score import Scorer, drawn_samples

    settings = job.search()
    size = settings.eval_size or supernet.size
    drawn, _ = drawn_samples(data.choose, job.seed, job.images)
    few = drawn[: settings.screen_images] or drawn
    parts = [Frames(data.source, "train", part, size=size) for part in (data.train, few, drawn[len(few) :]) if part]
    return Scorer(
        supernet.load(job.space), *parts, preprocessing=preprocessing, seed=job.seed, norm_batches=NORM_BATCHES,
        threads=SCORE_THREADS,
    )  # fmt: skip


def measure_evaluations(what: str, evaluations: Sequence[Evaluation], model: CostModel, show: Show = bar) -> dict[str, float]:
    """Measure networks on the table's target, in ms by id; nothing, with the reason, where this is not the table's machine."""
    from export.errors import Unavailable
    from export.machine import hardware
    from export.target import Target
    from hyctas.cost.calibrate import measure_networks
    from hyctas.engine.table_attention import open_target

    identity = model.table.identity
    if not evaluations:
        return {}
    if dict(identity.device) != hardware():
        say(f"{what} not measured: the latency table comes from another machine")
        return {}
    try:
        runtime = open_target(Target.parse(identity.target), identity.threads)
    except Unavailable as error:
        say(f"{what} not measured: {error}")
        return {}
    with show(f"measure {len(evaluations)} of the {what}") as shown:
        measured = measure_networks(
            [evaluation.genotype for evaluation in evaluations], runtime, model.size, model.num_classes, repeats=2,
            progress=lambda done, total: shown.update(done / total),
        )  # fmt: skip
    return {evaluation.id: float(ms) for evaluation, ms in zip(evaluations, measured.mean(axis=0), strict=True)}


def show_front(run: Path) -> str:
    """Return RUN/pareto.json as a table for people.

    Raises:
        CorruptFile: it is damaged.
    """
    from export.errors import CorruptFile
    from export.files import read_json
    from hyctas.artifacts.choice import READ_VERSIONS

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
    return [*lines, f"to train it on: hyctas-train network --run {run} --init {run}"]


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


if __name__ == "__main__":
    main()

"""Find the networks that no other beats in both mIoU and latency, and choose one of them by training."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.bundle.imaging import Preprocessing
from export.codec import plain
from export.errors import CheckFailed, Give, HyctasError, Infeasible, InvalidInput
from export.files import sha256, write_text
from hyctas.arch.genotype import Genotype
from hyctas.artifacts.choice import HANDMADE
from hyctas.artifacts.inherit import SupernetRecord
from hyctas.artifacts.runs import Run, recorded_preprocessing
from hyctas.cli.show import bar, say
from hyctas.cli.values import image_size
from hyctas.commands.datasets import DataSet, open_dataset
from hyctas.commands.front_table import show_front
from hyctas.commands.measured_networks import measure_evaluations
from hyctas.commands.search_scorer import NORM_BATCHES, open_scorer
from hyctas.commands.search_several import several_jobs, write_searches
from hyctas.commands.search_workers import SearchTeam, cluster_of
from hyctas.commands.train_finalists import choose_by_training
from hyctas.commands.usable_table import usable_table
from hyctas.cost.workloads import CostModel, only_calibrated_size
from hyctas.ray_cluster import Cluster
from hyctas.report.collect import collect
from hyctas.report.plot import pareto_figure, svg
from hyctas.report.wording import plural
from hyctas.search.driver import search
from hyctas.search.front import pareto, spread
from hyctas.search.history import SEARCH, History
from hyctas.search.limits import Limits
from hyctas.search.optimise import Optimiser
from hyctas.search.outcome import write_outcome
from hyctas.search.shared_scores import Remembering, Scores, SharedScores
from hyctas.spaces.members import members_of
from latency import LatencyTable

if TYPE_CHECKING:
    from hyctas.cli.search import SearchJob


OptimiserMaker = Callable[[Sequence[Genotype]], Optimiser]
"""Makes an optimiser from the networks of the first generation."""


def run_search(job: SearchJob, optimiser: OptimiserMaker | None = None) -> None:
    """Do one search, or those of a file (see `hyctas.commands.search_several`).

    Args:
        job: settings.
        optimiser: proposes networks in place of NSGA-II with a surrogate (docs/own_optimiser.py).
    """
    with cluster_of(job) as cluster:
        if job.several is None:
            search_run(read_case(job, optimiser), cluster)
        else:
            search_several(job, cluster, optimiser)


def search_several(
    job: SearchJob, cluster: Callable[[], Cluster] | None, optimiser: OptimiserMaker | None = None
) -> None:  # fmt: skip
    """Do the searches of a file one after the other, and report on all; one that fails does not stop the others.

    Raises:
        InvalidInput, CorruptFile, Infeasible, ...: what a search needs is not there; nothing has been computed yet.
        CheckFailed: searches failed; the others are done.
    """
    jobs = several_jobs(job)
    cases = {name: read_named(name, one, optimiser) for name, one in jobs.items()}
    shared, failed = SharedScores(), dict[str, str]()
    for number, (name, case) in enumerate(cases.items(), 1):
        say(f"search {number} of {len(cases)}: {name}")
        try:
            search_run(case, cluster, shared)
        except (CheckFailed, Infeasible) as error:
            failed[name] = str(error)
    done = {name: case.job.run for name, case in cases.items() if name not in failed}
    if done:
        say(write_searches(job.run, done))
    if failed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise CheckFailed(f"{len(failed)} of {len(cases)} searches failed: {reasons}. The others are done")


def read_named(name: str, job: SearchJob, optimiser: OptimiserMaker | None) -> Case:
    """Read what one of several searches needs; an error begins with its name."""
    try:
        return read_case(job, optimiser)
    except HyctasError as error:
        error.args = (f"search {name}: {error}", *error.args[1:])
        raise


@dataclass(frozen=True)
class Case:
    """What a search needs, read and checked; nothing is written or computed yet."""

    job: SearchJob
    limits: Limits
    supernet: SupernetRecord
    preprocessing: Preprocessing
    data: DataSet
    model: CostModel
    config: dict[str, Any]
    """What decides its results."""
    optimiser: OptimiserMaker | None


def read_case(job: SearchJob, optimiser: OptimiserMaker | None = None) -> Case:
    """Read what a search needs.

    Raises:
        InvalidInput, CorruptFile, MissingKeys, TableMismatch: supernet, table or data are not there, damaged, or do not fit.
        CheckFailed: the table predicts too badly.
        Infeasible: no network meets the limits.
    """
    limits = Limits.parse(job.limit)
    record_path, table_paths = job.run / "train-supernet.json", job.table or (job.run / "latency.json",)
    supernet, preprocessing = SupernetRecord.read(job.run), recorded_preprocessing(record_path)
    space, tables = supernet.space(job.space), [usable_table(path) for path in table_paths]
    check_targets(table_paths, tables)
    size = image_size(job.size) if job.size else only_calibrated_size(space, tables[0], Give("size", "HEIGHTxWIDTH"))
    data = open_dataset(job.data or supernet.data, check=False)
    confidence = None if job.confidence is None else job.confidence / 100
    model = CostModel(space, tables[0], size, data.num_classes, confidence, tables[1:])
    for one, path in zip(model.all, table_paths, strict=True):
        _check_error(one, job.max_error, path)
    limits.check_feasible(model)
    hashes = [sha256(path) for path in table_paths]
    most_ms = None if limits.latency_ms is None else limits.latency_ms / model.bound_factor
    if supernet.band and (warning := supernet.band.warning(most_ms, size, hashes)):
        say(warning)
    elif supernet.band and most_ms is not None:
        limits = replace(limits, least_ms=supernet.band.least_ms(most_ms))
        say(f"networks below {limits.least_ms:.3g} ms are not looked at: the supernet was not trained for them")
    settings = job.settings
    config = {
        "space_hash": space.hash, "size": size, "limits": plain(limits), "confidence": confidence, "evaluations": job.evaluations,
        "population": settings.population, "candidates": settings.candidates, "images": job.images,
        "screen_images": min(settings.screen_images, job.images),
        "members": [genotype.id for genotype in members_of(space).values()],
        "eval_size": settings.eval_size or supernet.size, "seed": job.seed,
        "data": data.trained(), "supernet_sha256": sha256(supernet.path),
        "table_sha256": "+".join(hashes), "threads": settings.threads, "norm_batches": NORM_BATCHES,
        "preprocessing": preprocessing.to_json(),
        **({"optimiser": getattr(optimiser, "__qualname__", repr(optimiser))} if optimiser else {}),
    }  # fmt: skip
    return Case(job, limits, supernet, preprocessing, data, model, config, optimiser)


def search_run(case: Case, cluster: Callable[[], Cluster] | None, shared: SharedScores | None = None) -> None:
    """Fill RUN/history.jsonl and write RUN/pareto.json and RUN/pareto.svg.

    Args:
        case: what is searched for.
        cluster: opens the cluster whose workers score and train; none: this process does.
        shared: what searches before this one have computed.
    """
    job, limits, model, data, config = case.job, case.limits, case.model, case.data, case.config
    former = {**config, "data": data.identity()}
    run = Run(job.run, "search", config, ("history.jsonl", "pareto.json", "pareto.svg", "finalists"),
              restart=job.restart, formerly={**former, "measure": job.measure})  # fmt: skip
    reference_ms = limits.latency_ms or model.costs(model.space.largest()).bound_ms
    history = History(
        run.file("history.jsonl"), {**config, "reference_ms": reference_ms}, say, {**former, "reference_ms": reference_ms}
    )
    known = (shared or SharedScores()).under(config, history.evaluations)
    measured = run.record["results"].get("measure", job.measure) if run.done else None
    with SearchTeam(job, data, cluster) if cluster else nullcontext() as team:
        if measured == job.measure and run.file("pareto.json").exists():
            say(f"{run.file('pareto.json')} is already there with this configuration")
        else:
            scorer = team or open_scorer(job, case.supernet, data, case.preprocessing)
            _fill(case, history, Remembering(scorer, known), reference_ms)
            facts = {"space": case.supernet.space_name, "num_classes": data.num_classes, "eval_size": config["eval_size"],
                     "images": job.images}  # fmt: skip
            _conclude(run, history, model, limits, reference_ms, job.measure, facts)
        if job.finalists:
            names = {genotype.id: f"{HANDMADE}{name}" for name, genotype in members_of(model.space).items()}
            choose_by_training(job, run, history, limits, model, data, names, team)
    say(show_front(run.folder))


def _fill(case: Case, history: History, scorer: Scores, reference_ms: float) -> None:
    """Search until the history holds as many evaluations as were asked for."""
    job, model = case.job, case.model
    if history.evaluations:
        say(f"continuing: {len(history.evaluations)} evaluations are recorded")
    with bar(f"search {job.evaluations} networks") as shown:
        search(
            model, case.limits, scorer, history, evaluations=job.evaluations, population=job.settings.population, seed=job.seed,
            reference_ms=reference_ms, screen=scorer.screen if job.settings.screen_images else None,
            members=list(members_of(model.space).values()), candidates=job.settings.candidates,
            progress=lambda done, total, volume: shown.update(done / total, f"{done}/{total}, hypervolume {volume:.4f}"),
            ahead=scorer.ahead, optimiser=case.optimiser,
        )  # fmt: skip


def _conclude(
    run: Run, history: History, model: CostModel, limits: Limits, reference_ms: float, measure: int, facts: dict[str, Any]
) -> None:
    """Measure the front, and write what the search found."""
    table, calibration = model.table, model.calibration
    members = spread(pareto(history.of(SEARCH)), measure) if measure else []
    measured = measure_evaluations("front", members, model, limits.latency_ms)
    facts = {"target": table.identity.target, "threads": table.identity.threads, "size": model.size, **facts,
             "calibration": calibration, "confidence": model.confidence, "bound_factor": model.bound_factor,
             "beside": [described(other.table) for other in model.beside]}  # fmt: skip
    outcome = write_outcome(run.file("pareto.json"), history, limits, reference_ms, measured, facts)
    write_text(run.file("pareto.svg"), svg(pareto_figure(collect(run.folder))))
    run.finish(chosen=outcome["chosen"], hypervolume=outcome["hypervolume"], measure=measure)


def check_targets(paths: Sequence[Path], tables: Sequence[LatencyTable]) -> None:
    """Refuse several tables of one target.

    Raises:
        InvalidInput: two tables are of one target, on one device, with as many threads.
    """
    found: dict[str, Path] = {}
    for path, table in zip(paths, tables, strict=True):
        identity = table.identity
        first = found.setdefault(json.dumps([identity.target, identity.threads, dict(identity.device)], sort_keys=True), path)
        if first is not path:
            raise InvalidInput(f"{first} and {path} are both of {described(table)} on one device; give one of them")


def described(table: LatencyTable) -> str:
    """Name a table's target: `onnxruntime-cpu:fp32 (2 threads)`."""
    return f"{table.identity.target} ({plural(table.identity.threads, 'thread')})"


def _check_error(model: CostModel, max_error: float, path: Path) -> None:
    """Say how good the latency table is, and refuse one that is not good enough.

    Raises:
        CheckFailed: its hold-out error exceeds the limit.
    """
    if model.calibration is None:
        say(f"warning: {path} is not calibrated on whole networks, so the error of its predictions is unknown")
        return
    held = model.calibration.holdout
    say(f"latency table {path}: hold-out error MAPE {held.mape:.1%}, {held.within10:.0%} within 10 %, "
        f"Spearman {held.spearman:.3f} ({held.n} networks)")  # fmt: skip
    if 100 * held.mape > max_error:
        raise CheckFailed(
            f"the predictions of {path} are off by {held.mape:.1%} on average, more than {max_error:g} %: a search would follow "
            "noise. Measure it again on a quiet machine (hyctas-profile --restart, more --networks), or accept it with "
            f"--max-error {100 * held.mape + 1:.0f}"
        )
    if model.confidence is not None:
        say(f"limits on latency hold for the upper bound of {model.confidence:.0%}: {model.bound_factor:.3f} x prediction")

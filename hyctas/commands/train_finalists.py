"""Choose among a search's finalists by training them (see `hyctas.search.finalists`). Each training is a run of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from export.files import read_json, write_text
from hyctas.artifacts.choice import FORMAT_VERSION
from hyctas.artifacts.runs import Record, Run
from hyctas.cli.show import Bar, Show, Shown, bar, say
from hyctas.cli.values import fill
from hyctas.commands.datasets import DataSet
from hyctas.commands.measured_networks import measure_evaluations
from hyctas.commands.network_training import NETWORK_FILES, TRAINING, fit_network, network_config
from hyctas.commands.search_workers import SearchTeam
from hyctas.cost.workloads import CostModel
from hyctas.pretrained.start import Start, find_start
from hyctas.report.collect import collect
from hyctas.report.plot import pareto_figure, svg
from hyctas.search.finalists import RESERVE, Finalist, Turn, choose_finalists, halve
from hyctas.search.history import SEARCH, Evaluation, History
from hyctas.search.limits import Limits
from hyctas.search.outcome import add_finalists, weights_folder
from hyctas.training.config import NetworkRecipe, Recipe

if TYPE_CHECKING:
    from hyctas.cli.search import SearchJob


def choose_by_training(
    job: SearchJob, run: Run, history: History, limits: Limits, model: CostModel, data: DataSet, handmade: Mapping[str, str],
    team: SearchTeam | None = None,
) -> None:  # fmt: skip
    """Train the finalists in rounds, and make the winner the chosen network of RUN/pareto.json.

    Args:
        job: what was asked for.
        run: of the search, which has finished.
        history: of the search.
        limits: what was searched for.
        model: predicts costs.
        data: train to train on, choose to choose by; val is not looked at.
        handmade: names of hand-made networks by id.
        team: workers that train; none: this process does.

    Raises:
        CheckFailed: the trainings of all finalists failed, or the machine is too busy to measure them.
    """
    def chosen(evaluations: Sequence[Evaluation], count: int) -> list[Finalist]:
        return choose_finalists(evaluations, handmade, count, model.space.encode)

    candidates = chosen(history.of(SEARCH), job.finalists + job.finalists // RESERVE)
    supernet = Record.of_finished(job.run, "train-supernet")
    recorded = {**supernet.config["recipe"], "device_batch": supernet.results.get("device_batch")}
    recipe = recipe_of(recorded, job.finalist_steps, job.seed)
    config = {
        "candidates": [candidate.id for candidate in candidates], "finalists": job.finalists, "recipe": recipe.identity(),
        "supernet_sha256": history.header["supernet_sha256"], "limit_ms": limits.latency_ms,
    }  # fmt: skip
    own = Run(job.run / "finalists", "finalists", config, ())
    if own.done and "finalists" in read_json(run.file("pareto.json"), FORMAT_VERSION):
        return
    with bar(f"train {min(job.finalists, len(candidates))} finalists") as shown:
        work = _Work(job, replace(data, val=()), recipe, model, limits, shown, team)
        rounds = halve(
            candidates, own.file("rounds.json"), limits, job.finalist_steps, work.train, work.measure, say,
            work.ahead if team else None, lambda fitting: chosen([f.evaluation for f in fitting], job.finalists),
        )  # fmt: skip
    took_part = [f for f in candidates if f.id in {*rounds[0].miou, *rounds[0].failed, *rounds[0].slow}]
    outcome = add_finalists(run.file("pareto.json"), took_part, rounds)
    write_text(run.file("pareto.svg"), svg(pareto_figure(collect(run.folder))))
    run.finish(chosen=outcome["chosen"], hypervolume=outcome["hypervolume"], measure=job.measure)
    own.finish(chosen=outcome["chosen"])


def recipe_of(recorded: Mapping[str, Any], steps: int, seed: int) -> NetworkRecipe:
    """Return the recipe of finalists: the supernet's, for so many steps, with a tenth of them as the longest warm-up."""
    shared = {field.name: recorded[field.name] for field in fields(Recipe) if field.name in recorded}
    own = {"minutes": None, "steps": steps, "seed": seed, "warmup_steps": min(shared["warmup_steps"], steps // 10)}
    return fill(NetworkRecipe, shared | own)


@dataclass
class _Work:
    """Measures and trains finalists under one bar; each training is in a run folder of its own that starts from the one before."""

    job: SearchJob
    data: DataSet
    recipe: NetworkRecipe
    model: CostModel
    limits: Limits
    bar: Bar
    team: SearchTeam | None
    supernet: Start | None = None

    def measure(self, finalists: Sequence[Finalist]) -> dict[str, float]:
        """Measure finalists on the table's target, in ms by id."""
        evaluations = [f.evaluation for f in finalists]
        return measure_evaluations("finalists", evaluations, self.model, self.limits.latency_ms, self._shown(""))

    def ahead(self, turns: Sequence[tuple[Finalist, Turn]]) -> None:
        """Let the team's workers begin trainings that are not done."""
        assert self.team is not None
        for finalist, turn in turns:
            if not self._claim(finalist, turn).done:
                before = weights_folder(finalist.id, turn.number - 1) if turn.number > 1 else None
                folder, recipe = weights_folder(finalist.id, turn.number), replace(self.recipe, steps=turn.steps)
                self.team.train_ahead(finalist.evaluation.genotype, recipe, folder, before)

    def train(self, finalist: Finalist, turn: Turn) -> float:
        """Train a finalist, or wait until a worker has; return its mIoU on the choosing split."""
        genotype, recipe = finalist.evaluation.genotype, replace(self.recipe, steps=turn.steps)
        run, text = self._claim(finalist, turn), f"round {turn.number}, {finalist.name}"
        if not run.done and self.team is not None:
            self.bar.tell(text)
            self.team.trained(weights_folder(finalist.id, turn.number))
            run = self._claim(finalist, turn)
            self.bar.update(turn.end, text)
        elif not run.done:
            start = self._start(finalist, turn)
            fit_network(
                run, genotype, recipe, self.data, start, show=self._shown(f"{text}: ", turn), on_status=lambda text: None
            )
        return float(run.record["results"]["choose"])

    def _claim(self, finalist: Finalist, turn: Turn) -> Run:
        """Return the run of a training."""
        recipe = replace(self.recipe, steps=turn.steps)
        config = network_config(recipe, finalist.evaluation.genotype, self.data, self._start(finalist, turn))
        return Run(self.job.run / weights_folder(finalist.id, turn.number), "train-network", config, NETWORK_FILES)

    def _start(self, finalist: Finalist, turn: Turn) -> Start | None:
        """Return the weights that a training starts from: of the one before, or of the supernet, which is read once."""
        folder = self.job.run
        if turn.number > 1:
            return find_start(str(folder / weights_folder(finalist.id, turn.number - 1)), folder)
        if self.supernet is None:
            self.supernet = find_start(str(folder), folder, self.job.space)
        return self.supernet

    def _shown(self, text: str, turn: Turn | None = None) -> Show:
        """Return what opens a part of the bar: a training moves it on, everything else only tells what is being done."""

        @contextmanager
        def show(name: str) -> Iterator[Shown]:
            yield _Part(self.bar, f"{text}{name}", turn if name == TRAINING else None)

        return show


@dataclass(frozen=True)
class _Part:
    """Part of a bar."""

    bar: Bar
    text: str
    turn: Turn | None

    def update(self, share: float, text: str = "") -> None:
        """Show a share of this part."""
        shown = ", ".join(filter(None, (self.text, text)))
        if self.turn is None:
            self.bar.tell(shown)
        else:
            self.bar.update(self.turn.start + (self.turn.end - self.turn.start) * share, shown)

"""Train and score one network in a run folder that was claimed for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from export.backends.torch_session import torch_threads
from export.bundle.imaging import Preprocessing
from export.files import write_json, write_text
from hyctas.arch.genotype import Genotype
from hyctas.artifacts.bundling import load_trained
from hyctas.artifacts.runs import Run
from hyctas.cli.show import Show, bar, say
from hyctas.commands.datasets import DataSet
from hyctas.data import PREPROCESSING, Frames
from hyctas.network import Network, build, save_weights
from hyctas.pretrained.start import Start
from hyctas.pretrained.weights import Loaded
from hyctas.training.config import NetworkRecipe
from hyctas.training.evaluate import estimation_batches, evaluate, reestimate_norms
from hyctas.training.loop import Trainer
from hyctas.training.processes import is_first
from hyctas.training.reparameterise import merge, reparameterise
from hyctas.training.sandwich import Sandwich
from hyctas.training.single import Single
from hyctas.training.soft_labels import SoftLabels, label_frames
from hyctas.training.teacher import TeacherFile

TRAINING = "train network"
"""What the bar of a network's steps is called."""
NETWORK_FILES = ("network.safetensors", "network.checkpoint.pt", "genotype.json", "labels.json", "scores.json", "soft_labels")


def fit_network(
    run: Run, genotype: Genotype, recipe: NetworkRecipe, data: DataSet, start: Start | None,
    teachers: tuple[TeacherFile, ...] = (), show: Show = bar, on_status: Callable[[str], None] = say,
) -> dict[str, Any] | None:  # fmt: skip
    """Train and score a network in a run folder that was claimed for it.

    Args:
        run: `NETWORK_FILES` are written there.
        genotype: the network.
        recipe: how it is trained.
        data: train to train on; choose and val are scored, where they hold images.
        start: weights to start from; none: random ones.
        teachers: networks to follow besides the labels.
        show: opens a progress bar.
        on_status: told what the weights start from.

    Returns:
        What the run's record holds; None in all processes but the first.

    Raises:
        CheckFailed: the loss is not finite.
    """
    torch.manual_seed(recipe.seed)
    network = build(genotype, data.num_classes, auxiliary=recipe.auxiliary > 0)
    loaded = start.network(network, data.source.labels.names) if start else None
    on_status(start_text(start, loaded))
    if recipe.reparameterise:
        reparameterise(network)
    frames, preprocessing = Frames(data.source, "train", data.train, size=recipe.size), preprocessing_of(start)
    soft_labels = _soft_labels(run, recipe, frames, teachers, show) if teachers else None
    step = Single(network, recipe, frames, preprocessing, recipe.auxiliary, soft_labels, recipe.distillation)
    names = trained_parameters(network, loaded)
    trainer = Trainer(network, recipe, run.file("network.checkpoint.pt"), pretrained=names)
    spend_budget(TRAINING, trainer, step, show, on_status)
    if not is_first():
        return None
    network = _finished(network, recipe, frames, preprocessing)
    save_weights(network, run.file("network.safetensors"), {"genotype": genotype.id})
    write_text(run.file("genotype.json"), genotype.to_json() + "\n")
    write_json(run.file("labels.json"), data.source.labels.to_json())
    scores = _score(run, network, genotype.id, data, recipe, preprocessing, show)
    run.finish(
        steps=trainer.step, crops=trainer.step * recipe.batch, spent_s=round(trainer.spent_s, 1), data=data.spec,
        start=loaded.to_json() if loaded else None, scored=data.scored(), **scores,
    )  # fmt: skip
    return dict(run.record["results"])


def _soft_labels(run: Run, recipe: NetworkRecipe, frames: Frames, teachers: tuple[TeacherFile, ...], show: Show) -> SoftLabels:
    """Label the images with the teachers."""
    with show("label with teacher") as shown, torch_threads(recipe.threads):
        return label_frames(
            frames, teachers, run.file("soft_labels"), recipe.temperature,
            lambda done, total: shown.update(done / total, f"image {done} of {total}"),
        )  # fmt: skip


def _finished(network: Network, recipe: NetworkRecipe, frames: Frames, preprocessing: Preprocessing) -> Network:
    """Return a trained network as it is used: norms estimated again, parallel branches merged, no auxiliary heads."""
    with torch_threads(recipe.threads):  # equal trainings give equal weights, however many cores the process may use
        reestimate_norms(network, estimation_batches(frames, recipe.seed, 8, 8, preprocessing), recipe.amp)
    merge(network)
    return network.finished().eval()


def network_config(recipe: NetworkRecipe, genotype: Genotype, data: DataSet, start: Start | None) -> dict[str, Any]:
    """Return what decides a network's weights, for its run's configuration."""
    return {"recipe": recipe.identity(), "genotype": genotype.id, "data": data.trained(), **start_config(start)}


def _score(
    run: Run,
    network: nn.Module,
    genotype_id: str,
    data: DataSet,
    recipe: NetworkRecipe,
    preprocessing: Preprocessing,
    show: Show = bar,
) -> dict[str, float]:
    """Write RUN/scores.json, and return the mIoU of each part."""
    scores, splits = {}, [("choose", "train", data.choose), ("val", "val", data.val)]
    with show("score network") as shown, torch_threads(recipe.threads):
        for done, (name, split, samples) in enumerate(splits):
            if samples:
                images = Frames(data.source, split, samples, recipe.size)
                scores[name] = asdict(evaluate(network, images, data.num_classes, preprocessing))
            shown.update((done + 1) / len(splits))
    write_json(run.file("scores.json"), {"format_version": 1, "genotype": genotype_id, "size": recipe.size, **scores})
    return {name: score["miou"] for name, score in scores.items()}


def score_again(run: Run, data: DataSet, recipe: NetworkRecipe) -> None:
    """Score a trained network on a val that has changed since."""
    if not is_first():
        return
    trained = load_trained(run.folder)
    results = _score(run, trained.network, trained.genotype.id, data, recipe, trained.preprocessing)
    run.finish(**{**run.record["results"], "scored": data.scored(), **results})
    say(f"val is another than before: {scores_text(results)}")


def scores_text(results: dict[str, Any]) -> str:
    where = {"choose": "the choosing split", "val": "val"}
    return "mIoU " + ", ".join(f"{results[name]:.3f} on {text}" for name, text in where.items() if name in results)


def spend_budget(
    name: str, trainer: Trainer, step: Sandwich | Single, show: Show = bar, on_status: Callable[[str], None] = say
) -> None:
    """Spend a trainer's budget, with a bar."""
    if trainer.step:
        on_status(f"continuing at step {trainer.step}")
    with show(name) as shown:
        trainer.run(step, lambda p: shown.update(p.share, f"step {p.step}, loss {p.numbers['loss']:.3f}"))
    step.feed.close()


def preprocessing_of(start: Start | None) -> Preprocessing:
    """Return how a job normalises its images: as the weights that it starts from expect, else `PREPROCESSING`."""
    return PREPROCESSING if start is None else start.preprocessing


def start_config(start: Start | None) -> dict[str, Any]:
    return {"preprocessing": preprocessing_of(start).to_json(), "init": None if start is None else dict(start.record)}


def start_text(start: Start | None, loaded: Loaded | None) -> str:
    """Say what the weights start from."""
    if start is None or loaded is None:
        return "start: random weights"
    return f"start: {_source_text(start.record)}: {loaded.summary()}"


def _source_text(record: Mapping[str, Any]) -> str:
    licence = f" ({record['licence']})" if "licence" in record else ""
    inner = f", which started from {_source_text(record['from'])}" if "from" in record else ""
    return f"{record['source']}{licence}{inner}"


def trained_parameters(model: nn.Module, loaded: Loaded | None) -> list[str]:
    """Name the parameters whose values were loaded, in the model's order."""
    found = loaded.parameters if loaded else set()
    return [name for name, _ in model.named_parameters() if name in found]

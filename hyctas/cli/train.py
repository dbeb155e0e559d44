"""hyctas-train: train a supernet, or one network."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyctas.cli.entry import command
from hyctas.cli.jobs import TrainNetworkJob, TrainSupernetJob
from hyctas.cli.show import Show, bar, say
from hyctas.training.config import NetworkRecipe, SupernetRecipe
from hyctas.training.processes import first_goes_first, group_closed, is_first, processes

if TYPE_CHECKING:
    from torch import nn

    from export.bundle.imaging import Preprocessing
    from hyctas.arch.genotype import Genotype
    from hyctas.artifacts.runs import Run
    from hyctas.cli.datasets import DataSet
    from hyctas.pretrained.start import Start
    from hyctas.pretrained.weights import Loaded
    from hyctas.training.loop import Trainer
    from hyctas.training.sandwich import Sandwich
    from hyctas.training.single import Single
    from hyctas.training.teacher import TeacherFile

TRAINING = "train network"
"""What the bar of a network's steps is called."""
NETWORK_FILES = ("network.safetensors", "network.checkpoint.pt", "genotype.json", "labels.json", "scores.json", "soft_labels")
USAGE = """usage: hyctas-train {supernet,network} [OPTIONS]

  supernet   train all networks of a space at once, with shared weights (before hyctas-search)
  network    train one network from a genotype (after hyctas-search)

hyctas-train supernet --help and hyctas-train network --help list the options.
"""


def main() -> None:
    """Run the command line."""
    kind, arguments = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    if kind == "supernet":
        with group_closed():
            command(
                train_supernet, TrainSupernetJob, "Train the weights that all networks of a space share.", arguments,
                name="hyctas-train supernet", example="--run runs/mine --data FOLDER --minutes 240",
            )  # fmt: skip
    elif kind == "network":
        with group_closed():
            command(
                train_network, TrainNetworkJob, "Train one network.", arguments, name="hyctas-train network",
                example="--run runs/lite --network edge:lite0-16 --data FOLDER --preset standard",
            )  # fmt: skip
    else:
        known = kind in ("--help", "-h")
        print(USAGE, file=sys.stdout if known else sys.stderr, end="")
        sys.exit(0 if known else 2)


def train_supernet(job: TrainSupernetJob) -> None:
    """Train RUN/supernet.safetensors."""
    from export.errors import InvalidInput
    from hyctas.artifacts.runs import Run
    from hyctas.cli.datasets import open_dataset
    from hyctas.cli.trained_networks import networks_to_train
    from hyctas.pretrained.start import default_supernet_source, find_start
    from hyctas.spaces.space_file import load_space

    recipe, space = job.recipe(), load_space(job.space)
    start = find_start(job.init or default_supernet_source(space), job.run, job.space)
    data = open_dataset(job.data, absent_classes=recipe.absent_classes)
    assert isinstance(recipe, SupernetRecipe)
    if recipe.fit_steps and (start is None or not start.cells):
        raise InvalidInput(f"fit_steps = {recipe.fit_steps}, but there is no trained trunk to fit operators to; give one by --init")
    drawer, band = networks_to_train(job, recipe, space, data.num_classes, start.weights.keys() if start else ())
    config = {
        "recipe": recipe.identity(), "space": job.space, "space_hash": space.hash, "data": data.trained(), **_start_config(start),
        **({"band": band.to_json()} if band else {}),
    }  # fmt: skip
    outputs = ("supernet.safetensors", "supernet.checkpoint.pt", "fitting.checkpoint.pt")
    formerly = {**config, "data": data.identity()}
    with first_goes_first() as first:
        run = Run(job.run, "train-supernet", config, outputs, restart=job.restart and first, formerly=formerly)
    if run.done:
        say(f"{run.file('supernet.safetensors')} is already trained with this configuration")
        return

    import torch

    from hyctas.data import Frames
    from hyctas.network import save_weights
    from hyctas.nn.supernet import Supernet
    from hyctas.training.fitting import STEPS, fit, places, summary
    from hyctas.training.loop import Trainer, is_first_process
    from hyctas.training.sandwich import Sandwich

    torch.manual_seed(recipe.seed)
    supernet = Supernet(space, data.num_classes)
    loaded = start.supernet(supernet, data.source.labels.names) if start else None
    say(_start_text(start, loaded))
    frames = Frames(data.source, "train", data.train, size=recipe.size)
    step = Sandwich(supernet, recipe, frames, preprocessing_of(start), drawer)
    checkpoint, steps = run.file("supernet.checkpoint.pt"), STEPS if recipe.fit_steps is None else recipe.fit_steps
    if loaded and steps and not checkpoint.exists() and (found := places(supernet, loaded, start.cells if start else ())):
        with bar("fit operators") as shown:
            step.state["fitted"] = fit(
                supernet, found, recipe, steps, frames, preprocessing_of(start), run.file("fitting.checkpoint.pt"),
                lambda p: shown.update(p.share, f"step {p.step}, loss {p.numbers['loss']:.3f}"),
            )  # fmt: skip
        say(summary(step.state["fitted"], steps))
    trainer = Trainer(supernet, recipe, checkpoint, step.state, _trained_parameters(supernet, loaded))
    _train("train supernet", trainer, step)
    if not is_first_process():
        return
    save_weights(supernet, run.file("supernet.safetensors"), {"space": job.space, "space_hash": space.hash})
    run.finish(
        steps=trainer.step, spent_s=round(trainer.spent_s, 1), ratios=step.ratios, data=job.data,
        start=loaded.to_json() if loaded else None, fitted=step.state.get("fitted"), largest=step.drawer.largest.id,
    )  # fmt: skip
    say(f"wrote {run.file('supernet.safetensors')} after {trainer.step} steps")


def train_network(job: TrainNetworkJob) -> None:
    """Train RUN/network.safetensors."""
    from hyctas.artifacts.choice import chosen_genotype, chosen_weights, read_genotype
    from hyctas.artifacts.runs import Run
    from hyctas.cli.datasets import open_dataset
    from hyctas.pretrained.start import default_source, find_start

    genotype = chosen_genotype(job.run) if job.network is None else read_genotype(job.network)
    recipe = job.recipe()
    assert isinstance(recipe, NetworkRecipe)
    init = job.init or default_source(genotype)
    if job.network is None and Path(init).resolve() == job.run.resolve():
        init = str(chosen_weights(job.run))
    start = find_start(init, job.run, job.space)
    data = open_dataset(job.data, absent_classes=recipe.absent_classes)
    data = data.with_all_of_train() if job.all_of_train else data
    config = network_config(recipe, genotype, data, start)
    teachers = _find_teachers(job, data, recipe.temperature) if job.teacher else ()
    if teachers:
        config["teacher"] = [teacher.sha256 for teacher in teachers]
    formerly = {**config, "data": data.identity()}
    with first_goes_first() as first:
        run = Run(job.run, "train-network", config, NETWORK_FILES, restart=job.restart and first, formerly=formerly)
    if run.done:
        say(f"{run.file('network.safetensors')} is already trained with this configuration")
        scored = data.scored()
        if run.record["results"].get("scored", scored) != scored:
            _score_again(run, data, recipe)
        return

    results = fit_network(run, genotype, recipe, data, start, teachers)
    if results is not None:
        say(f"wrote {run.file('network.safetensors')} after {results['steps']} steps ({results['crops']} crops): {_shown(results)}")


def fit_network(
    run: Run, genotype: Genotype, recipe: NetworkRecipe, data: DataSet, start: Start | None,
    teachers: tuple[TeacherFile, ...] = (), show: Show = bar, tell: Callable[[str], None] = say,
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
        tell: told what the weights start from.

    Returns:
        What the run's record holds; None in all processes but the first.

    Raises:
        CheckFailed: the loss is not finite.
    """
    import torch

    from export.backends.torch_session import torch_threads
    from export.files import write_json, write_text
    from hyctas.data import Frames
    from hyctas.network import build, save_weights
    from hyctas.training.evaluate import estimation_batches, reestimate_norms
    from hyctas.training.loop import Trainer, is_first_process
    from hyctas.training.reparameterise import merge, reparameterise
    from hyctas.training.single import Single

    torch.manual_seed(recipe.seed)
    network = build(genotype, data.num_classes, auxiliary=recipe.auxiliary > 0)
    loaded = start.network(network, data.source.labels.names) if start else None
    tell(_start_text(start, loaded))
    if recipe.reparameterise:
        reparameterise(network, preserve=loaded is not None)
    frames, preprocessing = Frames(data.source, "train", data.train, size=recipe.size), preprocessing_of(start)
    soft_labels = None
    if teachers:
        from hyctas.training.soft_labels import label_frames

        with show("label with teacher") as shown, torch_threads(recipe.threads):
            soft_labels = label_frames(
                frames, teachers, run.file("soft_labels"), recipe.temperature,
                lambda done, total: shown.update(done / total, f"image {done} of {total}"),
            )  # fmt: skip
    step = Single(network, recipe, frames, preprocessing, recipe.auxiliary, soft_labels, recipe.distillation)
    names = _trained_parameters(network, loaded)
    trainer = Trainer(network, recipe, run.file("network.checkpoint.pt"), pretrained=names)
    _train(TRAINING, trainer, step, show, tell)
    if not is_first_process():
        return None
    with torch_threads(recipe.threads):  # equal trainings give equal weights, however many cores the process may use
        reestimate_norms(network, estimation_batches(frames, recipe.seed, 8, 8, preprocessing), recipe.amp)
    merge(network)
    network = network.finished().eval()
    save_weights(network, run.file("network.safetensors"), {"genotype": genotype.id})
    write_text(run.file("genotype.json"), genotype.to_json() + "\n")
    write_json(run.file("labels.json"), data.source.labels.to_json())
    scores = _score(run, network, genotype.id, data, recipe, preprocessing, show)
    run.finish(
        steps=trainer.step, crops=trainer.step * recipe.batch * processes(), spent_s=round(trainer.spent_s, 1), data=data.spec,
        start=loaded.to_json() if loaded else None, scored=data.scored(), **scores,
    )  # fmt: skip
    return dict(run.record["results"])


def network_config(recipe: NetworkRecipe, genotype: Genotype, data: DataSet, start: Start | None) -> dict[str, Any]:
    """Return what decides a network's weights, for its run's configuration."""
    return {"recipe": recipe.identity(), "genotype": genotype.id, "data": data.trained(), **_start_config(start)}


def _score(
    run: Run, network: nn.Module, genotype_id: str, data: DataSet, recipe: NetworkRecipe, preprocessing: Preprocessing,
    show: Show = bar,
) -> dict[str, float]:
    """Write RUN/scores.json, and return the mIoU of each part."""
    from export.backends.torch_session import torch_threads
    from export.files import write_json
    from hyctas.data import Frames
    from hyctas.training.evaluate import evaluate

    scores, splits = {}, [("choose", "train", data.choose), ("val", "val", data.val)]
    with show("score network") as shown, torch_threads(recipe.threads):
        for done, (name, split, samples) in enumerate(splits):
            if samples:
                images = Frames(data.source, split, samples, recipe.size)
                scores[name] = asdict(evaluate(network, images, data.num_classes, preprocessing))
            shown.update((done + 1) / len(splits))
    write_json(run.file("scores.json"), {"format_version": 1, "genotype": genotype_id, "size": recipe.size, **scores})
    return {name: score["miou"] for name, score in scores.items()}


def _score_again(run: Run, data: DataSet, recipe: NetworkRecipe) -> None:
    """Score a trained network on a val that has changed since."""
    from hyctas.artifacts.bundling import load_trained

    if not is_first():
        return
    trained = load_trained(run.folder)
    results = _score(run, trained.network, trained.genotype.id, data, recipe, trained.preprocessing)
    run.finish(**{**run.record["results"], "scored": data.scored(), **results})
    say(f"val is another than before: {_shown(results)}")


def _shown(results: dict[str, Any]) -> str:
    where = {"choose": "the choosing split", "val": "val"}
    return "mIoU " + ", ".join(f"{results[name]:.3f} on {text}" for name, text in where.items() if name in results)


def preprocessing_of(start: Start | None) -> Preprocessing:
    """Return how a job normalises its images: as the weights that it starts from expect, else `PREPROCESSING`."""
    from hyctas.data import PREPROCESSING

    return PREPROCESSING if start is None else start.preprocessing


def _start_config(start: Start | None) -> dict[str, Any]:
    return {"preprocessing": preprocessing_of(start).to_json(), "init": None if start is None else dict(start.record)}


def _start_text(start: Start | None, loaded: Loaded | None) -> str:
    """Say what the weights start from."""
    if start is None or loaded is None:
        return "start: random weights"
    licence = start.record.get("licence")
    return f"start: {start.record['source']}{f' ({licence})' if licence else ''}: {loaded.summary()}"


def _trained_parameters(model: nn.Module, loaded: Loaded | None) -> list[str]:
    """Name the parameters whose values were loaded, in the model's order."""
    found = loaded.parameters if loaded else set()
    return [name for name, _ in model.named_parameters() if name in found]


def _find_teachers(job: TrainNetworkJob, data: DataSet, temperature: float) -> tuple[TeacherFile, ...]:
    """Find the teachers, and have them label one image before the run folder is claimed for them."""
    from export.errors import InvalidInput
    from export.files import real_path
    from hyctas.training.teacher import find_teachers, open_teachers

    if real_path(job.run) in map(real_path, job.teacher):
        raise InvalidInput(f"--teacher {job.run} is the run itself; give the network that is trained here another --run")
    teachers = find_teachers(job.teacher)
    if not (job.run / "train-network.json").exists():
        with open_teachers(teachers, data.source.labels) as teacher:
            teacher.soft_map(data.source.load("train", data.train[0])[0], temperature)
    return teachers


def _train(name: str, trainer: Trainer, step: Sandwich | Single, show: Show = bar, tell: Callable[[str], None] = say) -> None:
    """Spend a trainer's budget, with a bar."""
    if trainer.step:
        tell(f"continuing at step {trainer.step}")
    with show(name) as shown:
        trainer.run(step, lambda p: shown.update(p.share, f"step {p.step}, loss {p.numbers['loss']:.3f}"))
    step.feed.close()


if __name__ == "__main__":
    main()

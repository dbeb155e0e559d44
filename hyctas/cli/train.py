"""hyctas-train: train a supernet, or one network."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hyctas.cli.entry import command
from hyctas.cli.jobs import TrainNetworkJob, TrainSupernetJob
from hyctas.processes import first_goes_first, group_closed, is_first, processes
from hyctas.training.config import NetworkRecipe, SupernetRecipe

if TYPE_CHECKING:
    from torch import nn

    from export.imaging import Preprocessing
    from hyctas.cli.datasets import DataSet
    from hyctas.pretrained.start import Start
    from hyctas.pretrained.weights import Loaded
    from hyctas.runs import Run
    from hyctas.training.loop import Trainer
    from hyctas.training.sandwich import Sandwich
    from hyctas.training.single import Single
    from hyctas.training.teacher import TeacherFile

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
    from hyctas.cli.datasets import open_dataset
    from hyctas.cli.show import bar, say
    from hyctas.cli.trained_networks import networks_to_train
    from hyctas.pretrained.start import default_supernet_source, find_start
    from hyctas.runs import Run
    from hyctas.space_file import load_space

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
    from hyctas.supernet import Supernet
    from hyctas.training.fitting import STEPS, fit, places, summary
    from hyctas.training.loop import Trainer, is_first_process
    from hyctas.training.sandwich import Sandwich

    torch.manual_seed(recipe.seed)
    supernet = Supernet(space, data.num_classes)
    loaded = start.supernet(supernet, data.source.labels.names) if start else None
    _say_start(start, loaded)
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
    from export.files import write_json, write_text
    from hyctas.choice import chosen_genotype, read_genotype
    from hyctas.cli.datasets import open_dataset
    from hyctas.cli.show import bar, say
    from hyctas.pretrained.start import default_source, find_start
    from hyctas.runs import Run

    genotype = chosen_genotype(job.run) if job.network is None else read_genotype(job.network)
    recipe = job.recipe()
    assert isinstance(recipe, NetworkRecipe)
    start = find_start(job.init or default_source(genotype), job.run, job.space)
    data = open_dataset(job.data, absent_classes=recipe.absent_classes)
    data = data.with_all_of_train() if job.all_of_train else data
    config = {"recipe": recipe.identity(), "genotype": genotype.id, "data": data.trained(), **_start_config(start)}
    if job.teacher:
        teachers = _find_teachers(job, data, recipe.temperature)
        config["teacher"] = [teacher.sha256 for teacher in teachers]
    outputs = ("network.safetensors", "network.checkpoint.pt", "genotype.json", "labels.json", "scores.json", "soft_labels")
    formerly = {**config, "data": data.identity()}
    with first_goes_first() as first:
        run = Run(job.run, "train-network", config, outputs, restart=job.restart and first, formerly=formerly)
    if run.done:
        say(f"{run.file('network.safetensors')} is already trained with this configuration")
        scored = data.scored()
        if run.record["results"].get("scored", scored) != scored:
            _score_again(run, data, recipe)
        return

    import torch

    from export.torch_session import torch_threads
    from hyctas.data import Frames
    from hyctas.network import build, save_weights
    from hyctas.training.evaluate import estimation_batches, reestimate_norms
    from hyctas.training.loop import Trainer, is_first_process
    from hyctas.training.reparameterise import merge, reparameterise
    from hyctas.training.single import Single

    torch.manual_seed(recipe.seed)
    network = build(genotype, data.num_classes, auxiliary=recipe.auxiliary > 0)
    loaded = start.network(network, data.source.labels.names) if start else None
    _say_start(start, loaded)
    if recipe.reparameterise:
        reparameterise(network, preserve=loaded is not None)
    frames, preprocessing = Frames(data.source, "train", data.train, size=recipe.size), preprocessing_of(start)
    soft_labels = None
    if job.teacher:
        from hyctas.training.soft_labels import label_frames

        with bar("label with teacher") as shown, torch_threads(recipe.threads):
            soft_labels = label_frames(
                frames, teachers, run.file("soft_labels"), recipe.temperature,
                lambda done, total: shown.update(done / total, f"image {done} of {total}"),
            )  # fmt: skip
    step = Single(network, recipe, frames, preprocessing, recipe.auxiliary, soft_labels, recipe.distillation)
    names = _trained_parameters(network, loaded)
    trainer = Trainer(network, recipe, run.file("network.checkpoint.pt"), pretrained=names)
    _train("train network", trainer, step)
    if not is_first_process():
        return
    with torch_threads(recipe.threads):  # equal trainings give equal weights, however many cores the process may use
        reestimate_norms(network, estimation_batches(frames, recipe.seed, 8, 8, preprocessing), recipe.amp)
    merge(network)
    network = network.finished().eval()
    save_weights(network, run.file("network.safetensors"), {"genotype": genotype.id})
    write_text(run.file("genotype.json"), genotype.to_json() + "\n")
    write_json(run.file("labels.json"), data.source.labels.to_json())
    results = _score(run, network, genotype.id, data, recipe, preprocessing)
    crops = trainer.step * recipe.batch * processes()
    run.finish(
        steps=trainer.step, crops=crops, spent_s=round(trainer.spent_s, 1), data=job.data,
        start=loaded.to_json() if loaded else None, scored=data.scored(), **results,
    )  # fmt: skip
    say(f"wrote {run.file('network.safetensors')} after {trainer.step} steps ({crops} crops): {_shown(results)}")


def _score(
    run: Run, network: nn.Module, genotype_id: str, data: DataSet, recipe: NetworkRecipe, preprocessing: Preprocessing
) -> dict[str, float]:
    """Write RUN/scores.json, and return the mIoU of each part."""
    from export.files import write_json
    from export.torch_session import torch_threads
    from hyctas.cli.show import bar
    from hyctas.data import Frames
    from hyctas.training.evaluate import evaluate

    scores, splits = {}, [("choose", "train", data.choose), ("val", "val", data.val)]
    with bar("score network") as shown, torch_threads(recipe.threads):
        for done, (name, split, samples) in enumerate(splits):
            if samples:
                images = Frames(data.source, split, samples, recipe.size)
                scores[name] = asdict(evaluate(network, images, data.num_classes, preprocessing))
            shown.update((done + 1) / len(splits))
    write_json(run.file("scores.json"), {"format_version": 1, "genotype": genotype_id, "size": recipe.size, **scores})
    return {name: score["miou"] for name, score in scores.items()}


def _score_again(run: Run, data: DataSet, recipe: NetworkRecipe) -> None:
    """Score a trained network on a val that has changed since."""
    from hyctas.bundling import load_trained
    from hyctas.cli.show import say

    if not is_first():
        return
    trained = load_trained(run.folder)
    results = _score(run, trained.network, trained.genotype.id, data, recipe, trained.preprocessing)
    run.finish(**{**run.record["results"], "scored": data.scored(), **results})
    say(f"val is another than before: {_shown(results)}")


def _shown(results: dict[str, float]) -> str:
    where = {"choose": "the choosing split", "val": "val"}
    return "mIoU " + ", ".join(f"{miou:.3f} on {where[name]}" for name, miou in results.items())


def preprocessing_of(start: Start | None) -> Preprocessing:
    """Return how a job normalises its images: as the weights that it starts from expect, else `PREPROCESSING`."""
    from hyctas.data import PREPROCESSING

    return PREPROCESSING if start is None else start.preprocessing


def _start_config(start: Start | None) -> dict[str, Any]:
    return {"preprocessing": preprocessing_of(start).to_json(), "init": None if start is None else dict(start.record)}


def _say_start(start: Start | None, loaded: Loaded | None) -> None:
    """Print what the weights start from."""
    from hyctas.cli.show import say

    if start is None or loaded is None:
        say("start: random weights")
        return
    licence = start.record.get("licence")
    say(f"start: {start.record['source']}{f' ({licence})' if licence else ''}: {loaded.summary()}")


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


def _train(name: str, trainer: Trainer, step: Sandwich | Single) -> None:
    """Spend a trainer's budget, with a bar."""
    from hyctas.cli.show import bar, say

    if trainer.step:
        say(f"continuing at step {trainer.step}")
    with bar(name) as shown:
        trainer.run(step, lambda p: shown.update(p.share, f"step {p.step}, loss {p.numbers['loss']:.3f}"))
    step.feed.close()


if __name__ == "__main__":
    main()

"""Train a supernet, or one network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from export.errors import InvalidInput
from export.files import real_path
from hyctas.artifacts.choice import chosen_genotype, chosen_weights, read_genotype
from hyctas.artifacts.runs import Run
from hyctas.cli.show import bar, say
from hyctas.commands.datasets import DataSet, open_dataset
from hyctas.commands.network_training import (
    NETWORK_FILES,
    fit_network,
    network_config,
    preprocessing_of,
    score_again,
    scores_text,
    spend_budget,
    start_config,
    start_text,
    trained_parameters,
)
from hyctas.commands.trained_networks import networks_to_train
from hyctas.data import Frames
from hyctas.network import save_weights
from hyctas.nn.supernet import Supernet
from hyctas.pretrained.start import default_source, default_supernet_source, find_start
from hyctas.spaces.space_file import load_space
from hyctas.training.config import NetworkRecipe, SupernetRecipe
from hyctas.training.fitting import STEPS, fit, places, summary
from hyctas.training.loop import Trainer
from hyctas.training.processes import first_goes_first, is_first, processes
from hyctas.training.sandwich import Sandwich
from hyctas.training.teacher import TeacherFile, find_teachers, open_teachers

if TYPE_CHECKING:
    from hyctas.cli.train import TrainNetworkJob, TrainSupernetJob


def train_supernet(job: TrainSupernetJob) -> None:
    """Train RUN/supernet.safetensors."""
    recipe, space = job.recipe(), load_space(job.space)
    recipe.micro_batches(processes())  # a batch that cannot be shared stops here, not when the data is read
    start = find_start(job.init or default_supernet_source(space), job.run, job.space)
    if start:
        start.check_supernet(space)
    data = open_dataset(job.data, absent_classes=recipe.absent_classes)
    assert isinstance(recipe, SupernetRecipe)
    if recipe.fit_steps and (start is None or not start.cells):
        raise InvalidInput(f"fit_steps = {recipe.fit_steps}, but there is no trained trunk to fit operators to; give one by --init")
    trained = {name: weights.layers for name, weights in start.weights.items()} if start else {}
    drawer, band = networks_to_train(job, recipe, space, data.num_classes, trained)
    config = {
        "recipe": recipe.identity(), "space": job.space, "space_hash": space.hash, "data": data.trained(), **start_config(start),
        **({"band": band.to_json()} if band else {}),
    }  # fmt: skip
    outputs = ("supernet.safetensors", "supernet.checkpoint.pt", "fitting.checkpoint.pt")
    formerly = {**config, "data": data.identity()}
    with first_goes_first() as first:
        run = Run(job.run, "train-supernet", config, outputs, restart=job.restart and first, formerly=formerly)
    if run.done:
        say(f"{run.file('supernet.safetensors')} is already trained with this configuration")
        return
    torch.manual_seed(recipe.seed)
    supernet = Supernet(space, data.num_classes)
    loaded = start.supernet(supernet, data.source.labels.names) if start else None
    say(start_text(start, loaded))
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
    trainer = Trainer(supernet, recipe, checkpoint, step.state, trained_parameters(supernet, loaded))
    spend_budget("train supernet", trainer, step)
    if not is_first():
        return
    save_weights(supernet, run.file("supernet.safetensors"), {"space": job.space, "space_hash": space.hash})
    run.finish(
        steps=trainer.step, spent_s=round(trainer.spent_s, 1), ratios=step.ratios, data=job.data,
        start=loaded.to_json() if loaded else None, fitted=step.state.get("fitted"), largest=step.drawer.largest.id,
        device_batch=recipe.device_batch,
    )  # fmt: skip
    say(f"wrote {run.file('supernet.safetensors')} after {trainer.step} steps")


def train_network(job: TrainNetworkJob) -> None:
    """Train RUN/network.safetensors."""
    genotype = chosen_genotype(job.run) if job.network is None else read_genotype(job.network)
    recipe = job.recipe()
    recipe.micro_batches(processes())
    assert isinstance(recipe, NetworkRecipe)
    init = job.init or default_source(genotype)
    if job.network is None and Path(init).resolve() == job.run.resolve():
        init = str(chosen_weights(job.run))
    start = find_start(init, job.run, job.space)
    if start:
        start.check_network(genotype)
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
            score_again(run, data, recipe)
        return
    results = fit_network(run, genotype, recipe, data, start, teachers)
    if results is not None:
        crops = f"{results['steps']} steps ({results['crops']} crops)"
        say(f"wrote {run.file('network.safetensors')} after {crops}: {scores_text(results)}")


def _find_teachers(job: TrainNetworkJob, data: DataSet, temperature: float) -> tuple[TeacherFile, ...]:
    """Find the teachers, and have them label one image before the run folder is claimed for them."""
    if real_path(job.run) in map(real_path, job.teacher):
        raise InvalidInput(f"--teacher {job.run} is the run itself; give the network that is trained here another --run")
    teachers = find_teachers(job.teacher)
    if not (job.run / "train-network.json").exists():
        with open_teachers(teachers, data.source.labels) as teacher:
            teacher.soft_map(data.source.load("train", data.train[0])[0], temperature)
    return teachers

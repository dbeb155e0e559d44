"""Fit operators without trained weights to the trained blocks in whose place they can stand, all at once.

As LANA does (Molchanov et al., "LANA: Latency Aware Network Acceleration", ECCV 2022, section 3.2): one forward pass of the trained
trunk gives every place (stage, ordinal) its input and its output; every other operator of the place learns that output by its mean
squared error, in turns at full width and at random prefixes of it. In places that the trained trunk lacks, the output is the input.
Where operators stand in two kinds of stages, they learn both in turns: without a ReLU at their end, where features have negative
values, and with one, from the features' positive part. Errors are relative: as shares of the output's variance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from export.backends.torch_session import torch_threads
from export.bundle.imaging import Preprocessing
from hyctas.arch.genotype import STAGES, Cell
from hyctas.arch.lowering import ADDED
from hyctas.arch.node import cell_operator, slot_name
from hyctas.arch.operators import Layer, Operator
from hyctas.data import Frames
from hyctas.nn.supernet import Slot, Supernet
from hyctas.pretrained.weights import Loaded
from hyctas.spaces.stages import ALIGNED, REPLACED
from hyctas.training.collectives import sum_numbers
from hyctas.training.config import SupernetRecipe
from hyctas.training.feed import CropFeed
from hyctas.training.loop import Progress, Trainer, to_device
from hyctas.training.processes import default_device, start_processes
from hyctas.training.synchronised_norms import moments, synchronised_norms

FIT = 15
"""Purpose of the draw of widths."""
STEPS, LEARNING_RATE = 300, 1e-2
"""Default of `fit_steps` where trained weights were loaded, and AdamW's peak rate."""
CHECKS, CHECK_STEP = 2, 10**9
"""Batches that errors before and after are measured on, from a step that fitting never reaches."""
WRITERS = {
    "conv": ("conv",), "residual": ("second", "shortcut"), "inverted": ("project",), "downup": ("first", "shortcut"),
    "downup2x": ("second", "shortcut"),
}  # fmt: skip
"""By operator: the layers whose outputs are added to give its own. One that is not here starts with its scales as drawn."""


@dataclass(frozen=True)
class Place:
    """Where in a trunk a cell stands."""

    stage: str
    ordinal: int
    trained: tuple[str, Operator] | None
    """Slot and operator of the trained block; None: the trunk has no cell here, and the input passes."""
    slots: dict[str, Operator]
    """What is fitted, as wide as both the trained trunk and the space have it."""
    signed: bool = False
    """Whether features have negative values here."""

    def signed_slot(self, name: str) -> bool:
        """Say whether an operator can stand among features with negative values."""
        return self.signed and self.slots[name].label not in REPLACED

    def features(self, x: Tensor, y: Tensor, *, signed: bool) -> tuple[Tensor, Tensor]:
        """Return input and output of the place as they are, or as they are where no feature has negative values."""
        return (x.relu(), y.relu()) if self.signed and not signed else (x, y)


def places(supernet: Supernet, loaded: Loaded, cells: Sequence[Cell]) -> list[Place]:
    """List the places of a supernet's trunk in order, with what is to be fitted there.

    Args:
        supernet: after its weights were loaded.
        loaded: what became of its slots.
        cells: the trained trunk's, stem first, as wide as its source.

    Returns:
        No place where nothing is to be fitted.
    """
    found = list(_walk(supernet, loaded, cells))
    return found if any(place.slots for place in found) else []


def _walk(supernet: Supernet, loaded: Loaded, cells: Sequence[Cell]) -> Iterator[Place]:
    slots, trained = supernet.slots(), {*loaded.whole, *loaded.sliced}
    random, identity = {*loaded.random}, {*loaded.identity}
    widest = {name: operator for name, operator in supernet.space.cells() if name in random and operator.label not in ADDED}
    width = 3
    for stage in STAGES:
        own = [cell for cell in cells if cell.stage == stage and cell.op not in ADDED]
        for ordinal in sorted({int(name.split(".")[2]) for name in slots if name.startswith(f"stage.s{stage}.")}):
            block = _trained_block(slots, trained, own[ordinal], ordinal, width) if ordinal < len(own) else None
            if block is None and ordinal == 0 and stage.endswith("b"):
                break  # the trained trunk does without this stage
            if block is None and ordinal == 0:
                return
            done = set[str]() if block else identity
            out = width if block is None else block[1].out
            signed = bool(own) and own[0].op == "inverted" and ordinal > 0
            others = {
                name: _ending(
                    dataclasses.replace(op, sources=(min(width, op.sources[0]),), out=min(out, op.out)),
                    signed and op.label not in REPLACED,
                ) for name, op in widest.items() if name.startswith(f"stage.s{stage}.{ordinal}.") and name not in done
            }  # fmt: skip
            yield Place(stage, ordinal, block, others, signed)
            width = out


def _ending(operator: Operator, signed: bool) -> Operator:
    """Return an operator with or without a ReLU at its end, for a stage with or without negative values."""
    names = {field.name for field in dataclasses.fields(operator)}
    ending: dict[str, Any] = {name: value for name, value in {"relu": not signed, "linear": signed}.items() if name in names}
    return dataclasses.replace(operator, **ending)


def _trained_block(
    slots: dict[str, Slot], trained: set[str], cell: Cell, ordinal: int, width: int
) -> tuple[str, Operator] | None:  # fmt: skip
    """Return slot and operator of a trained cell, as wide as source and slot both are; None where it was not loaded."""
    name = slot_name("stage", cell.stage, ordinal, cell_operator(cell, (width,), ALIGNED))
    if name not in slots or (slots[name].full and name not in trained):
        return None
    layers = {layer.name: layer for layer in slots[name].full.values() if isinstance(layer, Layer)}
    if not layers:  # a pooling
        return name, cell_operator(dataclasses.replace(cell, out=width), (width,), ALIGNED)
    expansion = min(cell.expansion, layers["depthwise"].out // width) if "expand" in layers else 1
    kernel = min(cell.kernel, max(layer.kernel for layer in layers.values()))
    out = min(cell.out, *(layers[writer].out for writer in WRITERS[cell.op] if writer in layers))
    return name, cell_operator(dataclasses.replace(cell, out=out, kernel=kernel, expansion=expansion), (width,), ALIGNED)


class Fitting:
    """One step of fitting, as `hyctas.training.loop.Trainer` calls it, and the errors before and after.

    Slots are fitted as copies as wide as the trained trunk: those of a space are often several times as large.

    Args:
        supernet: its trained blocks give inputs and outputs.
        found: what `places` listed.
        recipe: crops, seed, threads.
        frames: images.
        preprocessing: how images are normalised.
    """

    def __init__(
        self, supernet: Supernet, found: Sequence[Place], recipe: SupernetRecipe, frames: Frames, preprocessing: Preprocessing
    ) -> None:
        self.supernet, self.places, self.recipe = supernet, found, recipe
        rank, world = start_processes()
        self.device = default_device()
        supernet.to(self.device)
        self.slots = {name: Slot({layer.name: layer for layer in op.layers()}) for p in found for name, op in p.slots.items()}
        self.model = nn.ModuleList(self.slots.values()).to(self.device)
        """What is trained."""
        for name, slot in self.slots.items():
            _copy(_shared(supernet, name, slot), _tensors(slot))
        self.feed = CropFeed(frames, recipe, preprocessing, rank, world)
        self.state: dict[str, Any] = {}
        """Errors at full width by slot, `before` and `after`; part of the checkpoint."""

    def __call__(self, step: int) -> dict[str, float]:
        batch = to_device(self.feed.batch(step), self.device)
        rng = np.random.default_rng([self.recipe.seed, FIT, step])
        shares = {place.stage: float(rng.uniform(0.5, 1)) if step % 2 else 1.0 for place in self.places}
        total = 0.0
        for images, _ in self.feed.micro_batches(batch):
            for name, place, before, x, y in self._features(images):
                signed = place.signed_slot(name) and step // 2 % 2 == 0
                loss = self._error(name, place, x, y, shares[before], shares[place.stage], signed=signed)
                loss.backward()
                total += float(loss.detach()) / len(self.slots)
        (total,) = sum_numbers([total])
        return {"loss": total}

    @torch.no_grad()
    def check(self, when: str) -> None:
        """Note the errors at full width, on batches that are not fitted on, as `before` or `after`."""
        errors = dict.fromkeys(self.slots, 0.0)
        with torch_threads(self.recipe.threads):
            for number in range(CHECKS):
                batch = to_device(self.feed.batch(CHECK_STEP + number), self.device)
                for images, _ in self.feed.micro_batches(batch):
                    for name, place, _, x, y in self._features(images):
                        error = self._error(name, place, x, y, 1.0, 1.0, signed=place.signed_slot(name))
                        errors[name] += float(error) / CHECKS
        self.state[when] = dict(zip(errors, sum_numbers(list(errors.values())), strict=True))

    @torch.no_grad()
    def match_scales(self) -> None:
        """Give every output channel the mean and deviation of the trained one: norms alone would take long to reach them."""
        (images, _) = to_device(self.feed.batch(CHECK_STEP), self.device)
        for name, place, _, x, y in self._features(images):
            operator, slot = place.slots[name], self.slots[name]
            x, y = place.features(x, y, signed=place.signed_slot(name))
            target = y[:, : operator.out].float()
            if getattr(operator, "keeps_shape", False):  # its input is added
                target = target - x[:, : operator.out].float()
            mean, variance, _ = moments(target, (0, 2, 3))
            norms = [slot.get_submodule(f"{writer}.norm") for writer in WRITERS.get(operator.label, ()) if writer in slot.full]
            for norm in norms:
                norm.get_parameter("weight").copy_((variance / len(norms)).sqrt())
                norm.get_parameter("bias").copy_(mean / len(norms))

    @torch.no_grad()
    def finish(self) -> None:
        """Write the fitted slots into the supernet; fitted channels get weights of 0 for inputs that they were fitted without."""
        for name, slot in self.slots.items():
            whole = self.supernet.get_submodule(name)
            for layer in slot.full.values():
                if isinstance(layer, Layer):
                    whole.get_submodule(layer.name).get_parameter("weight")[: layer.out] = 0
            _copy(_tensors(slot), _shared(self.supernet, name, slot))

    def _features(self, images: Tensor) -> Iterator[tuple[str, Place, str, Tensor, Tensor]]:
        """Run the trained trunk; yield per slot to fit its place, the stage before, and input and output of the place."""
        x, stage = images, self.places[0].stage
        for place in self.places:
            y = x
            if place.trained is not None:
                name, operator = place.trained
                slot = self.supernet.get_submodule(name)
                assert isinstance(slot, Slot)
                with torch.no_grad(), self._computing():
                    y = slot.run(operator, (0,), [x])
            yield from ((name, place, stage, x, y) for name in place.slots)
            x, stage = y, place.stage

    def _error(
        self, name: str, place: Place, x: Tensor, y: Tensor, share_in: float, share_out: float, *, signed: bool
    ) -> Tensor:  # fmt: skip
        """Return the relative squared error of a slot at shares of the trained widths, rounded to multiples of 8.

        This process's part of a step's error, which is the sum over micro-batches and processes.
        """
        widest = _ending(place.slots[name], signed)
        x, y = place.features(x, y, signed=signed)
        out = _width(widest.out, share_out)
        sources = out if place.ordinal else _width(widest.sources[0], share_in)
        operator = dataclasses.replace(widest, sources=(sources,), out=out)
        with self._computing():
            found = self.slots[name].run(operator, (0,), [x[:, :sources]])
        target = y[:, :out].float()
        _, variance, _ = moments(target, (0, 1, 2, 3))
        return len(x) / self.recipe.batch * (found.float() - target).square().mean() / variance.float().clamp(min=1e-12)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.amp), synchronised_norms():
            yield


def _shared(supernet: Supernet, name: str, narrow: Slot) -> list[Tensor]:
    """Return the part of a supernet's slot that a narrower copy stands for, as views."""
    slot = supernet.get_submodule(name)
    assert isinstance(slot, Slot)
    return [tensor for layer in narrow.full.values() for tensor in slot.tensors(layer, (0,)).values()]


def _tensors(slot: Slot) -> list[Tensor]:
    return [tensor for layer in slot.full.values() for tensor in slot.tensors(layer, (0,)).values()]


@torch.no_grad()
def _copy(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)


def _width(channels: int, share: float) -> int:
    """Return a share of channels, rounded up to a multiple of 8, at most all."""
    return min(channels, 8 * -(-int(channels * share) // 8))


def fit(
    supernet: Supernet, found: Sequence[Place], recipe: SupernetRecipe, steps: int, frames: Frames, preprocessing: Preprocessing,
    checkpoint: Path, progress: Callable[[Progress], None] | None = None,
) -> dict[str, list[float]]:  # fmt: skip
    """Fit slots of a supernet, in place; a killed process continues where it last saved.

    Returns:
        Every slot's errors before and after, for a run's record.
    """
    fitting = Fitting(supernet, found, recipe, frames, preprocessing)
    how = dataclasses.replace(
        recipe, minutes=None, steps=steps, warmup_steps=min(recipe.warmup_steps, steps // 10), schedule="cosine", ema=0.0,
        learning_rate=LEARNING_RATE, weight_decay=0.0, clip=1e6,  # a slot's gradient does not touch another's
    )  # fmt: skip
    trainer = Trainer(fitting.model, how, checkpoint, fitting.state)
    if "before" not in fitting.state:
        fitting.check("before")
        fitting.match_scales()
    trainer.run(fitting, progress)
    fitting.check("after")
    fitting.finish()
    fitting.feed.close()
    return {name: [round(fitting.state[when][name], 4) for when in ("before", "after")] for name in fitting.slots}


def summary(errors: dict[str, list[float]], steps: int) -> str:
    """Say in a line how well the slots were fitted."""
    before, after = (sum(error[when] for error in errors.values()) / len(errors) for when in (0, 1))
    worst = max(errors, key=lambda name: errors[name][1])
    return (
        f"fitted {len(errors)} operators to trained blocks in {steps} steps: squared error {before:.2f} -> {after:.2f} of the "
        f"variance on average, at most {errors[worst][1]:.2f} ({worst})"
    )

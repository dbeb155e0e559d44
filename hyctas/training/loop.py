"""Run training steps within a budget, with a schedule and checkpoints; a killed run continues where it last saved."""

from __future__ import annotations

import hashlib
import io
import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from export.backends.torch_session import torch_threads
from export.errors import CheckFailed, CorruptFile, InvalidInput, StartOver
from export.files import write_bytes
from hyctas.training.average import WeightAverage
from hyctas.training.collectives import from_first, sum_gradients, sum_numbers
from hyctas.training.config import Recipe
from hyctas.training.freed_memory import freed_memory_kept
from hyctas.training.processes import is_first

FORMAT_VERSION = 2
DIGEST_BYTES, END_OF_ZIP = 32, b"PK\5\6"
Step = Callable[[int], dict[str, float]]
"""Compute the gradients of one step (forward and backward): this process's part, whose sum over all processes is the gradient.

Returns numbers to show, "loss" among them, the same in all processes."""


@dataclass
class Progress:
    """What a progress display needs."""

    step: int
    share: float
    """Share of the budget that is spent, 0..1."""
    spent_s: float
    numbers: dict[str, float]


class Trainer:
    """Train a module's weights.

    Args:
        model: whose parameters are trained, in place.
        recipe: budget, schedule, seed.
        checkpoint: file that holds the state; loaded if it exists.
        extra: further state of the caller, saved and restored in place.
        pretrained: names of the parameters that came from trained weights; they learn `trunk_rate` times as fast.

    Raises:
        InvalidInput: `pretrained` names something that is no parameter.
        CorruptFile: the checkpoint is damaged, or of another training.
    """

    def __init__(
        self, model: nn.Module, recipe: Recipe, checkpoint: Path, extra: dict[str, Any] | None = None,
        pretrained: Collection[str] = (),
    ) -> None:  # fmt: skip
        self.model, self.recipe, self.checkpoint = model, recipe, checkpoint
        self.extra = {} if extra is None else extra
        self.optimiser = torch.optim.AdamW(parameter_groups(model, recipe, pretrained), lr=recipe.learning_rate, fused=True)
        self.average = WeightAverage(model.parameters(), recipe.ema) if recipe.ema else None
        self.step, self.spent_s, self._saved_at, self._save_cost = 0, 0.0, time.monotonic(), 0.0
        if checkpoint.exists():
            self._load()

    @property
    def share(self) -> float:
        """Share of the budget that is spent."""
        if self.recipe.steps is not None:
            return self.step / self.recipe.steps
        assert self.recipe.minutes is not None
        return self.spent_s / (60 * self.recipe.minutes)

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step: linear warm-up, and a fall to 0 at the end of the budget."""
        warm = min(1.0, (self.step + 1) / max(1, self.recipe.warmup_steps))
        left = max(0.0, 1 - self.share)
        fall = left**0.9 if self.recipe.schedule == "poly" else 0.5 - 0.5 * math.cos(math.pi * left)
        return self.recipe.learning_rate * warm * fall

    def run(self, step: Step, progress: Callable[[Progress], None] | None = None) -> None:
        """Train until the budget is spent; the model then holds the averaged weights where the recipe asks for them.

        The checkpoint then holds the end of the training, so that whatever follows can fail and be repeated.

        Raises:
            CheckFailed: the loss is not finite three steps in a row (steps with a non-finite gradient are left out).
            InvalidInput: not all processes have found the same checkpoint.
            Disconnected: another process is gone.
        """
        self._check_agreement()
        bad, first = 0, self.step
        with torch_threads(self.recipe.threads), freed_memory_kept():
            while not self._finished():
                started = time.monotonic()
                for group in self.optimiser.param_groups:
                    group["lr"] = self.learning_rate * group["factor"]
                self.optimiser.zero_grad(set_to_none=True)
                numbers = step(self.step)
                sum_gradients(self.model)
                norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
                bad = 0 if math.isfinite(float(norm)) and math.isfinite(numbers["loss"]) else bad + 1
                if bad == 0:
                    self.optimiser.step()
                    if self.average is not None:
                        self.average.update(self.step)
                elif bad == 3:
                    raise CheckFailed(
                        f"the loss is not finite at step {self.step}, three times in a row; set a lower learning_rate "
                        f"(now {self.recipe.learning_rate}) or amp = false",
                        StartOver(),
                    )
                self.step += 1
                self.spent_s += time.monotonic() - started
                self._save_sometimes()
                if progress is not None:
                    progress(Progress(self.step, min(1.0, self.share), self.spent_s, numbers))
        if self.step > first:
            self.save()
        if self.average is not None:
            self.average.apply()

    def _finished(self) -> bool:
        """Say whether the budget is spent; all processes go by the first one's clock, and so have one learning rate."""
        self.spent_s = from_first(self.spent_s)
        return self.share >= 1

    def _check_agreement(self) -> None:
        first = int(from_first(self.step))
        (differing,) = sum_numbers([float(first != self.step)])
        if differing:
            raise InvalidInput(
                f"{differing:.0f} of the processes have found another checkpoint in {self.checkpoint.parent} than the first one, "
                f"which continues at step {first}; give a run folder that is the same one on all machines (a network file system)"
            )

    def save(self) -> None:
        """Write the checkpoint, safely; only the first process writes."""
        if not is_first():
            return
        started = time.monotonic()
        buffer = io.BytesIO()
        state = {
            "format_version": FORMAT_VERSION, "step": self.step, "spent_s": self.spent_s, "extra": self.extra,
            "model": self.model.state_dict(), "optimiser": self.optimiser.state_dict(),
            "average": None if self.average is None else self.average.values,
        }  # fmt: skip
        torch.save(state, buffer)
        data = buffer.getvalue()
        write_bytes(self.checkpoint, data + hashlib.sha256(data).digest())
        self._saved_at = time.monotonic()
        self._save_cost = self._saved_at - started

    def _save_sometimes(self) -> None:
        """Save every `save_seconds`, and seldom enough that saving takes at most a twentieth of the time."""
        if time.monotonic() - self._saved_at >= max(self.recipe.save_seconds, 20 * self._save_cost):
            self.save()

    def _load(self) -> None:
        try:
            state = torch.load(io.BytesIO(_intact(self.checkpoint)), map_location="cpu", weights_only=True)
            if state["format_version"] != FORMAT_VERSION:
                raise CorruptFile(self.checkpoint, f"has format_version {state['format_version']}, expected {FORMAT_VERSION}")
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
            if self.average is not None:
                self.average.load(state["average"])
            self.step, self.spent_s = state["step"], state["spent_s"]
            self.extra.update(state["extra"])
        except CorruptFile:
            raise
        except Exception as error:  # torch.load raises many kinds for a damaged file
            raise CorruptFile(
                self.checkpoint, f"is not a whole checkpoint of this run ({type(error).__name__}: {str(error)[:200]})",
                None, StartOver(),
            ) from None  # fmt: skip


def _intact(path: Path) -> bytes:
    """Return a checkpoint without the hash that follows it: torch's format would let a flipped bit of a weight pass.

    Raises:
        CorruptFile: it was changed, or written in part.
    """
    data = path.read_bytes()
    if data[-22:-18] == END_OF_ZIP:  # of an earlier version, which wrote no hash
        return data
    content, digest = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        raise CorruptFile(path, "is damaged: its hash does not fit its content", None, StartOver())
    return content


def parameter_groups(model: nn.Module, recipe: Recipe, pretrained: Collection[str]) -> list[dict[str, Any]]:
    """Group parameters by weight decay (convolution weights have it) and by the factor on their learning rate.

    Raises:
        InvalidInput: `pretrained` names something that is no parameter.
    """
    parameters, trunk = dict(model.named_parameters()), frozenset(pretrained)
    if unknown := sorted(trunk - parameters.keys()):
        raise InvalidInput(f"{len(unknown)} pretrained parameters are none of the model's, for instance {unknown[0]!r}")
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        decay = recipe.weight_decay if parameter.dim() > 1 else 0.0
        groups.setdefault((decay, recipe.trunk_rate if name in trunk else 1.0), []).append(parameter)
    return [{"params": group, "weight_decay": decay, "factor": factor} for (decay, factor), group in groups.items()]


def to_device(batch: tuple[Tensor, ...], device: torch.device) -> tuple[Tensor, ...]:
    """Move a batch's tensors (images, labels, perhaps soft labels) to a device."""
    return tuple(tensor.to(device, non_blocking=True) for tensor in batch)

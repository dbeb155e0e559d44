"""Stop a training as a kill would, right after it has saved."""

from __future__ import annotations

from collections.abc import Callable

from hyctas.training.loop import Progress, Step, Trainer


class Stop(Exception):
    """Ends a training from its progress callback."""


def run_until(trainer: Trainer, step: Step, stop: int | None, told: Callable[[Progress], None] | None = None) -> None:
    """Train until a number of steps is done and saved, or to the end of the budget; `told` hears of every step."""

    def watch(progress: Progress) -> None:
        if told is not None:
            told(progress)
        if trainer.step == stop:
            trainer.save()
            raise Stop

    try:
        trainer.run(step, watch)
    except Stop:
        pass

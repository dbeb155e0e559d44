"""Stop a training as a kill would, right after it has saved."""

from __future__ import annotations

from hyctas.training.loop import Step, Trainer


class Stop(Exception):
    """Ends a training from its progress callback."""


def run_until(trainer: Trainer, step: Step, stop: int | None) -> None:
    """Train until a number of steps is done and saved, or to the end of the budget."""

    def watch(progress: object) -> None:
        if trainer.step == stop:
            trainer.save()
            raise Stop

    try:
        trainer.run(step, watch)
    except Stop:
        pass

"""Write a run's report, with predictions of its trained network on images of val."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from export.errors import InvalidInput
from hyctas.artifacts.runs import Record
from hyctas.cli.advice import command_line
from hyctas.cli.show import say
from hyctas.commands.datasets import DataSet, open_dataset
from hyctas.data import Frames
from hyctas.report.report_files import write_report

EXAMPLES = 5


def report_run(run: Path) -> Path:
    """Write RUN/report.md, report.html and pareto.svg; return the page's path. Without its data set, it has no predictions."""
    record = Record.read(run, "train-network")
    try:
        data = open_dataset(record.results["data"], check=False)
    except (InvalidInput, KeyError) as error:
        say(f"the report shows no predictions: the data set is not where it was ({error})")
        return write_report(run, step_name=command_line)
    size = record.config["recipe"]["size"]
    return write_report(run, *_predictions(run, data, (size[0], size[1]) if size else None), command_line)


def _predictions(
    run: Path, data: DataSet, size: tuple[int, int] | None
) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[np.ndarray]]:
    """Return a few images of val with their labels, and the network's predictions for them."""
    import torch  # hyctas-bench does without it, but for a run's report

    from hyctas.artifacts.bundling import load_trained
    from hyctas.training.evaluate import whole_images

    trained = load_trained(run, data.num_classes)
    network = trained.network.eval()
    places = {round(i * (len(data.val) - 1) / max(1, EXAMPLES - 1)) for i in range(EXAMPLES)}
    frames = Frames(data.source, "val", tuple(data.val[place] for place in sorted(places)), size=size)
    examples, predictions = [], []
    with torch.inference_mode():
        for index in range(len(frames)):
            images, _ = whole_images(frames, [index], trained.preprocessing)
            predictions.append(network(images)[0].argmax(0).to(torch.uint8).numpy())
            examples.append(frames[index])
    return examples, predictions

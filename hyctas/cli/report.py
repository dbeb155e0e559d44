"""Write a run's report, with predictions of its trained network on images of val."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hyctas.cli.datasets import DataSet

EXAMPLES = 5


def report(run: Path, data: DataSet) -> Path:
    """Write RUN/report.md, report.html and pareto.svg; return the page's path."""
    import torch

    from export.files import read_json
    from hyctas.bundling import load_trained
    from hyctas.data import Frames
    from hyctas.report.write import write_report
    from hyctas.runs import FORMAT_VERSION
    from hyctas.training.evaluate import whole_images

    network = load_trained(run, data.num_classes).network.eval()
    size = read_json(run / "train-network.json", FORMAT_VERSION)["config"]["recipe"]["size"]
    chosen = [data.val[round(i * (len(data.val) - 1) / max(1, EXAMPLES - 1))] for i in range(min(EXAMPLES, len(data.val)))]
    frames = Frames(data.source, "val", tuple(dict.fromkeys(chosen)), size=(size[0], size[1]) if size else None)
    examples, predictions = [], []
    with torch.inference_mode():
        for index in range(len(frames)):
            images, _ = whole_images(frames, [index])
            predictions.append(network(images)[0].argmax(0).to(torch.uint8).numpy())
            examples.append(frames[index])
    return write_report(run, examples, predictions)

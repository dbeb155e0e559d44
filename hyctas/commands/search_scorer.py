"""Open what scores the networks of a search by a supernet's weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from export.bundle.imaging import Preprocessing
from hyctas.artifacts.inherit import SupernetRecord
from hyctas.commands.datasets import DataSet
from hyctas.data import Frames
from hyctas.search.score import Scorer, drawn_samples

if TYPE_CHECKING:
    from hyctas.cli.search import SearchJob

NORM_BATCHES = 2
"""Fixed, and noted in the history, as are the threads: recorded values depend on them."""


def open_scorer(job: SearchJob, supernet: SupernetRecord, data: DataSet, preprocessing: Preprocessing) -> Scorer:
    """Return what scores networks by shared weights, on the threads that the settings say."""
    settings = job.settings
    size = settings.eval_size or supernet.size
    drawn, _ = drawn_samples(data.choose, job.seed, job.images)
    few = drawn[: settings.screen_images] or drawn
    parts = [Frames(data.source, "train", part, size=size) for part in (data.train, few, drawn[len(few) :]) if part]
    return Scorer(
        supernet.load(job.space), *parts, preprocessing=preprocessing, seed=job.seed, norm_batches=NORM_BATCHES,
        threads=settings.threads,
    )  # fmt: skip

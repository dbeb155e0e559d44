"""Read, check, cut, vary and score labelled images. Importing this needs no torch."""

from hyctas.data.cache import Frames
from hyctas.data.labels import CAMVID, CITYSCAPES, IGNORE, Labels, default_colours
from hyctas.data.metric import Score, confusion, score
from hyctas.data.sample import Sample, Source
from hyctas.data.scenes import Scenes
from hyctas.data.source import open_source
from hyctas.data.split import Split, honest_split
from hyctas.data.transforms import PREPROCESSING, Augment, View, augment, augment_view, draw_view, normalise, to_batch
from hyctas.data.verify import Coverage, VerifyReport, verify

__all__ = [
    "CAMVID",
    "CITYSCAPES",
    "IGNORE",
    "PREPROCESSING",
    "Augment",
    "Coverage",
    "Frames",
    "Labels",
    "Sample",
    "Scenes",
    "Score",
    "Source",
    "Split",
    "VerifyReport",
    "View",
    "augment",
    "augment_view",
    "confusion",
    "default_colours",
    "draw_view",
    "honest_split",
    "normalise",
    "open_source",
    "score",
    "to_batch",
    "verify",
]

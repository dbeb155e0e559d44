"""Say how int8 files are made, as plain data that a TOML file fills. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from export.ranges import Range, Settings


@dataclass(frozen=True, kw_only=True)
class Int8Settings(Settings):
    """What a TOML file may set of an int8 file."""

    calibration_images: Annotated[int, Range(1, 10000)] = 64
    """Images that ranges are taken from, evenly spread over those to train on."""
    judged_images: Annotated[int, Range(1, 10000)] = 24
    """Images that the layers which stay in float are chosen by, evenly spread over those to choose by."""
    min_agreement: Annotated[float, Range(0, 1)] = 0.98
    """Share of pixels that must keep their label; layers stay in float until they do."""
    max_miou_loss: Annotated[float, Range(0, 1)] = 0.005
    """mIoU that may be lost on the judged images, where they are labelled; 0.005 is half a point."""

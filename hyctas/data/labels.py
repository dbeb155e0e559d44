"""Name the classes of a data set, with the colours that they are drawn in.

Inside hyctas a label is always a train id: 0..C-1, or 255 for pixels that loss and metric ignore. How a data set writes
its labels on disk is the business of its layout (`hyctas.data.layouts`), which maps them to train ids.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import Any

from export.codec import plain
from export.errors import InvalidInput

Colour = tuple[int, int, int]
IGNORE = 255


@dataclass(frozen=True)
class Labels:
    """The classes of a data set.

    Raises:
        InvalidInput: no class, more than 255, two of one name, a colour outside 0..255, or `ignore` is a class number.
    """

    names: tuple[str, ...]
    """Class names; the position is the train id."""
    colours: tuple[Colour, ...]
    """One RGB colour (0..255) per class."""
    ignore: int = IGNORE
    """The value of pixels that count for nothing."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) <= 255:
            raise InvalidInput(f"a label set needs 1 to 255 classes, got {len(self.names)}")
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice:
            raise InvalidInput(f"class names must differ; given more than once: {', '.join(twice)}")
        if len(self.colours) != len(self.names):
            raise InvalidInput(f"{len(self.names)} classes need as many colours, got {len(self.colours)}")
        for name, colour in zip(self.names, self.colours, strict=True):
            if len(colour) != 3 or not all(type(c) is int and 0 <= c <= 255 for c in colour):
                raise InvalidInput(f"colour of class {name!r} is {colour!r}; wanted three integers 0..255")
        if not len(self.names) <= self.ignore <= 255:
            raise InvalidInput(f"ignore value {self.ignore} must lie above the classes 0..{len(self.names) - 1} and be at most 255")

    @property
    def num_classes(self) -> int:
        """Number of classes, the ignored value not counted."""
        return len(self.names)

    def to_json(self) -> dict[str, Any]:
        """Return plain data for `labels.json`."""
        return plain(self)

    @classmethod
    def before_decoding(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Take a bundle's labels, which may ignore nothing."""
        return {name: item for name, item in value.items() if (name, item) != ("ignore", None)}


def default_colours(count: int) -> tuple[Colour, ...]:
    """Return `count` distinct colours: hues by the golden ratio, at alternating brightness and saturation."""
    colours = []
    for i in range(count):
        value, saturation = (0.9, 0.65, 0.8)[i % 3], (0.75, 0.55, 0.95, 0.4)[i % 4]
        red, green, blue = colorsys.hsv_to_rgb((0.07 + i * 0.61803398875) % 1.0, saturation, value)
        colours.append((round(red * 255), round(green * 255), round(blue * 255)))
    return tuple(colours)


def _labels(**table: Colour) -> Labels:
    """Build a label set from `name=colour`; an underscore stands for a space."""
    return Labels(tuple(name.replace("_", " ") for name in table), tuple(table.values()))


CAMVID = _labels(
    Sky=(128, 128, 128),
    Building=(128, 0, 0),
    Pole=(192, 192, 128),
    Road=(128, 64, 128),
    Pavement=(60, 40, 222),
    Tree=(128, 128, 0),
    SignSymbol=(192, 128, 128),
    Fence=(64, 64, 128),
    Car=(64, 0, 128),
    Pedestrian=(64, 64, 0),
    Bicyclist=(0, 128, 192),
)
"""CamVid in the 11 classes and the order of the SegNet papers."""

CITYSCAPES = _labels(
    road=(128, 64, 128),
    sidewalk=(244, 35, 232),
    building=(70, 70, 70),
    wall=(102, 102, 156),
    fence=(190, 153, 153),
    pole=(153, 153, 153),
    traffic_light=(250, 170, 30),
    traffic_sign=(220, 220, 0),
    vegetation=(107, 142, 35),
    terrain=(152, 251, 152),
    sky=(70, 130, 180),
    person=(220, 20, 60),
    rider=(255, 0, 0),
    car=(0, 0, 142),
    truck=(0, 0, 70),
    bus=(0, 60, 100),
    train=(0, 80, 100),
    motorcycle=(0, 0, 230),
    bicycle=(119, 11, 32),
)
"""The 19 train ids of Cityscapes with their official colours."""

CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""The `labelIds` value of each Cityscapes train id; the other values of 0..33, and 255 (licence plate), are ignored."""

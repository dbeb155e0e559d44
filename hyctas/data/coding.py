"""Say how label files denote classes, by numbers or by colours, and turn what a file holds into train ids."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import numpy as np

from export.errors import InvalidInput
from hyctas.data.labels import IGNORE, Colour, Labels

K = TypeVar("K", bound=Hashable)
LARGEST = 65535
"""The largest number that a label file of 16 bits holds."""
_UNKNOWN = -1
_SHOWN, _LISTED = 5, 40
"""Unknown colours that an error counts; numbers or colours that a text lists."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Coding:
    """How the label files of a data set denote its classes."""

    labels: Labels
    values: Mapping[int, int]
    """Train id (or `IGNORE`) of each number that may occur in a file."""
    colours: Mapping[Colour, int] = field(default_factory=dict)
    """Train id (or `IGNORE`) of each colour that may occur; empty: colours do not say what a pixel is."""
    palettes: Literal["indices", "colours"] = "indices"
    """What counts in a palette file."""

    def __post_init__(self) -> None:
        numbers = np.full(LARGEST + 1, _UNKNOWN, np.int16)
        for value, train_id in self.values.items():
            numbers[value] = train_id
        codes = sorted((_code(colour), train_id) for colour, train_id in self.colours.items())
        object.__setattr__(self, "_numbers", numbers)
        object.__setattr__(self, "_codes", np.array([code for code, _ in codes], np.int32))
        object.__setattr__(self, "_ids", np.array([train_id for _, train_id in codes], np.int16))

    def train_ids(self, values: np.ndarray) -> np.ndarray:
        """Return the train ids of a file's pixels, uint8 (H, W).

        Args:
            values: numbers, uint8 or uint16 (H, W), or colours, uint8 (H, W, 3).

        Raises:
            InvalidInput: a number or a colour that is no class; the text lists them, and what is allowed.
        """
        return self._of_numbers(values) if values.ndim == 2 else self._of_colours(values)

    def describe(self, files: Iterable[np.ndarray]) -> str:
        """Say in words what files hold, and what it stands for: `0 (road), 255 (ignored)`; each as `train_ids` takes it."""
        found: dict[int, tuple[str, int | None]] = {}
        for values in files:
            if values.ndim == 3:  # after the numbers
                codes = np.unique(_codes(values)).tolist()
                found |= {LARGEST + 1 + code: (_hex(code), self.colours.get(_rgb(code))) for code in codes}
            else:
                found |= {value: (str(value), self.values.get(value)) for value in np.unique(values).tolist()}
        meaning: dict[int | None, str] = {None: "no class", IGNORE: "ignored"}
        meaning.update(enumerate(self.labels.names))
        words = [f"{text} ({meaning[train_id]})" for _, (text, train_id) in sorted(found.items())]
        return ", ".join(words[:_LISTED]) + (f" and {len(words) - _LISTED} more" if len(words) > _LISTED else "")

    def _of_numbers(self, values: np.ndarray) -> np.ndarray:
        numbers: np.ndarray = self._numbers  # type: ignore[attr-defined]
        ids: np.ndarray = numbers[values]
        if ids.min() < 0:
            found = ", ".join(str(value) for value in np.unique(values[ids < 0])[:20])
            raise InvalidInput(f"holds the values {found}, which are no class; allowed: {ranges(sorted(self.values))}")
        return ids.astype(np.uint8)

    def _of_colours(self, values: np.ndarray) -> np.ndarray:
        grey = bool((values == values[..., :1]).all())
        if not self.colours:
            how = (
                "its colour channels are equal, so PIL's getchannel(0) yields the label"
                if grey
                else "give every class its colour in classes.txt (road #804080), or replace each colour by its class number "
                "(0, 1, 2, ...) and save that as a uint8 array: Image.fromarray(ids).save(...)"
            )
            raise InvalidInput(f"label has mode RGB, and not every class has a colour that could be looked for: {how}")
        known: np.ndarray = self._codes  # type: ignore[attr-defined]
        ids: np.ndarray = self._ids  # type: ignore[attr-defined]
        codes = _codes(values)
        at = np.searchsorted(known, codes).clip(max=len(known) - 1)
        if (strange := codes[known[at] != codes]).size:
            raise InvalidInput(self._strange(strange, grey))
        return ids[at].astype(np.uint8)

    def _strange(self, codes: np.ndarray, grey: bool) -> str:
        found, counts = np.unique(codes, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        shown = ", ".join(f"{_hex(int(found[i]))} ({counts[i]} pixels)" for i in order[:_SHOWN])
        more = f" and {len(order) - _SHOWN} more" if len(order) > _SHOWN else ""
        hint = ""
        if grey and set((found & 255).tolist()) <= set(self.values):
            hint = "; if these are class numbers, PIL's getchannel(0) yields the label"
        elif len(order) > _SHOWN:
            hint = "; smooth edges or JPEG compression make such colours: save labels without either"
        return f"holds {len(codes)} pixels of colours that are no class: {shown}{more}; allowed: {self._allowed()}{hint}"

    def _allowed(self) -> str:
        names = [_hex(_code(colour)) for colour in self.colours]
        return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def numbered(
    labels: Labels, numbers: Sequence[int] | None = None, ignored: Collection[int] = (IGNORE,),
    colours: Sequence[Colour] | None = None, ignored_colours: Collection[Colour] = (),
    palettes: Literal["indices", "colours"] = "indices",
) -> Coding:  # fmt: skip
    """Return the coding of a data set in which each class has one number, and perhaps one colour.

    Args:
        labels: the classes.
        numbers: of each class, the number in the files; none: 0, 1, 2, ...
        ignored: numbers of pixels that count for nothing.
        colours: of each class, its colour in colour-coded files; none: there are no such files.
        ignored_colours: colours of pixels that count for nothing.
        palettes: what counts in a palette file.

    Raises:
        InvalidInput: two classes, or a class and an ignored pixel, have one number or one colour.
    """
    numbers = range(labels.num_classes) if numbers is None else numbers
    values = _unique("number", labels, numbers, ignored, str)
    shades = {} if colours is None else _unique("colour", labels, colours, ignored_colours, lambda c: _hex(_code(c)))
    return Coding(labels=labels, values=values, colours=shades, palettes=palettes)


def _unique(what: str, labels: Labels, of_classes: Iterable[K], ignored: Iterable[K], show: Callable[[K], str]) -> dict[K, int]:
    table = dict.fromkeys(ignored, IGNORE)
    for train_id, key in enumerate(of_classes):
        if key in table:
            other = "ignored pixels" if table[key] == IGNORE else f"class {labels.names[table[key]]!r}"
            raise InvalidInput(f"{other} and class {labels.names[train_id]!r} have one {what} in label files, {show(key)}")
        table[key] = train_id
    return table


def ranges(values: Sequence[int]) -> str:
    """Shorten sorted integers: [0, 1, 2, 255] gives "0..2, 255"."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs)


def _codes(colours: np.ndarray) -> np.ndarray:
    wide = colours.astype(np.int32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def _code(colour: Colour) -> int:
    red, green, blue = colour
    return red << 16 | green << 8 | blue


def _rgb(code: int) -> Colour:
    return code >> 16, code >> 8 & 255, code & 255


def _hex(code: int) -> str:
    return f"#{code:06x}"

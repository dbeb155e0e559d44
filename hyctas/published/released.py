"""Give the released networks S, M and L, and those drawn in the authors' figure. No torch here."""

from __future__ import annotations

from importlib import resources

from export.errors import InvalidInput
from hyctas.arch.genotype import Genotype, normal_form
from hyctas.published.frame import OPERATORS, SCALES, cell, channels, complete
from hyctas.published.json_format import import_genotype

NAMES = ("S", "M", "L")
DRAWN = {
    "drawn2": (("TT", "cccTT", "TcATTTcT"), ("TTTT", "cccAcTcTcTTcT")),
    "drawn3": (("ccTTTcTTcccTcTc",), ("TTccTcTTc", "TTTcTcTc"), ("T", "c", "TcccTATTcTTcTA")),
}
"""The figure's 2- and 3-branch networks: per branch and row of the grid its cells; c convolution, T light-weight, A attention.

Widths and the kind of light-weight convolution (one or two deep) are not published: `drawn` takes width 1 and one deep. A row's
last cell is taken as the one that down-samples, as in the figure's 1-branch network, which is M cell by cell.
"""


def genotype(name: str, base_channels: int = 16, head: int | str = 1, *, panoptic: bool = False) -> Genotype:
    """Return a released network.

    Args:
        name: "S", "M" or "L".
        base_channels: base width F of all channel numbers.
        head: 1, 2, or 0 ("light").
        panoptic: also the instance head that goes with the head.

    Raises:
        InvalidInput: an unknown name or head, or a base width below 3.
    """
    text = released_json(name)
    return import_genotype(text, base_channels, head, panoptic=panoptic)


def released_json(name: str) -> str:
    """Return a released genotype file as it is.

    Raises:
        InvalidInput: an unknown name.
    """
    if name not in NAMES:
        raise InvalidInput(f"no released network {name!r}; there are {', '.join(NAMES)} (and drawn ones: {', '.join(DRAWN)})")
    return (resources.files(__package__) / "genotypes" / f"{name}.json").read_text()


def drawn(name: str, base_channels: int = 16, head: int | str = 1) -> Genotype:
    """Return an example after the authors' figure; widths and light-conv kind are not published (see `DRAWN`).

    Args:
        name: "drawn2" or "drawn3": with 2 or 3 branches.
        base_channels: base width F of all channel numbers.
        head: 1, 2, or 0 ("light").

    Raises:
        InvalidInput: an unknown name or head, or a base width below 3.
    """
    if name not in DRAWN:
        raise InvalidInput(f"no drawn network {name!r}; there are {', '.join(DRAWN)}")
    kinds = {"c": OPERATORS[1], "T": OPERATORS[2], "A": OPERATORS[4]}
    branches = []
    for rows in DRAWN[name]:
        cells = []
        for index, letters in enumerate(rows):
            for position, letter in enumerate(letters):
                down = position == len(letters) - 1 and index < len(rows) - 1
                cells.append(cell(kinds[letter], channels(SCALES[index + down], base_channels), 1 + down))
        branches.append(tuple(cells))
    return normal_form(complete(tuple(branches), base_channels, head))

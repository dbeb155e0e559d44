"""Read and write the released code's genotype files. No torch here.

One entry per branch: `ops` (0 skip, 1 conv, 2 downup, 3 downup2x, 4 attention), `paths` (scale of each cell's input: 0, 1, 2 for
1/8, 1/16, 1/32), `downs` (1: the cell has stride 2), `widths` (multiplier of each cell's output but the last, whose width is
fixed), `lasts` (the final scale).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from export.codec import convert, decode
from export.errors import InvalidInput
from hyctas.arch.genotype import Branch, Genotype, normal_form
from hyctas.published.frame import OPERATORS, SCALES, WIDTHS, cell, channels, complete

FIELDS = ("ops", "paths", "downs", "widths", "lasts")
TOLERANCE = 1e-6


Rows = tuple[tuple[int | float, ...], ...]
"""A list of numbers per branch."""


@dataclasses.dataclass(frozen=True)
class _Released:
    ops: Rows
    paths: Rows
    downs: Rows
    widths: Rows
    lasts: tuple[int | float, ...]
    flops: Any = None
    params: Any = None
    """These two are added by the released tools; they follow from the others."""


def import_genotype(
    source: str | Mapping[str, Any], base_channels: int = 16, head: int | str = 1, *, panoptic: bool = False
) -> Genotype:
    """Read a genotype of the released format.

    Args:
        source: JSON text, or the object it parses to.
        base_channels: base width F of all channel numbers.
        head: 1, 2, or 0 ("light").
        panoptic: also the instance head that goes with the head.

    Returns:
        A genotype in the released code's arithmetic (`hyctas.published.ARITHMETIC`).

    Raises:
        InvalidInput: not that format, or a network that the released code could not build; the text names the place.
    """
    try:
        value = decode(_Released, source) if isinstance(source, str) else convert(_Released, dict(source))
    except ValueError as error:
        raise _error(str(error)) from None
    count = len(value.lasts)
    for field in FIELDS[:-1]:
        if len(getattr(value, field)) != count:
            raise _error(f"{field} has {len(getattr(value, field))} branches and lasts {count}; both need one entry per branch")
    if not 1 <= count <= 3 or len(set(value.lasts)) != count:
        raise _error(
            f"lasts is {list(value.lasts)}; it holds 1 to 3 final scales, each once (branches of equal final scale would "
            "share the weights that bring them back to 1/8)"
        )
    branches = tuple(_branch(value, index, base_channels) for index in range(count))
    return normal_form(complete(branches, base_channels, head, panoptic=panoptic))


def export_genotype(genotype: Genotype) -> str:
    """Write a genotype in the released format: JSON text, branches sorted by final scale.

    Raises:
        InvalidInput: the genotype is not one that `import_genotype` makes (in either arithmetic).
    """
    genotype = normal_form(genotype)
    if others := {cell.op for branch in genotype.branches for cell in branch} - {*OPERATORS}:
        raise _error(f"{genotype.id} has the operators {sorted(others)}; the released format holds {', '.join(OPERATORS)}")
    base = genotype.stem[0].out // 4
    value: dict[str, list[Any]] = {field: [] for field in FIELDS}
    for branch in genotype.branches:
        row, ops, path, downs, widths = 0, list[int](), list[int](), list[int](), list[float]()
        for position, one in enumerate(branch):
            ops.append(OPERATORS.index(one.op))
            path.append(row)
            downs.append(one.stride - 1)
            row += one.stride - 1
            if position < len(branch) - 1:
                widths.append(_multiplier(one.out, SCALES[row], base))
        for field, item in zip(FIELDS, (ops, path, downs, widths, row), strict=True):
            value[field].append(item)
    text = json.dumps(value)
    head = {"light": 0, "head1": 1, "head2": 2}[genotype.head.kind]
    again = import_genotype(text, base, head, panoptic=genotype.instance_head is not None)
    if again != dataclasses.replace(genotype, arithmetic=again.arithmetic):
        raise InvalidInput(
            f"genotype {genotype.id} is not of the published kind (stem, fusion, head or attention differ), "
            "so the released format cannot hold it; write it with to_json()"
        )
    return text


def _multiplier(out: int, scale: int, base: int) -> float:
    for width in WIDTHS:
        if channels(scale, base, width) == out:
            return width
    raise InvalidInput(
        f"{out} channels at 1/{scale} are no published width for base {base}; allowed: "
        f"{[channels(scale, base, width) for width in WIDTHS]}"
    )


def _error(text: str) -> InvalidInput:
    return InvalidInput(f"published genotype: {text}")


def _branch(value: _Released, index: int, base: int) -> Branch:
    """Check one branch and return its cells."""
    ops, path, downs, widths = value.ops[index], value.paths[index], value.downs[index], value.widths[index]
    last, length = value.lasts[index], len(ops)
    for field, numbers, wanted in (("paths", path, length), ("downs", downs, length), ("widths", widths, length - 1)):
        if len(numbers) != wanted:
            raise _error(f"{field}[{index}] has {len(numbers)} entries; ops[{index}] has {length}, so {wanted} are needed")
    if not length:
        raise _error(f"ops[{index}] is empty; a branch has at least one cell")
    cells = []
    for position, (op, row, down) in enumerate(zip(ops, path, downs, strict=True)):
        where = f"[{index}][{position}]"
        if op not in range(len(OPERATORS)):
            raise _error(f"ops{where} is {op}; known: {', '.join(f'{i} {name}' for i, name in enumerate(OPERATORS))}")
        if row != (path[position - 1] + downs[position - 1] if position else 0) or row not in (0, 1, 2):
            raise _error(f"paths{where} is {row}; a path starts at 0 and rises by 1 behind each cell with down 1, up to 2")
        if down not in (0, 1) or (down and position == length - 1):
            raise _error(f"downs{where} is {down}; allowed are 0 and 1, and 0 for the last cell of a branch")
        if op == 0 and not down:
            raise _error(f"ops{where} is 0 (skip) without down-sampling; such cells are removed when a genotype is compacted")
        width = 1.0 if position == length - 1 else _width(widths[position], f"widths{where}")
        if row + down > 2:
            raise _error(f"downs{where} goes below 1/32")
        cells.append(cell(OPERATORS[int(op)], channels(SCALES[int(row + down)], base, width), int(down) + 1))
    if last != path[-1]:
        raise _error(f"lasts[{index}] is {last}, but paths[{index}] ends at {path[-1]}")
    return tuple(cells)


def _width(number: float, where: str) -> float:
    for width in WIDTHS:
        if abs(number - width) < TOLERANCE:
            return width
    raise _error(f"{where} is {number}; published widths are 1/3, 1/2, 2/3, 5/6 and 1")

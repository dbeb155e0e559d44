"""Fill the released networks with weights that follow from their keys, and make the input that goes with them.

`data/<name>_state_dict.tsv` lists the keys of the released checkpoints: key, shape, "alias" where a row is another name of an
earlier tensor (cells that branches share). `data/S_logits.npz` holds the released S network's logits at stride 4 for
`image(128, 256)` in eval mode with these weights (base 16, head 1, no auxiliary heads).
"""

from __future__ import annotations

import math
import zlib
from functools import cache
from pathlib import Path

import torch

DATA = Path(__file__).parent / "data"


def rows(name: str) -> list[tuple[str, tuple[int, ...], bool]]:
    """List key, shape and whether it is an alias, in the checkpoint's order."""
    table = [line.split("\t") for line in (DATA / f"{name}_state_dict.tsv").read_text().splitlines()]
    return [(key, tuple(int(n) for n in shape.split("x")) if shape else (), bool(alias)) for key, shape, alias in table]


def tensor(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the tensor of a key: noise seeded by the key, scaled by what the key is."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())), dtype=torch.float64)
    if key.endswith("running_var"):
        value = 1 + 0.2 * noise.abs()
    elif key.endswith("gamma"):
        value = 0.5 + 0.1 * noise
    elif len(shape) == 4:
        value = noise * math.sqrt(2.0 / math.prod(shape[1:]))
    elif key.endswith("weight"):
        value = 1 + 0.1 * noise
    else:
        value = 0.1 * noise
    return value.float()


@cache
def _filled(name: str) -> dict[str, torch.Tensor]:
    return {key: tensor(key, shape) for key, shape, alias in rows(name) if not alias}


def state_dict(name: str, *, aliases: bool = False) -> dict[str, torch.Tensor]:
    """Return a filled checkpoint; with aliases, those hold the tensor that they are a name of."""
    filled = dict(_filled(name))
    if aliases:
        filled = {key: filled[owner_of(key, filled)] for key, _, _ in rows(name)}
    return filled


def owner_of(key: str, owners: dict[str, torch.Tensor]) -> str:
    """Return the key that owns a tensor: that of the first branch that shares the cell."""
    if key in owners:
        return key
    head, _, tail = key.partition(".cells.")
    cell, _, rest = tail.partition(".")
    layer, branch = cell.split("-")
    return next(k for b in range(int(branch)) if (k := f"{head}.cells.{layer}-{b}.{rest}") in owners)


def image(height: int, width: int) -> torch.Tensor:
    """Return the input, (1, 3, height, width), already normalised."""
    y, x = torch.arange(height, dtype=torch.float64)[:, None], torch.arange(width, dtype=torch.float64)[None]
    planes = [torch.sin(0.07 * c * x + 0.05 * y) + 0.5 * torch.cos(0.11 * y * c) for c in (1, 2, 3)]
    return torch.stack(planes)[None].float()

"""Fill published networks with weights that follow from their tensors' names, and make the image that goes with them.

`data/<network>.tsv` lists name and shape of every tensor of a published module's state dict, as the module gives them:

| file | module |
|---|---|
| `lite_pytorch_lite0.tsv` | efficientnet-lite-pytorch 0.1.0, `efficientnet-lite0` |
| `timm_lite0.tsv`, `timm_mobilenetv2.tsv` | timm 1.0.31, `tf_efficientnet_lite0`, `mobilenetv2_100` |
| `torchvision_mobilenetv2.tsv` | torchvision 0.29.1, `mobilenet_v2` |
| `resnet18.tsv` | timm 1.0.31 and torchvision 0.29.1, `resnet18` (the same names) |
"""

from __future__ import annotations

import math
import zlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from hyctas.pretrained import SourceTrunk

DATA = Path(__file__).parent / "data"
GIVEN = {"timm_lite0": "tf_efficientnet_lite0.pth"}
"""What a network's file is called, where it matters."""


def shapes(network: str) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a network, by name."""
    rows = [line.split("\t") for line in (DATA / f"{network}.tsv").read_text().splitlines()]
    return {name: tuple(int(n) for n in shape.split("x")) if shape else () for name, shape in rows}


def tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return the tensor of a name: noise seeded by the name, scaled by what the name says."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(7)
    noise = torch.from_numpy(np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape))
    if name.endswith("running_var"):
        value = 0.05 + 0.2 * noise.abs()  # small enough that a wrong epsilon shows
    elif len(shape) == 4:
        value = noise * math.sqrt(0.2 / math.prod(shape[1:]))
    elif name.endswith("weight"):
        value = 1 + 0.1 * noise
    else:
        value = 0.1 * noise
    return value.float()


@cache
def _filled(network: str) -> dict[str, Tensor]:
    return {name: tensor(name, shape) for name, shape in shapes(network).items()}


def state_dict(network: str) -> dict[str, Tensor]:
    """Return a filled state dict, the caller's own."""
    return {name: value.clone() for name, value in _filled(network).items()}


def trunk(network: str) -> SourceTrunk:
    """Return what is read from it."""
    from hyctas.pretrained.reading import Provenance, read_trunk  # `make_features.py` runs where hyctas is not

    return read_trunk(state_dict(network), GIVEN.get(network, network), Provenance(sha256="", licence="", origin=""))


def image(height: int, width: int) -> np.ndarray:
    """Return an RGB image (1, 3, height, width), float64 in 0..1, that a formula makes: slopes, waves, an edge and a disc.

    Values are whole 255ths, so that no machine's sine gives another image.
    """
    y, x = np.arange(height)[:, None] / height, np.arange(width)[None] / width
    planes = []
    for channel in range(3):
        plane = 0.35 + 0.25 * x * (1 - channel / 3) + 0.15 * y + 0.2 * np.sin(2 * np.pi * ((3 + channel) * x + (2 + channel) * y))
        plane = np.where(x + 0.3 * y > 0.8 + 0.05 * channel, 1 - plane, plane)
        disc = (x - 0.35) ** 2 + (y - 0.6) ** 2 < 0.03
        planes.append(np.where(disc, (0.9, 0.3, 0.1)[channel], plane))
    return np.round(np.clip(np.stack(planes), 0, 1) * 255)[None] / 255

"""Compute with a `SourceTrunk` alone: a second implementation, written from the papers, that shares no code with our operators."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hyctas.pretrained import EPS, NormedConv, SourceBlock, SourceTrunk


def padded(value: Tensor, kernel: int, stride: int, symmetric: bool, fill: float = 0.0) -> Tensor:
    """Pad (N, C, H, W) so that a convolution without padding does the rest."""
    pads = []
    for size in (value.shape[3], value.shape[2]):  # F.pad begins at the last axis
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [kernel // 2] * 2 if symmetric else [total // 2, total - total // 2]
    return F.pad(value, pads, value=fill)


def normed(value: Tensor, layer: NormedConv, stride: int, symmetric: bool) -> Tensor:
    """Convolve and normalise with the running statistics."""
    weight = layer.weight.to(value.dtype)
    groups = value.shape[1] // weight.shape[1]
    value = F.conv2d(padded(value, weight.shape[2], stride, symmetric), weight, stride=stride, groups=groups)
    statistics = (layer.running_mean, layer.running_var, layer.norm_weight, layer.norm_bias)
    return F.batch_norm(value, *(part.to(value.dtype) for part in statistics), eps=EPS)


def run(block: SourceBlock, value: Tensor, symmetric: bool) -> Tensor:
    """Compute one block."""

    def act(inner: Tensor) -> Tensor:
        return inner.clamp(0, 6) if block.relu6 else inner.relu()

    layers = block.layers
    if block.op == "conv":
        return act(normed(value, layers["conv"], block.stride, symmetric))
    if block.op == "pool":
        return F.max_pool2d(padded(value, 3, block.stride, symmetric, -torch.inf), 3, block.stride)
    if block.op == "inverted":
        inner = act(normed(value, layers["expand"], 1, symmetric)) if block.expansion != 1 else value
        inner = act(normed(inner, layers["depthwise"], block.stride, symmetric))
        inner = normed(inner, layers["project"], 1, symmetric)
        return inner + value if block.stride == 1 and block.out == value.shape[1] else inner
    inner = act(normed(value, layers["first"], block.stride, symmetric))
    inner = normed(inner, layers["second"], 1, symmetric)
    return act(inner + (normed(value, layers["shortcut"], block.stride, symmetric) if "shortcut" in layers else value))


def outputs(trunk: SourceTrunk, image: np.ndarray) -> list[Tensor]:
    """Return every block's output for an RGB image (1, 3, H, W) in 0..1; fp64."""
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (trunk.mean, trunk.std))
    value, kept = (torch.from_numpy(image) - mean) / std, []
    with torch.no_grad():
        for block in trunk.blocks:
            value = run(block, value, trunk.symmetric_padding)
            kept.append(value)
    return kept

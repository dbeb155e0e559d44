"""Hold what a trained classification network gives to ours: its blocks in order, each with its tensors.

Nothing here knows where the weights came from or what they go into.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

EPS = 1e-5
"""Batch norm's epsilon in our networks; what a source was trained with is folded into `norm_weight` (exact in eval mode)."""


@dataclass(frozen=True)
class NormedConv:
    """One convolution without bias and the batch norm that follows it, fp32, for an epsilon of `EPS`."""

    weight: Tensor
    """(out, in / groups, k, k)."""
    norm_weight: Tensor
    """(out,), as are the next three."""
    norm_bias: Tensor
    running_mean: Tensor
    running_var: Tensor


@dataclass(frozen=True)
class SourceBlock:
    """One block of a trained trunk.

    | op | layers |
    |---|---|
    | `conv` | `conv` |
    | `inverted` | `expand` (absent at expansion 1), `depthwise`, `project` |
    | `residual` | `first`, `second`, `shortcut` (where the shape changes) |
    | `pool` | none: 3x3, stride 2, maximum |
    """

    op: str
    out: int
    """Output channels."""
    stride: int
    kernel: int
    expansion: int
    """Width of the depthwise convolution over the input's; 1 where not inverted."""
    relu6: bool
    """The activation is min(max(x, 0), 6); otherwise max(x, 0)."""
    layers: dict[str, NormedConv]


@dataclass(frozen=True)
class SourceTrunk:
    """A trained network without its classifier and without the 1x1 convolution before it."""

    family: str
    """`efficientnet-lite`, `mobilenetv2` or `resnet`."""
    blocks: tuple[SourceBlock, ...]
    """Stem first."""
    mean: tuple[float, float, float]
    """What was subtracted from RGB in 0..1 before the division by `std`."""
    std: tuple[float, float, float]
    symmetric_padding: bool
    """(k - 1) / 2 on all sides; False for TensorFlow's "same", which has less before than after at stride 2."""
    sha256: str
    """Of the file, or of the tensors where there is no file (`tensors_sha256`)."""
    licence: str
    origin: str

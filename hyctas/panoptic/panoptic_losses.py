"""Losses of the centre head and the offset head.

The factors are those of the released Panoptic-DeepLab configuration (LOSS.CENTER.WEIGHT, LOSS.OFFSET.WEIGHT), which HyCTAS
trains with beside a semantic loss of factor 1.
"""

from __future__ import annotations

from torch import Tensor

from export.errors import InvalidInput

CENTRE_FACTOR = 200.0
OFFSET_FACTOR = 0.01


def centre_loss(centre: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return 200 x the weighted mean of the squared error; 0 (with a gradient) where nothing counts.

    Args:
        centre: (N, 1, H, W) heat map of the network, any float; computed in fp32.
        target: (N, 1, H, W) float, 0..1.
        weight: (N, 1, H, W) float, 0 on pixels that do not count.

    Raises:
        InvalidInput: the shapes do not fit together.
    """
    _check("centre", centre, target, weight, channels=1)
    return CENTRE_FACTOR * _weighted_mean((centre.float() - target.float()).square(), weight)


def offset_loss(offset: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return 0.01 x the weighted mean of the absolute error, per coordinate; 0 (with a gradient) where nothing counts.

    Args:
        offset: (N, 2, H, W) offsets (dy, dx) of the network in pixels, any float; computed in fp32.
        target: (N, 2, H, W) float, in pixels of the same size of image.
        weight: (N, 1, H, W) float, 0 on pixels that do not count.

    Raises:
        InvalidInput: the shapes do not fit together.
    """
    _check("offset", offset, target, weight, channels=2)
    return OFFSET_FACTOR * _weighted_mean((offset.float() - target.float()).abs(), weight)


def _check(what: str, output: Tensor, target: Tensor, weight: Tensor, channels: int) -> None:
    """Raise unless (N, channels, H, W), the same, and (N, 1, H, W): broadcasting would accept other shapes silently."""
    shape = tuple(output.shape)
    fits = len(shape) == 4 and shape[1] == channels and tuple(target.shape) == shape
    if not fits or tuple(weight.shape) != (shape[0], 1, *shape[2:]):
        raise InvalidInput(
            f"{what} loss: output {shape}, target {tuple(target.shape)} and weight {tuple(weight.shape)} do not fit; "
            f"wanted (N, {channels}, H, W) twice and (N, 1, H, W)"
        )


def _weighted_mean(error: Tensor, weight: Tensor) -> Tensor:
    """Return the mean of (N, C, H, W) weighted by (N, 1, H, W), over pixels and channels."""
    total = weight.float().sum() * error.shape[1]
    return (error * weight.float()).sum() / total.clamp(min=1e-6)

"""Make what the centre head and the offset head learn from a map of instances (Panoptic-DeepLab, arXiv 1911.10194, section 3.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from export.errors import InvalidInput

SIGMA = 8.0
"""Standard deviation of a centre's Gaussian, in pixels (the paper, section 3.2)."""


@dataclass(frozen=True, eq=False)
class Targets:
    """The targets of one image; stacked over a batch they have the shapes of the heads' outputs."""

    centre: np.ndarray
    """float32 (1, H, W) in 0..1: the heat map of centres, 1 at each centre."""
    offset: np.ndarray
    """float32 (2, H, W): (dy, dx) in pixels from a pixel to its instance's centre; 0 where there is no instance."""
    centre_weight: np.ndarray
    """float32 (1, H, W): 1 where the heat map counts, 0 on ignored pixels."""
    offset_weight: np.ndarray
    """float32 (1, H, W): 1 on the pixels of instances, 0 elsewhere."""


def make_targets(instances: np.ndarray, ignored: np.ndarray | None = None, sigma: float = SIGMA) -> Targets:
    """Draw the heat map of centres and the offsets to them.

    The centre of an instance is its centre of mass. The heat map's peak lies on the pixel nearest to it (halves go to the
    larger coordinate); where Gaussians meet, the larger value stands, and beyond 3 sigma they end, as in the published code.
    Offsets lead to the centre of mass itself. Unlike the published code, ignored pixels belong to no instance: a crowd
    draws no peak, whose edge would reach over the pixels around it, which do count.

    Args:
        instances: integers (H, W): 0 = no instance, otherwise one number per instance, in any order and with gaps.
        ignored: bool (H, W), True on pixels that count for nothing (void, crowds); None = no such pixel.
        sigma: of the Gaussians, in pixels, above 0.

    Raises:
        InvalidInput: not such a map, shapes differ, a negative instance number, or sigma is not above 0.
    """
    if instances.ndim != 2 or not np.issubdtype(instances.dtype, np.integer):
        raise InvalidInput(f"instances must be integers of shape (H, W); got {instances.dtype} of shape {instances.shape}")
    if instances.size and instances.min() < 0:
        raise InvalidInput(f"instances holds {instances.min()}; wanted 0 (no instance) or a number above it")
    if ignored is not None and (ignored.shape != instances.shape or ignored.dtype != bool):
        raise InvalidInput(f"ignored must be bool of shape {instances.shape}; got {ignored.dtype} of shape {ignored.shape}")
    if not (math.isfinite(sigma) and sigma > 0):
        raise InvalidInput(f"sigma is {sigma}; wanted a number of pixels above 0")
    counted = np.ones(instances.shape, bool) if ignored is None else ~ignored
    rows, columns = np.nonzero((instances > 0) & counted)
    _, member = np.unique(instances[rows, columns], return_inverse=True)  # member: 0..K-1 per pixel
    area = np.bincount(member)
    centre_y, centre_x = (np.bincount(member, at) / area for at in (rows, columns))
    offset = np.zeros((2, *instances.shape), np.float32)
    offset[0, rows, columns] = centre_y[member] - rows
    offset[1, rows, columns] = centre_x[member] - columns
    offset_weight = np.zeros((1, *instances.shape), np.float32)
    offset_weight[0, rows, columns] = 1
    return Targets(
        centre=_heat_map(np.floor(np.stack([centre_y, centre_x], 1) + 0.5).astype(np.int64), instances.shape, sigma)[None],
        offset=offset,
        centre_weight=counted[None].astype(np.float32),
        offset_weight=offset_weight,
    )


def _heat_map(peaks: np.ndarray, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    """Return float32 (H, W), the maximum of Gaussians at `peaks`, int64 (K, 2) as (y, x); work is by their windows only."""
    reach = math.ceil(3 * sigma) + 1
    curve = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    gaussian = np.outer(curve, curve).astype(np.float32)
    heat = np.zeros(shape, np.float32)
    for y, x in peaks.tolist():
        top, left = max(0, y - reach), max(0, x - reach)
        window = heat[top : y + reach + 1, left : x + reach + 1]
        part = gaussian[top - y + reach :, left - x + reach :][: window.shape[0], : window.shape[1]]
        np.maximum(window, part, out=window)
    return heat

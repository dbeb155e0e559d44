"""Resample a teacher's coarse class probabilities: to a view of the frame, or to another teacher's grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hyctas.data import View

FINEST = 4
"""Maps finer than this many pixels per cell are averaged down to it: an image of 1024x2048 takes 5 MB instead of 80."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Where the cells of a coarse map lie on a frame. Cell i of an axis is centred at (i + 0.5) * cell pixels."""

    size: tuple[int, int]
    """Rows and columns of cells."""
    cell: tuple[float, float]
    """Height and width of a cell in the frame's pixels: the teacher's output stride where it saw the frame at its own size."""


@dataclass(frozen=True, kw_only=True)
class SoftMap:
    """What a teacher thinks of one frame."""

    probabilities: np.ndarray
    """(C, h, w) float32, in 0..1, summing to 1 over the classes."""
    grid: Grid
    """Where its (h, w) cells lie."""


@dataclass(frozen=True)
class _Axis:
    """Places along one axis that a map is read at."""

    centres: np.ndarray
    """In the frame's pixels, (n) float."""
    step: float
    """Pixels of the frame from one to the next."""
    inside: np.ndarray
    """Which of them show the frame, (n) bool."""


def coarsened(soft: SoftMap) -> SoftMap:
    """Average cells together until they are at least `FINEST` pixels high and wide."""
    factors = [max(1, round(FINEST / cell)) for cell in soft.grid.cell]
    if factors == [1, 1]:
        return soft
    p, (down, across) = soft.probabilities, factors
    p = np.pad(p, ((0, 0), (0, -p.shape[1] % down), (0, -p.shape[2] % across)), mode="edge")
    p = p.reshape(p.shape[0], p.shape[1] // down, down, p.shape[2] // across, across).mean((2, 4))  # (C, h/down, w/across)
    cell = (soft.grid.cell[0] * down, soft.grid.cell[1] * across)
    return SoftMap(probabilities=p, grid=Grid(size=(p.shape[1], p.shape[2]), cell=cell))


def average(maps: Sequence[SoftMap]) -> SoftMap:
    """Average the probabilities of an ensemble, on the finest of their grids."""
    finest = min(maps, key=lambda soft: soft.grid.cell[0] * soft.grid.cell[1]).grid
    total = np.zeros((maps[0].probabilities.shape[0], *finest.size), np.float32)
    for soft in maps:
        if soft.grid == finest:
            total += soft.probabilities
        else:
            rows, columns = (_whole(n, cell) for n, cell in zip(finest.size, finest.cell, strict=True))
            total += _read(soft.probabilities.__getitem__, soft.grid, rows, columns)
    return SoftMap(probabilities=total / len(maps), grid=finest)


def cut(read: Callable[[tuple[slice, slice, slice]], np.ndarray], grid: Grid, view: View, size: tuple[int, int]) -> np.ndarray:
    """Cut a view out of a map, bilinearly (with a wider filter where the view shrinks it).

    Args:
        read: gives the part (C, rows, columns) of the map's probabilities.
        grid: where the map's cells lie on the frame.
        view: which part of the frame.
        size: rows and columns to divide the crop into.

    Returns:
        float32 (C, *size): probabilities; all 0 where the centre of a cell shows padding.
    """
    rows = _seen(view.rows, view.into_rows, view.crop[0], size[0], False)
    columns = _seen(view.columns, view.into_columns, view.crop[1], size[1], view.mirror)
    return _read(read, grid, rows, columns)


def _whole(count: int, cell: float) -> _Axis:
    return _Axis((np.arange(count) + 0.5) * cell, cell, np.ones(count, bool))


def _seen(interval: tuple[float, float], into: slice, crop: int, count: int, mirror: bool) -> _Axis:
    """Return where the centres of `count` equal parts of a crop lie on the frame."""
    centres = (np.arange(count) + 0.5) * (crop / count)
    if mirror:
        centres = crop - centres
    zoom = (interval[1] - interval[0]) / (into.stop - into.start)
    inside = (centres >= into.start) & (centres < into.stop)
    return _Axis(interval[0] + (centres - into.start) * zoom, crop / count * zoom, inside)


def _read(
    read: Callable[[tuple[slice, slice, slice]], np.ndarray], grid: Grid, rows: _Axis, columns: _Axis
) -> np.ndarray:
    """Read a map at places of the frame; 0 at those that are not inside."""
    down, y = _weights(rows, grid.cell[0], grid.size[0])
    across, x = _weights(columns, grid.cell[1], grid.size[1])
    part = read((slice(None), y, x)).astype(np.float32)
    values: np.ndarray = down @ part @ across.T  # (C, rows, columns)
    return values


def _weights(axis: _Axis, cell: float, length: int) -> tuple[np.ndarray, slice]:
    """Return the triangle filter of an axis over the cells that it needs, (places, cells), and which those are."""
    distance = np.abs(axis.centres[:, None] / cell - (np.arange(length) + 0.5))
    weights = np.maximum(0, 1 - distance / max(1.0, axis.step / cell)) * axis.inside[:, None]
    weights /= np.maximum(weights.sum(1, keepdims=True), 1e-12)
    used = np.flatnonzero(weights.any(0))
    needed = slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 1)
    return weights[:, needed].astype(np.float32), needed

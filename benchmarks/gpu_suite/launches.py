"""Describe one launch of our kernels as data, so that it can be compiled in another process, checked and timed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hyctas.attention.tiles import COMBINE, DELTA, SHIPPED, Tile, block, shipped

STEPS = ("forward", "backward", "fixed", "block", "block_given_k")
"""What can be launched: the forward pass, gradients by atomic additions or in a fixed order, the whole block (k made inside or
given)."""
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Shapes, dtypes and tiles of one launch."""

    step: str
    dtype: str
    """Of v (of x in a block)."""
    qk_dtype: str = ""
    """Of q and k; empty: v's."""
    batch: int = 1
    heads: int = 1
    d: int
    """Channels of q and k, per head."""
    e: int
    """Channels of v (of x), per head."""
    queries: int
    keys: int
    scale: float = 1.0
    tiles: Mapping[str, Tile]
    """By kernel."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**vars(self), "tiles": {name: tile.to_json() for name, tile in self.tiles.items()}}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Launch:
        """Read what `to_json` wrote."""
        return cls(**{**value, "tiles": {name: Tile.from_json(tile) for name, tile in value["tiles"].items()}})

    @property
    def shape(self) -> str:
        """The shapes, for a person."""
        heads = f"B={self.batch} h={self.heads} " if self.batch * self.heads > 1 else ""
        return f"{heads}d={self.d} e={self.e} N={self.queries} M={self.keys}"

    def kernels(self, processors: int) -> tuple[str, ...]:
        """Name the kernels that are launched (without `_kernel`)."""
        if self.step.startswith("block"):
            return ("block",)
        if self.step == "forward":
            return ("forward", "combine") if self.splits(processors) > 1 else ("forward",)
        return ("delta", "grad_v", "grad_qk", *(["grad_q"] if self.step == "fixed" else []))

    def tile(self, kernel: str) -> Tile:
        """Return a kernel's tile; those of kernels without a choice are the launcher's."""
        return {"combine": COMBINE, "delta": DELTA, **self.tiles}[kernel]

    def splits(self, processors: int) -> int:
        """Return into how many parts the forward pass divides the keys on a GPU of so many multiprocessors."""
        from hyctas.attention.launch import split

        tile = self.tiles["forward"]
        channels = min(tile.channels, block(self.e))
        programs = math.ceil(self.queries / tile.rows) * math.ceil(self.e / channels) * self.batch * self.heads
        return split(self.keys, tile, programs, processors)[0]

    def inputs(self, device: torch.device, generator: torch.Generator | None = None, spread: float = 1.0) -> dict[str, Tensor]:
        """Draw what the launch takes, from a normal distribution; on `meta`, shapes alone.

        Args:
            device: where.
            generator: of that device; not for `meta`.
            spread: standard deviation of the logits.
        """
        dtype, qk_dtype = getattr(torch, self.dtype), getattr(torch, self.qk_dtype or self.dtype)
        amount = math.sqrt(spread / (math.sqrt(self.d) * self.scale))

        def draw(*shape: int, of: torch.dtype = dtype, times: float = 1.0) -> Tensor:
            return (torch.randn(*shape, device=device, generator=generator) * times).to(of)

        groups = (self.batch, self.heads)
        if not self.step.startswith("block"):
            return {
                "q": draw(*groups, self.d, self.queries, of=qk_dtype, times=amount),
                "k": draw(*groups, self.d, self.keys, of=qk_dtype, times=amount),
                "v": draw(*groups, self.e, self.keys),
                "grad_o": draw(*groups, self.e, self.queries),
            }
        width, height = _sides(self.queries)
        return {
            "x": draw(self.batch, self.e, height, width),
            "wq": draw(self.d, self.e, times=amount / math.sqrt(self.e)), "bq": draw(self.d, of=torch.float32, times=0.1),
            "wk": draw(self.d, self.e, times=amount / math.sqrt(self.e)),
            "wv": draw(self.e, self.e, times=1 / math.sqrt(self.e)), "bv": draw(self.e, of=torch.float32, times=0.1),
            "norm_scale": 1 + draw(self.e, of=torch.float32, times=0.1), "norm_shift": draw(self.e, of=torch.float32, times=0.1),
        }  # fmt: skip

    def run(self, t: Tensors) -> tuple[Tensor, ...]:
        """Launch; gradients need `o` and `lse` among the tensors.

        Returns:
            o and lse; the gradients of q, k and v; or y.
        """
        from hyctas.attention.launch import run_backward, run_block, run_forward

        if self.step == "forward":
            return run_forward(t["q"], t["k"], t["v"], self.scale, self.tiles["forward"])
        if self.step.startswith("block"):
            return (run_block(**t, scale=self.scale, tile=self.tiles["block"], project_k=self.step == "block"),)
        q, k, v = t["q"], t["k"], t["v"]
        return run_backward(t["grad_o"], q, k, v, t["o"], t["lse"], self.scale, dict(self.tiles), self.step == "fixed")


def shipped_tiles(arch: int, step: str, e: int, dtype: str, *sizes: int) -> dict[str, Tile] | None:
    """Return the shipped tiles of a step for numbers of queries and keys, or None where one of its kernels has none."""
    assert arch in SHIPPED
    aligned = all(size % 16 == 0 for size in sizes)
    kernels = {"forward": ("forward",), "backward": ("grad_v", "grad_qk"), "fixed": ("grad_v", "grad_qk", "grad_q")}
    size = getattr(torch, dtype).itemsize
    found = {kernel: shipped(arch, kernel, e, size, aligned) for kernel in kernels.get(step, ("block",))}
    tiles = {kernel: tile for kernel, tile in found.items() if tile is not None}
    return tiles if len(tiles) == len(found) else None


def _sides(positions: int) -> tuple[int, int]:
    """Return the most nearly square rectangle of so many positions, width first."""
    height = next(h for h in range(math.isqrt(positions), 0, -1) if positions % h == 0)
    return positions // height, height

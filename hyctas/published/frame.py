"""Give what all networks of the released code have in common: channel numbers, stem, fusion, heads, arithmetic. No torch here.

Source: the released code (github.com/MarvinYu1995/HyCTAS, commit f915c8d): `hrtnet.py`, `hrtlab.py`, `operations.py`.
A base width F (the code's `Fch`: 16 in its configuration for Cityscapes) sets every channel number.
"""

from __future__ import annotations

from export.errors import InvalidInput
from hyctas.arch.genotype import Arithmetic, Attention, Cell, Fusion, Genotype, Head
from hyctas.arch.heads import middle_channels

SCALES = (8, 16, 32)
"""Strides of the grid's rows; the released files call them 0, 1, 2."""
WIDTHS = (4 / 12, 6 / 12, 8 / 12, 10 / 12, 1.0)
"""Width multipliers."""
OPERATORS = ("skip", "conv", "downup", "downup2x", "attention")
"""Operator of each number in the released files."""
ARITHMETIC = Arithmetic(
    linear_stem=True, linear_fusion=True, linear_projection=True, fusion_norms=True, wide_attention=True, late_pooling=True
)
"""The released code's arithmetic."""
HEADS = {"light": "light", "0": "light", "1": "head1", "2": "head2"}
"""Kinds of heads, as users give them: the code's `model_type` or its name."""
LOW_CHANNELS = {"light": (0, 0), "head1": (48, 0), "head2": (32, 64)}
"""Channels that the stride-4 and the stride-8 features are projected to, by kind of head."""
INSTANCE_LOW_CHANNELS = {"light": (0, 0), "head1": (48, 0), "head2": (16, 32)}
SMALLEST_BASE = 3
"""Narrower networks would have an attention without q and k channels."""


def channels(scale: int, base: int, width: float = 1.0) -> int:
    """Return the channels at a stride for a width multiplier: round(scale x base x width)."""
    return round(scale * base * width)


def attention(width: int, *, half_resolution: bool = False) -> Attention:
    """Return the released self-attention at a width: one head, q and k an eighth, unscaled logits, all positions as keys."""
    return Attention(heads=1, qk_channels=width // 8, scale=None, pool=1, half_resolution=half_resolution, residual="gamma")


def cell(op: str, out: int, stride: int) -> Cell:
    """Return a trunk cell."""
    return Cell(op, out, stride, attention(out) if op == "attention" else None)


def head_kind(head: int | str) -> str:
    """Return the kind of head for 0, 1, 2 or "light".

    Raises:
        InvalidInput: none of them.
    """
    kind = HEADS.get(str(head).lower())
    if kind is None:
        raise InvalidInput(f'head {head!r} is unknown; published heads are 1 (the default), 2, and 0 or "light"')
    return kind


def check_base(base: int) -> None:
    """Raise InvalidInput unless the base width makes sense."""
    if isinstance(base, bool) or not isinstance(base, int) or base < SMALLEST_BASE:
        raise InvalidInput(f"base_channels is {base!r}; it must be a whole number of at least {SMALLEST_BASE} (published: 16)")


def complete(branches: tuple[tuple[Cell, ...], ...], base: int, head: int | str, *, panoptic: bool = False) -> Genotype:
    """Return the genotype of some branches: with the released stem, fusion, head and arithmetic.

    Raises:
        InvalidInput: an unknown head, or branches that make no network.
    """
    check_base(base)
    kind = head_kind(head)
    c8 = channels(8, base)
    joined = c8 * len(branches)
    instance = _head(kind, joined, INSTANCE_LOW_CHANNELS[kind]) if panoptic else None
    return Genotype(
        stem=(Cell("conv", 4 * base, 2), Cell("conv", c8, 2), Cell("conv", c8, 1), Cell("conv", c8, 2), Cell("conv", c8, 1)),
        branches=branches,
        fusion=Fusion(refine16=channels(16, base), refine8=c8, out=joined),
        head=_head(kind, joined, LOW_CHANNELS[kind]),
        arithmetic=ARITHMETIC,
        instance_head=instance,
    )


def _head(kind: str, joined: int, low: tuple[int, int]) -> Head:
    return Head(
        kind, middle_channels(joined), block="downup2x", low4=low[0], low8=low[1],
        attention=attention(joined, half_resolution=True),
    )  # fmt: skip

"""The search spaces, one table each.

`hyctas.spaces.grid` says what a table means; `hyctas.spaces.members` lists hand-made networks of `edge`. A user's own space is a
short file: see `docs/own_space.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hyctas.published.released_space import PublishedSpace
from hyctas.spaces.grid import Space
from hyctas.spaces.search_space import SearchSpace
from hyctas.spaces.stages import AttentionVariant, Stage

__all__ = ["SPACES", "AttentionVariant", "Space", "Stage", "edge", "published", "tiny"]

FIRST = ("conv", "residual", "downup", "inverted")
CELLS = ("skip", "conv", "residual", "downup", "downup2x", "inverted")


def edge() -> Space:
    """The space to search by default: from under 0.3 to about 10 GMAC at 360x480.

    Its widths are those of EfficientNet-Lite0 (full, three quarters, half), of ResNet-18 (full, half), and some between.
    """
    trunk: dict[str, Any] = {"first": FIRST, "operators": CELLS, "kernels": (3, 5), "expansions": (3, 6), "attention": True}
    again: dict[str, Any] = trunk | {"first": ("skip", "inverted")}
    return Space(
        name="edge",
        stages=(
            Stage("2", (16, 24, 32, 64)),
            Stage("4", (16, 24, 32, 48, 64), 3, ("conv", "inverted"), ("skip", "conv", "residual", "inverted"), (3,), (3, 6)),
            Stage("8", (24, 32, 40, 64, 128), 4, **trunk),
            Stage("16a", (40, 64, 80, 128, 256), 4, **trunk),
            Stage("16b", (56, 80, 112, 128), 4, **again),
            Stage("32a", (96, 128, 192, 256, 512), 4, **trunk),
            Stage("32b", (160, 240, 320), 2, **again | {"operators": ("skip", "conv", "inverted")}),
        ),
        attention=(
            AttentionVariant(heads=2, qk_divisor=1),
            AttentionVariant(heads=2, qk_divisor=1, pool=2),
            AttentionVariant(heads=1, half_resolution=True),
        ),
    )


def tiny() -> Space:
    """The same shape, small enough for tests and the demo; it holds the hand-made network `plain`."""
    cells = ("skip", "conv", "residual", "downup", "inverted")
    trunk: dict[str, Any] = {"first": FIRST, "operators": cells, "attention": True}
    return Space(
        name="tiny",
        stages=(
            Stage("2", (8, 16)),
            Stage("4", (16, 32), 2, ("conv", "inverted"), ("skip", "conv", "inverted")),
            Stage("8", (24, 64), 3, **trunk),
            Stage("16a", (32, 128), 3, **trunk),
            Stage("16b", (32, 64), 2, **trunk | {"first": ("skip", "inverted")}),
            Stage("32a", (48, 128), 3, **trunk),
            Stage("32b", (48, 80), 1, **trunk | {"first": ("skip", "inverted")}),
        ),
        stems=("conv", "separable"),
        attention=(AttentionVariant(heads=2, qk_divisor=1), AttentionVariant(heads=1, half_resolution=True)),
        branch_sets=((16,), (32,), (8, 32), (16, 32), (8, 16, 32)),
        heads=("light", "plain", "head1"),
    )


def published(base_channels: int = 16, head: int | str = 1, layers: int = 20) -> PublishedSpace:
    """The space of the released HyCTAS code (see `hyctas.published.released_space`)."""
    return PublishedSpace(base_channels=base_channels, head=head, layers=layers)


SPACES: dict[str, Callable[[], SearchSpace]] = {"edge": edge, "tiny": tiny, "published": published}


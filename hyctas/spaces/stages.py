"""The parts of a grid space's table: its stages, and the kinds of self-attention."""

from __future__ import annotations

from dataclasses import dataclass

from hyctas.arch.genotype import LINEAR, STAGES, Arithmetic, Attention, Cell
from hyctas.arch.operators import CELLS

ALIGNED = Arithmetic(aligned=True)
STEMS = ("conv", "separable", "resnet")
"""First layers: a 3x3 at stride 2; the same and a depthwise separable convolution to half the width, as in MobileNetV2 and
EfficientNet; a 7x7 at stride 2 and a max-pooling, as in ResNet."""
REPLACED = {"residual": "inverted", "downup2x": "downup"}
"""What cells become in a stage that an inverted residual begins. Its features have negative values, so that cells end without ReLU
there; each such version is more rows of the latency table, and these two would cost as much as what replaces them."""


def cells_of_stages() -> tuple[str, ...]:
    """Name what the cells of a stage can be; max-pooling is part of a stem, attention and context stand at a stage's end."""
    return tuple(op for op in CELLS if op not in ("pool", "attention", "context"))


@dataclass(frozen=True)
class AttentionVariant:
    """A kind of self-attention, for any width."""

    heads: int = 1
    qk_divisor: int = 8
    """Channels of q and k: width / qk_divisor, at least 8 per head; 1: as many as of v, what TensorRT has a kernel for."""
    pool: int = 1
    half_resolution: bool = False

    def at(self, channels: int) -> Attention:
        """Return the choice at a width; logits are scaled by 1 / sqrt(channels per head)."""
        qk = max(8 * self.heads, channels // self.qk_divisor // self.heads * self.heads)
        scale = round(float((qk / self.heads) ** -0.5), 6)
        return Attention(self.heads, qk, scale, self.pool, self.half_resolution, linear=True)


@dataclass(frozen=True)
class Stage:
    """The cells at one stage of a trunk."""

    name: str
    """One of `hyctas.arch.genotype.STAGES`."""
    widths: tuple[int, ...]
    """Ascending multiples of 8, at most five."""
    depth: int = 1
    """Most cells, the first included."""
    first: tuple[str, ...] = ("conv",)
    """Choices for the first cell; where the stage does not halve the resolution, a leading "skip" leaves the stage out."""
    operators: tuple[str, ...] = ("skip",)
    """Choices for the others, "skip" (no cell) first."""
    kernels: tuple[int, ...] = (3,)
    """Of the depthwise convolutions in inverted residuals."""
    expansions: tuple[int, ...] = (6,)
    """Of the inverted residuals."""
    attention: bool = False
    """Whether attention can stand at its end."""

    @property
    def index(self) -> int:
        return STAGES.index(self.name)

    @property
    def reduction(self) -> int:
        """Stride relative to the image."""
        return int(self.name.rstrip("ab"))

    @property
    def stride(self) -> int:
        """Stride of its first cell."""
        return 1 if self.name.endswith("b") else 2

    def cell(self, op: str, width: int, stride: int, kernel: int, expansion: int, first: str = "") -> Cell:
        """Return a cell of the stage; where the stage's `first` is given and has signed outputs, one that has them as well."""
        op = REPLACED.get(op, op) if first == "inverted" else op
        inverted = op == "inverted"
        return Cell(
            op, width, stride, stage=self.name, kernel=kernel if inverted else 3, expansion=expansion if inverted else 1,
            relu6=inverted, linear=first == "inverted" and op in LINEAR,
        )  # fmt: skip


def separable_width(width: int) -> int:
    """Return the width after a stem's separable convolution: half of the stem's, rounded to a multiple of 8, at least 8."""
    return max(8, (width // 2 + 4) // 8 * 8)

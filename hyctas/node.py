"""Define one operator of a plan: its name, its slot, where its inputs come from. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from hyctas.genotype import Arithmetic, Attention, Cell
from hyctas.operators import (
    Context,
    Conv,
    DownUp,
    InvertedResidual,
    MaxPool,
    Operator,
    Residual,
    SelfAttention,
    Shape,
    Skip,
)

IMAGE = "image"


@dataclass(frozen=True)
class Node:
    """One operator of a network, with where its inputs come from."""

    name: str
    slot: str
    """Where a supernet keeps the weights."""
    operator: Operator
    inputs: tuple[str, ...]
    """Names of earlier nodes, or "image"."""
    input_shapes: tuple[Shape, ...]
    shape: Shape
    stride: int
    """Stride of the output, relative to the padded image."""
    branches: tuple[int, ...]
    """Final strides of the branches that need it; empty for stem, fusion and heads."""
    blocks: tuple[int, ...]
    """Which input block of the slot's convolutions each source uses."""

    @property
    def part(self) -> str:
        """One of stem, trunk, arm, refine, lateral, fusion, head, instance, auxiliary, auxinstance."""
        return self.name.partition(".")[0]

    @property
    def key(self) -> str:
        """Row of the latency table."""
        return self.operator.key(self.input_shapes)

    @property
    def macs(self) -> int:
        return self.operator.macs(self.input_shapes)

    @property
    def bytes_moved(self) -> int:
        return self.operator.bytes_moved(self.input_shapes)


def slot_name(part: str, stride: int | str, ordinal: int, operator: Operator) -> str:
    """Name where a supernet keeps the weights of an operator; a cell with a stage is of part "stage", its stride the stage."""
    return f"{part}.s{stride}.{ordinal}.{operator.label}.{operator.stride}"


def attention_operator(
    sources: tuple[int, ...], out: int, stride: int, choice: Attention, arithmetic: Arithmetic
) -> SelfAttention:
    """Build the operator of an attention choice."""
    return SelfAttention(
        sources, out, choice.heads, choice.qk_channels, choice.scale, choice.pool, choice.half_resolution,
        choice.residual, stride, wide_projections=arithmetic.wide_attention and choice.half_resolution,
        pool_last=arithmetic.late_pooling and stride == 2 and not choice.half_resolution, linear=choice.linear,
    )  # fmt: skip


def cell_operator(cell: Cell, sources: tuple[int, ...], arithmetic: Arithmetic, *, relu: bool = True) -> Operator:
    """Build the operator of a cell of the stem or of a branch; `relu` says whether a plain convolution ends with one."""
    aligned = arithmetic.aligned and cell.stride == 2
    match cell.op:
        case "conv":
            return Conv(sources, cell.out, cell.kernel, cell.stride, relu, cell.relu6, aligned)
        case "residual":
            return Residual(sources, cell.out, cell.stride, aligned)
        case "inverted":
            return InvertedResidual(sources, cell.out, cell.stride, aligned, cell.kernel, cell.expansion, cell.relu6)
        case "pool":
            return MaxPool(sources, cell.out, cell.stride, aligned)
        case "context":
            return Context(sources, cell.out)
        case "skip":
            return Skip(sources, cell.out)
        case "attention":
            assert cell.attention is not None
            return attention_operator(sources, cell.out, cell.stride, cell.attention, arithmetic)
    return block_operator(cell.op, sources, cell.out, cell.stride)


def block_operator(op: str, sources: tuple[int, ...], out: int, stride: int = 1) -> Operator:
    """Build a head's block, or a light-weight convolution, by its name: conv, downup or downup2x."""
    if op == "conv":
        return Conv(sources, out, 3, stride)
    return DownUp(sources, out, {"downup": 1, "downup2x": 2}[op], stride)

"""Define one operator of a plan: its name, its slot, where its inputs come from."""

from __future__ import annotations

from dataclasses import dataclass, fields

from hyctas.arch.genotype import Arithmetic, Attention, Cell
from hyctas.arch.operators import CELLS, Conv, DownUp, Operator, SelfAttention, Shape

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
    """Name where a supernet keeps the weights of an operator; a cell with a stage is of part "stage", its stride the stage.

    ResNet's first layer has a slot of its own: the centre of a 7x7 is not what a 3x3 would learn.
    """
    large = f".{operator.kernel}" if isinstance(operator, Conv) and operator.kernel > 3 else ""
    return f"{part}.s{stride}.{ordinal}.{operator.label}.{operator.stride}{large}"


def stage_of(slot: str) -> str:
    """Return the stage of a slot that cells of a stage have; empty for any other."""
    part, place, *_ = slot.split(".")
    return place.removeprefix("s") if part == "stage" else ""


def attention_operator(sources: tuple[int, ...], out: int, stride: int, choice: Attention, arithmetic: Arithmetic) -> SelfAttention:
    """Build the operator of an attention choice."""
    return SelfAttention(
        sources, out, choice.heads, choice.qk_channels, choice.scale, choice.pool, choice.half_resolution,
        choice.residual, stride, wide_projections=arithmetic.wide_attention and choice.half_resolution,
        pool_last=arithmetic.late_pooling and stride == 2 and not choice.half_resolution, linear=choice.linear,
    )  # fmt: skip


def cell_operator(cell: Cell, sources: tuple[int, ...], arithmetic: Arithmetic, *, relu: bool = True) -> Operator:
    """Build the operator of a cell of the stem or of a branch, whose fields are the cell's of the same names.

    `relu` says whether a plain convolution ends with one.
    """
    if cell.attention is not None:
        return attention_operator(sources, cell.out, cell.stride, cell.attention, arithmetic)
    kind, fixed = CELLS[cell.op]
    given = {
        "cell_stride": cell.stride, "kernel": cell.kernel, "expansion": cell.expansion, "relu6": cell.relu6,
        "relu": relu and not cell.linear, "linear": cell.linear,
        "aligned": arithmetic.aligned and cell.stride == 2,
    }  # fmt: skip
    names = {field.name for field in fields(kind)}
    return kind(sources, cell.out, **{name: value for name, value in given.items() if name in names}, **fixed)


def block_operator(op: str, sources: tuple[int, ...], out: int) -> Operator:
    """Build a head's block, or a light-weight convolution, by its name: conv, downup or downup2x."""
    if op == "conv":
        return Conv(sources, out)
    return DownUp(sources, out, {"downup": 1, "downup2x": 2}[op])

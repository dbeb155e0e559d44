"""Lower a genotype to the ordered list of named operators that everything else reads.

One plan, many readers: network, cost, latency units, supernet slices, diagram, keys to profile. Nobody else walks branches.

    image -> stem (1/2, 1/4, 1/8) -> trunk cells of every branch (shared prefixes once)
          -> per branch, back to 1/8: arm (1x1 at the low resolution), refine (3x3 over [own last features there, arm])
          -> fusion (all branches) -> head -> predict

A node is named `<part>.s<stride of its input>.<ordinal>.<operator>[.b<final strides of the branches that share it>]`. Its slot,
(part, stride, ordinal of the cell within its stride, operator, cell stride), is where a supernet keeps its weights: it does
not depend on branches or widths. No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from export.errors import InvalidInput
from hyctas.genotype import TRUNK_STRIDE, Attention, Cell, Genotype, normal_form, shared_length
from hyctas.operators import (
    BYTES_PER_ELEMENT,
    Conv,
    DownUp,
    FeatureFusion,
    Operator,
    Predict,
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
    """Final strides of the branches that need it; empty for stem, fusion and head."""
    blocks: tuple[int, ...]
    """Which input block of the slot's convolutions each source uses."""

    @property
    def part(self) -> str:
        """One of stem, trunk, arm, refine, fusion, head."""
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


@dataclass(frozen=True)
class Plan:
    """A genotype at one input size."""

    genotype: Genotype
    """In normal form."""
    size: tuple[int, int]
    """Height and width of the image."""
    padded: tuple[int, int]
    """The image padded (zeros, bottom and right) to a multiple of the largest stride."""
    nodes: tuple[Node, ...]
    """In an order in which inputs come first; the last one gives the logits."""

    @property
    def output_stride(self) -> int:
        return self.nodes[-1].stride

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image."""
        return sum(node.macs for node in self.nodes)

    @property
    def parameters(self) -> int:
        return sum(node.operator.parameters for node in self.nodes)

    @property
    def peak_bytes(self) -> int:
        """Largest sum, over the nodes, of the fp32 activations alive while a node runs (its inputs and output included)."""
        last_use = {name: index for index, node in enumerate(self.nodes) for name in node.inputs}
        alive = {IMAGE: 3 * self.padded[0] * self.padded[1]}
        peak = 0
        for index, node in enumerate(self.nodes):
            channels, height, width = node.shape
            alive[node.name] = channels * height * width
            peak = max(peak, sum(alive.values()))
            alive = {name: size for name, size in alive.items() if last_use.get(name, len(self.nodes)) > index}
        return BYTES_PER_ELEMENT * peak

    @property
    def weight_bytes(self) -> int:
        return BYTES_PER_ELEMENT * self.parameters


def attention_operator(sources: tuple[int, ...], out: int, stride: int, choice: Attention) -> SelfAttention:
    """Build the operator of an attention choice."""
    return SelfAttention(
        sources, out, choice.heads, choice.qk_channels, choice.scale, choice.pool, choice.half_resolution,
        choice.residual, stride,
    )  # fmt: skip


def cell_operator(cell: Cell, sources: tuple[int, ...]) -> Operator:
    """Build the operator of a trunk cell."""
    if cell.op == "attention":
        assert cell.attention is not None
        return attention_operator(sources, cell.out, cell.stride, cell.attention)
    if cell.op == "skip":
        return Skip(sources, cell.out)
    return block_operator(cell.op, sources, cell.out, cell.stride)


def block_operator(op: str, sources: tuple[int, ...], out: int, stride: int = 1) -> Operator:
    """Build a convolutional operator by its name: conv, downup or downup2x."""
    if op == "conv":
        return Conv(sources, out, 3, stride)
    return DownUp(sources, out, {"downup": 1, "downup2x": 2}[op], stride)


def slot_name(part: str, stride: int, ordinal: int, operator: Operator) -> str:
    """Name where a supernet keeps the weights of an operator."""
    return f"{part}.s{stride}.{ordinal}.{operator.label}.{operator.stride}"


def lower(genotype: Genotype, size: tuple[int, int], num_classes: int) -> Plan:
    """Lower a genotype at an image size (height, width).

    Raises:
        InvalidInput: the size or the number of classes is not positive, or an operator cannot be built.
    """
    if min(size) < 1 or num_classes < 1:
        raise InvalidInput(f"size {size} and number of classes {num_classes} must be positive")
    genotype = normal_form(genotype)
    multiple = max(genotype.final_strides)
    padded = (-(-size[0] // multiple) * multiple, -(-size[1] // multiple) * multiple)
    try:
        nodes = _Lowering(genotype, padded, num_classes).run()
    except ValueError as error:
        raise InvalidInput(f"genotype {genotype.id} cannot be built: {error}") from None
    return Plan(genotype, size, padded, nodes)


class _Lowering:
    """Build the nodes of one genotype in order."""

    def __init__(self, genotype: Genotype, padded: tuple[int, int], num_classes: int) -> None:
        self.genotype, self.num_classes = genotype, num_classes
        self.nodes: dict[str, Node] = {}
        self.shapes: dict[str, Shape] = {IMAGE: (3, *padded)}
        self.strides: dict[str, int] = {IMAGE: 1}

    def add(
        self, part: str, ordinal: int, operator: Operator, inputs: Sequence[str],
        branches: tuple[int, ...] = (), blocks: Sequence[int] | None = None,
    ) -> str:  # fmt: skip
        """Append a node and return its name."""
        shapes = tuple(self.shapes[name] for name in inputs)
        stride = min(self.strides[name] for name in inputs)
        suffix = f".b{'-'.join(map(str, branches))}" if branches else ""
        name = f"{part}.s{stride}.{ordinal}.{operator.label}{suffix}"
        shape = operator.output_shape(shapes)
        self.nodes[name] = Node(
            name=name, slot=slot_name(part, stride, ordinal, operator), operator=operator, inputs=tuple(inputs),
            input_shapes=shapes, shape=shape, stride=stride * operator.stride, branches=branches,
            blocks=tuple(blocks) if blocks is not None else tuple(range(len(inputs))),
        )  # fmt: skip
        self.shapes[name], self.strides[name] = shape, stride * operator.stride
        return name

    def channels(self, *names: str) -> tuple[int, ...]:
        return tuple(self.shapes[name][0] for name in names)

    def run(self) -> tuple[Node, ...]:
        low = self.stem()
        ends = self.trunk(low[8])
        joined = self.fuse(ends)
        self.head(joined, low)
        return tuple(self.nodes.values())

    def stem(self) -> dict[int, str]:
        """Add the stem; return the name of the last node at each stride."""
        name, last, ordinals = IMAGE, {}, dict[int, int]()
        for index, conv in enumerate(self.genotype.stem):
            stride = self.strides[name]
            relu = not (index == 0 and self.genotype.arithmetic.linear_stem)
            operator = Conv(self.channels(name), conv.out, 3, conv.stride, relu)
            name = self.add("stem", ordinals.get(stride, 0), operator, [name])
            ordinals[stride] = ordinals.get(stride, 0) + 1
            last[self.strides[name]] = name
        return last

    def trunk(self, start: str) -> dict[int, dict[int, str]]:
        """Add all cells, shared prefixes once; return per branch the last feature at each stride."""
        branches = self.genotype.branches
        names: list[list[str]] = []
        ends: dict[int, dict[int, str]] = {}
        for index, branch in enumerate(branches):
            owner = dict[int, int]()  # position of a cell -> earlier branch that already has it
            for earlier in range(index):
                for position in range(shared_length(branches[earlier], branch)):
                    owner.setdefault(position, earlier)
            name, row, last, ordinals = start, list[str](), {TRUNK_STRIDE: start}, dict[int, int]()
            for position, cell in enumerate(branch):
                stride = self.strides[name]
                ordinal = ordinals.get(stride, 0)
                ordinals[stride] = ordinal + 1
                if position in owner:
                    name = names[owner[position]][position]
                else:
                    sharing = tuple(
                        self.genotype.final_strides[other] for other in range(len(branches))
                        if other == index or (other > index and shared_length(branches[other], branch) > position)
                    )  # fmt: skip
                    name = self.add("trunk", ordinal, cell_operator(cell, self.channels(name)), [name], sharing)
                row.append(name)
                last[self.strides[name]] = name
            names.append(row)
            ends[self.strides[name]] = last
        return ends

    def fuse(self, ends: dict[int, dict[int, str]]) -> str:
        """Bring every branch back to stride 8 and join them."""
        relu = not self.genotype.arithmetic.linear_fusion
        widths = {16: self.genotype.fusion.refine16, 8: self.genotype.fusion.refine8}
        tails = []
        for final, last in ends.items():
            name = last[final]
            for stride in (16, 8):
                if stride >= final:
                    continue
                # arms and refines of one final stride are the same slots whatever other branches exist
                ordinal = {16: 0, 32: 1}[final]
                arm = self.add(
                    "arm", ordinal, Conv(self.channels(name), widths[stride], 1, 1, relu), [name], (final,)
                )
                own = last[stride]
                operator = Conv(self.channels(own, arm), widths[stride], 3, 1, relu)
                name = self.add("refine", ordinal, operator, [own, arm], (final,))
            tails.append(name)
        blocks = [(8, 16, 32).index(final) for final in ends]
        return self.add("fusion", 0, FeatureFusion(self.channels(*tails), self.genotype.fusion.out), tails, blocks=blocks)

    def head(self, joined: str, low: dict[int, str]) -> None:
        """Add the head; ordinals are fixed per role, so that slots do not depend on the head's kind."""
        head, relu = self.genotype.head, not self.genotype.arithmetic.linear_projection
        name = joined
        if head.attention is not None:
            channels = self.channels(name)
            name = self.add("head", 0, attention_operator(channels, channels[0], 1, head.attention), [name])
        if head.kind == "head2":
            project = self.add("head", 1, Conv(self.channels(low[8]), head.low8, 1, 1, relu), [low[8]])
            operator = block_operator(head.block, self.channels(name, project), self.channels(name)[0])
            name = self.add("head", 2, operator, [name, project])
        if head.kind in ("head1", "head2"):
            project = self.add("head", 1, Conv(self.channels(low[4]), head.low4, 1, 1, relu), [low[4]])
            operator = block_operator(head.block, self.channels(project, name), head.channels)
            name = self.add("head", 3, operator, [project, name])
        else:
            name = self.add("head", 3, block_operator(head.block, self.channels(name), head.channels), [name])
        name = self.add("head", 4, Conv(self.channels(name), head.channels, 3), [name])
        self.add("head", 5, Predict(self.channels(name), self.num_classes), [name])

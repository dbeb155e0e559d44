"""Lower a genotype to the ordered list of named operators that everything else reads.

One plan, many readers: network, cost, latency units, supernet slices, diagram, keys to profile. Nobody else walks branches.

    image -> stem (1/2, 1/4, 1/8) -> trunk cells of every branch (shared prefixes once)
          -> decoder: per branch, back to 1/8: arm (1x1 at the low resolution), refine (3x3 over [arm, own last features
             there]), then fusion (all branches); or per stride a lateral 1x1, then fusion (a 3x3 over their sum)
          -> head -> predict

A node is named `<part>.s<stride of its input>.<ordinal>.<operator>[.b<final strides of the branches that share it>]`. Its slot,
(part, stride, ordinal of the cell within its stride, operator, cell stride), is where a supernet keeps its weights: it does
not depend on branches or widths. Cells with stages have the slot (stage, ordinal in the stage not counting attention and
context, operator, cell stride) instead. No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from export.errors import InvalidInput
from hyctas.arch.genotype import Genotype, normal_form
from hyctas.arch.heads import auxiliary_heads, instance_head, semantic_head
from hyctas.arch.lowering import Lowering
from hyctas.arch.node import IMAGE, Node

__all__ = ["IMAGE", "SEMANTIC", "Node", "Plan", "lower"]

SEMANTIC = "semantic"


@dataclass(frozen=True)
class Plan:
    """A genotype at one input size."""

    genotype: Genotype
    """In normal form."""
    size: tuple[int, int]
    """Height and width of the image."""
    padded: tuple[int, int]
    """The image padded (zeros, bottom and right) to a multiple of the largest stride; with aligned arithmetic, as it is."""
    nodes: tuple[Node, ...]
    """In an order in which inputs come first."""
    outputs: dict[str, str]
    """Node of every output; "semantic" is always there, the others are listed in `hyctas.arch.heads`."""

    def node(self, output: str) -> Node:
        """Return the node that gives an output."""
        return next(node for node in self.nodes if node.name == self.outputs[output])

    @property
    def output_stride(self) -> int:
        """Stride of the semantic logits."""
        return self.node(SEMANTIC).stride

    def needed(self, outputs: Sequence[str] = (SEMANTIC,)) -> tuple[Node, ...]:
        """Return the nodes that some outputs need."""
        wanted = {self.outputs[output] for output in outputs}
        for node in reversed(self.nodes):
            if node.name in wanted:
                wanted.update(node.inputs)
        return tuple(node for node in self.nodes if node.name in wanted)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image."""
        return sum(node.macs for node in self.nodes)

    @property
    def parameters(self) -> int:
        return sum(node.operator.parameters for node in self.nodes)


def lower(genotype: Genotype, size: tuple[int, int], num_classes: int, *, auxiliary: bool = False) -> Plan:
    """Lower a genotype at an image size (height, width).

    Args:
        genotype: any; lowered in normal form.
        size: height and width of the image.
        num_classes: number of classes.
        auxiliary: also the heads at 1/16 and 1/32 that only training uses.

    Raises:
        InvalidInput: the size or the number of classes is not positive, or an operator cannot be built.
    """
    if min(size) < 1 or num_classes < 1:
        raise InvalidInput(f"size {size} and number of classes {num_classes} must be positive")
    genotype = normal_form(genotype)
    multiple = 1 if genotype.arithmetic.aligned else max(genotype.final_strides)
    padded = (-(-size[0] // multiple) * multiple, -(-size[1] // multiple) * multiple)
    lowering = Lowering(genotype, padded)
    try:
        low = lowering.stem()
        ends = lowering.trunk(low[8])
        joined = lowering.decode(ends)
        outputs = {SEMANTIC: semantic_head(lowering, genotype.head, joined, low, num_classes)}
        if genotype.instance_head is not None:
            outputs["centre"], outputs["offset"] = instance_head(lowering, genotype.instance_head, joined, low)
        if auxiliary:
            outputs |= auxiliary_heads(lowering, ends, num_classes)
    except ValueError as error:
        raise InvalidInput(f"genotype {genotype.id} cannot be built: {error}") from None
    return Plan(genotype, size, padded, tuple(lowering.nodes.values()), outputs)

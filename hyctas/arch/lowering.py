"""Build the nodes of a genotype in order: stem, trunk, decoder. Heads follow in `hyctas.arch.heads`."""

from __future__ import annotations

from collections.abc import Sequence

from hyctas.arch.genotype import TRUNK_STRIDE, Cell, Genotype, shared_length
from hyctas.arch.node import IMAGE, Node, cell_operator, slot_name, stage_of
from hyctas.arch.operators import Conv, FeatureFusion, Operator, Shape

ADDED = ("attention", "context")
"""Cells that stand at a stage's end and are not counted, so that a trained block never changes its slot."""


class Lowering:
    """Collect nodes; every method appends some and returns the names that later parts need.

    Args:
        genotype: in normal form.
        padded: height and width of the padded image.
    """

    def __init__(self, genotype: Genotype, padded: tuple[int, int]) -> None:
        self.genotype, self.arithmetic = genotype, genotype.arithmetic
        self.nodes: dict[str, Node] = {}
        self.shapes: dict[str, Shape] = {IMAGE: (3, *padded)}
        self.strides: dict[str, int] = {IMAGE: 1}

    def add(
        self, part: str, ordinal: int, operator: Operator, inputs: Sequence[str],
        branches: tuple[int, ...] = (), blocks: Sequence[int] | None = None, slot: str | None = None,
    ) -> str:  # fmt: skip
        """Append a node and return its name.

        Its slot, unless one is given, is that of its part and ordinal, and of the stage of the last feature that it reads, so that
        no slot reads features of two; where that has none, of the stride.
        """
        shapes = tuple(self.shapes[name] for name in inputs)
        stride = min(self.strides[name] for name in inputs)
        suffix = f".b{'-'.join(map(str, branches))}" if branches else ""
        name = f"{part}.s{stride}.{ordinal}.{operator.label}{suffix}"
        shape = operator.output_shape(shapes)
        self.nodes[name] = Node(
            name=name, slot=slot or slot_name(part, self._stage(inputs[-1]) or stride, ordinal, operator), operator=operator,
            inputs=tuple(inputs), input_shapes=shapes, shape=shape, stride=stride * operator.stride, branches=branches,
            blocks=tuple(blocks) if blocks is not None else tuple(range(len(inputs))),
        )  # fmt: skip
        self.shapes[name], self.strides[name] = shape, stride * operator.stride
        return name

    def channels(self, *names: str) -> tuple[int, ...]:
        """Return the channels of nodes."""
        return tuple(self.shapes[name][0] for name in names)

    def stem(self) -> dict[int, str]:
        """Add the stem; return the name of the last node at each stride."""
        name, last, ordinals = IMAGE, {}, dict[int, int]()
        for index, cell in enumerate(self.genotype.stem):
            stride = self.strides[name]
            relu = not (index == 0 and self.arithmetic.linear_stem)
            operator = cell_operator(cell, self.channels(name), self.arithmetic, relu=relu)
            slot = self._stage_slot(self.genotype.stem[:index], cell, operator)
            name = self.add("stem", ordinals.get(stride, 0), operator, [name], slot=slot)
            ordinals[stride] = ordinals.get(stride, 0) + 1
            last[self.strides[name]] = name
        return last

    def _stage_slot(self, before: Sequence[Cell], cell: Cell, operator: Operator) -> str | None:
        """Name the slot of a cell with a stage: by its place among the stage's cells, attention and context not counted."""
        if not cell.stage:
            return None
        if cell.op in ADDED:
            return slot_name("stage", cell.stage, 0, operator)
        ordinal = sum(other.stage == cell.stage and other.op not in ADDED for other in before)
        return slot_name("stage", cell.stage, ordinal, operator)

    def _stage(self, name: str) -> str:
        """Return the stage of a node; empty where it has none."""
        return stage_of(self.nodes[name].slot) if name in self.nodes else ""

    def trunk(self, start: str) -> dict[int, dict[int, str]]:
        """Add all cells, shared prefixes once; return per final stride of a branch its last feature at each stride."""
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
                    operator = cell_operator(cell, self.channels(name), self.arithmetic)
                    slot = self._stage_slot((*self.genotype.stem, *branch[:position]), cell, operator)
                    name = self.add("trunk", ordinal, operator, [name], sharing, slot=slot)
                row.append(name)
                last[self.strides[name]] = name
            names.append(row)
            ends[self.strides[name]] = last
        return ends

    def decode(self, ends: dict[int, dict[int, str]]) -> str:
        """Add the decoder up to stride 8; return the node that the head starts from."""
        return self.add_up(ends) if self.genotype.fusion.decoder == "sum" else self.fuse(ends)

    def add_up(self, ends: dict[int, dict[int, str]]) -> str:
        """Project one feature per stride to equally many channels, add them at the largest resolution, and convolve.

        The feature of a stride is the branch that ends there, or where none does, the deepest branch's last one.
        """
        out, deepest = self.genotype.fusion.out, max(ends)
        laterals = []
        for stride, own in ends[deepest].items():
            final = stride if stride in ends else deepest
            name = ends[final][stride] if stride in ends else own
            operator = Conv(self.channels(name), out, 1, 1, relu=False)
            laterals.append(self.add("lateral", 0, operator, [name], (final,)))
        operator = Conv(self.channels(*laterals), out, 3, 1, add=len(laterals) > 1)
        return self.add("fusion", 0, operator, laterals)

    def fuse(self, ends: dict[int, dict[int, str]]) -> str:
        """Bring every branch back to stride 8 and join them; sources are concatenated as the published code does."""
        relu = not self.arithmetic.linear_fusion
        widths = {16: self.genotype.fusion.refine16, 8: self.genotype.fusion.refine8}
        tails = []
        for final, last in ends.items():
            name = last[final]
            for stride in (16, 8):
                if stride >= final:
                    continue
                # arms and refines of one final stride are the same slots whatever other branches exist
                ordinal = {16: 0, 32: 1}[final]
                arm = self.add("arm", ordinal, Conv(self.channels(name), widths[stride], 1, 1, relu), [name], (final,))
                own = last[stride]
                operator = Conv(self.channels(arm, own), widths[stride], 3, 1, relu)
                name = self.add("refine", ordinal, operator, [arm, own], (final,))
            tails.append(name)
        blocks = [(8, 16, 32).index(final) for final in ends]
        return self.join("fusion", tails, self.genotype.fusion.out, blocks)

    def join(self, part: str, names: Sequence[str], out: int, blocks: Sequence[int]) -> str:
        """Add a feature fusion."""
        return self.add(part, 0, FeatureFusion(self.channels(*names), out, self.arithmetic.fusion_norms), names, blocks=blocks)

"""Map the released code's checkpoint keys to our nodes and layers. No torch here.

The released code registers a cell that branches share once per branch; all but the first such key are aliases. A channel's order
inside a tensor needs no mapping: sources are concatenated in the same order there and here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hyctas.arch.genotype import Genotype
from hyctas.arch.node import Node
from hyctas.arch.operators import DownUp, FeatureFusion, Layer, Norm, SelfAttention
from hyctas.plan import Plan

STEM = ("backbone.stem1.0", "backbone.stem1.1.conv1", "backbone.stem1.1.conv2", "backbone.stem2.conv1", "backbone.stem2.conv2")
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
ATTENTION = {
    "shortcut": "shortcut", "reduce": "net1", "query": "net2.0.query_conv", "key": "net2.0.key_conv",
    "value": "net2.0.value_conv", "gamma": "net2.0.gamma", "norm": "net2.2", "expand": "net3",
}  # fmt: skip
FUSION = {"join": "conv_1x1", "squeeze": "channel_attention.1", "excite": "channel_attention.2"}
SEMANTIC = {0: "att_sa", 2: "decoder", 3: "seg_head", 4: "seg_conv", 5: "predictor"}
INSTANCE = {
    0: "att_sa", 2: "decoder", 3: "center_head", 4: "center_conv", 5: "center_predictor",
    6: "offset_head", 7: "offset_conv", 8: "offset_predictor",
}  # fmt: skip


@dataclass(frozen=True)
class Key:
    """A tensor of a checkpoint."""

    published: str
    """Its key there."""
    node: str
    tensor: str
    """Its name below the node, as in a network's state dict."""
    alias: bool
    """A further name of a tensor that has an earlier key."""

    @property
    def counter(self) -> bool:
        """Say whether it only counts batches; a checkpoint may leave it out."""
        return self.published.endswith(".num_batches_tracked")


def keys(plan: Plan) -> list[Key]:
    """List the keys of all tensors of a plan that was lowered with auxiliary heads."""
    found = []
    for node in plan.nodes:
        for index, prefix in enumerate(prefixes(node, plan)):
            for published, tensor in _tensors(node, prefix):
                found.append(Key(published, node.name, tensor, alias=index > 0))
    return found


def prefixes(node: Node, plan: Plan) -> list[str]:
    """Return the released names of a node: the owner's first, then aliases."""
    if node.part == "stem":
        stem = [other.name for other in plan.nodes if other.part == "stem"]
        return [STEM[stem.index(node.name)]]
    if node.part == "trunk":
        return [f"backbone.cells.{layer}-{branch}._op._op.0" for layer, branch in _positions(node, plan)]
    stride, ordinal = _place(node)
    if node.part in ("arm", "refine"):
        (final,) = node.branches
        name = f"backbone.{node.part}s{final}"
        return [name if final == 16 else f"{name}.{int(stride_back(node, plan) == 8)}"]
    if node.part == "fusion":
        return ["backbone.ffm"]
    if node.part == "auxiliary" and ordinal == 0 and isinstance(node.operator, FeatureFusion):
        return [f"backbone.ffm{stride}"]
    instance = node.part in ("instance", "auxinstance")
    head = ("ins_head" if instance else "sem_head") + (f"_aux{stride}" if node.part.startswith("aux") else "")
    if ordinal == 1:
        return [f"{head}.feature_projection_s{stride}"]
    return [f"{head}.{(INSTANCE if instance else SEMANTIC)[ordinal]}"]


def stride_back(node: Node, plan: Plan) -> int:
    """Return the stride that an arm or a refine leads to: an arm feeds the refine of the next higher resolution."""
    refine = node if node.part == "refine" else next(other for other in plan.nodes if node.name in other.inputs)
    return refine.stride


def _place(node: Node) -> tuple[int, int]:
    """Return the stride of a node's input and its ordinal, from its name."""
    _, stride, ordinal = node.name.split(".")[:3]
    return int(stride[1:]), int(ordinal)


def _positions(node: Node, plan: Plan) -> Iterator[tuple[int, int]]:
    """Yield (layer, branch) of every branch that has a cell, by branch."""
    for branch, final in enumerate(plan.genotype.final_strides):
        if final in node.branches:
            row = [other.name for other in plan.nodes if other.part == "trunk" and final in other.branches]
            yield row.index(node.name), branch


def _layers(node: Node) -> dict[str, str]:
    """Return the released name of every layer of a node, below the node's own."""
    operator = node.operator
    if isinstance(operator, SelfAttention):
        return ATTENTION
    if isinstance(operator, FeatureFusion):
        return FUSION
    if isinstance(operator, DownUp):
        return {"first": "conv" if operator.depth == 1 else "conv1", "second": "conv2", "shortcut": "downsample"}
    return {"conv": "conv" if node.part == "trunk" else ""}


def _tensors(node: Node, prefix: str) -> Iterator[tuple[str, str]]:
    """Yield (released key, name below the node) of every tensor of a node."""
    names = _layers(node)
    for layer in node.operator.layers():
        name = names[layer.name]
        place = f"{prefix}.{name}" if name else prefix
        if isinstance(layer, Layer):
            yield f"{place}.weight", f"{layer.name}.weight"
            if layer.bias:
                yield f"{place}.bias", f"{layer.name}.bias"
            for tensor in NORM if layer.norm else ():
                yield f"{place}.norm.{tensor}", f"{layer.name}.norm.{tensor}"
        elif isinstance(layer, Norm):
            for tensor in NORM:
                yield f"{place}.{tensor}", f"{layer.name}.{tensor}"
        else:
            yield place, f"{layer.name}.value"


def unsupported(genotype: Genotype) -> list[str]:
    """Name the cells whose released module computes something else than ours: skips."""
    return [
        f"branches[{b}][{position}]"
        for b, branch in enumerate(genotype.branches)
        for position, cell in enumerate(branch)
        if cell.op == "skip"
    ]

"""Start networks and supernets from other weights: by slot, whole where shapes agree, else their leading channels."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from export.errors import InvalidInput
from hyctas.arch.genotype import Genotype
from hyctas.arch.node import stage_of
from hyctas.arch.operators import InvertedResidual, Layer, Norm, Operator, Predict, Residual, Scalar
from hyctas.network import Network
from hyctas.nn.blocks import Block
from hyctas.nn.supernet import Supernet
from hyctas.plan import Node, lower
from hyctas.pretrained.state_file import WITHOUT

STATISTICS = ("running_mean", "running_var")
LAST_LAYER: dict[type[Operator], str] = {InvertedResidual: "project", Residual: "second"}
"""Blocks with a shortcut that compute the identity where the norm of this layer has scale 0."""


@dataclass(frozen=True)
class SlotWeights:
    """The weights of one slot."""

    layers: Mapping[str, Layer | Norm | Scalar]
    """By name, as wide as the tensors are."""
    tensors: Mapping[str, Mapping[str, Tensor]]
    """By layer and by the tensor's name below it."""
    blocks: tuple[int, ...]
    """Which input block of the slot each source of a convolution is."""


Weights = dict[str, SlotWeights]
"""By slot."""


@dataclass
class Loaded:
    """What became of a network's or supernet's slots."""

    whole: list[str] = field(default_factory=list)
    """Nodes (slots of a supernet) whose every weight was loaded."""
    sliced: list[str] = field(default_factory=list)
    """Those that took the leading channels of wider ones, or got channels that the source lacks."""
    random: list[str] = field(default_factory=list)
    """Those that the source has nothing for."""
    identity: list[str] = field(default_factory=list)
    """Those of `random` that start as their shortcut."""
    parameters: set[str] = field(default_factory=set)
    """Names of the parameters that were loaded."""

    def summary(self) -> str:
        """Say in a line what was loaded."""
        parts = [f"{len(self.whole)} operators loaded whole", f"{len(self.sliced)} by their leading channels"]
        random = f"{len(self.random)} start random" + (f" ({len(self.identity)} as identity)" if self.identity else "")
        return ", ".join([*parts, random])

    def to_json(self) -> dict[str, list[str]]:
        """Return the names of nodes or slots, for a run's record."""
        return {"whole": self.whole, "sliced": self.sliced, "random": self.random, "identity": self.identity}


def network_weights(network: Network) -> Weights:
    """Return a network's weights by slot; where branches each have the slot, the first one's, and each by `_place` besides."""
    found: Weights = {}
    for node in network.nodes:
        weights = _block_weights(network.block(node.name), node)
        found.setdefault(node.slot, weights)
        found[_place(node)] = weights
    return found


def _place(node: Node) -> str:
    """Name a slot of one branch: what an equal network takes its weights from."""
    return f"{node.slot}@{node.name}"


def _block_weights(block: Block, node: Node) -> SlotWeights:
    layers = {layer.name: layer for layer in node.operator.layers()}
    tensors = {name: dict(block.get_submodule(name).state_dict()) for name in layers}
    return SlotWeights(layers, tensors, node.blocks)


def supernet_weights(supernet: Supernet) -> Weights:
    """Return a supernet's weights by slot."""
    found: Weights = {}
    for name, slot in supernet.slots().items():
        tensors = {layer: dict(slot.get_submodule(layer).state_dict()) for layer in slot.full}
        found[name] = SlotWeights(slot.full, tensors, slot.blocks)
    return found


def start_network(network: Network, weights: Weights, *, same_classes: bool) -> Loaded:
    """Load what fits into a network, in place.

    Args:
        network: with fresh weights.
        weights: by slot.
        same_classes: whether the source predicts the network's classes; else the prediction starts random.

    Raises:
        InvalidInput: nothing of the trunk behind its stem fits.
    """
    check_fit((node.slot for node in network.nodes), weights)
    loaded = Loaded()
    for node in network.nodes:
        layers = {layer.name: layer for layer in node.operator.layers()}
        predicts = isinstance(node.operator, Predict) and not same_classes
        source = None if predicts else weights.get(_place(node), weights.get(node.slot))
        _start(network.block(node.name), node.name, layers, node.blocks, source, loaded)
        if node.name in loaded.random and node.part in ("stem", "trunk"):
            _start_as_identity(network.block(node.name), node.name, node.operator, loaded)
    return loaded


def start_supernet(supernet: Supernet, weights: Weights, *, same_classes: bool) -> Loaded:
    """Load what fits into a supernet, in place: weights, scales and shifts; a supernet has no running statistics.

    Raises:
        InvalidInput: nothing of the trunk behind its stem fits.
    """
    slots = supernet.slots()
    check_fit(slots, weights)
    loaded = Loaded()
    for name, slot in slots.items():
        source = None if ".predict." in name and not same_classes else weights.get(name)
        _start(slot, name, slot.full, slot.blocks, source, loaded)
    random = {*loaded.random}
    for name, operator in supernet.space.cells():
        if name in random:
            _start_as_identity(slots[name], name, operator, loaded)
    return loaded


def slots_of(genotype: Genotype) -> set[str]:
    """Return the slots of a network."""
    return {node.slot for node in lower(genotype, (32, 32), 1).nodes}


def check_fit(slots: Iterable[str], weights: Collection[str]) -> None:
    """Check that weights hold some cell of a network, or of a space, behind its first stage.

    Args:
        slots: of the network or space.
        weights: the slots that there are weights for.

    Raises:
        InvalidInput: they hold none.
    """
    trunk = {name for name in slots if name.startswith("trunk.") or stage_of(name) not in ("", "2")}
    if trunk and trunk.isdisjoint(weights):
        raise InvalidInput(
            "none of the trained blocks fits a cell behind the stem: the network has other operators than the source",
            WITHOUT,
        )


@torch.no_grad()
def _start(
    module: nn.Module, name: str, layers: Mapping[str, Layer | Norm | Scalar], blocks: Sequence[int], source: SlotWeights | None,
    loaded: Loaded,
) -> None:  # fmt: skip
    """Copy a slot's tensors into the module that holds a node's (or slot's) layers, and note what became of it."""
    if not layers:
        return
    found, whole = False, True
    for layer_name, layer in layers.items():
        own = module.get_submodule(layer_name).state_dict()
        other = {} if source is None else source.tensors.get(layer_name, {})
        for tensor_name, tensor in own.items():
            if tensor_name.endswith("num_batches_tracked"):
                continue
            if tensor_name not in other:
                whole = whole and tensor_name.rpartition(".")[2] in STATISTICS
                continue
            assert source is not None
            full = source.layers[layer_name]
            if isinstance(layer, Layer) and isinstance(full, Layer) and tensor_name == "weight":
                same = _copy_weight(tensor, layer, blocks, other[tensor_name], full, source.blocks)
            else:
                same = _copy_leading(tensor, other[tensor_name])
            found, whole = True, whole and same
            loaded.parameters.add(f"{name}.{layer_name}.{tensor_name}")
    (loaded.random if not found else loaded.whole if whole else loaded.sliced).append(name)


def _copy_leading(target: Tensor, source: Tensor) -> bool:
    """Copy the leading channels; return whether the tensors have one shape."""
    part = tuple(slice(0, min(own, other)) for own, other in zip(target.shape, source.shape, strict=True))
    target[part] = source[part].to(target.dtype)
    return target.shape == source.shape


def _copy_weight(
    target: Tensor, layer: Layer, blocks: Sequence[int], source: Tensor, full: Layer, source_blocks: Sequence[int]
) -> bool:
    """Copy what two convolutions share: leading channels of every input block, the centre of the larger kernel.

    A trained output channel gets weights of 0 for inputs, and for the ring of a kernel, that its source lacks: random ones would
    change it.
    """
    kernel, whole = min(layer.kernel, full.kernel), target
    trained = slice(0, min(len(target), len(source)))
    target, source = _centre(target, layer.kernel, kernel), _centre(source, full.kernel, kernel)
    if layer.depthwise or len(layer.sources) == len(full.sources) == 1:
        whole[trained] = 0
        return _copy_leading(target, source) and layer.kernel == full.kernel
    starts = {block: (sum(full.sources[:i]), full.sources[i]) for i, block in enumerate(source_blocks[: len(full.sources)])}
    at, same = 0, len(layer.sources) == len(full.sources)
    for block, channels in zip(blocks, layer.sources, strict=False):
        if block in starts:
            start, width = starts[block]
            whole[trained, at : at + channels] = 0
            same &= _copy_leading(target[:, at : at + channels], source[:, start : start + width])
        at += channels
    return same and layer.kernel == full.kernel


def _centre(weight: Tensor, kernel: int, wanted: int) -> Tensor:
    margin = (kernel - wanted) // 2
    return weight[:, :, margin : margin + wanted, margin : margin + wanted]


@torch.no_grad()
def _start_as_identity(module: nn.Module, name: str, operator: Operator, loaded: Loaded) -> None:
    """Let a cell that the source lacks compute its input: only where it keeps the shape and has a shortcut."""
    if isinstance(operator, InvertedResidual | Residual) and operator.keeps_shape:
        norm = module.get_submodule(LAST_LAYER[type(operator)]).get_submodule("norm")
        assert isinstance(norm, nn.BatchNorm2d)
        norm.weight.zero_()
        loaded.identity.append(name)

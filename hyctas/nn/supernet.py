"""Hold the weights of all networks of a space at once: one slot per (part, stride, ordinal, operator, cell stride).

A narrower network uses the leading channels of a slot's tensors; a convolution after a concatenation holds one input block
per source, each sliced by itself. Norms have one scale and shift per slot and no running statistics: a network drawn from the
supernet estimates its own (`hyctas.training.evaluate.reestimate_norms`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyctas.arch.genotype import Genotype
from hyctas.arch.operators import Layer, Norm, Operator, Scalar
from hyctas.network import Network, attach
from hyctas.nn.blocks import ConvNorm, compute, convolve, initialise, layer_module, upsample
from hyctas.plan import IMAGE, SEMANTIC, Node, lower
from hyctas.spaces.search_space import SearchSpace
from hyctas.spaces.slots import Layers, slots


def slice_weight(weight: Tensor, full: Layer, wanted: Layer, blocks: Sequence[int]) -> Tensor:
    """Return the part of a full convolution weight (O, I / groups, K, K) that a layer uses, (o, i / groups, k, k).

    Leading channels, and the centre of a larger kernel.
    """
    margin = (full.kernel - wanted.kernel) // 2
    if margin:
        weight = weight[:, :, margin : margin + wanted.kernel, margin : margin + wanted.kernel]
    if len(full.sources) == 1:
        return weight[: wanted.out, : 1 if wanted.depthwise else wanted.sources[0]]
    starts = [sum(full.sources[:block]) for block in range(len(full.sources))]
    parts = [
        weight[: wanted.out, starts[block] : starts[block] + channels]
        for block, channels in zip(blocks, wanted.sources, strict=True)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class Slot(nn.Module):
    """The shared weights of one slot."""

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        self.full = layers
        for name, layer in layers.items():
            module = layer_module(layer)
            if isinstance(module, ConvNorm) and module.norm is not None:
                module.norm = _without_statistics(module.norm)
            self.add_module(name, _without_statistics(module) if isinstance(module, nn.BatchNorm2d) else module)
        initialise(self)

    @property
    def blocks(self) -> tuple[int, ...]:
        """All input blocks of its convolutions."""
        return tuple(range(max((len(layer.sources) for layer in self.full.values() if isinstance(layer, Layer)), default=1)))

    def tensors(self, layer: Layer | Norm | Scalar, blocks: Sequence[int]) -> dict[str, Tensor]:
        """Return the sliced tensors of a layer, named as in a network's state dict below the layer's name."""
        module, full = self.get_submodule(layer.name), self.full[layer.name]
        if isinstance(layer, Scalar):
            return {"value": module.value}  # type: ignore[dict-item]
        if isinstance(layer, Norm):
            return {"weight": module.weight[: layer.channels], "bias": module.bias[: layer.channels]}  # type: ignore[index]
        assert isinstance(module, ConvNorm) and isinstance(full, Layer)
        sliced = {"weight": slice_weight(module.weight, full, layer, blocks)}
        if layer.bias:
            assert module.bias is not None
            sliced["bias"] = module.bias[: layer.out]
        if layer.norm:
            assert module.norm is not None
            sliced |= {"norm.weight": module.norm.weight[: layer.out], "norm.bias": module.norm.bias[: layer.out]}
        return sliced

    def run(self, operator: Operator, blocks: Sequence[int], inputs: Sequence[Tensor]) -> Tensor:
        """Compute a narrower operator with this slot's weights; norms use the batch's statistics."""
        layers = {layer.name: layer for layer in operator.layers()}

        def apply(name: str, x: Tensor) -> Tensor:
            layer, tensors = layers[name], self.tensors(layers[name], blocks)
            if isinstance(layer, Scalar):
                return tensors["value"] * x
            if isinstance(layer, Norm):
                return _batch_norm(x, tensors["weight"], tensors["bias"])
            y = convolve(layer, x, tensors["weight"], tensors.get("bias"))
            return _batch_norm(y, tensors["norm.weight"], tensors["norm.bias"]) if layer.norm else y

        return compute(operator, apply, inputs)


class Supernet(nn.Module):
    """All networks of a space, with shared weights. Always in training mode: norms use the batch's statistics."""

    def __init__(self, space: SearchSpace, num_classes: int) -> None:
        super().__init__()
        self.space, self.num_classes = space, num_classes
        for name, layers in slots(space, num_classes).items():
            attach(self, name, Slot(layers))

    def slot(self, node: Node) -> Slot:
        """Return the slot of a plan's node."""
        slot = self.get_submodule(node.slot)
        assert isinstance(slot, Slot)
        return slot

    def slots(self) -> dict[str, Slot]:
        """Return all slots by name."""
        return {name: module for name, module in self.named_modules() if isinstance(module, Slot)}

    def forward_native(self, genotype: Genotype, image: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to the logits of one network at its head's stride s, (N, classes, ceil(H/s), ceil(W/s))."""
        return _unpadded(*self._padded_logits(genotype, image), image)

    def forward(self, genotype: Genotype, image: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to the logits of one network at the image's size, (N, classes, H, W)."""
        return self.forward_both(genotype, image)[1]

    def forward_both(self, genotype: Genotype, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `forward_native` and `forward` return, computed once."""
        logits, stride = self._padded_logits(genotype, image)
        return _unpadded(logits, stride, image), upsample(logits, image.shape[2:], stride)

    def _padded_logits(self, genotype: Genotype, image: Tensor) -> tuple[Tensor, int]:
        plan = lower(genotype, (image.shape[2], image.shape[3]), self.num_classes)
        bottom, right = plan.padded[0] - image.shape[2], plan.padded[1] - image.shape[3]
        values = {IMAGE: F.pad(image, (0, right, 0, bottom)) if right or bottom else image}
        for node in plan.nodes:
            inputs = [values[name] for name in node.inputs]
            values[node.name] = self.slot(node).run(node.operator, node.blocks, inputs)
        return values[plan.outputs[SEMANTIC]], plan.output_stride

    def extract(self, genotype: Genotype) -> Network:
        """Return a network of its own with this supernet's weights. Its norms' running statistics are still to be estimated."""
        with torch.device("meta"):
            network = Network(genotype, self.num_classes)
        network.to_empty(device=next(self.parameters()).device)
        state = network.state_dict()
        with torch.no_grad():
            for node in network.nodes:
                for layer in node.operator.layers():
                    for name, tensor in self.slot(node).tensors(layer, node.blocks).items():
                        state[f"{node.name}.{layer.name}.{name}"].copy_(tensor)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
        return network


def _unpadded(logits: Tensor, stride: int, image: Tensor) -> Tensor:
    return logits[:, :, : -(-image.shape[2] // stride), : -(-image.shape[3] // stride)]


def _batch_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, weight, bias, training=True)


def _without_statistics(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    shared = nn.BatchNorm2d(norm.num_features, track_running_stats=False)
    shared.load_state_dict({"weight": norm.weight, "bias": norm.bias})
    return shared

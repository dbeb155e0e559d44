"""Build a torch network from a genotype: one block per node of its plan."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.errors import CorruptFile, InvalidInput
from export.files import write_bytes
from hyctas.arch.genotype import Genotype
from hyctas.nn.blocks import Block, upsample
from hyctas.nn.fused import fused
from hyctas.plan import IMAGE, SEMANTIC, Node, lower


class Network(nn.Module):
    """A segmentation network. Its state dict uses the plan's node names: `<node>.<layer>.<tensor>`.

    Any image size works: every operator handles odd sizes, or without aligned arithmetic, the image is padded (zeros, bottom and
    right) to a multiple of the largest stride and outputs are cropped back. Outputs besides "semantic": see `hyctas.arch.heads`.
    """

    def __init__(self, genotype: Genotype, num_classes: int, *, auxiliary: bool = False) -> None:
        super().__init__()
        plan = lower(genotype, (max(genotype.final_strides),) * 2, num_classes, auxiliary=auxiliary)
        self.genotype, self.num_classes = plan.genotype, num_classes
        self.plan, self.nodes = plan, plan.nodes
        self.multiple = 1 if genotype.arithmetic.aligned else max(genotype.final_strides)
        self.output_stride = plan.output_stride
        for node in self.nodes:
            attach(self, node.name, Block(node.operator))

    def block(self, name: str) -> Block:
        """Return the block of a node."""
        block = self.get_submodule(name)
        assert isinstance(block, Block)
        return block

    def padded_outputs(self, image: Tensor, outputs: Sequence[str] = (SEMANTIC,)) -> list[Tensor]:
        """Return outputs of the padded image, each (N, channels, padded H / s, padded W / s); only what they need is computed."""
        if image.dim() != 4 or image.shape[1] != 3:
            raise InvalidInput(f"a network takes images (N, 3, H, W), got {tuple(image.shape)}")
        if unknown := [name for name in outputs if name not in self.plan.outputs]:
            raise InvalidInput(f"the network has no outputs {unknown}; it has {list(self.plan.outputs)}")
        right, bottom = -image.shape[3] % self.multiple, -image.shape[2] % self.multiple
        x = F.pad(image, (0, right, 0, bottom)) if right or bottom else image
        nodes, wanted = self.plan.needed(outputs), [self.plan.outputs[name] for name in outputs]
        values, remaining = {IMAGE: x}, _uses(nodes, wanted)
        for node in nodes:
            values[node.name] = self.get_submodule(node.name)(*(values[name] for name in node.inputs))
            for name in node.inputs:
                remaining[name] -= 1
                if not remaining[name]:
                    del values[name]
        return [values[name] for name in wanted]

    def forward_outputs(self, image: Tensor, outputs: Sequence[str] = (SEMANTIC,)) -> dict[str, Tensor]:
        """Map images (N, 3, H, W) to outputs at their own strides s: each (N, channels, ceil(H / s), ceil(W / s)).

        Raises:
            InvalidInput: no images, or an output that the network does not have.
        """
        cropped = {}
        for name, value in zip(outputs, self.padded_outputs(image, outputs), strict=True):
            s = self.plan.node(name).stride
            cropped[name] = value[:, :, : -(-image.shape[2] // s), : -(-image.shape[3] // s)]
        return cropped

    def forward_native(self, image: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to logits at the head's stride s: (N, classes, ceil(H / s), ceil(W / s))."""
        return self.forward_outputs(image)[SEMANTIC]

    def forward_panoptic(self, image: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to logits, centres and offsets at the heads' stride: (N, classes + 1 + 2, h, w).

        `hyctas.panoptic.split` takes them apart.

        Raises:
            InvalidInput: the network has no instance head.
        """
        return torch.cat(list(self.forward_outputs(image, (SEMANTIC, "centre", "offset")).values()), dim=1)

    def forward(self, image: Tensor) -> Tensor:
        """Map normalised images (N, 3, H, W) to logits at the same size: (N, classes, H, W)."""
        return upsample(self.padded_outputs(image)[0], image.shape[2:], self.output_stride)

    def forward_all_logits(self, image: Tensor) -> list[Tensor]:
        """Map images (N, 3, H, W) to the logits of the head and of every auxiliary head, each (N, classes, H, W)."""
        names = [SEMANTIC, *(name for name in self.plan.outputs if name.startswith("auxiliary"))]
        outputs = zip(names, self.padded_outputs(image, names), strict=True)
        return [upsample(value, image.shape[2:], self.plan.node(name).stride) for name, value in outputs]

    def finished(self) -> Network:
        """Return a copy without what only training uses (the auxiliary heads)."""
        network = Network(self.genotype, self.num_classes).to(next(self.parameters()).device)
        for node in network.nodes:  # strictly: branches of re-parameterised convolutions must be merged before
            network.block(node.name).load_state_dict(self.block(node.name).state_dict())
        return network.train(self.training)

    def folded(self) -> Network:
        """Return a copy in eval mode with batch norms merged into the convolutions before them."""
        network = copy.deepcopy(self).eval()
        for node in network.nodes:
            network.block(node.name).fold()
        return network

    def fused(self) -> Network:
        """Return a folded copy whose attention blocks are single launches on GPUs (`hyctas.nn.fused`); not to be folded again."""
        network = self.folded()
        for node in network.nodes:
            attach(network, node.name, fused(network.block(node.name)))
        return network


class Native(nn.Module):
    """A network whose `forward` gives native output: what latency is predicted and measured for.

    For a network with an instance head that is `Network.forward_panoptic`.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        panoptic = self.network.genotype.instance_head is not None
        return self.network.forward_panoptic(image) if panoptic else self.network.forward_native(image)

    def folded(self) -> Native:
        """Return a copy with batch norms folded."""
        return Native(self.network.folded())

    def fused(self) -> Native:
        """Return a copy with its attention blocks fused."""
        return Native(self.network.fused())


def build(genotype: Genotype, num_classes: int, *, auxiliary: bool = False) -> Network:
    """Build a network with fresh weights (from torch's global generator).

    Args:
        genotype: what to build.
        num_classes: number of classes.
        auxiliary: also the heads at 1/16 and 1/32 that only training uses.

    Raises:
        InvalidInput: the genotype describes no network.
    """
    return Network(genotype, num_classes, auxiliary=auxiliary)


def save_weights(network: nn.Module, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a network's weights as safetensors, safely (see `export.files`)."""
    write_bytes(path, weights_bytes(network, metadata))


def weights_bytes(network: nn.Module, metadata: dict[str, str] | None = None) -> bytes:
    """Return a network's weights as the bytes of a safetensors file."""
    from safetensors.torch import save

    data: bytes = save({name: t.detach().contiguous() for name, t in network.state_dict().items()}, metadata)
    return _with_sorted_header(data)


def _with_sorted_header(data: bytes) -> bytes:
    """Write a safetensors file's header (8 bytes of length, JSON, padding) in sorted order.

    The library writes metadata in the random order of a hash table, so that equal weights would have another sha256 each time.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[end:]


def load_weights(network: nn.Module, path: Path) -> None:
    """Load weights that `save_weights` wrote.

    Raises:
        FileNotFoundError: no such file.
        CorruptFile: not a safetensors file, or tensors are missing, unknown, of another shape, or not finite.
    """
    state = read_tensors(path)
    expected = network.state_dict()
    for name in sorted(expected.keys() | state.keys()):
        if name not in state:
            raise CorruptFile(path, f"lacks the tensor {name!r}")
        if name not in expected:
            raise CorruptFile(path, f"holds the unknown tensor {name!r}; was it written for another genotype?")
        if state[name].shape != expected[name].shape:
            raise CorruptFile(path, f"{name!r} has shape {tuple(state[name].shape)}, expected {tuple(expected[name].shape)}")
        if not torch.isfinite(state[name]).all():
            raise CorruptFile(path, f"{name!r} holds NaN or infinity")
    network.load_state_dict(state)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        FileNotFoundError: no such file.
        CorruptFile: not a safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors: dict[str, Any] = load(path.read_bytes())
    except (SafetensorError, ValueError) as error:
        raise CorruptFile(path, f"not a whole safetensors file ({error})") from None
    return tensors


def _uses(nodes: Sequence[Node], kept: Sequence[str]) -> dict[str, int]:
    """Count how often each value is used; what is kept is used once more, in the end."""
    counts: dict[str, int] = {}
    for name in [name for node in nodes for name in node.inputs] + list(kept):
        counts[name] = counts.get(name, 0) + 1
    return counts


def attach(root: nn.Module, name: str, module: nn.Module) -> None:
    """Register a module under a dotted name, so that state-dict keys are node names."""
    *parents, leaf = name.split(".")
    for parent in parents:
        if parent not in dict(root.named_children()):
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    root.add_module(leaf, module)

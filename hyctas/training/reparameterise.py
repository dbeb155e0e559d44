"""Train each dense 3x3 convolution as three parallel branches, and merge them into one 3x3 afterwards.

RepVGG (Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021, sections 3.2 and 3.3). Branches exist while a
network trains, and nowhere else: genotype, plan, files and export know one 3x3 convolution.

    reparameterise(network)             # before the trainer is made: its checkpoints hold the branches
    ...train...
    reestimate_norms(network, batches)  # merging reads running statistics
    merge(network)                      # before finished() and save_weights; folding, and so export, merges by itself
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyctas.arch.operators import Layer
from hyctas.nn.blocks import ConvNorm, initialise

Child = TypeVar("Child", bound=nn.Module)


class ReparameterisedConv(ConvNorm):
    """A 3x3 convolution to which a 1x1 convolution and, where shapes allow, the input itself are added, each normed by itself.

    The 3x3's tensors keep their names, so what knows them (trained weights, their learning rate) finds them.

    The other branches' norms start at scale 0, so that the function is still that of `conv`, in training mode too. RepVGG's
    start at 1, which gives the sum up to three times the variance: from random weights, 1,500 steps ended 0.7 and 1.9 points
    below the same network without branches, against 0.1 and 0.3 here (`benchmarks/results/cpu/screening.md`).

    Args:
        conv: the 3x3 convolution with its norm, whose tensors are taken over.
    """

    def __init__(self, conv: ConvNorm) -> None:
        with torch.device("meta"):
            super().__init__(conv.layer)
        self.weight, self.bias, self.norm = conv.weight, conv.bias, conv.norm
        assert self.norm is not None and conv.kernel_size == (3, 3) and conv.groups == 1
        self.pointwise: ConvNorm | None = ConvNorm(Layer("pointwise", conv.layer.sources, conv.layer.out))
        initialise(self.pointwise)
        self.pointwise.norm = _norm_like(self.norm)
        identity = conv.layer.stride == 1 and conv.in_channels == conv.out_channels
        self.identity_norm = _norm_like(self.norm) if identity else None
        for norm in (self.pointwise.norm, self.identity_norm):
            if norm is not None:
                nn.init.zeros_(norm.weight)
        self.to(conv.weight.device, conv.weight.dtype)
        self.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (N, I, H, W) to the sum of the branches (N, O, ceil(H/s), ceil(W/s))."""
        y: Tensor = super().forward(x)
        if self.pointwise is None:
            return y
        centres = self._centres(x, y)
        y = y + self.pointwise(centres)
        return y if self.identity_norm is None else y + self.identity_norm(centres)

    def _centres(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the pixels of x under the centres of the 3x3's windows; zero where a centre lies in the padding after x."""
        stride = self.layer.stride
        if stride == 1:
            return x
        top, left = (1 - self.layer.padding(length)[0] for length in x.shape[2:])
        x = x[:, :, top::stride, left::stride]
        bottom, right = y.shape[2] - x.shape[2], y.shape[3] - x.shape[3]
        return F.pad(x, (0, right, 0, bottom)) if right or bottom else x

    @torch.no_grad()
    def absorb(self) -> None:
        """Fold the other branches into the 3x3's weight and the shift of its norm, in fp64; they are gone then.

        The function in eval mode stays up to rounding. The norm gets the statistics that make it a shift alone (mean 0,
        variance 1 - eps, scale 1).
        """
        norm = self.norm
        if self.pointwise is None:
            return
        assert norm is not None and norm.running_mean is not None and norm.running_var is not None
        factor, shift = _scale_and_shift(norm)
        weight = self.weight.double() * factor[:, None, None, None]  # (O, I, 3, 3)
        if self.bias is not None:
            shift = shift + self.bias.double() * factor
            self.bias.zero_()
        assert self.pointwise.norm is not None
        factor, more = _scale_and_shift(self.pointwise.norm)
        weight[:, :, 1, 1] += self.pointwise.weight.double()[:, :, 0, 0] * factor[:, None]
        shift = shift + more
        if self.identity_norm is not None:
            factor, more = _scale_and_shift(self.identity_norm)
            weight[:, :, 1, 1] += torch.diag(factor)
            shift = shift + more
        self.weight.copy_(weight)
        norm.running_mean.zero_()
        norm.running_var.fill_(1 - norm.eps)
        norm.weight.fill_(1)
        norm.bias.copy_(shift)
        self.pointwise = self.identity_norm = None

    def fold(self) -> None:
        """Fold the branches and the norm into weight and bias."""
        self.absorb()
        super().fold()

    def merged(self) -> ConvNorm:
        """Return a plain convolution with this one's tensors, once the other branches are folded into them."""
        self.absorb()
        with torch.device("meta"):
            plain = ConvNorm(self.layer)
        plain.weight, plain.bias, plain.norm = self.weight, self.bias, self.norm
        return plain.train(self.training)


def reparameterise(network: nn.Module) -> int:
    """Replace each dense 3x3 `ConvNorm` that has a norm by its training-time branches, in place.

    The new weights come from torch's global generator, in the order of the network's modules; doing it twice changes nothing.

    Args:
        network: as `hyctas.network.build` makes it, not folded.

    Returns:
        How many convolutions have branches now that had none.
    """
    found = [(parent, name, conv) for parent, name, conv in _children(network, ConvNorm) if _is_dense(conv)]
    for parent, name, conv in found:
        setattr(parent, name, ReparameterisedConv(conv))
    return len(found)


def merge(network: nn.Module) -> int:
    """Fold the branches of each re-parameterised convolution into one 3x3 `ConvNorm` of the old name, in place.

    The running statistics must have been estimated with the branches (`hyctas.training.evaluate.reestimate_norms`). A merged
    convolution's norm has no statistics of the data: training it further needs a warm-up, and estimating its statistics anew
    changes its function.

    Returns:
        How many convolutions were merged.
    """
    found = list(_children(network, ReparameterisedConv))
    for parent, name, branches in found:
        setattr(parent, name, branches.merged())
    return len(found)


def _children(root: nn.Module, kind: type[Child]) -> Iterator[tuple[nn.Module, str, Child]]:
    for parent in list(root.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, kind):
                yield parent, name, child


def _is_dense(conv: ConvNorm) -> bool:
    plain = not isinstance(conv, ReparameterisedConv) and conv.norm is not None
    return plain and conv.kernel_size == (3, 3) and conv.groups == 1


def _norm_like(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(norm.num_features, eps=norm.eps, momentum=norm.momentum)


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return what a norm in eval mode multiplies by and adds, each (channels,) float64."""
    assert norm.running_mean is not None and norm.running_var is not None
    factor = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    return factor, norm.bias.double() - norm.running_mean.double() * factor

"""Train each dense 3x3 convolution as three parallel branches, and merge them into one 3x3 afterwards.

RepVGG (Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021, sections 3.2 and 3.3). Branches exist while a
network trains, and nowhere else: genotype, plan, files and export know one 3x3 convolution.

    reparameterise(network)             # before the trainer is made: its checkpoints hold the branches
    ...train...
    reestimate_norms(network, batches)  # merging reads running statistics
    merge(network)                      # before finished(), save_weights and export
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyctas.blocks import ConvNorm, initialise

Child = TypeVar("Child", bound=nn.Module)


class ReparameterisedConv(nn.Module):
    """Sum a 3x3 convolution, a 1x1 convolution and, where shapes allow, the input itself, each with a batch norm of its own.

    Args:
        dense: the 3x3 convolution with its norm; becomes the first branch as it is.
        preserve: the other branches' norms start at scale 0, so that the function is still that of `dense`, in training mode
            too. Otherwise they start at scale 1 as RepVGG's do, unless `dense` itself starts at 0.
    """

    def __init__(self, dense: ConvNorm, *, preserve: bool) -> None:
        super().__init__()
        norm = dense.norm
        assert norm is not None and dense.kernel_size == (3, 3) and dense.groups == 1
        self.dense = dense
        self.stride = dense.stride[0]
        self.first = 1 - dense.layer.padding(2)[0]  # with padding p before, the first output is centred on input 1 - p
        self.pointwise = nn.Conv2d(dense.in_channels, dense.out_channels, 1, bias=False)
        self.pointwise_norm = _norm_like(norm)
        identity = self.stride == 1 and dense.in_channels == dense.out_channels
        self.identity_norm = _norm_like(norm) if identity else None
        initialise(self.pointwise)
        if preserve or not norm.weight.any():
            for branch in (self.pointwise_norm, self.identity_norm):
                if branch is not None:
                    nn.init.zeros_(branch.weight)
        self.to(dense.weight.device, dense.weight.dtype)
        self.train(dense.training)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (N, C, H, W) to what `dense` gives plus the other branches, (N, O, ceil(H/s), ceil(W/s))."""
        y: Tensor = self.dense(x)
        centres = self._centres(x, y)
        y = y + self.pointwise_norm(self.pointwise(centres))
        return y if self.identity_norm is None else y + self.identity_norm(centres)

    def _centres(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the pixels of x under the centres of the 3x3's windows; zero where a centre lies in the padding after x."""
        if self.stride == 1 and self.first == 0:
            return x
        x = x[:, :, self.first :: self.stride, self.first :: self.stride]
        bottom, right = y.shape[2] - x.shape[2], y.shape[3] - x.shape[3]
        return F.pad(x, (0, right, 0, bottom)) if right or bottom else x

    @torch.no_grad()
    def merged(self) -> ConvNorm:
        """Return `dense` with all branches folded into its weight and the shift of its norm, computed in fp64.

        Equal to `forward` in eval mode up to rounding. The norm stays, with the statistics that make it a shift alone (mean 0,
        variance 1 - eps, scale 1), so that the names of the tensors are those of a plain convolution.
        """
        dense, norm = self.dense, self.dense.norm
        assert norm is not None and norm.running_mean is not None and norm.running_var is not None
        factor, shift = _scale_and_shift(norm)
        weight = dense.weight.double() * factor[:, None, None, None]  # (O, I, 3, 3)
        if dense.bias is not None:
            shift = shift + dense.bias.double() * factor
            dense.bias.zero_()
        factor, more = _scale_and_shift(self.pointwise_norm)
        weight[:, :, 1, 1] += self.pointwise.weight.double()[:, :, 0, 0] * factor[:, None]
        shift = shift + more
        if self.identity_norm is not None:
            factor, more = _scale_and_shift(self.identity_norm)
            weight[:, :, 1, 1] += torch.diag(factor)
            shift = shift + more
        dense.weight.copy_(weight)
        norm.running_mean.zero_()
        norm.running_var.fill_(1 - norm.eps)
        norm.weight.fill_(1)
        norm.bias.copy_(shift)
        return dense


def reparameterise(network: nn.Module, *, preserve: bool = False) -> int:
    """Replace each dense 3x3 `ConvNorm` that has a norm by its training-time branches, in place.

    The new weights come from torch's global generator, in the order of the network's modules; doing it twice changes nothing.

    Args:
        network: as `hyctas.network.build` makes it, not folded.
        preserve: keep the network's function as it is: for weights that were loaded. Without it, branches start as RepVGG's.

    Returns:
        How many convolutions have branches now that had none.
    """
    found = [(parent, name, conv) for parent, name, conv in _children(network, ConvNorm) if _is_dense(parent, conv)]
    for parent, name, conv in found:
        setattr(parent, name, ReparameterisedConv(conv, preserve=preserve))
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


def _is_dense(parent: nn.Module, conv: ConvNorm) -> bool:
    return (
        not isinstance(parent, ReparameterisedConv) and conv.norm is not None and conv.groups == 1
        and conv.kernel_size == (3, 3) and conv.dilation == (1, 1)
    )  # fmt: skip


def _norm_like(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(norm.num_features, eps=norm.eps, momentum=norm.momentum)


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return what a norm in eval mode multiplies by and adds, each (channels,) float64."""
    assert norm.running_mean is not None and norm.running_var is not None
    factor = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    return factor, norm.bias.double() - norm.running_mean.double() * factor

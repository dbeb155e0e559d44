"""Substitute one-launch attention blocks in networks that will only be run (on GPUs; `hyctas.attention.block`)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hyctas.arch.operators import SelfAttention
from hyctas.nn.blocks import Block, Factor, after_attention, before_attention, gather


class FusedAttention(nn.Module):
    """A SelfAttention block in eval mode whose middle is one call of `torch.ops.hyctas.attention_block`.

    It holds the weights in the form that the operator takes, and none of them can be trained.

    Args:
        block: the block to copy; norms may be folded or not.

    Raises:
        ValueError: the operator has several heads, pools its keys, or averages after the attention (`fits`).
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        op = block.operator
        if not isinstance(op, SelfAttention) or not fits(block):
            raise ValueError(f"attention_block has one head, keys at all positions and its norm next; not {op}")
        self.operator, self.scale = op, 1.0 if op.scale is None else op.scale
        self.block = block.folded()
        self.query, self.key, self.value = (self._projection(name) for name in ("query", "key", "value"))
        factor, shift = self._joint()
        norm_scale, norm_shift = _affine(self._norm("norm"))
        with torch.no_grad():
            self.value.weight.mul_(factor[:, None])
            self.value.bias.mul_(factor).add_(shift)
        self.register_buffer("norm_scale", norm_scale)
        self.register_buffer("norm_shift", norm_shift)
        for name in ("query", "key", "value", "gamma" if op.residual == "gamma" else "joint", "norm"):
            delattr(self.block, name)  # their weights are in the ones above
        self.requires_grad_(False)

    def _projection(self, name: str) -> nn.Linear:
        layer = self.block.get_submodule(name)
        assert isinstance(layer, nn.Conv2d) and layer.bias is not None
        weight = layer.weight
        linear = nn.Linear(layer.in_channels, layer.out_channels, device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            linear.weight.copy_(weight[:, :, 0, 0])
            linear.bias.copy_(layer.bias)
        return linear

    def _joint(self) -> tuple[Tensor, Tensor]:
        """Return what the attention's output is multiplied with and what is added to it, per channel."""
        if self.operator.residual == "gamma":
            gamma = self.block.get_submodule("gamma")
            assert isinstance(gamma, Factor)
            factor = gamma.value.detach().expand(self._norm("norm").num_features)
            return factor, torch.zeros_like(factor)
        return _affine(self._norm("joint"))

    def _norm(self, name: str) -> nn.BatchNorm2d:
        norm = self.block.get_submodule(name)
        assert isinstance(norm, nn.BatchNorm2d)
        return norm

    def forward(self, *inputs: Tensor) -> Tensor:
        apply = self.block._apply_layer
        x, shortcut, y = before_attention(self.operator, apply, gather(inputs))
        y = torch.ops.hyctas.attention_block(
            y, self.query.weight, self.query.bias, self.key.weight, self.value.weight, self.value.bias,
            self.norm_scale, self.norm_shift, self.scale,
        )  # fmt: skip
        return after_attention(self.operator, apply, x, shortcut, y)


def fused(block: Block) -> nn.Module:
    """Return a folded copy of a block, with its attention in one launch where that computes the same."""
    return FusedAttention(block) if fits(block) else block.folded()


def fits(block: Block) -> bool:
    """Return whether `attention_block` computes what a block's middle does."""
    op = block.operator
    return isinstance(op, SelfAttention) and op.heads == 1 and op.pool == 1 and not op.pool_last


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return a norm in eval mode as factor and shift per channel."""
    assert norm.running_var is not None and norm.running_mean is not None
    factor = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach()
    return factor, (norm.bias - norm.running_mean * factor).detach()

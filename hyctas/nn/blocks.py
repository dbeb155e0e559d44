"""Compute every operator in torch, given a way to apply its layers.

`compute(operator, apply, inputs)` is written once; a network applies its own convolutions, a supernet applies slices of shared
ones. So both are the same arithmetic by construction.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyctas.arch.operators import (
    Context,
    Conv,
    DownUp,
    FeatureFusion,
    InvertedResidual,
    Layer,
    MaxPool,
    Norm,
    Operator,
    Predict,
    Residual,
    Scalar,
    SelfAttention,
    Skip,
)
from hyctas.attention import fp16_qk_autocast, self_attention
from hyctas.nn.depthwise_gradients import depthwise, fits


class Apply(Protocol):
    """Apply an operator's layer by name: a convolution (with its norm) or a norm to x; a scalar multiplies x."""

    def __call__(self, name: str, x: Tensor) -> Tensor: ...


def upsample(x: Tensor, size: Sequence[int], factor: int) -> Tensor:
    """Enlarge x (N, C, h, w) bilinearly by exactly `factor`, then crop to `size`: pixels stay aligned at odd sizes."""
    if factor > 1:
        enlarged = (x.shape[2] * factor, x.shape[3] * factor)
        x = F.interpolate(x, size=enlarged, mode="bilinear", align_corners=False)
    return x[:, :, : size[0], : size[1]]


def average_down(x: Tensor, factor: int) -> Tensor:
    """Average factor x factor pixels of x (N, C, h, w); incomplete ones at the border repeat the border.

    For even sizes and factor 2 this equals bilinear halving (align_corners=False).
    """
    if factor == 1:
        return x
    right, bottom = -x.shape[3] % factor, -x.shape[2] % factor
    if right or bottom:
        x = F.pad(x, (0, right, 0, bottom), mode="replicate")
    return F.avg_pool2d(x, factor)


def gather(inputs: Sequence[Tensor], *, add: bool = False) -> Tensor:
    """Resize all inputs to the largest one's size, and concatenate their channels or add them."""
    if len(inputs) == 1:
        return inputs[0]
    size = max((x.shape[2], x.shape[3]) for x in inputs)
    resized = [upsample(x, size, _factor(size, x)) for x in inputs]
    return sum(resized[1:], resized[0]) if add else torch.cat(resized, dim=1)


def _factor(size: tuple[int, int], x: Tensor) -> int:
    """Return the power of two by which x (N, C, h, w) was halved, rounding up, from a size."""
    return max(1 << (-(-wanted // length) - 1).bit_length() for wanted, length in zip(size, x.shape[2:], strict=True))


def _rectify(x: Tensor, six: bool) -> Tensor:
    return F.relu6(x) if six else F.relu(x)


def _conv(op: Conv, apply: Apply, x: Tensor) -> Tensor:
    y = apply("conv", x)
    return _rectify(y, op.relu6) if op.relu else y


def _residual(op: Residual, apply: Apply, x: Tensor) -> Tensor:
    y = apply("second", F.relu(apply("first", x)))
    y = y + (x if op.keeps_shape else apply("shortcut", x))
    return y if op.linear else F.relu(y)


def _inverted(op: InvertedResidual, apply: Apply, x: Tensor) -> Tensor:
    y = x if op.expansion == 1 else _rectify(apply("expand", x), op.relu6)
    y = apply("project", _rectify(apply("depthwise", y), op.relu6))
    return x + y if op.keeps_shape else y


def _max_pool(op: MaxPool, apply: Apply, x: Tensor) -> Tensor:
    if not op.aligned:
        return F.max_pool2d(x, 3, 2, 1)
    return F.max_pool2d(F.pad(x, (0, 1 + x.shape[3] % 2, 0, 1 + x.shape[2] % 2), value=-math.inf), 3, 2)


def _context(op: Context, apply: Apply, x: Tensor) -> Tensor:
    return x + apply("conv", x.mean(dim=(2, 3), keepdim=True))


def _skip(op: Skip, apply: Apply, x: Tensor) -> Tensor:
    right, bottom = x.shape[3] % 2, x.shape[2] % 2
    if right or bottom:
        x = F.pad(x, (0, right, 0, bottom))
    parts = [apply("even", x), apply("odd", x[:, :, 1:, 1:])]
    return F.relu(apply("norm", torch.cat(parts, dim=1)))


def _down_up(op: DownUp, apply: Apply, x: Tensor) -> Tensor:
    y = apply("first", average_down(x, 2))  # (N, C, h/2, w/2)
    if op.depth == 2:
        y = apply("second", F.relu(y))
    if op.stride == 1:
        y = upsample(y, x.shape[2:], 2) + apply("shortcut", x)
    return y if op.linear else F.relu(y)


def _attention(op: SelfAttention, apply: Apply, x: Tensor) -> Tensor:
    x, shortcut, y = before_attention(op, apply, x)
    return after_attention(op, apply, x, shortcut, attend(op, apply, y))


def before_attention(op: SelfAttention, apply: Apply, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return x at the operator's own resolution, its shortcut, and what the attention works on (N, C, h, w)."""
    x = x if op.pool_last else average_down(x, op.stride)
    has_shortcut = any(layer.name == "shortcut" for layer in op.layers())
    shortcut = x
    if has_shortcut:
        shortcut = apply("shortcut", x) if op.linear else F.relu(apply("shortcut", x))
    down = 2 if op.half_resolution else 1
    if op.wide_projections:
        return x, shortcut, average_down(F.relu(apply("reduce", x)), down)
    return x, shortcut, F.relu(apply("reduce", average_down(x, down)))


def attend(op: SelfAttention, apply: Apply, y: Tensor) -> Tensor:
    """Attend among the positions of y (N, C, h, w), join the result to y, normalise and rectify."""
    pooled = average_down(y, op.pool)
    batch, channels, height, width = y.shape
    # (N, heads, channels per head, positions)
    with fp16_qk_autocast(y.device):
        q = apply("query", y).reshape(batch, op.heads, op.qk_channels // op.heads, height * width)
        k = apply("key", pooled).reshape(batch, op.heads, op.qk_channels // op.heads, -1)
    v = apply("value", pooled).reshape(batch, op.heads, channels // op.heads, -1)
    o = self_attention(q, k, v, 1.0 if op.scale is None else op.scale)
    o = o.reshape(batch, channels, height, width)
    y = y + (apply("gamma", o) if op.residual == "gamma" else apply("joint", o))
    if op.pool_last:
        y = average_down(y, op.stride)
    return F.relu(apply("norm", y))


def after_attention(op: SelfAttention, apply: Apply, x: Tensor, shortcut: Tensor, y: Tensor) -> Tensor:
    """Return the operator's output from what `attend` gave."""
    down = 2 if op.half_resolution else 1
    if op.wide_projections:
        y = apply("expand", upsample(y, x.shape[2:], down))
    else:
        y = upsample(apply("expand", y), shortcut.shape[2:], down)
    return y + shortcut if op.linear else F.relu(y + shortcut)


def _fusion(op: FeatureFusion, apply: Apply, x: Tensor) -> Tensor:
    f = F.relu(apply("join", x))
    weights = apply("excite", F.relu(apply("squeeze", f.mean(dim=(2, 3), keepdim=True))))
    return f + f * torch.sigmoid(weights)


def _predict(op: Predict, apply: Apply, x: Tensor) -> Tensor:
    return apply("conv", x)


COMPUTE: dict[type[Operator], Callable[..., Tensor]] = {
    Conv: _conv,
    Residual: _residual,
    InvertedResidual: _inverted,
    MaxPool: _max_pool,
    Context: _context,
    Skip: _skip,
    DownUp: _down_up,
    SelfAttention: _attention,
    FeatureFusion: _fusion,
    Predict: _predict,
}


def compute(operator: Operator, apply: Apply, inputs: Sequence[Tensor]) -> Tensor:
    """Compute an operator on inputs (N, C_i, H_i, W_i), with its layers given by `apply`."""
    return COMPUTE[type(operator)](operator, apply, gather(inputs, add=isinstance(operator, Conv) and operator.add))


def convolve(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve x (N, I, H, W) with weight (O, I / groups, k, k) as a layer pads and strides it: (N, O, ceil(H/s), ceil(W/s))."""
    top, bottom = layer.padding(x.shape[2])
    left, right = layer.padding(x.shape[3])
    if layer.depthwise and bias is None and fits(x, weight):
        return depthwise(F.pad(x, (left, right, top, bottom)), weight, layer.stride)
    if (top, left) == (bottom, right):
        return F.conv2d(x, weight, bias, layer.stride, (top, left), groups=layer.groups)
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, layer.stride, groups=layer.groups)


class ConvNorm(nn.Conv2d):
    """A convolution with the batch norm that follows it (`norm`, or None)."""

    def __init__(self, layer: Layer) -> None:
        super().__init__(
            sum(layer.sources), layer.out, layer.kernel, layer.stride, layer.kernel // 2, groups=layer.groups, bias=layer.bias
        )
        self.layer = layer
        self.norm = nn.BatchNorm2d(layer.out) if layer.norm else None

    def forward(self, x: Tensor) -> Tensor:
        y = convolve(self.layer, x, self.weight, self.bias)
        return y if self.norm is None else self.norm(y)

    def fold(self) -> None:
        """Merge the norm's running statistics into weight and bias; the norm is gone then."""
        norm = self.norm
        if norm is None:
            return
        assert norm.running_var is not None and norm.running_mean is not None
        with torch.no_grad():
            factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            bias = norm.bias - norm.running_mean * factor
            if self.bias is not None:
                bias = bias + self.bias * factor
            self.weight.mul_(factor[:, None, None, None])
            self.bias = nn.Parameter(bias)
        self.norm = None


class Factor(nn.Module):
    """Multiply by one trained number."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.value * x


def layer_module(layer: Layer | Norm | Scalar) -> nn.Module:
    """Make the module that holds a layer's weights."""
    if isinstance(layer, Layer):
        return ConvNorm(layer)
    return nn.BatchNorm2d(layer.channels) if isinstance(layer, Norm) else Factor()


class Block(nn.Module):
    """One operator with weights of its own: inputs (N, C_i, H_i, W_i) to output (N, C, H, W)."""

    def __init__(self, operator: Operator) -> None:
        super().__init__()
        self.operator = operator
        for layer in operator.layers():
            self.add_module(layer.name, layer_module(layer))
        initialise(self)

    def _apply_layer(self, name: str, x: Tensor) -> Tensor:
        y: Tensor = self.get_submodule(name)(x)
        return y

    def forward(self, *inputs: Tensor) -> Tensor:
        return compute(self.operator, self._apply_layer, inputs)

    def fold(self) -> None:
        """Merge every batch norm that follows a convolution into it."""
        for module in self.children():
            if isinstance(module, ConvNorm):
                module.fold()

    def folded(self) -> Block:
        """Return a copy in eval mode with its batch norms folded."""
        block = copy.deepcopy(self).eval()
        block.fold()
        return block


def initialise(module: nn.Module) -> None:
    """Initialise all weights: He-normal convolutions (fan out, ReLU), norms at 1 and 0, biases at 0.

    A layer that `starts_at_zero` does: the block of a self-attention or a context starts as its shortcut. On the meta device
    there is nothing to fill, and PyTorch would be slow at that.
    """
    if all(parameter.is_meta for parameter in module.parameters()):
        return
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            nn.init.ones_(child.weight)
            nn.init.zeros_(child.bias)
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            nn.init.normal_(child.weight, 0, math.sqrt(2) / math.sqrt(child.weight[:, 0].numel() // child.groups))
            if child.bias is not None:
                nn.init.zeros_(child.bias)
            if isinstance(child, ConvNorm) and child.layer.starts_at_zero:
                nn.init.zeros_(child.weight if child.norm is None else child.norm.weight)

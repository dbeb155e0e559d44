"""Train depthwise convolutions on CPUs with faster gradients than PyTorch's own (`python -m benchmarks.depthwise` times both).

oneDNN has fast kernels for a depthwise convolution itself and for the weights' gradient of a 3x3, in bfloat16 and channels-last,
but not for strided gradients and those of larger kernels. Both are put down to the fast ones:

1. the input's gradient is a depthwise convolution, at stride 1, of the output's gradient (with zeros between its pixels where
   the stride is 2) with the flipped kernel;
2. the weights' gradient of a k x k is that of some 3x3, each of a shifted input, which together cover the kernel.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class _Depthwise(torch.autograd.Function):
    """Convolve x (N, C, H, W), padded already, with weight (C, 1, k, k) at a stride."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return F.conv2d(x, weight, None, stride, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        inputs = _input_gradient(gradient, x, weight, ctx.stride) if ctx.needs_input_grad[0] else None
        weights = _weight_gradient(gradient, x, weight, ctx.stride) if ctx.needs_input_grad[1] else None
        return inputs, weights, None


def fits(x: Tensor, weight: Tensor) -> bool:
    """Say whether a depthwise convolution is trained here in the way that is fast: on a CPU, and not while a graph is traced."""
    trained = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    return trained and x.device.type == "cpu" and weight.shape[2] >= 3 and not torch.compiler.is_compiling()


def depthwise(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Convolve x (N, C, H, W), padded already, with weight (C, 1, k, k), k odd and at least 3; autocast is heeded."""
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        x, weight = x.to(dtype), weight.to(dtype)
    y: Tensor = _Depthwise.apply(x.contiguous(memory_format=torch.channels_last), weight, stride)
    return y


def _input_gradient(gradient: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    channels, kernel = x.shape[1], weight.shape[2]
    if stride > 1:
        spread = gradient.new_zeros((x.shape[0], x.shape[2] - kernel + 1, x.shape[3] - kernel + 1, channels)).permute(0, 3, 1, 2)
        spread[:, :, ::stride, ::stride] = gradient
        gradient = spread
    return F.conv2d(gradient, weight.flip(2, 3), None, 1, kernel - 1, groups=channels)


def _weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    channels, kernel = x.shape[1], weight.shape[2]
    height, width = (stride * (length - 1) + 3 for length in gradient.shape[2:])
    result, part = torch.empty_like(weight), weight[:, :, :3, :3]
    for top in range(0, kernel - 2, 2):
        for left in range(0, kernel - 2, 2):
            window = x[:, :, top : top + height, left : left + width].contiguous(memory_format=torch.channels_last)
            result[:, :, top : top + 3, left : left + 3] = torch.ops.aten.convolution_backward(
                gradient, window, part, None, [stride] * 2, [0, 0], [1, 1], False, [0, 0], channels, [False, True, False]
            )[1]
    return result

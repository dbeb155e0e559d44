"""Fast gradients of depthwise convolutions are those of PyTorch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hyctas.nn.depthwise_gradients import depthwise, fits


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(16, 20), (15, 21)])
def test_gradients_are_exact(kernel: int, stride: int, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, *size, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, 1, kernel, kernel, generator=generator, dtype=torch.float64, requires_grad=True)
    ours, theirs = depthwise(x, weight, stride), F.conv2d(x, weight, None, stride, groups=8)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    gradient = torch.randn(theirs.shape, generator=generator, dtype=torch.float64)
    found, wanted = (torch.autograd.grad(y, (x, weight), gradient) for y in (ours, theirs))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_autocast_computes_in_bfloat16_and_leaves_fp32_gradients() -> None:
    x, weight = torch.randn(2, 8, 12, 12, requires_grad=True), torch.randn(8, 1, 5, 5, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = depthwise(x, weight, 2)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert x.grad is not None and x.grad.dtype == torch.float32
    assert weight.grad is not None and weight.grad.dtype == torch.float32


def test_only_training_on_a_cpu_takes_it() -> None:
    x, weight = torch.randn(1, 8, 8, 8), torch.randn(8, 1, 3, 3, requires_grad=True)
    assert fits(x, weight)
    with torch.no_grad():
        assert not fits(x, weight)
    assert not fits(x, weight.detach())

"""Check what self-attention is asked for, in words; works on symbolic shapes as well."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
AXES = (
    ("q and k", 0, 1, ((0, "batch B"), (1, "heads h"), (2, "channels d"))),
    ("k and v", 1, 2, ((0, "batch B"), (1, "heads h"), (3, "keys M"))),
)
"""Axes that have to be equal in two of (q, k, v)."""


def check(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Refuse tensors that do not fit together.

    Raises:
        ValueError: ranks other than 4, sizes that do not fit, no keys, no channels of q and k, or different devices.
        TypeError: not float16, bfloat16, float32 or float64; q and k of different dtypes.
    """
    tensors = (q, k, v)
    for name, tensor in zip("qkv", tensors, strict=True):
        if tensor.dim() != 4:
            raise ValueError(
                f"self_attention takes q (B, h, d, N), k (B, h, d, M), v (B, h, e, M), all of rank 4; {name} has rank "
                f"{tensor.dim()}: {_shapes(tensors)}. Reshape (B, C, H, W) to (B, heads, C // heads, H * W)."
            )
        if tensor.dtype not in DTYPES:
            raise TypeError(f"self_attention computes in float16, bfloat16, float32 or float64; {name} is {_name(tensor.dtype)}")
        if tensor.device != q.device:
            raise ValueError(f"self_attention needs all tensors on one device; q is on {q.device}, {name} on {tensor.device}")
    if q.dtype != k.dtype:
        raise TypeError(f"self_attention needs q and k of one dtype (v may have another); got {_name(q.dtype)}, {_name(k.dtype)}")
    shapes = (q.shape, k.shape, v.shape)
    for names, one, other, axes in AXES:
        first, second = shapes[one], shapes[other]
        for axis, letter in axes:
            equal = first[axis] == second[axis]
            if equal is not True:  # false, or not known before run time
                _require(equal, f"{names} must not differ in {letter}", tensors)
    _require(shapes[1][3] >= 1, "there must be at least one key", tensors)
    _require(shapes[0][2] >= 1, "q and k must have at least one channel", tensors)


def _require(condition: bool | torch.SymBool, rule: str, tensors: tuple[Tensor, ...]) -> None:
    if condition is not True:
        torch._check_value(condition, lambda: f"self_attention: {rule}; got {_shapes(tensors)}")


def _shapes(tensors: tuple[Tensor, ...]) -> str:
    shapes = ("(" + ", ".join(map(str, tensor.shape)) + ")" for tensor in tensors)
    return ", ".join(f"{name} {shape}" for name, shape in zip("qkv", shapes, strict=True))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

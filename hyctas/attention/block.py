"""Compute a SelfAttention block after its first convolution in one launch, for inference: `torch.ops.hyctas.attention_block`.

A separate operator that is substituted in networks that will not be trained any more (`hyctas.nn.fused`); it is in no checkpoint
and has no gradient. The mathematics is in `hyctas.attention.triton.kernel_block`.

Arguments: x (B, C, H, W); wq, wk (d, C) and wv (C, C) in x's dtype; bq (d), bv, norm_scale and norm_shift (C) of any floating
point dtype; scale: factor on the logits. Result: (B, C, H, W) in x's dtype, contiguous; empty where x is.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from hyctas.attention.arguments import DTYPES
from hyctas.attention.op import LIBRARY

LIBRARY.define(
    "attention_block(Tensor x, Tensor wq, Tensor bq, Tensor wk, Tensor wv, Tensor bv, Tensor norm_scale, Tensor norm_shift, "
    "float scale=1.0) -> Tensor"
)


def check(x: Tensor, wq: Tensor, bq: Tensor, wk: Tensor, wv: Tensor, bv: Tensor, norm_scale: Tensor, norm_shift: Tensor) -> None:
    """Refuse tensors that do not fit together.

    Raises:
        ValueError: wrong ranks or sizes, no channels of q and k, different devices.
        TypeError: not float16, bfloat16, float32 or float64, or projections of another dtype than x.
    """
    if x.dim() != 4 or wq.dim() != 2:
        raise ValueError(f"attention_block takes x (B, C, H, W) and wq (d, C), got {tuple(x.shape)} and {tuple(wq.shape)}")
    c, d = x.shape[1], wq.shape[0]
    if d < 1:
        raise ValueError(f"attention_block needs at least one channel of q and k: wq is {tuple(wq.shape)}")
    wanted = {"x": (x, x.shape), "wq": (wq, (d, c)), "bq": (bq, (d,)), "wk": (wk, (d, c)), "wv": (wv, (c, c)), "bv": (bv, (c,))}
    wanted |= {"norm_scale": (norm_scale, (c,)), "norm_shift": (norm_shift, (c,))}
    for name, (tensor, shape) in wanted.items():
        if tuple(tensor.shape) != tuple(shape):
            raise ValueError(f"attention_block: {name} is {tuple(tensor.shape)}; for x of {c} channels it must be {tuple(shape)}")
        if tensor.dtype not in DTYPES:
            raise TypeError(f"attention_block computes in float16, bfloat16, float32 or float64; {name} is {tensor.dtype}")
        if name[0] == "w" and tensor.dtype != x.dtype:
            raise TypeError(f"attention_block: {name} is {tensor.dtype}, x is {x.dtype}; convert the module with `.to(x.dtype)`")
        if tensor.device != x.device:
            raise ValueError(f"attention_block needs all tensors on one device; x is on {x.device}, {name} on {tensor.device}")


def in_steps(
    x: Tensor, wq: Tensor, bq: Tensor, wk: Tensor, wv: Tensor, bv: Tensor,
    norm_scale: Tensor, norm_shift: Tensor, scale: float = 1.0,
) -> Tensor:  # fmt: skip
    """Compute the block from its parts: three projections, `hyctas::self_attention`, shortcut, norm, ReLU.

    What follows the attention is computed in fp32 at least.

    Raises:
        ValueError, TypeError: as `check`.
    """
    check(x, wq, bq, wk, wv, bv, norm_scale, norm_shift)
    if not x.numel():
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    flat = x.flatten(2).contiguous()  # (B, C, N)
    q = torch.matmul(wq, flat) + bq.to(x.dtype)[:, None]
    k, v = torch.matmul(wk, flat), torch.matmul(wv, flat) + bv.to(x.dtype)[:, None]
    o = torch.ops.hyctas.self_attention(q[:, None], k[:, None], v[:, None], scale)[0][:, 0]
    precise = torch.promote_types(x.dtype, torch.float32)
    y = norm_scale.to(precise)[:, None] * (flat.to(precise) + o) + norm_shift.to(precise)[:, None]
    return torch.relu(y).to(x.dtype).reshape(x.shape)


def _cuda(
    x: Tensor, wq: Tensor, bq: Tensor, wk: Tensor, wv: Tensor, bv: Tensor,
    norm_scale: Tensor, norm_shift: Tensor, scale: float = 1.0,
) -> Tensor:  # fmt: skip
    from hyctas.attention.dispatch import choose_block

    check(x, wq, bq, wk, wv, bv, norm_scale, norm_shift)
    choice = choose_block(x, wq.shape[0])
    if choice.implementation != "triton":
        return in_steps(x, wq, bq, wk, wv, bv, norm_scale, norm_shift, scale)
    from hyctas.attention.triton.launch import run_block

    assert choice.tiles is not None
    return run_block(x, wq, bq, wk, wv, bv, norm_scale, norm_shift, scale, choice.tiles["block"])


def _fake(
    x: Tensor, wq: Tensor, bq: Tensor, wk: Tensor, wv: Tensor, bv: Tensor,
    norm_scale: Tensor, norm_shift: Tensor, scale: float = 1.0,
) -> Tensor:  # fmt: skip
    check(x, wq, bq, wk, wv, bv, norm_scale, norm_shift)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _refuse(_ctx: object, _grad: Tensor) -> NoReturn:
    raise RuntimeError(
        "hyctas::attention_block is for inference and has no gradient; differentiate the network itself, not its `fused()` copy"
    )


def _autocast(device: str, key: torch._C.DispatchKey) -> Any:
    """Make the autocast rule of a device: x and the projections in the autocast dtype, the rest as it is; float64 stays."""

    def rule(
        x: Tensor, wq: Tensor, bq: Tensor, wk: Tensor, wv: Tensor, bv: Tensor,
        norm_scale: Tensor, norm_shift: Tensor, scale: float = 1.0,
    ) -> Tensor:  # fmt: skip
        if x.dtype != torch.float64:
            x, wq, wk, wv = (t.to(torch.get_autocast_dtype(device)) for t in (x, wq, wk, wv))
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            y: Tensor = torch.ops.hyctas.attention_block(x, wq, bq, wk, wv, bv, norm_scale, norm_shift, scale)
            return y

    return rule


LIBRARY.impl("attention_block", in_steps, "CPU")
LIBRARY.impl("attention_block", _cuda, "CUDA")
LIBRARY.impl("attention_block", _autocast("cpu", torch._C.DispatchKey.AutocastCPU), "AutocastCPU")
LIBRARY.impl("attention_block", _autocast("cuda", torch._C.DispatchKey.AutocastCUDA), "AutocastCUDA")
torch.library.register_fake("hyctas::attention_block", _fake, lib=LIBRARY)
torch.library.register_autograd("hyctas::attention_block", _refuse, lib=LIBRARY)

"""Define `torch.ops.hyctas.self_attention` and its backward: devices, fake tensors, autograd, autocast.

An opaque operator with a fixed schema: torch.compile and torch.export keep it as one node. Which implementation runs on a
device is decided in `hyctas.attention.dispatch`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from hyctas.attention import chunked
from hyctas.attention.arguments import check
from hyctas.attention.dispatch import IMPLEMENTATIONS, Problem, choose

LIBRARY = torch.library.Library("hyctas", "DEF")
LIBRARY.define("self_attention(Tensor q, Tensor k, Tensor v, float scale=1.0) -> (Tensor o, Tensor lse)")
LIBRARY.define(
    "self_attention_backward(Tensor grad_o, Tensor q, Tensor k, Tensor v, Tensor o, Tensor lse, float scale) "
    "-> (Tensor grad_q, Tensor grad_k, Tensor grad_v)"
)


def _forward_cpu(q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    check(q, k, v)
    return chunked.forward(q, k, v, scale)


def _backward_cpu(
    grad_o: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return chunked.backward(grad_o, q, k, v, o, lse, scale)


def _forward_cuda(q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    check(q, k, v)
    choice = choose(Problem.of(q, k, v), q.device)
    return IMPLEMENTATIONS[choice.implementation]().forward(q, k, v, scale, choice)


def _backward_cuda(
    grad_o: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    choice = choose(Problem.of(q, k, v), q.device, backward=True)
    return IMPLEMENTATIONS[choice.implementation]().backward(grad_o, q, k, v, o, lse, scale, choice)


def _empty(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    statistics = torch.float64 if torch.float64 in (q.dtype, v.dtype) else torch.float32
    o = v.new_empty(q.shape[0], q.shape[1], v.shape[2], q.shape[3])
    return o, q.new_empty(q.shape[0], q.shape[1], q.shape[3], dtype=statistics)


def _forward_fake(q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    check(q, k, v)
    return _empty(q, v)


def _backward_fake(
    grad_o: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, *output)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad_o: Tensor, _grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, o, lse = ctx.saved_tensors
    return (*torch.ops.hyctas.self_attention_backward(grad_o, q, k, v, o, lse, ctx.scale), None)


def _refuse(_ctx: object, *_grads: Tensor) -> NoReturn:
    raise RuntimeError(
        "hyctas::self_attention has no second derivative (its weights are never kept); where you need one, compute with "
        "hyctas.attention.self_attention_graph, which is made of standard operators"
    )


def _autocast(device: str, key: torch._C.DispatchKey) -> Any:
    """Make the autocast rule of a device: v in the autocast dtype; q and k too on GPUs if they are fp32.

    On CPUs the logits are computed in fp32 anyway. Without gradients, fp16 is taken for q and k; see `fp16_qk_autocast`.
    """

    def rule(q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        dtype = torch.get_autocast_dtype(device)
        if v.dtype == torch.float32:
            v = v.to(dtype)
        if device == "cuda" and q.dtype == torch.float32:
            q, k = (t.to(dtype if torch.is_grad_enabled() else torch.float16) for t in (q, k))
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            result: tuple[Tensor, Tensor] = torch.ops.hyctas.self_attention(q, k, v, scale)
            return result

    return rule


LIBRARY.impl("self_attention", _forward_cpu, "CPU")
LIBRARY.impl("self_attention_backward", _backward_cpu, "CPU")
LIBRARY.impl("self_attention", _forward_cuda, "CUDA")
LIBRARY.impl("self_attention_backward", _backward_cuda, "CUDA")
torch.library.register_fake("hyctas::self_attention", _forward_fake, lib=LIBRARY)
torch.library.register_fake("hyctas::self_attention_backward", _backward_fake, lib=LIBRARY)
torch.library.register_autograd("hyctas::self_attention", _differentiate, setup_context=_setup_context, lib=LIBRARY)
torch.library.register_autograd("hyctas::self_attention_backward", _refuse, lib=LIBRARY)
LIBRARY.impl("self_attention", _autocast("cpu", torch._C.DispatchKey.AutocastCPU), "AutocastCPU")
LIBRARY.impl("self_attention", _autocast("cuda", torch._C.DispatchKey.AutocastCUDA), "AutocastCUDA")


@register_flop_formula(torch.ops.hyctas.self_attention)
def _flops(q: Sequence[int], k: Sequence[int], v: Sequence[int], *_args: Any, **_kwargs: Any) -> int:
    """Count the forward pass for `torch.utils.flop_counter`: logits and weighted sum, two per multiplication and addition."""
    return 2 * q[0] * q[1] * q[3] * k[3] * (q[2] + v[2])


@register_flop_formula(torch.ops.hyctas.self_attention_backward)
def _backward_flops(
    _grad_o: Sequence[int], q: Sequence[int], k: Sequence[int], v: Sequence[int], *_args: Any, **_kwargs: Any
) -> int:
    """Count the backward pass: logits again, gradients of weights and v, of q and k."""
    return 2 * q[0] * q[1] * q[3] * k[3] * (3 * q[2] + 2 * v[2])

"""Make what our kernels are compared with: the plain formula, and PyTorch's fused attention by each of its backends.

PyTorch's backends get what they like best: q, k, v already transposed to (B, 1, N, C) and contiguous, padded where they ask for it,
and nobody charges them for that. `drop_in` is what a network that keeps its feature maps channels-first would have to call.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu_suite.place import Place
from benchmarks.gpu_suite.records import LeftOut, describe
from hyctas.attention import sdpa

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
REHEARSAL_BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "math": SDPBackend.MATH}
"""What a CPU has; the formula in several steps is no rival on a GPU."""
DROP_IN = "efficient, copies from channels-first included"
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Rival:
    """Something to be timed."""

    call: Callable[[], object]
    note: str = ""
    """How its inputs were prepared."""


def naive(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend by the formula, channels-first: q (B, d, N), k (B, d, M), v (B, e, M)."""
    weights = torch.softmax(torch.bmm(q.transpose(1, 2), k), dim=2)  # (B, N, M)
    return torch.bmm(v, weights.transpose(1, 2))


def backends(place: Place) -> dict[str, SDPBackend]:
    """Return PyTorch's backends by name."""
    return REHEARSAL_BACKENDS if place.rehearsal else BACKENDS


def fused(backend: SDPBackend) -> Attend:
    """Return attention by one backend alone, on (B, 1, N, channels); it raises where the backend refuses."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, scale=1.0)

    return attend


def accepted(backend: SDPBackend, t: Tensors, *, training: bool) -> tuple[Tensor, Tensor, Tensor, str]:
    """Return q, k and v as a backend takes them, with as little padding as it allows, and how they were padded.

    Raises:
        LeftOut: the backend refuses all of them, with its reasons.
    """
    d, e = t["q"].shape[2], t["v"].shape[2]
    reasons = []
    for channels in dict.fromkeys((-(-d // 8) * 8, e)):
        if channels < d:
            continue
        q, k, v = (_positions_first(t[name], channels if name != "v" else e) for name in ("q", "k", "v"))

        def once(inputs: tuple[Tensor, ...] = (q, k, v)) -> None:
            output = fused(backend)(*(x.requires_grad_(training) for x in inputs))
            if training:
                torch.autograd.grad(output, inputs, torch.ones_like(output))

        if not (why := refusal(once)):
            return q, k, v, f"q and k padded from {d} to {channels} channels" if channels > d else ""
        reasons.append(f"with {channels} channels in q and k: {why}")
    raise LeftOut("; ".join(reasons))


def refusal(call: Callable[[], object]) -> str:
    """Return why PyTorch's fused attention refuses a call, which it tells in warnings; empty where it does not."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            call()
        except RuntimeError as error:
            told = "; ".join(dict.fromkeys(str(w.message).partition(" (Triggered")[0] for w in said))
            return f"{describe(error).partition(' (at ')[0][:160]} {told[:600]}".strip()
    return ""


def forward_rivals(t: Tensors, place: Place) -> tuple[dict[str, Rival], dict[str, str]]:
    """Return what computes a forward pass of t's q, k, v (1, 1, channels, positions), and the reasons of those that cannot."""
    q, k, v = (t[name][:, 0] for name in ("q", "k", "v"))
    found = {"naive": Rival(lambda: naive(q, k, v), "channels-first, the map of weights in memory")}
    refused = {}
    for name, backend in backends(place).items():
        try:
            *inputs, note = accepted(backend, t, training=False)
        except LeftOut as reason:
            refused[name] = str(reason)
            continue
        found[name] = Rival(partial(fused(backend), *inputs), note)
    if not place.rehearsal:
        call = partial(sdpa.forward, t["q"], t["k"], t["v"], 1.0)
        if why := refusal(call):
            return found, {**refused, "drop_in": why}
        found["drop_in"] = Rival(call, DROP_IN)
    return found, refused


def training_rivals(t: Tensors, place: Place) -> tuple[dict[str, Rival], dict[str, str]]:
    """Return what computes a forward and a backward pass, as `forward_rivals`."""
    plain = [t[name][:, 0].clone().requires_grad_() for name in ("q", "k", "v")]
    found = {"naive": Rival(lambda: _step(naive, plain, t["grad_o"][:, 0]), "channels-first, the map of weights in memory")}
    refused = {}
    for name, backend in backends(place).items():
        try:
            q, k, v, note = accepted(backend, t, training=True)
        except LeftOut as reason:
            refused[name] = str(reason)
            continue
        grad = _positions_first(t["grad_o"], t["grad_o"].shape[2])
        found[name] = Rival(partial(_step, fused(backend), [q, k, v], grad), note)
    if not place.rehearsal:
        if why := refusal(lambda: _drop_in_step(t)):
            return found, {**refused, "drop_in": why}
        q, k, v, (o, lse) = t["q"], t["k"], t["v"], sdpa.forward(t["q"], t["k"], t["v"], 1.0)
        found["drop_in"] = Rival(lambda: _drop_in_step(t), DROP_IN)
        found["drop_in_backward"] = Rival(lambda: sdpa.backward(t["grad_o"], q, k, v, o, lse, 1.0), "of drop_in")
    return found, refused


def block_rivals(t: Tensors, place: Place) -> tuple[dict[str, Rival], dict[str, str]]:
    """Return what computes a whole block from x (B, C, H, W): convolutions, attention, shortcut, norm, ReLU.

    PyTorch's backends get channels-last feature maps, of which q, k and v are views; q and k are padded by the convolution.
    """
    found = {"naive": Rival(lambda: _block(t, lambda q, k, v: naive(q.flatten(2), k.flatten(2), v.flatten(2)).view_as(v)))}
    refused = {}
    d, e = t["wq"].shape
    for name, backend in backends(place).items():
        for channels in dict.fromkeys((-(-d // 8) * 8, e)):
            last = {key: _padded(key, value, channels) for key, value in t.items()}
            call = partial(_block, last, _on_maps(fused(backend)))
            if why := refusal(call):
                refused[name] = f"with {channels} channels in q and k: {why}"
                continue
            refused.pop(name, None)
            found[name] = Rival(call, f"channels-last, q and k of {channels} channels")
            break
    return found, refused


def _block(t: Tensors, attend: Attend) -> Tensor:
    x, dtype = t["x"], t["x"].dtype
    q, k, v = (
        F.conv2d(x, t[weight][:, :, None, None], None if bias is None else t[bias].to(dtype))
        for weight, bias in (("wq", "bq"), ("wk", None), ("wv", "bv"))
    )
    y = x + attend(q, k, v)
    zeros, ones = torch.zeros_like(t["norm_scale"]), torch.ones_like(t["norm_scale"])
    return F.relu(F.batch_norm(y, zeros, ones, t["norm_scale"], t["norm_shift"], eps=0.0))


def _on_maps(attend: Attend) -> Attend:
    def on_maps(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = (x.flatten(2).transpose(1, 2)[:, None] for x in (q, k, v))  # (B, 1, N, channels), views of channels-last maps
        return attend(*rows)[:, 0].transpose(1, 2).reshape(v.shape)

    return on_maps


def _padded(name: str, tensor: Tensor, channels: int) -> Tensor:
    """Return x channels-last, and the projections to q and k with rows of zeros."""
    if name == "x":
        return tensor.contiguous(memory_format=torch.channels_last)
    missing = channels - tensor.shape[0]
    if name in ("wq", "wk", "bq") and missing > 0:
        return F.pad(tensor, (0, 0, 0, missing) if tensor.dim() == 2 else (0, missing))
    return tensor


def _step(attend: Attend, inputs: list[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(attend(*inputs), inputs, grad)


def _drop_in_step(t: Tensors) -> tuple[Tensor, ...]:
    q, k, v = t["q"], t["k"], t["v"]
    o, lse = sdpa.forward(q, k, v, 1.0)
    return sdpa.backward(t["grad_o"], q, k, v, o, lse, 1.0)


def _positions_first(x: Tensor, channels: int) -> Tensor:
    """Turn x (B, h, c, N) into contiguous (B, h, N, channels), with zeros in what c lacks."""
    return F.pad(x.transpose(2, 3), (0, channels - x.shape[2])).contiguous().detach()

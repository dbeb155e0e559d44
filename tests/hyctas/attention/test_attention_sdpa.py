"""The fallback on PyTorch's memory-efficient kernel, without a GPU.

Its calls are checked against the installed torch's operators on meta tensors (a CPU build pads no fake CUDA tensors); padding,
transposing and the log-sum-exp against a float64 stand-in that demands of its arguments what the kernel does.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hyctas.attention import chunked, sdpa

SHAPES = [(1, 1, 8, 64, 64, 64), (2, 3, 5, 13, 33, 7), (1, 2, 4, 32, 1, 40), (1, 1, 12, 96, 31, 32)]
"""(B, h, d, e, N, M): aligned, nothing aligned, one query, one short of a full row of statistics."""


def tensors(b: int, h: int, d: int, e: int, n: int, m: int, qk: torch.dtype, v: torch.dtype, device: str = "cpu") -> list[Tensor]:
    shapes = ((b, h, d, n), (b, h, d, m), (b, h, e, m))
    return [torch.randn(shape, device=device).to(dtype) for shape, dtype in zip(shapes, (qk, qk, v), strict=True)]


def demand(*given: Tensor) -> None:
    """Check what the kernel asks of q, k, v and what comes with them: one dtype, channels last and a multiple of 8."""
    assert len({t.dtype for t in given}) == 1 and all(t.is_contiguous() and t.shape[3] % 8 == 0 for t in given)


def forward(
    query: Tensor, key: Tensor, value: Tensor, attn_bias: None, compute_log_sumexp: bool, dropout_p: float, is_causal: bool,
    *, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Stand in for the kernel: o in its strides, statistics padded to 32 queries with +inf."""
    demand(query, key, value)
    assert attn_bias is None and compute_log_sumexp and not dropout_p and not is_causal
    logits = scale * query.double() @ key.double().transpose(2, 3)
    o = (logits.softmax(3) @ value.double()).to(query.dtype)
    lse = torch.nn.functional.pad(logits.logsumexp(3), (0, -query.shape[2] % 32), value=math.inf).float()
    return o.transpose(1, 2).contiguous().transpose(1, 2), lse, torch.zeros(()), torch.zeros(())


def backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, attn_bias: None, out: Tensor, logsumexp: Tensor,
    philox_seed: Tensor, philox_offset: Tensor, dropout_p: float, grad_input_mask: list[bool], is_causal: bool, *, scale: float,
) -> tuple[Tensor, Tensor, Tensor, None]:  # fmt: skip
    """Stand in for the kernel: the weights come from the statistics that are passed."""
    demand(grad_out, query, key, value, out)
    assert attn_bias is None and not dropout_p and not is_causal and grad_input_mask == [True, True, True, False]
    assert logsumexp.shape[2] % 32 == 0 and logsumexp.is_contiguous() and (logsumexp[..., query.shape[2] :] == math.inf).all()
    g, q, k, v, o = (t.double() for t in (grad_out, query, key, value, out))
    weights = (scale * q @ k.transpose(2, 3) - logsumexp[..., : q.shape[2], None].double()).exp()
    inner = weights * (g @ v.transpose(2, 3) - (g * o).sum(3, keepdim=True)) * scale
    grads = inner @ k, inner.transpose(2, 3) @ q, weights.transpose(2, 3) @ g
    grad_q, grad_k, grad_v = (x.to(query.dtype).transpose(1, 2).contiguous().transpose(1, 2) for x in grads)
    return grad_q, grad_k, grad_v, None


@pytest.fixture
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdpa, "_FORWARD", forward)
    monkeypatch.setattr(sdpa, "_BACKWARD", backward)


DTYPES = [
    (torch.float32, torch.float32, 1e-5), (torch.float16, torch.float16, 2e-3), (torch.bfloat16, torch.bfloat16, 2e-2),
    (torch.float16, torch.bfloat16, 2e-2), (torch.float32, torch.float16, 2e-3),
]  # fmt: skip


@pytest.mark.usefixtures("_stand_in")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("qk", "v", "limit"), DTYPES)
def test_equals_the_plain_implementation(shape: tuple[int, ...], qk: torch.dtype, v: torch.dtype, limit: float) -> None:
    given = tensors(*shape, qk, v)
    o, lse = sdpa.forward(*given, 0.6)
    expected, statistics = chunked.forward(*given, 0.6)
    grad = torch.randn(o.shape).to(v)
    found = sdpa.backward(grad, *given, o, lse, 0.6)
    wanted = chunked.backward(grad, *given, expected, statistics, 0.6)
    for f, w in zip((o, lse, *found), (expected, statistics, *wanted), strict=True):
        assert (f.shape, f.dtype, f.is_contiguous()) == (w.shape, w.dtype, True)
        assert float((f.double() - w.double()).norm()) <= limit * max(1e-3, float(w.double().norm()))


@pytest.mark.usefixtures("_stand_in")
def test_logits_are_not_computed_in_bfloat16_for_bfloat16_values() -> None:
    """fp16 queries keep their 11 bits: the error is that of v's dtype in the output alone."""
    q, k, v = tensors(1, 1, 8, 16, 40, 40, torch.float16, torch.bfloat16)
    q, v = q * 4, torch.ones_like(v)
    lse = sdpa.forward(q, k, v, 1.0)[1]
    torch.testing.assert_close(lse, chunked.forward(q.float(), k.float(), v.float(), 1.0)[1], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_installed_torch_takes_the_calls(shape: tuple[int, ...]) -> None:
    """Argument names, types and result shapes of this torch's own operators."""
    q, k, v = tensors(*shape, torch.float16, torch.float16, "meta")
    o, lse = sdpa.forward(q, k, v, 0.5)
    grads = sdpa.backward(torch.ones_like(o), q, k, v, o, lse, 0.5)
    b, h, _, e, n, _ = shape
    assert (o.shape, lse.shape, o.dtype, lse.dtype) == ((b, h, e, n), (b, h, n), torch.float16, torch.float32)
    for grad, tensor in zip(grads, (q, k, v), strict=True):
        assert (grad.shape, grad.dtype, grad.is_contiguous()) == (tensor.shape, tensor.dtype, True)


def test_schemas() -> None:
    """The order of what is passed by position."""
    schemas = [operator.default._schema for operator in (sdpa._FORWARD, sdpa._BACKWARD)]
    forward_names, backward_names = ([argument.name for argument in schema.arguments] for schema in schemas)
    assert forward_names == "query key value attn_bias compute_log_sumexp dropout_p is_causal scale".split()
    assert backward_names == (
        "grad_out_ query key value attn_bias out logsumexp philox_seed philox_offset dropout_p "
        "grad_input_mask is_causal scale".split()
    )

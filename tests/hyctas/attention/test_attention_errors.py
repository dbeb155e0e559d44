"""What the operators refuse, and what they return at the edges: empty tensors, one position, numbers that are not finite.

Every refusal is tested on tensors and on fake tensors, as torch.compile and torch.export see it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from hyctas.attention import chunked, explain, self_attention

OP = torch.ops.hyctas.self_attention.default
BLOCK = torch.ops.hyctas.attention_block.default

Change = Callable[[list[Tensor]], None]


def tensors(b: int = 2, h: int = 2, d: int = 3, e: int = 5, n: int = 7, m: int = 6) -> list[Tensor]:
    return [torch.randn(b, h, d, n), torch.randn(b, h, d, m), torch.randn(b, h, e, m)]


def put(index: int, tensor: Tensor) -> Change:
    """Return a function that replaces one of q, k and v."""
    return lambda given: given.__setitem__(index, tensor)


def cast(index: int, dtype: torch.dtype) -> Change:
    return lambda given: given.__setitem__(index, given[index].to(dtype))


REFUSED: dict[str, tuple[Change, type[Exception], str]] = {
    "q of rank 3": (put(0, torch.zeros(2, 3, 7)), ValueError, r"q has rank 3: q \(2, 3, 7\), k .*Reshape"),
    "k of rank 5": (put(1, torch.zeros(1, 2, 2, 3, 6)), ValueError, "k has rank 5"),
    "v a number": (put(2, torch.zeros(())), ValueError, "v has rank 0"),
    "another batch of k": (put(1, torch.zeros(1, 2, 3, 6)), ValueError, r"q and k must not differ in batch B; .*k \(1, 2, 3, 6\)"),
    "other heads of k": (put(1, torch.zeros(2, 1, 3, 6)), ValueError, "q and k must not differ in heads h"),
    "other channels of k": (put(1, torch.zeros(2, 2, 4, 6)), ValueError, "q and k must not differ in channels d"),
    "another batch of v": (put(2, torch.zeros(1, 2, 5, 6)), ValueError, "k and v must not differ in batch B"),
    "other heads of v": (put(2, torch.zeros(2, 1, 5, 6)), ValueError, "k and v must not differ in heads h"),
    "fewer keys in v": (put(2, torch.zeros(2, 2, 5, 5)), ValueError, "k and v must not differ in keys M"),
    "integers": (cast(0, torch.int64), TypeError, "q is int64"),
    "truth values": (cast(2, torch.bool), TypeError, "v is bool"),
    "complex numbers": (cast(1, torch.complex64), TypeError, "k is complex64"),
    "float8": (cast(2, torch.float8_e4m3fn), TypeError, "v is float8_e4m3fn"),
    "q and k of two dtypes": (cast(1, torch.float16), TypeError, "q and k of one dtype .* got float32, float16"),
    "v elsewhere": (put(2, torch.zeros(2, 2, 5, 6, device="meta")), ValueError, "one device; q is on cpu, v on meta"),
    "q elsewhere": (put(0, torch.zeros(2, 2, 3, 7, device="meta")), ValueError, "one device; q is on meta, k on cpu"),
    "no keys": (lambda given: given.__setitem__(slice(1, 3), [t[..., :0] for t in given[1:]]), ValueError, "at least one key"),
    "no channels": (lambda given: given.__setitem__(slice(2), [t[:, :, :0] for t in given[:2]]), ValueError, "one channel"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("call", [OP, self_attention, explain])
def test_refused(name: str, call: Callable[..., object]) -> None:
    change, kind, text = REFUSED[name]
    given = tensors()
    change(given)
    with pytest.raises(kind, match=text):
        call(*given)


@pytest.mark.parametrize("name", [name for name in REFUSED if "elsewhere" not in name])
def test_refused_before_anything_runs(name: str) -> None:
    change, kind, text = REFUSED[name]
    given = tensors()
    change(given)
    with FakeTensorMode() as mode, pytest.raises(kind, match=text):
        OP(*(mode.from_tensor(t) for t in given))


def test_meta_tensors_give_shapes() -> None:
    o, lse = OP(*(t.to("meta") for t in tensors()), 0.5)
    assert (o.shape, lse.shape, o.device.type) == ((2, 2, 5, 7), (2, 2, 7), "meta")


EMPTY = {
    "no batch": {"b": 0}, "no heads": {"h": 0}, "no queries": {"n": 0}, "no values": {"e": 0},
    "nothing at all": {"b": 0, "n": 0, "e": 0},
    "one query": {"n": 1}, "one key": {"m": 1}, "one of each": {"n": 1, "m": 1, "d": 1, "e": 1},
    "odd channels": {"d": 1, "e": 13},
}  # fmt: skip


@pytest.mark.parametrize("name", EMPTY)
def test_edges_are_defined(name: str) -> None:
    """Values, fake values and gradients: empty where the output is, and zero where it does not depend on an input."""
    q, k, v = (t.requires_grad_() for t in tensors(**EMPTY[name]))
    o, lse = OP(q, k, v, 0.5)
    logits = 0.5 * q.transpose(2, 3) @ k
    expected = v @ logits.softmax(3).transpose(2, 3)
    torch.testing.assert_close((o, lse), (expected, logits.logsumexp(3)))
    grads = torch.autograd.grad(o.square().sum(), (q, k, v))
    torch.testing.assert_close(grads, torch.autograd.grad(expected.square().sum(), (q, k, v)))
    assert all(g.isfinite().all() for g in grads)
    detached = [t.detach() for t in (q, k, v)]
    with FakeTensorMode() as mode:
        fake = OP(*(mode.from_tensor(t) for t in detached), 0.5)
    for real, made in zip((o, lse), fake, strict=True):
        assert (real.shape, real.stride(), real.dtype) == (made.shape, made.stride(), made.dtype)


@pytest.mark.parametrize("elements", [1 << 18, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_not_finite_numbers_do_what_softmax_does(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, elements: int) -> None:
    """A query with a logit of NaN or +inf, or with -inf alone, is NaN; the others are what they are without it."""
    monkeypatch.setattr(chunked, "CACHE_ELEMENTS", elements)
    q, k, v = tensors(1, 1, 3, 5, 9, 6)
    k[:, :, 0].abs_().add_(0.1)
    clean = OP(*(t.to(dtype) for t in (q, k, v)))[0]
    for channel, query, value in ((1, 2, math.nan), (0, 4, math.inf), (0, 5, -math.inf), (2, 7, math.inf)):
        q[0, 0, channel, query] = value
    o = OP(*(t.to(dtype) for t in (q, k, v)))[0]
    expected = v.double() @ (q.to(dtype).double().transpose(2, 3) @ k.to(dtype).double()).softmax(3).transpose(2, 3)
    assert torch.equal(o.isnan(), expected.isnan()) and o.isnan().any(2).sum() == 4
    rows = ~o.isnan().any(2)[0, 0]
    torch.testing.assert_close(o[..., rows], clean[..., rows], rtol=0, atol=0)


def test_keys_at_minus_infinity_count_for_nothing() -> None:
    q, k, v = tensors(1, 1, 3, 5, 9, 6)
    q[:, :, 0].abs_().add_(0.1)
    k[:, :, 0, 2:4] = -math.inf
    kept = [0, 1, 4, 5]
    torch.testing.assert_close(self_attention(q, k, v), self_attention(q, k[..., kept], v[..., kept]))


def test_logits_of_thousands_do_not_overflow() -> None:
    q, k, v = tensors(1, 1, 3, 5, 9, 6)
    q = (100 * q).requires_grad_()
    o = self_attention(q, 100 * k, v)
    o.sum().backward()
    assert o.isfinite().all() and q.grad is not None and q.grad.isfinite().all()


def block_arguments(c: int = 8, d: int = 2, size: tuple[int, int] = (3, 4), b: int = 2) -> dict[str, Tensor]:
    shapes = {"x": (b, c, *size), "wq": (d, c), "bq": (d,), "wk": (d, c), "wv": (c, c), "bv": (c,)}
    shapes |= {"norm_scale": (c,), "norm_shift": (c,)}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


BLOCK_REFUSED: dict[str, tuple[str, Tensor, type[Exception], str]] = {
    "x of rank 3": ("x", torch.zeros(8, 3, 4), ValueError, r"x \(B, C, H, W\) .* got \(8, 3, 4\)"),
    "a convolution's weight": ("wq", torch.zeros(2, 8, 1, 1), ValueError, r"wq \(d, C\)"),
    "other channels of x": ("x", torch.zeros(2, 7, 3, 4), ValueError, r"wq is \(2, 8\); for x of 7 channels it must be \(2, 7\)"),
    "no channels of q": ("wq", torch.zeros(0, 8), ValueError, "at least one channel of q and k"),
    "a bias too long": ("bq", torch.zeros(3), ValueError, r"bq is \(3,\)"),
    "a norm too short": ("norm_shift", torch.zeros(1), ValueError, r"norm_shift is \(1,\)"),
    "integers": ("x", torch.zeros(2, 8, 3, 4, dtype=torch.int32), TypeError, "x is torch.int32"),
    "an integer bias": ("bv", torch.zeros(8, dtype=torch.int64), TypeError, "bv is torch.int64"),
    "complex": ("norm_scale", torch.zeros(8, dtype=torch.complex64), TypeError, "norm_scale is torch.complex64"),
    "weights of another dtype": ("wv", torch.zeros(8, 8).half(), TypeError, "wv is torch.float16, x is torch.float32"),
}


@pytest.mark.parametrize("name", BLOCK_REFUSED)
def test_block_refuses(name: str) -> None:
    key, tensor, kind, text = BLOCK_REFUSED[name]
    given = block_arguments() | {key: tensor}
    with pytest.raises(kind, match=text):
        BLOCK(**given)
    with FakeTensorMode() as mode, pytest.raises(kind, match=text):
        BLOCK(**{name: mode.from_tensor(t) for name, t in given.items()})


def test_block_refuses_two_devices() -> None:
    with pytest.raises(ValueError, match="one device; x is on cpu, bv on meta"):
        BLOCK(**block_arguments() | {"bv": torch.zeros(8, device="meta")})


@pytest.mark.parametrize(("size", "batch"), list(product([(0, 4), (3, 0), (3, 4)], [0, 2])))
def test_block_of_nothing_is_nothing(size: tuple[int, int], batch: int) -> None:
    y = BLOCK(**block_arguments(size=size, b=batch))
    assert y.shape == (batch, 8, *size) and y.isfinite().all()


def test_block_has_no_gradient_and_says_so() -> None:
    given = block_arguments()
    y = BLOCK(**given | {"x": given["x"].requires_grad_()})
    with pytest.raises(RuntimeError, match="for inference and has no gradient"):
        y.sum().backward()

"""The operator on the CPU: values and gradients against float64, torch's own checks, compile, export, autocast, and memory."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import hyctas.attention
from hyctas.attention import chunked, op, self_attention

ROOT = Path(__file__).parents[3]
OP = torch.ops.hyctas.self_attention.default
BACKWARD = torch.ops.hyctas.self_attention_backward.default
LIMITS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}


def tensors(
    b: int = 2, h: int = 2, d: int = 3, e: int = 5, n: int = 7, m: int = 6,
    qk: torch.dtype = torch.float32, v: torch.dtype | None = None,
) -> list[Tensor]:  # fmt: skip
    """Draw q (b, h, d, n), k (b, h, d, m) and v (b, h, e, m)."""
    made = torch.randn(b, h, d, n), torch.randn(b, h, d, m), torch.randn(b, h, e, m)
    return [t.to(dtype) for t, dtype in zip(made, (qk, qk, v or qk), strict=True)]


def naive(q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0) -> Tensor:
    """Attend in float64, with the map in memory; differentiable."""
    return v.double() @ (scale * q.double().transpose(2, 3) @ k.double()).softmax(3).transpose(2, 3)


def error(found: Tensor, expected: Tensor) -> float:
    """Return the relative error in the Frobenius norm."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


@given(
    st.integers(1, 2), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 70), st.integers(1, 70),
    st.sampled_from([*LIMITS]), st.sampled_from([*LIMITS]),
    st.sampled_from([1.0, 0.3, -2.0, 0.0]), st.sampled_from([1, 100, 1 << 18]),
)  # fmt: skip
def test_values_and_gradients(
    b: int, h: int, d: int, e: int, n: int, m: int, qk: torch.dtype, value: torch.dtype, scale: float, elements: int
) -> None:
    q, k, v = (t.requires_grad_() for t in tensors(b, h, d, e, n, m, qk, value))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked, "CACHE_ELEMENTS", elements)
        o = self_attention(q, k, v, scale)
        grad = torch.randn(o.shape).to(o.dtype)
        found = torch.autograd.grad(o, (q, k, v), grad)
    expected = naive(q, k, v, scale)
    wanted = torch.autograd.grad(expected, (q, k, v), grad.double())
    assert o.dtype == value and o.is_contiguous() and error(o, expected) <= LIMITS[value]
    reach = max(LIMITS[qk], LIMITS[value])
    for tensor, f, w in zip((q, k, v), found, wanted, strict=True):
        assert f.dtype == tensor.dtype and f.shape == tensor.shape
        assert float((f.double() - w.double()).norm()) <= reach * max(1.0, float(w.double().norm()))


def test_second_result_is_the_log_sum_exp() -> None:
    q, k, v = tensors()
    expected = (0.3 * q.double().transpose(2, 3) @ k.double()).logsumexp(3)
    lse = OP(q, k, v, 0.3)[1]
    assert lse.dtype == torch.float32 and lse.shape == (2, 2, 7)
    torch.testing.assert_close(lse.double(), expected, rtol=0, atol=1e-6)
    assert OP(q.double(), k.double(), v.double())[1].dtype == torch.float64


def test_scaling_half_precision_queries_rounds_nothing() -> None:
    """The factor is applied in fp32: in fp16 these queries would overflow."""
    q, k, v = tensors()
    q, k, v = (q * 6e4 / q.abs().amax()).half(), (k * 1e-2).half(), v.half()
    assert error(self_attention(q, k, v, 4.0), naive(q, k, v, 4.0)) <= 1e-3


@pytest.mark.parametrize("elements", [1 << 18, 9])
def test_gradcheck(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    monkeypatch.setattr(chunked, "CACHE_ELEMENTS", elements)
    inputs = [t.double().requires_grad_() for t in tensors(1, 2, 2, 3, 4, 3)]
    assert torch.autograd.gradcheck(lambda q, k, v: self_attention(q, k, v, 0.7), inputs)


def layouts() -> dict[str, list[Tensor]]:
    """Return q, k and v in several layouts."""
    x = torch.randn(2, 24, 6, 5).to(memory_format=torch.channels_last)
    split = x.reshape(2, 2, 12, 30).split((3, 3, 6), dim=2)
    plain = tensors()
    return {
        "channels last": [t.contiguous(memory_format=torch.channels_last) for t in tensors()],
        "parts of one tensor": [*split],
        "transposed": [t.transpose(2, 3).contiguous().transpose(2, 3) for t in plain],
        "every other": [t[..., ::2] for t in tensors(n=8, m=12)],
        "expanded": [t[:1].expand(2, -1, -1, -1) for t in plain],
        "half with bfloat16": tensors(qk=torch.float16, v=torch.bfloat16),
    }


@pytest.mark.parametrize("name", layouts())
def test_any_layout(name: str) -> None:
    q, k, v = layouts()[name]
    plain = [t.contiguous() for t in (q, k, v)]
    torch.testing.assert_close(OP(q, k, v, 0.5), OP(*plain, 0.5))
    leaves, copies = ([t.detach().requires_grad_() for t in group] for group in ((q, k, v), plain))
    grad = torch.randn(()).to(v.dtype)  # expands to the output's shape, with strides of 0
    found, expected = (torch.autograd.grad((OP(*group, 0.5)[0] * grad).sum(), group) for group in (leaves, copies))
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e)


@pytest.mark.parametrize("name", layouts())
def test_opcheck(name: str) -> None:
    q, k, v = (t.detach().requires_grad_() for t in layouts()[name])
    torch.library.opcheck(OP, (q, k, v))
    torch.library.opcheck(OP, (q.detach(), k.detach(), v, 0.5))
    o, lse = OP(q.detach(), k.detach(), v.detach(), 0.5)
    torch.library.opcheck(BACKWARD, (torch.ones_like(o), q.detach(), k.detach(), v.detach(), o, lse, 0.5))


class Attend(nn.Module):
    """Attend among the positions of x (B, C, H, W), as a network does."""

    def __init__(self, channels: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels, channels // 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k = (layer(x).reshape(b, self.heads, -1, h * w) for layer in (self.query, self.key))
        return self_attention(q, k, x.reshape(b, self.heads, -1, h * w), 0.5).reshape(b, c, h, w)


def test_compile_in_one_graph_for_all_sizes() -> None:
    torch._dynamo.reset()
    module = Attend()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
    for size in ((4, 5), (7, 3), (8, 8)):
        results = []
        for function in (module, compiled):
            x = torch.linspace(-1, 1, 2 * 16 * math.prod(size)).reshape(2, 16, *size).requires_grad_()
            y = function(x)
            y.square().sum().backward()
            assert x.grad is not None
            results.append((y.detach(), x.grad))
        torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's own
def test_compile_with_inductor() -> None:
    """Forward alone and without other operators, for which inductor would call a C++ compiler."""
    torch._dynamo.reset()

    def attend(x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        flat = x.reshape(b, 2, c // 2, h * w)
        return self_attention(flat, flat, flat, 0.5).reshape(x.shape)

    compiled = torch.compile(attend, backend="inductor", fullgraph=True, dynamic=True)
    for size in ((4, 5), (7, 3)):
        x = torch.randn(1, 16, *size)
        torch.testing.assert_close(compiled(x), attend(x))


def test_export_with_any_size_keeps_one_node() -> None:
    module, x = Attend().eval(), torch.randn(1, 16, 6, 7)
    dynamic = {"x": {2: torch.export.Dim("h", min=2, max=64), 3: torch.export.Dim("w", min=2, max=64)}}
    program = torch.export.export(module, (x,), dynamic_shapes=dynamic)
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert targets.count(OP) == 1
    assert not any("softmax" in str(target) or "exp" in str(target).split(".")[-2:] for target in targets)
    other = torch.randn(1, 16, 9, 4)
    torch.testing.assert_close(program.module()(other), module(other))


def test_a_chunk_of_an_exported_graph_equals_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype, elements in ((torch.float32, 1 << 22), (torch.float64, 2 * 6 * 3), (torch.bfloat16, 1)):
        monkeypatch.setattr(chunked, "GRAPH_ELEMENTS", elements)
        q, k, v = tensors(qk=dtype)
        o, lse = hyctas.attention.self_attention_graph(q, k, v, 0.4)
        expected = OP(q, k, v, 0.4)
        assert o.dtype == v.dtype and error(o, expected[0]) <= 2 * LIMITS[dtype]
        assert lse.dtype == expected[1].dtype and error(lse, expected[1]) <= LIMITS[dtype]


def test_autocast() -> None:
    """On a CPU v is cast and the result with it; q and k stay in fp32, where logits are computed anyway."""
    q, k, v = (t.requires_grad_() for t in tensors())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        o, lse = OP(q, k, v, 0.5)
        kept = self_attention(q.double(), k.double(), v.double(), 0.5)
        half = self_attention(q, k, v.half(), 0.5)
    assert (o.dtype, lse.dtype, kept.dtype, half.dtype) == (torch.bfloat16, torch.float32, torch.float64, torch.float16)
    torch.testing.assert_close(o, self_attention(q, k, v.bfloat16(), 0.5), rtol=0, atol=0)
    o.float().sum().backward()
    assert [t.grad is not None and t.grad.dtype for t in (q, k, v)] == [torch.float32] * 3
    assert torch.ops.hyctas.self_attention(q, k, v)[0].dtype == torch.float32, "autocast has ended"


def test_autocast_in_a_compiled_graph() -> None:
    torch._dynamo.reset()
    q, k, v = tensors()

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self_attention(q, k, v, 0.5)

    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(q, k, v), attend(q, k, v), rtol=0, atol=0)


@pytest.mark.parametrize(("training", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_autocast_rule_of_gpus(monkeypatch: pytest.MonkeyPatch, training: bool, expected: torch.dtype) -> None:
    """On a GPU fp32 q and k become fp16 without gradients, for exact logits, and the autocast dtype with them."""
    seen: list[torch.dtype] = []
    real = chunked.forward
    monkeypatch.setattr(chunked, "forward", lambda *given: seen.extend(t.dtype for t in given[:3]) or real(*given))
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.bfloat16)
    rule = op._autocast("cuda", torch._C.DispatchKey.AutocastCUDA)
    with torch.set_grad_enabled(training):
        assert rule(*tensors(), 0.5)[0].dtype == torch.bfloat16
        assert rule(*(t.double() for t in tensors()))[0].dtype == torch.float64
        rule(*tensors(qk=torch.float16))
    half, double, b16 = torch.float16, torch.float64, torch.bfloat16
    assert seen == [expected, expected, b16, double, double, double, half, half, half]


@pytest.mark.filterwarnings("ignore:.*CUDA is not available:UserWarning")
def test_exact_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Projections compute in fp16 under bfloat16 autocast on a GPU without gradients, and are left alone otherwise."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.bfloat16)
    cuda = torch.device("cuda")
    with torch.no_grad():
        changed = hyctas.attention.fp16_qk_autocast(cuda)
        assert isinstance(changed, torch.autocast) and (changed.device, changed.fast_dtype) == ("cuda", torch.float16)
        assert isinstance(hyctas.attention.fp16_qk_autocast(torch.device("cpu")), nullcontext)
        monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.float16)
        assert isinstance(hyctas.attention.fp16_qk_autocast(cuda), nullcontext)
        monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.bfloat16)
    assert isinstance(hyctas.attention.fp16_qk_autocast(cuda), nullcontext), "fp16 gradients would underflow"


def test_second_derivatives_are_refused_in_words() -> None:
    inputs = [t.requires_grad_() for t in tensors()]
    grads = torch.autograd.grad(self_attention(*inputs).sum(), inputs, create_graph=True)
    assert error(grads[0], torch.autograd.grad(naive(*inputs).sum(), inputs[0])[0]) <= 1e-5
    with pytest.raises(RuntimeError, match=r"no second derivative.*self_attention_graph"):
        torch.autograd.grad(sum(g.square().sum() for g in grads), inputs)
    o = hyctas.attention.self_attention_graph(*inputs)[0]
    first = torch.autograd.grad(o.square().sum(), inputs, create_graph=True)
    assert all(g.isfinite().all() for g in torch.autograd.grad(sum(g.square().sum() for g in first), inputs))


MEMORY = """
import json, sys, torch
from hyctas.attention import self_attention
torch.set_num_threads(2)
def kib(name): return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))
def tensors(n): return [torch.randn(1, 1, c, n, requires_grad=sys.argv[1] == "backward") for c in (8, 8, 64)]
o = self_attention(*tensors(512))
if sys.argv[1] == "backward": o.sum().backward()
inputs = tensors(8192)
before = kib("VmRSS")
o = self_attention(*inputs)
if sys.argv[1] == "backward": o.sum().backward()
print(json.dumps([before, kib("VmHWM")]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize(("direction", "limit_mib"), [("forward", 60), ("backward", 60)])
def test_memory_is_bounded(direction: str, limit_mib: int) -> None:
    """With 8192 positions and 64 channels, output and gradients included; the map alone would take 256 MiB."""
    done = subprocess.run([sys.executable, "-c", MEMORY, direction], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    before, peak = json.loads(done.stdout)
    assert (peak - before) / 1024 <= limit_mib

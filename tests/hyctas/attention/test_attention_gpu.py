"""The operators inside PyTorch on a GPU: its own checks of them, gradients under autocast and torch.compile, a CUDA graph."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from export.backends.torch_session import TorchRuntime
from export.target import Target
from hyctas.attention import self_attention
from hyctas.network import Native, build
from hyctas.space import tiny

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("default"),  # inductor's own
]  # fmt: skip


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, device=DEVICE)


def test_opcheck() -> None:
    q, k, v = (draw(1, 2, c, 40).requires_grad_() for c in (8, 8, 32))
    torch.library.opcheck(torch.ops.hyctas.self_attention.default, (q, k, v, 0.5))
    shapes = ((1, 32, 6, 7), (8, 32), (8,), (8, 32), (32, 32), (32,), (32,), (32,))
    block, tests = torch.ops.hyctas.attention_block.default, ("test_schema", "test_faketensor")  # it has no gradients
    torch.library.opcheck(block, (*(draw(*shape) for shape in shapes), 0.5), test_utils=tests)


@pytest.mark.parametrize(("how", "limit"), [("autocast", 3e-2), ("compile", 1e-5)])
def test_value_and_gradients(how: str, limit: float) -> None:
    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (self_attention(2 * q, k, v, 0.15) * v.cos()).float().square().mean()

    inputs = [draw(1, 1, c, 200).requires_grad_() for c in (8, 8, 64)]
    made = torch.compile(function, fullgraph=True) if how == "compile" else function
    with torch.autocast(DEVICE, torch.bfloat16, enabled=how == "autocast"):
        value = made(*inputs)
    both = [[result.detach(), *torch.autograd.grad(result, inputs)] for result in (value, function(*inputs))]
    for found, wanted in zip(*both, strict=True):
        assert float((found - wanted).norm()) <= limit * float(wanted.norm())


def test_a_network_in_a_cuda_graph() -> None:
    network = Native(build(tiny().largest(), 5).eval())
    for parameter in network.parameters():
        parameter.data = torch.randn_like(parameter) * 0.1 + (0.5 if parameter.dim() == 1 else 0.0)
    images = [np.random.default_rng(seed).standard_normal((1, 3, 256, 512), dtype=np.float32) for seed in (1, 2)]
    runtime = TorchRuntime(Target.parse(f"torch-{DEVICE}:fp16"))
    (session,) = runtime.load_modules([(network, (torch.from_numpy(images[0]),))])
    plain = network.to(DEVICE)
    with session, torch.inference_mode():
        for image in images:
            found, wanted = session.run({"x0": image})[0], plain(torch.from_numpy(image).to(DEVICE)).cpu().numpy()
            assert np.linalg.norm(found - wanted) <= 3e-2 * np.linalg.norm(wanted)

"""Check the operators inside PyTorch on the device: opcheck, torch.compile, autocast, a network in a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_suite.place import Place
from export.target import Target
from export.torch_session import TorchRuntime
from hyctas.attention import self_attention
from hyctas.network import Native, build
from hyctas.space import tiny

COMPILED_LIMIT = 1e-5
"""Relative: compiled and eager run the same kernel in fp32, but sum elsewhere in another order."""
NETWORK_LIMIT = {"fp16": 3e-2, "fp32": 1e-4}
"""Relative, of a network with fresh weights against eager fp32."""


def opcheck_attention(place: Place) -> dict[str, Any]:
    """Run PyTorch's own checks of an operator: schema, fake tensors, autograd, compiled autograd."""
    q, k, v = (_random(place, 1, 2, c, 40).requires_grad_() for c in (8, 8, 32))
    return _opcheck(torch.ops.hyctas.self_attention.default, (q, k, v, 0.5))


def opcheck_block(place: Place) -> dict[str, Any]:
    """Run PyTorch's own checks of the block's operator, which has no gradients."""
    c, d = 32, 8
    vectors = [_random(place, size) for size in (d, c, c, c)]
    wq, wk, wv = _random(place, d, c), _random(place, d, c), _random(place, c, c)
    arguments = (_random(place, 1, c, 6, 7), wq, vectors[0], wk, wv, *vectors[1:], 0.5)
    return _opcheck(torch.ops.hyctas.attention_block.default, arguments, ("test_schema", "test_faketensor"))


def _opcheck(operator: Any, arguments: tuple[object, ...], tests: tuple[str, ...] | None = None) -> dict[str, Any]:
    given: dict[str, Any] = {} if tests is None else {"test_utils": tests}
    found = torch.library.opcheck(operator, arguments, raise_exception=False, **given)
    wrong = [f"{name}: {' '.join(str(result).split())[:300]}" for name, result in found.items() if result != "SUCCESS"]
    return {"state": "failed" if wrong else "ok", "why": wrong, "results": {name: str(r)[:300] for name, r in found.items()}}


def compiled(place: Place) -> dict[str, Any]:
    """Compile a function around the operator in one graph; compare value and gradients with eager mode."""

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (self_attention(2 * q, k, v, 0.5) * v.cos()).square().mean()

    inputs = [_random(place, 1, 1, c, 200).requires_grad_() for c in (8, 8, 64)]
    made = torch.compile(function, fullgraph=True, backend="aot_eager" if place.rehearsal else "inductor")
    values = [call(*inputs) for call in (made, function)]
    both = [[value.detach(), *torch.autograd.grad(value, inputs)] for value in values]
    names = ("value", "grad_q", "grad_k", "grad_v")
    errors = {name: float((a - b).norm() / b.norm()) for name, a, b in zip(names, *both, strict=True)}
    return _judged(errors, COMPILED_LIMIT)


def captured(place: Place) -> dict[str, Any]:
    """Run a network with self-attention as the torch target does, in a CUDA graph; compare with eager fp32, on two images."""
    genotype = tiny().largest()
    network = Native(build(genotype, 5).eval())
    for parameter in network.parameters():
        parameter.data = torch.randn_like(parameter) * 0.1 + (0.5 if parameter.dim() == 1 else 0.0)
    size, precision = ((64, 96), "fp32") if place.rehearsal else ((256, 512), "fp16")
    images = [np.random.default_rng(seed).standard_normal((1, 3, *size), dtype=np.float32) for seed in (1, 2)]
    runtime = TorchRuntime(Target.parse(f"torch-{place.kind}:{precision}"))
    (session,) = runtime.load_modules([(network, (torch.from_numpy(images[0]),))])
    plain = network.to(place.device)
    errors = {}
    with session, torch.inference_mode():
        for number, image in enumerate(images):
            found = session.run({"x0": image})[0]
            wanted = plain(torch.from_numpy(image).to(place.device)).cpu().numpy()
            errors[f"image {number}"] = float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
    return _judged(errors, NETWORK_LIMIT[precision])


def autocast(place: Place) -> dict[str, Any]:
    """Compare the operator under autocast, in bfloat16 with gradients, with the same in fp32."""
    inputs = [_random(place, 1, 1, c, 200).requires_grad_() for c in (8, 8, 64)]
    results = []
    for enabled in (True, False):
        with torch.autocast(place.kind, torch.bfloat16, enabled=enabled):
            o = self_attention(inputs[0], inputs[1], inputs[2], 0.3)
        results.append([o.detach().float(), *torch.autograd.grad(o.float().square().sum(), inputs)])
    names = ("o", "grad_q", "grad_k", "grad_v")
    errors = {name: float((a - b).norm() / b.norm()) for name, a, b in zip(names, *results, strict=True)}
    return _judged(errors, 3e-2)


def _judged(errors: dict[str, float], limit: float) -> dict[str, Any]:
    wrong = [f"{name}: {error:.2e} where {limit:.0e} is allowed" for name, error in errors.items() if not error <= limit]
    return {"state": "failed" if wrong else "ok", "why": wrong, "errors": errors, "limits": dict.fromkeys(errors, limit)}


def _random(place: Place, *shape: int) -> Tensor:
    return torch.randn(*shape, device=place.device)


CHECKS: dict[str, Callable[[Place], dict[str, Any]]] = {
    "opcheck self_attention": opcheck_attention,
    "opcheck attention_block": opcheck_block,
    "network in a CUDA graph": captured,
    "autocast to bfloat16": autocast,
}
SLOW_CHECKS: dict[str, Callable[[Place], dict[str, Any]]] = {"torch.compile, forward and backward": compiled}

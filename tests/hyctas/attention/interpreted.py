"""Run every Triton kernel of the attention in Triton's interpreter, on the CPU, and print errors against float64 as JSON.

A script: the interpreter has to be chosen (`TRITON_INTERPRET=1`) before the kernels are imported. What the launcher allocates is
filled with NaN and stands between guards, so that an element that is never written, or a write outside, shows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hyctas.attention.triton import launch
from hyctas.attention.triton.tiles import Tile

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
DTYPES = (F32, F16, BF16)
SMALL, WIDE = Tile(32, 32, 64, 4, 1, 1), Tile(64, 64, 64, 4, 1, 1)
GUARD, GUARD_VALUE = 64, 1234.0

Result = dict[str, Any]
_guarded: list[Tensor] = []


def poisoned(allocate: Callable[..., Tensor], fill: float = math.nan) -> Callable[..., Tensor]:
    """Make an allocating function return NaN (or `fill`), with guards before and after."""

    def guarded(*args: Any, **kwargs: Any) -> Tensor:
        plain = allocate(*args, **kwargs)
        if not plain.numel():
            return plain  # the interpreter makes such, for views
        if not plain.is_floating_point() or not plain.is_contiguous():
            raise AssertionError("the launcher allocates contiguous floating point tensors only")
        whole = torch.full((plain.numel() + 2 * GUARD,), GUARD_VALUE, dtype=plain.dtype)
        _guarded.append(whole)
        return whole[GUARD:-GUARD].fill_(fill).view(plain.shape)

    return guarded


def trespassed() -> bool:
    """Return whether a guard was written to since the last call."""
    value = [whole.new_tensor(GUARD_VALUE) for whole in _guarded]
    hit = any((w[:GUARD] != x).any() or (w[-GUARD:] != x).any() for w, x in zip(_guarded, value, strict=True))
    _guarded.clear()
    return hit


def error(found: Tensor, expected: Tensor) -> float:
    """Return the relative error in the Frobenius norm; infinite where anything is not finite."""
    difference = float((found.double() - expected).norm() / expected.norm())
    return difference if math.isfinite(difference) else math.inf


def draw(seed: int, sizes: Sequence[int], dtypes: Sequence[torch.dtype], std: float, scale: float) -> list[Tensor]:
    """Draw q, k, v and grad_o for (B, h, d, e, N, M); logits have the given standard deviation after scaling."""
    b, h, d, e, n, m = sizes
    generator = torch.Generator().manual_seed(seed)
    qk, value = dtypes
    q = torch.randn(b, h, d, n, generator=generator) * (std / (abs(scale) * math.sqrt(d)))
    k, v = torch.randn(b, h, d, m, generator=generator), torch.randn(b, h, e, m, generator=generator)
    return [q.to(qk), k.to(qk), v.to(value), torch.randn(b, h, e, n, generator=generator).to(value)]


def reference(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attend in float64, with the map in memory."""
    logits = scale * q.double().transpose(2, 3) @ k.double()
    return v.double() @ logits.softmax(3).transpose(2, 3), logits.logsumexp(3)


def forward(
    sizes: Sequence[int], dtypes: Sequence[torch.dtype], tile: Tile = SMALL, std: float = 1.0, scale: float = 1.0,
    change: Callable[[Tensor, Tensor, Tensor], None] = lambda q, k, v: None,
) -> Result:  # fmt: skip
    """Run the forward kernels on one case; `change` edits q, k and v first."""
    q, k, v, _ = draw(sum(sizes), sizes, dtypes, std, scale)
    change(q, k, v)
    o, lse = launch.run_forward(q, k, v, scale, tile)
    expected, expected_lse = reference(q, k, v, scale)
    rows = ~expected.isnan().any(2).any(1).any(0)  # queries that softmax gives numbers for
    return {
        "dtype": str(dtypes[1])[6:],
        "error": error(o[..., rows], expected[..., rows]),
        "lse_error": float((lse.double() - expected_lse)[..., rows].abs().max()),
        "nan_rows": int((~rows).sum()),
        "same_nan": torch.equal(o.isnan(), expected.isnan()),
        "trespassed": trespassed(),
    }


def backward(
    sizes: Sequence[int], dtypes: Sequence[torch.dtype], fixed: bool, tile: Tile = SMALL, scale: float = 1.0,
    change: Callable[[Tensor, Tensor, Tensor], None] = lambda q, k, v: None,
) -> Result:  # fmt: skip
    """Run the backward kernels on one case, from the forward kernels' own output; `change` edits q, k and v first."""
    q, k, v, grad = draw(sum(sizes), sizes, dtypes, 1.0, scale)
    change(q, k, v)
    o, lse = launch.run_forward(q, k, v, scale, tile)
    found = launch.run_backward(grad, q, k, v, o, lse, scale, dict.fromkeys(("grad_v", "grad_qk", "grad_q"), tile), fixed)
    leaves = [t.double().requires_grad_() for t in (q, k, v)]
    expected = torch.autograd.grad(reference(*leaves, scale)[0], leaves, grad.double())
    errors = {f"d{name}": error(f, e) for name, f, e in zip("qkv", found, expected, strict=True)}
    typed = all(f.dtype == t.dtype for f, t in zip(found, (q, k, v), strict=True))
    return {"dtype": str(dtypes[1])[6:], "error": max(errors.values()), **errors, "typed": typed, "trespassed": trespassed()}


def block(
    c: int, size: tuple[int, int], dtype: torch.dtype, project_k: bool, tile: Tile = SMALL, batch: int = 1, scale: float = 1.0
) -> Result:
    """Run the one-launch block on one case; biases and norm stay in fp32."""
    generator, d = torch.Generator().manual_seed(c), c // 8
    x = torch.relu(torch.randn(batch, c, *size, generator=generator)).to(dtype)
    shapes = {"wq": (d, c), "bq": (d,), "wk": (d, c), "wv": (c, c), "bv": (c,), "norm_scale": (c,), "norm_shift": (c,)}
    weights = {name: torch.randn(shape, generator=generator) / math.sqrt(c) for name, shape in shapes.items()}
    weights["norm_scale"] += 1.0
    given = {name: t.to(dtype) if name[0] == "w" else t for name, t in weights.items()}
    y = launch.run_block(x, **given, scale=scale, tile=tile, project_k=project_k)
    flat, w = x.double().flatten(2), {name: t.double() for name, t in given.items()}
    q, k, v = w["wq"] @ flat + w["bq"][:, None], w["wk"] @ flat, w["wv"] @ flat + w["bv"][:, None]
    o = reference(q[:, None], k[:, None], v[:, None], scale)[0][:, 0]
    expected = torch.relu(w["norm_scale"][:, None] * (flat + o) + w["norm_shift"][:, None]).view(x.shape)
    return {"dtype": str(dtype)[6:], "error": error(y, expected), "trespassed": trespassed()}


def same(dtype: torch.dtype) -> tuple[torch.dtype, torch.dtype]:
    """Return a dtype for q and k, and the same for v."""
    return dtype, dtype


def infinite_keys(low: int, high: int) -> Callable[[Tensor, Tensor, Tensor], None]:
    """Make the logits of the keys low..high -inf for all queries."""

    def change(q: Tensor, k: Tensor, v: Tensor) -> None:
        q[:, :, 0].abs_().clamp_(min=0.01)
        k[:, :, 0, low:high] = -math.inf

    return change


def negative(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Make all logits about -96, so that keys outside, with logits of 0, would have weights above fp32's range."""
    q[:, :, 0], k[:, :, 0] = 8.0, -12.0


def odd_queries(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Make three queries that softmax gives NaN for: of a NaN, of only -inf logits, of logits of which some are +inf."""
    k[:, :, 0].abs_().clamp_(min=0.01)
    q[:, :, 2, 7], q[:, :, 0, 40], q[:, :, 1, 64] = math.nan, -math.inf, math.inf


def forward_cases() -> Iterator[tuple[str, Result]]:
    """Yield the forward pass's results by name; in half precision those that are not about positions and channels alone."""
    for dtype in DTYPES:
        name, whole = str(dtype)[6:], dtype == F32
        for n in (1, 77, 250) if whole else (77,):
            yield f"{name} N {n}", forward((1, 1, 8, 64, n, n), same(dtype), WIDE)
        for n, m in ((200, 50), (1, 333), (130, 1)) if whole else ():
            yield f"{name} N {n} M {m}", forward((1, 1, 8, 64, n, m), same(dtype))
        for c, d in ((40, 5), (160, 20), (3, 1)) if whole else ((40, 5),):
            yield f"{name} C {c} d {d}", forward((1, 1, d, c, 77, 65), same(dtype))
        if whole:
            yield f"{name} C 512", forward((1, 1, 64, 512, 65, 65), same(dtype), Tile(64, 64, 256, 4, 1, 1))
            yield f"{name} heads", forward((2, 3, 5, 24, 65, 77), same(dtype))
        for splits in (2, 8) if whole else (8,):  # the last part of 250 keys is partly filled
            tile = Tile(32, 32, 64, 4, 1, splits)
            yield f"{name} splits {splits}", forward((1, 1, 8, 64, 33, 250), same(dtype), tile)
        tile = Tile(32, 32, 64, 4, 1, 3)
        yield f"{name} splits, all parts full, two channel blocks, batch", forward((2, 1, 8, 96, 33, 192), same(dtype), tile)
        yield f"{name} scale", forward((1, 1, 8, 64, 77, 65), same(dtype), scale=-1.5)
        yield f"{name} large logits", forward((1, 1, 8, 64, 130, 130), same(dtype), std=10.0)
    for qk, value in ((F16, BF16), (BF16, F16), (F32, F16), (F32, BF16), (F16, F32)):
        yield f"{qk} with {value}", forward((1, 1, 8, 40, 40, 90), (qk, value), Tile(32, 32, 64, 4, 1, 2))


def odd_cases() -> Iterator[tuple[str, Result]]:
    """Yield the forward pass's results where numbers are not finite."""
    for dtype in DTYPES:
        for splits in (1, 3) if dtype == F32 else (3,):
            tile, name = Tile(32, 32, 64, 4, 1, splits), f"{str(dtype)[6:]} splits {splits}"
            m = 96 if splits == 1 else 90
            sizes = (1, 1, 8, 64, 77, m)
            yield f"{name}: first tile -inf", forward(sizes, same(dtype), tile, change=infinite_keys(0, 32))
            yield f"{name}: all but the last key -inf", forward(sizes, same(dtype), tile, change=infinite_keys(0, m - 1))
            yield f"{name}: last tile -inf", forward(sizes, same(dtype), tile, change=infinite_keys(60, m))
            yield f"{name}: queries", forward(sizes, same(dtype), tile, change=odd_queries)


def backward_cases() -> Iterator[tuple[str, Result]]:
    """Yield the backward pass's results by name."""
    shapes = (
        (1, 1, 8, 64, 77, 50), (2, 2, 5, 24, 33, 40), (1, 1, 20, 160, 65, 64), (1, 1, 8, 64, 1, 40), (1, 1, 1, 3, 40, 20),
    )  # fmt: skip
    for dtype in DTYPES:
        for fixed in (False, True):
            for sizes in shapes[:1] if dtype != F32 else shapes[1:3] if fixed else shapes:
                yield f"{str(dtype)[6:]} {sizes} {'fixed' if fixed else 'atomic'}", backward(sizes, same(dtype), fixed)
    for fixed in (False, True):
        yield f"scale, wide tile, {fixed}", backward((1, 1, 8, 64, 77, 65), same(F32), fixed, Tile(64, 32, 32, 4, 1), scale=0.3)
        yield f"far from 0, {fixed}", backward((1, 1, 8, 64, 40, 50), same(F32), fixed, change=negative)
        yield f"fp16 with bf16, {fixed}", backward((1, 1, 8, 64, 77, 65), (F16, BF16), fixed)


def block_cases() -> Iterator[tuple[str, Result]]:
    """Yield the one-launch block's results by name."""
    for dtype in DTYPES:
        for project_k in (True, False):
            name = f"{str(dtype)[6:]} {'k inside' if project_k else 'k given'}"
            for c in (48, 128) if dtype == F32 else (48,):
                yield f"{name} C {c}", block(c, (5, 13), dtype, project_k)
            yield f"{name} batch, scale", block(40, (5, 13), dtype, project_k, WIDE, 2, 0.5)
            if dtype == F32:
                yield f"{name} even", block(64, (4, 16), dtype, project_k)
                yield f"{name} one position", block(64, (1, 1), dtype, project_k)


def main() -> None:
    """Print {group: {case: result}}, or {"unavailable": why}."""
    torch.empty, torch.empty_like = poisoned(torch.empty), poisoned(torch.empty_like)
    torch.zeros = poisoned(torch.zeros, 0.0)
    torch.Tensor.new_empty = poisoned(torch.Tensor.new_empty)  # type: ignore[method-assign]
    groups = {"forward": forward_cases, "odd": odd_cases, "backward": backward_cases, "block": block_cases}
    try:
        print(json.dumps({group: dict(cases()) for group, cases in groups.items()}))
    except Exception as problem:
        if "only 0-dimensional arrays" not in f"{problem} {problem.__cause__}":
            raise
        print(json.dumps({"unavailable": f"this triton's interpreter does not work with this numpy: {problem}"}))


if __name__ == "__main__":
    main()

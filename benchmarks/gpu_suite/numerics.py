"""Part 1, by pytest: our kernels against float64 on fresh random numbers, then every test of the project that is marked `gpu`.

Alone, with the numbers of seed 0: `pytest -m gpu benchmarks/gpu_suite/numerics.py`; with `TRITON_INTERPRET=1` tiny shapes in
Triton's interpreter, as in a rehearsal.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.gpu_suite.launches import KERNELS, Device, Launch, Session, compile_launches, shipped_tiles
from benchmarks.gpu_suite.records import ROOT, TEXT, TIME_OVER, BrokenContext
from hyctas.attention import chunked, self_attention
from hyctas.attention.block import in_steps
from hyctas.attention.triton.tiles import VALUE_CHANNELS

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]
SEED = "HYCTAS_GPU_SUITE_SEED"
"""Environment variable: of shapes and numbers."""
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
LIMITS = {"float16": 1e-3, "bfloat16": 1e-2, "float32": 1e-5}
"""Largest relative Frobenius error, by dtype of v."""
ROUNDINGS = 16 * 2.0**-24
"""A logit of size L is known to about L times this in fp32, and its weight as well; limits grow with the largest logit."""
TRUNCATED = 2.0
"""Triton's interpreter, in which a rehearsal runs, cuts numbers off to bfloat16 where GPUs round."""
BEYOND_FP16 = 65_536
"""Keys from which a running sum of ones leaves fp16's range, which other fused kernels have been seen to do."""
Case = tuple[str, str, int, str]
_ALL = list(itertools.product(LIMITS, VALUE_CHANNELS))
CASES: list[Case] = [
    *((step, dtype, c, "even") for dtype, c in _ALL for step in KERNELS),
    *(("forward", dtype, 64, how) for dtype in LIMITS for how in ("large", "nan", "constant")),
    *(("backward", dtype, 64, "channels-last") for dtype in LIMITS), ("forward", "bfloat16", 128, "fp16 logits"),
    *((step, dtype, c, "ragged") for dtype, c in _ALL for step in ("forward", "backward", "block")),
    *((step, "float16", c, "masked") for c in VALUE_CHANNELS for step in KERNELS),
    *(("forward", "float16", 64, f"{splits} splits") for splits in range(1, 9)),
]  # fmt: skip
"""Step, dtype, channels of v whose shipped tile is launched, and what is drawn, the most telling first.

`even`: whole tiles of those very channels; `masked`: odd channels, and positions in multiples of 16 that end inside a tile;
others: odd everything; of these `large`: logits with a standard deviation of 30; `nan`: some queries NaN or infinite;
`constant`: nearly equal logits of very many keys; `channels-last`: the operator with gradients; `fp16 logits`: the operator.
"""
REHEARSED: list[Case] = [
    *((step, "float16", 64, "ragged") for step in ("forward", "fixed", "block")),
    ("forward", "float32", 64, "nan"), ("backward", "float32", 64, "channels-last"), ("forward", "float16", 64, "2 splits"),
]  # fmt: skip


def run(session: Session) -> None:
    """Run pytest in this process, and keep a record of every test.

    Raises:
        BrokenContext: a test broke the GPU's context.
    """
    os.environ[SEED] = str(session.suite.seed)
    marked = (path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text())
    files = [] if session.device.rehearsal else [str(path) for path in marked]
    recorder, arch = Recorder(session), session.device.architecture
    drawn = [launch_of(case, session.suite.seed, arch) for case in CASES if not session.device.no_kernels]
    compile_launches((one for one in drawn if one is not None), session.device, session.records.seconds_left / 2)
    options = ("-m", "gpu", "--rootdir", str(ROOT), "--continue-on-collection-errors")
    code = pytest.main([*options, __file__, *files], plugins=[recorder])
    if recorder.broken:
        raise BrokenContext(recorder.broken)
    if code in (pytest.ExitCode.INTERNAL_ERROR, pytest.ExitCode.USAGE_ERROR):
        raise RuntimeError(f"pytest ended with {code!r}")


class Recorder:
    """A plugin for pytest: keeps every test's outcome, and leaves out what is done already or has no time left."""

    def __init__(self, session: Session) -> None:
        self.records, self.device, self.broken = session.records, session.device, ""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if not self.records.done(item.nodeid)]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            last = [line[1:].strip() for line in str(report.longrepr).splitlines() if line.startswith("E ")][-1]
            self.records.keep(report.nodeid, _outcome("failed", last))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.records.marker.write_text(nodeid)  # in case it ends this process

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        if self.records.seconds_left <= 0:
            pytest.skip(TIME_OVER)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
        report = yield
        if report.when == "call" or not report.passed:
            text = "" if call.excinfo is None else f"{call.excinfo.typename}: {call.excinfo.value}"
            found = {**dict(item.user_properties), **_outcome(report.outcome, text)}
            self.records.keep(item.nodeid, {**found, "seconds": round(call.duration, 3)})
            if report.failed and not self.device.healthy():
                self.broken = text
                pytest.exit(text)
        return report


def _outcome(outcome: str, text: str) -> dict[str, Any]:
    """Return what a record says of a test or a file of tests; a machine need not have all packages that tests import."""
    if outcome == "skipped" or text.startswith("ModuleNotFoundError"):
        return {"state": "left_out", "reason": text.removeprefix("Skipped: ")[:TEXT]}
    return {"state": "ok"} if outcome == "passed" else {"state": "failed", "why": [text.removeprefix("Failed: ")[:TEXT]]}


def launch_of(case: Case, seed: int, arch: int, *, small: bool = False) -> Launch | None:
    """Draw the shapes of a case, `small` as Triton's interpreter needs them; None where no tile is shipped for it."""
    step, dtype, c, how = case
    rng = np.random.default_rng([seed, *"/".join(map(str, case)).encode()])
    low, high = (20, 50) if small else (200, 1400)
    unit = {"even": 128, "masked": 16}.get(how, 1)
    n, m = (unit * _odd(rng, low // unit, high // unit) for _ in range(2))
    e, d = (c, c // 8) if how == "even" else (_odd(rng, 17, 32) if small else _odd(rng, c // 2 + 1, c), _odd(rng, 3, 40))
    batch, heads = (int(rng.integers(1, 3)), int(rng.integers(1, 4))) if how in ("ragged", "masked") else (1, 1)
    if how == "constant":
        m = BEYOND_FP16 + _odd(rng, 1, 4000)
    if how.endswith("splits"):
        m = (128 if small else 256) * int(how[0]) - _odd(rng, 1, 99)  # 256: a multiple of all tiles' columns, which parts are
    if step == "block":
        heads, m = 1, n
    tiles = shipped_tiles(arch, step, e, dtype, n, m)
    if not tiles:
        return None
    if how.endswith("splits"):
        tiles["forward"] = replace(tiles["forward"], splits=int(how[0]))
    scale = 1.0 if rng.integers(2) else round(d**-0.5, 6)  # none, as published, or the usual one
    qk_dtype = "float16" if how == "fp16 logits" else ""
    return Launch(step=step, dtype=dtype, qk_dtype=qk_dtype, batch=batch, heads=heads, d=d, e=e, queries=n, keys=m, scale=scale,
                  tiles=tiles)  # fmt: skip


def _odd(rng: np.random.Generator, low: int, high: int) -> int:
    """Draw an odd number from low..high."""
    return int(rng.integers(low // 2, (high - 1) // 2 + 1)) * 2 + 1


@pytest.mark.parametrize("case", REHEARSED if INTERPRETED else CASES, ids=lambda case: " ".join(map(str, case)))
def test_kernels(case: Case, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]) -> None:
    """Launch, with outputs that start as NaN, and hold the results against float64; fixed orders must repeat."""
    device, seed, how = Device("cpu" if INTERPRETED else "cuda"), int(os.environ.get(SEED, "0")), case[3]
    if not INTERPRETED and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if why := device.no_kernels:
        pytest.skip(why)
    launch = launch_of(case, seed, device.architecture, small=INTERPRETED)
    if launch is None:
        pytest.skip(f"no tile is shipped for sm_{device.architecture}")
    tensors = launch.inputs(device.kind, seed, {"large": 30.0, "constant": 1e-4}.get(how, 1.5))
    if how == "nan":
        tensors["q"][..., 3], tensors["q"][..., 7] = float("nan"), float("inf")
    if how == "constant":
        tensors["v"] += 0.5  # an average of many numbers around 0 would be all rounding
    wanted, dtype = reference(launch, tensors), getattr(torch, launch.dtype)
    if launch.step in ("backward", "fixed"):
        tensors |= {"o": wanted["o"].to(dtype), "lse": wanted["lse"].float()}
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, _poisoned(getattr(owner, name)))
    found = _by_operator(launch, tensors) if how in ("channels-last", "fp16 logits") else launch.run(tensors)
    errors = {name: relative_error(tensor, wanted[name]) for name, tensor in found.items()}
    limits = {name: _limit(launch, name, wanted, device) for name in found}
    tiles = {name: tile.to_json() for name, tile in launch.tiles.items()}
    about = {"step": launch.step, "dtype": launch.dtype, "shape": launch.shape, "tiles": tiles}
    for name, value in {**about, "errors": errors, "limits": limits}.items():
        record_property(name, value)
    wrong = [f"{name}: {e:.2e} where {limits[name]:.0e} is allowed" for name, e in errors.items() if not e <= limits[name]]
    if launch.step == "fixed":
        again = launch.run(tensors)
        wrong += [f"{name} differs between two runs" for name in found if not torch.equal(found[name], again[name])]
    if wrong:
        pytest.fail("; ".join(wrong), pytrace=False)


def reference(launch: Launch, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Compute a launch in float64, by outputs; for gradients also o and lse, which they need."""
    double = {name: tensor.double() for name, tensor in tensors.items()}
    if launch.step == "block":
        return {"y": in_steps(**double, scale=launch.scale)}
    q, k, v = double["q"], double["k"], double["v"]
    o, lse = chunked.forward(q, k, v, launch.scale)
    if launch.step == "forward":
        return {"o": o, "lse": lse}
    rounded = o.to(getattr(torch, launch.dtype)).double()  # what a backward pass is given
    gradients = chunked.backward(double["grad_o"], q, k, v, rounded, lse, launch.scale)
    return {"o": o, "lse": lse, **dict(zip(("grad_q", "grad_k", "grad_v"), gradients, strict=True))}


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Return the relative Frobenius error where `wanted` is a number; infinity where not the same elements are NaN."""
    numbers = ~wanted.isnan()
    if found.shape != wanted.shape or not torch.equal(numbers, ~found.isnan()):
        return float("inf")
    difference = (found.double() - wanted)[numbers]
    return float(difference.norm() / wanted[numbers].norm().clamp_min(1e-300))


def _limit(launch: Launch, output: str, wanted: Mapping[str, Tensor], device: Device) -> float:
    base = LIMITS["float32"] if output == "lse" else LIMITS[launch.dtype]
    base *= TRUNCATED if launch.dtype == "bfloat16" and device.rehearsal else 1
    return base if "lse" not in wanted else max(base, ROUNDINGS * float(wanted["lse"].nan_to_num(0.0).abs().max()))


def _poisoned(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make an allocating function fill floating-point tensors with NaN, so that an element that is never written shows."""

    def filled(*args: Any, **kwargs: Any) -> Tensor:
        made = allocate(*args, **kwargs)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    return filled


def _by_operator(launch: Launch, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Compute with what the dispatch chooses; a backward pass with autograd, on views of channels-last feature maps."""
    q, k, v = tensors["q"], tensors["k"], tensors["v"]
    if launch.step == "forward":
        return {"o": self_attention(q, k, v, launch.scale)}
    q, k, v = (t.transpose(2, 3).contiguous().transpose(2, 3).requires_grad_() for t in (q, k, v))  # channels innermost
    o = self_attention(q, k, v, launch.scale)
    gradients = torch.autograd.grad(o, (q, k, v), tensors["grad_o"])
    return {"o": o.detach(), **dict(zip(("grad_q", "grad_k", "grad_v"), gradients, strict=True))}

"""Part 1: our kernels against float64 on the same device, on fresh random numbers, with outputs that start as NaN."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_suite.cases import LIMITS, Case, draw_cases
from benchmarks.gpu_suite.launches import Launch, shipped_tiles
from benchmarks.gpu_suite.place import Place
from benchmarks.gpu_suite.pool import Pool
from benchmarks.gpu_suite.session import Session
from benchmarks.gpu_suite.torch_checks import CHECKS, SLOW_CHECKS
from benchmarks.gpu_suite.warm import job
from hyctas.attention import chunked, self_attention
from hyctas.attention.block import in_steps

ROUNDINGS = 16 * 2.0**-24
"""A logit of size L is known to about L times this in fp32, and its weight as well; limits grow with the largest logit."""
TRUNCATED = 2.0
"""Triton's interpreter, in which a rehearsal runs, cuts numbers off to bfloat16 where GPUs round."""
COMPILE_SECONDS = 3.0
"""What a case may take that was not compiled beforehand."""


def run(session: Session) -> None:
    """Check everything: the operators inside PyTorch while kernels are compiled, then each case as soon as its kernels are."""
    place, records = session.place, session.records
    print(f"numerics: seed {session.seed}", flush=True)
    cases: dict[str, Case] = {}
    if place.no_kernels:
        records.keep("kernels", {"state": "left_out", "reason": place.no_kernels})
    else:
        drawn = draw_cases(session.seed, place.architecture, tiny=place.rehearsal)
        cases = {case.name: case for case in drawn if not records.done(case.name)}
    with Pool(session.workers) as pool:
        waiting = _submit(pool, list(cases.values()), place)
        for name, test in CHECKS.items():
            records.attempt(name, partial(test, place), needs=COMPILE_SECONDS)
        for name in _as_compiled(pool, waiting, 0.75 * records.seconds_left):
            records.attempt(name, partial(check, cases[name], place))
    for name, case in cases.items():  # what is not compiled yet, the launch compiles
        records.attempt(name, partial(check, case, place), needs=COMPILE_SECONDS)
    for name, test in SLOW_CHECKS.items():
        records.attempt(name, partial(test, place), needs=COMPILE_SECONDS)


def _submit(pool: Pool, cases: Sequence[Case], place: Place) -> dict[str, set[str]]:
    """Have the kernels of cases compiled; returns by case the names of its jobs."""
    waiting, asked = dict[str, set[str]](), set[str]()
    for case in cases[:2] if place.rehearsal else cases:  # Triton's interpreter needs none of it
        jobs = {json.dumps(one, sort_keys=True): one for one in _jobs(case, place)}
        waiting[case.name] = set(jobs)
        for name in jobs.keys() - asked:
            pool.submit(name, jobs[name])
        asked |= jobs.keys()
    return waiting


def _as_compiled(pool: Pool, waiting: dict[str, set[str]], seconds: float) -> Iterator[str]:
    """Yield the names of cases, each when its kernels are in Triton's cache, for some seconds."""
    for job_name, _ in pool.answers(seconds):
        ready = [name for name, jobs in waiting.items() if jobs == {job_name}]
        for jobs in waiting.values():
            jobs.discard(job_name)
        for name in ready:
            del waiting[name]
            yield name


def _jobs(case: Case, place: Place) -> Iterator[dict[str, Any]]:
    """Yield what has to be compiled for a case; what makes no difference to the compiler is made equal."""
    launch = replace(case.launch, batch=1, heads=1)
    if "forward" in launch.tiles and launch.tiles["forward"].splits > 2:
        launch = replace(launch, tiles={"forward": replace(launch.tiles["forward"], splits=2)})
    launches = [launch]
    if case.kind == "channels_last":  # differentiated by autograd, so computed forward too
        tiles = shipped_tiles(place.architecture, "forward", launch.e, launch.dtype, launch.queries, launch.keys)
        launches.append(replace(launch, step="forward", tiles=tiles or {}))
    for one in launches:
        for kernel in one.kernels(place.processors):
            yield job(one, kernel, place.architecture, place.processors)


def check(case: Case, place: Place) -> dict[str, Any]:
    """Compute one case and hold it against float64.

    Returns:
        `state` ok or failed, relative Frobenius errors and their limits by output, shapes and tiles, and whether the outputs'
        memory was seen to hold NaN before.
    """
    launch = case.launch
    tensors = _drawn(case, place)
    with torch.no_grad():
        wanted = reference(launch, tensors)
    kept = {name: tensor.to(getattr(torch, launch.dtype)) for name, tensor in wanted.items() if name == "o"}
    if "lse" in wanted:
        kept["lse"] = wanted["lse"].float()
    sizes = [tensor.numel() * getattr(torch, launch.dtype).itemsize for tensor in wanted.values()]
    poisoned = place.poison(sizes)
    found = _through_operator(case, tensors) if case.kind in ("channels_last", "operator") else _launched(launch, tensors | kept)
    place.synchronize()
    errors = {name: relative_error(tensor, wanted[name]) for name, tensor in found.items()}
    limits = {name: _limit(launch, name, wanted) for name in found}
    wrong = [f"{name}: {e:.2e} where {limits[name]:.0e} is allowed" for name, e in errors.items() if not e <= limits[name]]
    if launch.step == "fixed":
        again = _launched(launch, tensors | kept)
        wrong += [f"{name} differs between two runs" for name in found if not torch.equal(found[name], again[name])]
    return {
        "state": "failed" if wrong else "ok", "why": wrong, "step": launch.step, "dtype": launch.dtype, "shape": launch.shape,
        "qk_dtype": launch.qk_dtype or launch.dtype, "scale": launch.scale, "errors": errors, "limits": limits,
        "poisoned": poisoned, "tiles": {name: tile.to_json() for name, tile in launch.tiles.items()}, "seed": case.seed,
    }  # fmt: skip


def reference(launch: Launch, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Compute a launch in float64, by outputs; for gradients also o and lse, which they need."""
    double = {name: tensor.double() for name, tensor in tensors.items()}
    if launch.step.startswith("block"):
        return {"y": in_steps(**double, scale=launch.scale)}
    q, k, v = double["q"], double["k"], double["v"]
    o, lse = chunked.forward(q, k, v, launch.scale)
    found = {"o": o, "lse": lse}
    if launch.step != "forward":
        rounded = o.to(getattr(torch, launch.dtype)).double()  # what a backward pass is given
        gradients = chunked.backward(double["grad_o"], q, k, v, rounded, lse, launch.scale)
        found |= dict(zip(("grad_q", "grad_k", "grad_v"), gradients, strict=True))
    return found


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Return the relative Frobenius error where `wanted` is a number; infinity where not the same elements are NaN."""
    numbers = ~wanted.isnan()
    if found.shape != wanted.shape or not torch.equal(numbers, ~found.isnan()):
        return float("inf")
    difference = (found.double() - wanted)[numbers]
    return float(difference.norm() / wanted[numbers].norm().clamp_min(1e-300))


def _limit(launch: Launch, output: str, wanted: dict[str, Tensor]) -> float:
    base = LIMITS["float32"] if output == "lse" else LIMITS[launch.dtype]
    if launch.dtype == "bfloat16" and wanted["y" if "y" in wanted else "o"].device.type == "cpu":
        base *= TRUNCATED
    return base if "lse" not in wanted else max(base, ROUNDINGS * float(wanted["lse"].nan_to_num(0.0).abs().max()))


def _drawn(case: Case, place: Place) -> dict[str, Tensor]:
    generator = torch.Generator(place.device).manual_seed(case.seed)
    tensors = case.launch.inputs(place.device, generator, case.spread)
    if case.kind == "nan":
        tensors["q"][..., 3], tensors["q"][..., 7] = float("nan"), float("inf")
    if case.kind == "constant":
        tensors["v"] += 0.5  # an average of many numbers around 0 would be all rounding
    return tensors


def _launched(launch: Launch, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {"forward": ("o", "lse"), "backward": ("grad_q", "grad_k", "grad_v"), "fixed": ("grad_q", "grad_k", "grad_v")}
    return dict(zip(names.get(launch.step, ("y",)), launch.run(tensors), strict=True))


def _through_operator(case: Case, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Compute with what the dispatch chooses; `channels_last` with gradients, on views of channels-last feature maps."""
    q, k, v = tensors["q"], tensors["k"], tensors["v"]
    if case.kind == "operator":
        return {"o": self_attention(q, k, v, case.launch.scale)}
    q, k, v = (t.transpose(2, 3).contiguous().transpose(2, 3).requires_grad_() for t in (q, k, v))  # channels innermost
    o = self_attention(q, k, v, case.launch.scale)
    gradients = torch.autograd.grad(o, (q, k, v), tensors["grad_o"])
    return {"o": o.detach(), **dict(zip(("grad_q", "grad_k", "grad_v"), gradients, strict=True))}

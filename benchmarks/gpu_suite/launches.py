"""The device, what is launched on it, how calls are timed, and the least time that arithmetic allows."""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_suite.records import Records, Suite, describe
from export.machine import usable_cores
from hyctas.attention.triton.cases import Case
from hyctas.attention.triton.compiled import DoesNotCompile
from hyctas.attention.triton.gate import compile_all
from hyctas.attention.triton.resources import judge
from hyctas.attention.triton.tiles import COMBINE, DELTA, Tile, architecture, block, shipped

KERNELS = {"forward": ("forward",), "backward": ("grad_v", "grad_qk"), "fixed": ("grad_v", "grad_qk", "grad_q"),
           "block": ("block",)}  # fmt: skip
"""What is launched: a forward pass, gradients by atomic additions or in a fixed order, a block; by which kernels with tiles."""
CHIPS = {"NVIDIA H200": (788e12, 4.3e12, 132 * 16 * 1.755e9)}
"""Rates by the driver's name: dense 16-bit operations per second (a product of 8192 x 8192 matrices in bf16, measured), bytes
per second (a large copy, measured), exponentials per second (132 multiprocessors x 16 per clock, CUDA C++ Programming Guide,
x 1.755 GHz)."""


@dataclass(frozen=True)
class Device:
    """What is measured: a GPU (`cuda`), or for a rehearsal of the script this machine's CPU (`cpu`), as if it were an sm_90."""

    kind: str

    @property
    def rehearsal(self) -> bool:
        """Whether nothing measured here means anything."""
        return self.kind == "cpu"

    @property
    def architecture(self) -> int:
        """The architecture whose tiles are taken; 0 before compute capability 8.0."""
        return 90 if self.rehearsal else architecture(torch.cuda.get_device_capability()) or 0

    @property
    def processors(self) -> int:
        """The number of multiprocessors."""
        return 4 if self.rehearsal else torch.cuda.get_device_properties(0).multi_processor_count

    @property
    def no_kernels(self) -> str:
        """Why our Triton kernels cannot run here; empty where they can."""
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed"
        return "" if self.architecture else "the GPU's compute capability is below 8.0, where Triton has no tensor cores"

    def healthy(self) -> bool:
        """Return whether the device still answers, and give memory back that nothing holds."""
        try:
            if not self.rehearsal:
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
        except RuntimeError:  # an illegal access and its kind stay with the context for ever
            return False
        return True

    def peak_bytes(self, call: Callable[[], object]) -> int | None:
        """Return the most memory that a call held beyond what was there before, its results included; None on a CPU."""
        if self.rehearsal:
            return None
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated() - before)

    def samples(self, call: Callable[[], object], burst_ms: float) -> tuple[list[float], str]:
        """Time a call by `triton.testing`, in ten replays of a CUDA graph of about `burst_ms`, inputs in the cache.

        Returns:
            milliseconds per call, and the method: `graph`, `events` (where none could be captured), or `wall clock`.
        """
        if self.rehearsal:
            start = time.perf_counter()
            call()
            return [(time.perf_counter() - start) * 1e3], "wall clock"
        from triton.testing import do_bench, do_bench_cudagraph

        try:
            return do_bench_cudagraph(call, rep=burst_ms, return_mode="all"), "graph"
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            torch.cuda.synchronize()
            why = f"events, since no graph could be captured: {describe(error)[:200]}"
            return do_bench(call, warmup=burst_ms, rep=10 * burst_ms, return_mode="all"), why

    def time_in_turn(self, calls: Mapping[str, Callable[[], object]], rounds: int = 2) -> dict[str, dict[str, Any]]:
        """Time calls in turn, so that a change of clock meets all; return percentiles in ms, samples and method by name."""
        times: dict[str, list[float]] = {name: [] for name in calls}
        methods = {}
        for _ in range(rounds):
            for name, call in calls.items():
                more, methods[name] = self.samples(call, 4.0)
                times[name] += more
        quantiles = {name: [float(value) for value in np.percentile(ms, (10, 50, 90))] for name, ms in times.items()}
        return {name: {"median_ms": median, "p10_ms": p10, "p90_ms": p90, "samples": len(times[name]), "method": methods[name]}
                for name, (p10, median, p90) in quantiles.items()}  # fmt: skip


@dataclass(frozen=True)
class Session:
    """What a part gets to work with; `folder` is `--out`."""

    device: Device
    records: Records
    folder: Path
    suite: Suite


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One launch of our kernels: d channels of q and k and e of v per head (of x in a block), tiles by kernel."""

    step: str
    """One of `KERNELS`."""
    dtype: str
    """Of v (of x in a block)."""
    qk_dtype: str = ""
    """Of q and k; empty: v's."""
    batch: int = 1
    heads: int = 1
    d: int
    e: int
    queries: int
    keys: int
    scale: float = 1.0
    tiles: Mapping[str, Tile]

    @property
    def shape(self) -> str:
        """The shapes, for a person."""
        return f"B={self.batch} h={self.heads} d={self.d} e={self.e} N={self.queries} M={self.keys}"

    def splits(self, processors: int) -> int:
        """Return into how many parts the forward pass divides the keys on a GPU of so many multiprocessors."""
        from hyctas.attention.triton.launch import split

        tile = self.tiles["forward"]
        programs = -(-self.queries // tile.rows) * -(-self.e // min(tile.channels, block(self.e))) * self.batch * self.heads
        return split(self.keys, tile, programs, processors)[0]

    def cases(self, arch: int, processors: int) -> Iterator[Case]:
        """Yield what is compiled for the launch, kernel by kernel, for an architecture."""
        split = self.step == "forward" and self.splits(processors) > 1
        extra = {"forward": {"combine": COMBINE} if split else {}, "block": {}}.get(self.step, {"delta": DELTA})
        for kernel, tile in {**extra, **{name: self.tiles[name] for name in KERNELS[self.step]}}.items():
            alone = kernel in extra  # depends on queries alone
            yield Case(
                kernel=kernel, arch=arch, tile=tile, channels=self.e, qk_channels=self.d, dtype=self.dtype,
                qk_dtype="" if alone else self.qk_dtype, queries_divisible=self.queries % 16 == 0, split=split and not alone,
                keys_divisible=alone or self.keys % 16 == 0, even_keys=alone or self.keys % tile.columns == 0,
                atomic=self.step != "fixed" or kernel != "grad_qk",
            )  # fmt: skip

    def inputs(self, device: str, seed: int, spread: float = 1.0) -> dict[str, Tensor]:
        """Draw what the launch takes from a normal distribution; `spread`: standard deviation of the logits."""
        generator = torch.Generator(device).manual_seed(seed)
        dtype, qk_dtype = getattr(torch, self.dtype), getattr(torch, self.qk_dtype or self.dtype)
        amount = math.sqrt(spread / (math.sqrt(self.d) * self.scale))

        def draw(*shape: int, of: torch.dtype = dtype, times: float = 1.0) -> Tensor:
            return (torch.randn(*shape, device=device, generator=generator) * times).to(of)

        if self.step != "block":
            groups = (self.batch, self.heads)
            q, k = (draw(*groups, self.d, n, of=qk_dtype, times=amount) for n in (self.queries, self.keys))
            return {"q": q, "k": k, "v": draw(*groups, self.e, self.keys), "grad_o": draw(*groups, self.e, self.queries)}
        height = next(h for h in range(math.isqrt(self.queries), 0, -1) if self.queries % h == 0)
        wq, wk = (draw(self.d, self.e, times=amount / math.sqrt(self.e)) for _ in range(2))
        bq, bv, norm_scale, norm_shift = (draw(size, of=torch.float32, times=0.1) for size in (self.d, self.e, self.e, self.e))
        return {
            "x": draw(self.batch, self.e, height, self.queries // height), "wq": wq, "bq": bq, "wk": wk, "bv": bv,
            "wv": draw(self.e, self.e, times=1 / math.sqrt(self.e)), "norm_scale": 1 + norm_scale, "norm_shift": norm_shift,
        }  # fmt: skip

    def run(self, t: Mapping[str, Any]) -> dict[str, Tensor]:
        """Launch; gradients need `o` and `lse` among the tensors. Returns `o` and `lse`, the gradients, or `y`."""
        from hyctas.attention.triton.launch import run_backward, run_block, run_forward

        if self.step == "forward":
            return dict(zip(("o", "lse"), run_forward(t["q"], t["k"], t["v"], self.scale, self.tiles["forward"]), strict=True))
        if self.step == "block":
            return {"y": run_block(**t, scale=self.scale, tile=self.tiles["block"])}
        grad_o, q, k, v, o, lse = (t[name] for name in ("grad_o", "q", "k", "v", "o", "lse"))
        gradients = run_backward(grad_o, q, k, v, o, lse, self.scale, dict(self.tiles), self.step == "fixed")
        return dict(zip(("grad_q", "grad_k", "grad_v"), gradients, strict=True))


def shipped_tiles(arch: int, step: str, e: int, dtype: str, *sizes: int) -> dict[str, Tile]:
    """Return the shipped tiles of a step for numbers of queries and keys; none where one of its kernels has none."""
    aligned, item_bytes = all(size % 16 == 0 for size in sizes), getattr(torch, dtype).itemsize
    found = {kernel: shipped(arch, kernel, e, item_bytes, aligned) for kernel in KERNELS[step]}
    tiles = {kernel: tile for kernel, tile in found.items() if tile is not None}
    return tiles if len(tiles) == len(found) else {}


def compile_launches(launches: Iterable[Launch], device: Device, seconds: float) -> dict[str, str]:
    """Compile what launches need into Triton's cache, on all cores; none is begun after some seconds.

    Returns:
        by `Case.key` of what was compiled why it should not be launched; empty where it may be.
    """
    if device.rehearsal:  # Triton's interpreter compiles nothing
        return {}
    cases = dict.fromkeys(case for one in launches if one.tiles for case in one.cases(device.architecture, device.processors))
    return {case.key: outcome.reason if isinstance(outcome, DoesNotCompile) else "; ".join(judge(case, outcome))
            for case, outcome in compile_all(list(cases), usable_cores(), seconds)}  # fmt: skip


def floor_ms(gpu: str, d: int, e: int, positions: int) -> float | None:
    """Return the least time of a forward pass in 16-bit, one head; None where the GPU's rates are not known.

    Of 2 N^2 (d + e) operations on tensor cores (d padded to 16, what they take), N^2 exponentials, and every byte moved once,
    the slowest: perfect overlap of all three. FlashAttention-3 reports up to 75 % of the tensor cores' rate (arXiv 2407.08608).
    """
    if gpu not in CHIPS:
        return None
    operations, moved, exponentials = CHIPS[gpu]
    pairs = positions * positions
    return 1e3 * max(2 * pairs * (max(16, d) + e) / operations, pairs / exponentials, 4 * positions * (d + e) / moved)

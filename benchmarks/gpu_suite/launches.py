"""The device, what is launched on it, how calls are timed, and the least time that arithmetic allows."""

from __future__ import annotations

import importlib.util
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_suite.records import Records, Suite, describe
from hyctas.attention.cases import Case
from hyctas.attention.tiles import COMBINE, DELTA, Tile, architecture, block, shipped

REHEARSAL_ARCHITECTURE, REHEARSAL_PROCESSORS = 90, 4
"""Whose tiles a rehearsal takes, and how many multiprocessors it pretends to have."""
KERNELS = {"forward": ("forward",), "backward": ("grad_v", "grad_qk"), "fixed": ("grad_v", "grad_qk", "grad_q"),
           "block": ("block",)}  # fmt: skip
"""What can be launched: the forward pass, gradients by atomic additions or in a fixed order, the whole block; and the kernels that
have a tile of their own in each."""
CHIPS = {"NVIDIA H200": (788e12, 4.3e12, 132 * 16 * 1.755e9)}
"""Rates by the driver's name: dense 16-bit operations per second of a large product (8192 x 8192 x 8192 in bf16, measured), bytes
per second of a large copy (measured), exponentials per second (132 multiprocessors x 16 per clock, CUDA C++ Programming Guide,
arithmetic instructions, x 1.755 GHz)."""
_PLENTY = 2**18


@dataclass(frozen=True)
class Device:
    """What is measured: a GPU (`cuda`), or for a rehearsal of the script this machine's CPU (`cpu`)."""

    kind: str

    @property
    def rehearsal(self) -> bool:
        """Whether nothing measured here means anything."""
        return self.kind == "cpu"

    @property
    def architecture(self) -> int:
        """The architecture whose tiles are taken; 0 before compute capability 8.0."""
        return REHEARSAL_ARCHITECTURE if self.rehearsal else architecture(torch.cuda.get_device_capability(0)) or 0

    @property
    def processors(self) -> int:
        """The number of multiprocessors."""
        return REHEARSAL_PROCESSORS if self.rehearsal else torch.cuda.get_device_properties(0).multi_processor_count

    @property
    def no_kernels(self) -> str:
        """Why our Triton kernels cannot run here; empty where they can (in a rehearsal: in Triton's interpreter)."""
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed"
        if self.rehearsal and os.environ.get("TRITON_INTERPRET") != "1":
            return "Triton's interpreter is off"
        return "" if self.architecture else "the GPU's compute capability is below 8.0, where Triton has no tensor cores"

    def healthy(self) -> bool:
        """Return whether the device still answers, and free what an error left behind."""
        try:
            if not self.rehearsal:
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
        except RuntimeError:  # an illegal access and its kind stay with the context for ever
            return False
        return True

    def poison(self, sizes: Sequence[int]) -> bool:
        """Fill the memory that allocations of so many bytes will get with NaN; return whether they were seen to get it."""
        if self.rehearsal:
            return False  # a CPU's allocator is not ours
        torch.cuda.empty_cache()
        filled = [torch.empty(size, dtype=torch.uint8, device=self.kind) for size in (2 * sum(sizes) + 2**22, *[_PLENTY] * 32)]
        for memory in filled:
            memory.fill_(255)  # all bits set is a NaN in every floating-point format
        del filled, memory
        probes = [torch.empty(max(1, size // 4), dtype=torch.float32, device=self.kind) for size in sizes]
        return all(bool(probe.isnan().all()) for probe in probes)

    def peak_bytes(self, call: Callable[[], object]) -> int | None:
        """Return the most memory that a call held at a time beyond what was there before, its results included; None on a CPU."""
        if self.rehearsal:
            return None
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated() - before)

    def samples(self, call: Callable[[], object], burst_ms: float) -> tuple[list[float], str]:
        """Time a call by `triton.testing`: ten replays of a CUDA graph of about `burst_ms`, inputs in the cache as in networks.

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


def time_in_turn(
    calls: Mapping[str, Callable[[], object]], device: Device, *, rounds: int = 2, burst_ms: float = 4.0
) -> dict[str, dict[str, Any]]:
    """Time calls in turn, so that a change of clock meets all of them.

    Returns:
        by name `median_ms`, `p10_ms`, `p90_ms`, `samples`, `method`.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    methods = {}
    for _ in range(rounds):
        for name, call in calls.items():
            times, methods[name] = device.samples(call, burst_ms)
            samples[name] += times
    found = {}
    for name, times in samples.items():
        p10, median, p90 = (float(value) for value in np.percentile(times, (10, 50, 90)))
        found[name] = {"median_ms": median, "p10_ms": p10, "p90_ms": p90, "samples": len(times), "method": methods[name]}
    return found


@dataclass(frozen=True)
class Session:
    """What a part gets to work with."""

    device: Device
    records: Records
    folder: Path
    """`--out`."""
    suite: Suite


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Shapes, dtypes and tiles of one launch of our kernels."""

    step: str
    """One of `KERNELS`."""
    dtype: str
    """Of v (of x in a block)."""
    qk_dtype: str = ""
    """Of q and k; empty: v's."""
    batch: int = 1
    heads: int = 1
    d: int
    """Channels of q and k, per head."""
    e: int
    """Channels of v (of x), per head."""
    queries: int
    keys: int
    scale: float = 1.0
    tiles: Mapping[str, Tile]
    """By kernel."""

    @property
    def shape(self) -> str:
        """The shapes, for a person."""
        heads = f"B={self.batch} h={self.heads} " if self.batch * self.heads > 1 else ""
        return f"{heads}d={self.d} e={self.e} N={self.queries} M={self.keys}"

    def splits(self, processors: int) -> int:
        """Return into how many parts the forward pass divides the keys on a GPU of so many multiprocessors."""
        from hyctas.attention.launch import split

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
            return {
                "q": draw(*groups, self.d, self.queries, of=qk_dtype, times=amount),
                "k": draw(*groups, self.d, self.keys, of=qk_dtype, times=amount),
                "v": draw(*groups, self.e, self.keys), "grad_o": draw(*groups, self.e, self.queries),
            }  # fmt: skip
        height = next(h for h in range(math.isqrt(self.queries), 0, -1) if self.queries % h == 0)
        wq, wk = (draw(self.d, self.e, times=amount / math.sqrt(self.e)) for _ in range(2))
        bq, bv, norm_scale, norm_shift = (draw(size, of=torch.float32, times=0.1) for size in (self.d, self.e, self.e, self.e))
        return {
            "x": draw(self.batch, self.e, height, self.queries // height), "wq": wq, "bq": bq, "wk": wk, "bv": bv,
            "wv": draw(self.e, self.e, times=1 / math.sqrt(self.e)), "norm_scale": 1 + norm_scale, "norm_shift": norm_shift,
        }  # fmt: skip

    def run(self, t: Mapping[str, Any]) -> dict[str, Tensor]:
        """Launch; gradients need `o` and `lse` among the tensors. Returns `o` and `lse`, the gradients, or `y`."""
        from hyctas.attention.launch import run_backward, run_block, run_forward

        if self.step == "forward":
            o, lse = run_forward(t["q"], t["k"], t["v"], self.scale, self.tiles["forward"])
            return {"o": o, "lse": lse}
        if self.step == "block":
            return {"y": run_block(**t, scale=self.scale, tile=self.tiles["block"])}
        q, k, v, fixed = t["q"], t["k"], t["v"], self.step == "fixed"
        gradients = run_backward(t["grad_o"], q, k, v, t["o"], t["lse"], self.scale, dict(self.tiles), fixed)
        return dict(zip(("grad_q", "grad_k", "grad_v"), gradients, strict=True))


def shipped_tiles(arch: int, step: str, e: int, dtype: str, *sizes: int) -> dict[str, Tile] | None:
    """Return the shipped tiles of a step for numbers of queries and keys, or None where one of its kernels has none."""
    aligned, item_bytes = all(size % 16 == 0 for size in sizes), getattr(torch, dtype).itemsize
    found = {kernel: shipped(arch, kernel, e, item_bytes, aligned) for kernel in KERNELS[step]}
    tiles = {kernel: tile for kernel, tile in found.items() if tile is not None}
    return tiles if len(tiles) == len(found) else None


def floor_ms(gpu: str, d: int, e: int, positions: int) -> float | None:
    """Return the least time of a forward pass in 16-bit, one head; None where the GPU's rates are not known.

    Of 2 N^2 (d + e) operations on tensor cores (d padded to 16, what they take), N^2 exponentials in the special-function units,
    and every byte moved once, the slowest: perfect overlap of all three. No kernel reaches it; FlashAttention-3 reports up to
    75 % of the tensor cores' rate on the same chip (arXiv 2407.08608).
    """
    if gpu not in CHIPS:
        return None
    operations, moved, exponentials = CHIPS[gpu]
    pairs = positions * positions
    return 1e3 * max(2 * pairs * (max(16, d) + e) / operations, pairs / exponentials, 4 * positions * (d + e) / moved)

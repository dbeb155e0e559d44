"""Part 2: the fastest tiles, our kernels beside every other way to compute self-attention, and the table for the dispatch.

PyTorch's fused backends get what they like best: q, k, v already transposed to (B, 1, N, C) and contiguous, padded where they
ask for it, and nobody charges them for that. `drop_in` is what a network with channels-first maps would have to call.
"""

from __future__ import annotations

import itertools
import math
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu_suite.launches import KERNELS, Device, Launch, Session, compile_launches, floor_ms, shipped_tiles
from benchmarks.gpu_suite.records import BrokenContext, describe
from export.codec import convert
from hyctas.attention import sdpa
from hyctas.attention.block import in_steps
from hyctas.attention.measured import VARIABLE, Entry, slug, write_table
from hyctas.attention.triton.tiles import Tile
from latency.lock import measuring

CHANNELS, POSITIONS = (64, 128, 256, 512), (8192, 32768, 2048)
"""Shapes of the table: C, with d = C / 8, and N = M; one image. The most telling first, in case the time is over."""
STEPS, DTYPES = ("forward", "block", "backward"), ("float16", "bfloat16")
TUNED = "float16"
"""Tiles are chosen in this dtype and hold for the other, which costs the same."""
ROWS, COLUMNS, WARPS, STAGES = (64, 128), (32, 64, 128), (4, 8), (1, 2, 3)
SPLITS = (1, 2, 3, 4, 6, 8)
MOST_TILES, FINALISTS = 16, 3
"""Tiles tried per kernel and shape, nearest to the shipped one first; how many are timed again, forward ones in splits too."""
TUNE_SECONDS, COMPILE_SECONDS = 1.0, 20.0
"""For one kernel at one shape; to begin compilations for all shapes of a step."""
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION,
            "cudnn": SDPBackend.CUDNN_ATTENTION}  # fmt: skip
REHEARSAL_BACKENDS = {"math": SDPBackend.MATH}
"""What a CPU has; the formula in several steps is no baseline on a GPU."""
WAYS = {"forward": ("ours", "drop_in"), "backward": ("ours_backward", "drop_in_backward"), "block": ("ours", "steps")}
"""The two ways that the dispatch chooses between: our kernels, and PyTorch's memory-efficient attention (a block's steps)."""
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Tensors = Mapping[str, Tensor]
Call = Callable[[], object]


def run(session: Session) -> None:
    """Tune and compare at every shape; after every comparison the dispatch's table is written anew."""
    device, attempt = session.device, session.records.attempt
    if why := device.no_kernels:
        session.records.keep("kernels", {"state": "left_out", "reason": why})
        return
    table_path(session).parent.mkdir(exist_ok=True)
    os.environ[VARIABLE] = str(table_path(session).parent)  # what calls the dispatch here finds what was measured before
    with ExitStack() as stack:
        if not device.rehearsal:
            stack.enter_context(measuring())
        for dtype, step in itertools.product(DTYPES[:1] if device.rehearsal else DTYPES, STEPS):
            open_shapes = [(c, n) for c, n in shapes(device) if not session.records.done(f"{step} {dtype} C{c} N{n}")]
            launches = [launch_of(session, step, dtype, c, n) for c, n in open_shapes]
            tried = [pair for one in launches if one.tiles and dtype == TUNED for kernel in KERNELS[step]
                     for pair in enumerate(candidates(one, kernel, device))]  # fmt: skip
            ranked = [one for _, one in sorted(tried, key=lambda pair: pair[0])]  # the likeliest of all shapes first
            refusals = compile_launches([*launches, *ranked], device, COMPILE_SECONDS)
            for (c, n), launch in zip(open_shapes, launches, strict=True):
                for kernel in KERNELS[step] if dtype == TUNED and launch.tiles else ():
                    attempt(_tuning(kernel, c, n), partial(tune, session, step, kernel, c, n, refusals), needs=TUNE_SECONDS)
                attempt(f"{step} {dtype} C{c} N{n}", partial(compare, session, step, dtype, c, n), needs=TUNE_SECONDS)
                device.healthy()  # gives memory back
                write_dispatch_table(session)
        for step, (c, n) in itertools.product(("forward", "backward"), shapes(device)):
            what = partial(compare, session, step, TUNED, c, n, compiled=True)
            attempt(f"compiled {step} {TUNED} C{c} N{n}", what, needs=4.0)


def shapes(device: Device) -> Iterator[tuple[int, int]]:
    """Yield C and N."""
    yield from [(16, 48)] if device.rehearsal else ((c, n) for n in POSITIONS for c in CHANNELS)


def launch_of(session: Session, step: str, dtype: str, c: int, n: int) -> Launch:
    """Return a launch with the best tiles known; a block of more channels than any tile holds has none."""
    tiles = shipped_tiles(session.device.architecture, step, c, dtype, n)
    found = {kernel: session.records.found(_tuning(kernel, c, n)) for kernel in KERNELS[step]}
    tiles |= {kernel: convert(Tile, record["best"]) for kernel, record in found.items() if record is not None}
    if step == "backward":
        tiles |= launch_of(session, "forward", dtype, c, n).tiles
    return Launch(step=step, dtype=dtype, d=max(1, c // 8), e=c, queries=n, keys=n, tiles=tiles)


def candidates(launch: Launch, kernel: str, device: Device) -> list[Launch]:
    """Return a launch with each tile to try for one of its kernels, those nearest to its own first."""
    own, most = launch.tiles[kernel], min(launch.e, 256)
    if device.rehearsal:
        return [launch, _with(launch, kernel, replace(own, columns=own.columns // 2))]
    channels = (most,) if kernel == "block" else (most, max(32, most // 2))
    tiles = {Tile(*numbers) for numbers in itertools.product(ROWS, COLUMNS, channels, WARPS, STAGES)}
    names = ("rows", "columns", "channels", "warps", "stages")

    def distance(tile: Tile) -> float:
        return sum(abs(math.log2(getattr(tile, name) / getattr(own, name))) for name in names)

    return [_with(launch, kernel, tile) for tile in sorted({*tiles, own}, key=lambda tile: (distance(tile), tile))[:MOST_TILES]]


def tune(session: Session, step: str, kernel: str, c: int, n: int, refusals: Mapping[str, str]) -> dict[str, Any]:
    """Time tiles for one kernel at one shape, then the fastest again in turn; forward ones also in several splits.

    `refusals` say by compiled case why it should not be launched, empty where it may.

    Returns:
        `tried`, fastest first; the `best`; `refused`, counts by reason; `errors` of launches; `untried` for want of time.

    Raises:
        BrokenContext: a tile broke the GPU's context; it will not be tried again.
    """
    device, launch = session.device, launch_of(session, step, TUNED, c, n)
    tensors, waiting = inputs_of(launch, session), candidates(launch, kernel, device)
    tried, refused, errors, untried, best = dict[Tile, float](), Counter[str](), list[str](), 0, list[Tile]()
    end, splitting = time.monotonic() + TUNE_SECONDS, kernel == "forward"
    while waiting:
        one = waiting.pop(0)
        tile, key = one.tiles[kernel], _key(one, kernel, device)
        if f"refused {key}" in session.records.records:
            refused["broke the GPU's context"] += 1
        elif why := "" if device.rehearsal else refusals.get(key, "not compiled in time"):
            refused[why.partition(":")[0]] += 1
        elif tried and time.monotonic() > end:
            untried += 1
        else:
            try:
                tried[tile] = min(device.samples(partial(one.run, tensors), 1.0)[0])
            except Exception as error:  # what the driver refuses (resources, mostly) is a result
                errors.append(f"{tile.to_json()}: {describe(error)[:300]}")
                if not device.healthy():
                    session.records.keep(f"refused {key}", {"state": "failed", "why": [errors[-1]]})
                    raise BrokenContext(errors[-1]) from error
        best = sorted(tried, key=lambda tile: tried[tile])[:FINALISTS]
        if not waiting and splitting and any(_with(launch, kernel, tile).splits(device.processors) > 1 for tile in best):
            waiting, splitting = [_with(launch, kernel, replace(tile, splits=s)) for tile in best for s in SPLITS], False
    if len(best) > 1:
        times = device.time_in_turn({str(tile): partial(_with(launch, kernel, tile).run, tensors) for tile in best}, rounds=1)
        tried |= {tile: times[str(tile)]["median_ms"] for tile in best}
    order = sorted(tried, key=lambda tile: (tile not in best, tried[tile])) or [launch.tiles[kernel]]
    timed = [{"ms": tried[tile], **tile.to_json()} for tile in order if tile in tried]
    return {"C": c, "N": n, "step": step, "kernel": kernel, "refused": dict(refused), "errors": errors, "untried": untried,
            "tried": timed, "best": order[0].to_json()}  # fmt: skip


def _with(launch: Launch, kernel: str, tile: Tile) -> Launch:
    return replace(launch, tiles={**launch.tiles, kernel: tile})


def _key(launch: Launch, kernel: str, device: Device) -> str:
    return next(case.key for case in launch.cases(device.architecture, device.processors) if case.kernel == kernel)


def _tuning(kernel: str, c: int, n: int) -> str:
    return f"tune {kernel} C{c} N{n}"


def inputs_of(launch: Launch, session: Session) -> dict[str, Tensor]:
    """Draw the inputs of a launch; for gradients also o and lse."""
    tensors = launch.inputs(session.device.kind, session.suite.seed)
    return tensors | (replace(launch, step="forward").run(tensors) if launch.step == "backward" else {})


def compare(session: Session, step: str, dtype: str, c: int, n: int, *, compiled: bool = False) -> dict[str, Any]:
    """Time one step at one shape: ours (of gradients also each pass alone; of a block also in steps), and the baselines.

    Returns:
        `times` by name, with the `peak_bytes` that one call adds; `errors` of those that failed, and why others were `refused`;
        shares of goals; `state` is `error`, with the `error`, where one of ours failed.
    """
    device, launch = session.device, launch_of(session, step, dtype, c, n)
    t, forward, training = inputs_of(launch, session), replace(launch, step="forward"), step == "backward"
    calls: dict[str, Call] = {"ours": partial(launch.run, t)} if launch.tiles else {}
    if training:
        calls |= {"ours": lambda: launch.run({**t, **forward.run(t)}), "ours_forward": partial(forward.run, t),
                  "ours_backward": partial(launch.run, t)}  # fmt: skip
    if step == "block":
        calls["steps"] = partial(in_steps, **t, scale=launch.scale)
    others = compiled_baseline(t, device, training) if compiled else baselines(t, device, training)
    notes, refused, errors, peaks = dict[str, str](), dict[str, str](), dict[str, str](), dict[str, int | None]()
    with torch.set_grad_enabled(training):
        for name, note, call in block_baselines(t, device) if step == "block" else others:
            if name not in calls and (why := refusal_of(call)):
                refused[name] = f"{note}: {why}"
            elif name not in calls:
                calls[name], notes[name] = call, note
                refused.pop(name, None)
        for name, call in calls.items():
            try:
                call()
                device.samples(call, 0.1)
                peaks[name] = device.peak_bytes(call)
            except Exception as error:  # out of memory, most likely; the others are timed nevertheless
                errors[name] = describe(error)
                if not device.healthy():
                    raise
        timed = device.time_in_turn({name: calls[name] for name in peaks})
    times = {name: {**time, "peak_bytes": peaks[name], "note": notes.get(name, "")} for name, time in timed.items()}
    tiles = {name: tile.to_json() for name, tile in launch.tiles.items()}
    found = {"step": step, "dtype": dtype, "C": c, "d": launch.d, "N": n, "tiles": tiles, "times": times, "errors": errors,
             "refused": refused}  # fmt: skip
    if failed := "; ".join(f"{name}: {text}" for name, text in errors.items() if name.startswith("ours")):
        found |= {"state": "error", "error": failed}
    elif training:
        found["backward_over_forward"] = times["ours_backward"]["median_ms"] / times["ours_forward"]["median_ms"]
    elif "ours" in times:
        if (peak := peaks["ours"]) is not None:
            given = sum(tensor.nbytes for name, tensor in t.items() if name != "grad_o")
            output = t["x" if step == "block" else "grad_o"].nbytes  # has this shape
            found["peak_over_io"] = (given + peak) / (given + output)
        if step == "forward" and (floor := floor_ms(session.suite.identity["gpu"], launch.d, c, n)) is not None:
            found |= {"floor_ms": floor, "floor_share": floor / times["ours"]["median_ms"]}
    return found


def naive(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend by the formula, channels-first: q (B, d, N), k (B, d, M), v (B, e, M)."""
    weights = torch.softmax(torch.bmm(q.transpose(1, 2), k), dim=2)  # (B, N, M)
    return torch.bmm(v, weights.transpose(1, 2))


def fused(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend by one backend of PyTorch alone, on (B, 1, N, channels); it raises where the backend refuses."""
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v, scale=1.0)


def baselines(t: Tensors, device: Device, training: bool) -> Iterator[tuple[str, str, Call]]:
    """Yield what else computes a forward pass of t's q, k, v (1, 1, channels, positions), or with gradients a training step.

    A name may come several times, for less and for more padding; with it comes how inputs were prepared.
    """
    q, k, v, grad_o = (t[name] for name in ("q", "k", "v", "grad_o"))
    maps = [x[:, 0] for x in (q, k, v)]
    yield "naive", "channels-first, the map of weights in memory", _pass(naive, maps, grad_o[:, 0], training)
    for name, backend, channels in _backends(device, q.shape[2], v.shape[2]):
        rows = [_positions_first(x, size) for x, size in ((q, channels), (k, channels), (v, v.shape[2]))]
        call = _pass(partial(fused, backend), rows, _positions_first(grad_o, v.shape[2]), training)
        yield name, f"{channels} channels in q and k", call
    if not device.rehearsal:
        forward, note = partial(sdpa.forward, q, k, v, 1.0), "efficient, copies from channels-first included"
        kept = cache(forward)
        yield "drop_in", note, (lambda: sdpa.backward(grad_o, q, k, v, *forward(), 1.0)) if training else forward
        if training:
            yield "drop_in_backward", note, lambda: sdpa.backward(grad_o, q, k, v, *kept(), 1.0)


def block_baselines(t: Tensors, device: Device) -> Iterator[tuple[str, str, Call]]:
    """Yield what computes a whole block from x (B, C, H, W): convolutions, attention, shortcut, norm, ReLU; as `baselines`.

    PyTorch's backends get channels-last feature maps, of which q, k and v are views; q and k are padded by the convolution.
    """
    (d, e), x = t["wq"].shape, t["x"].contiguous(memory_format=torch.channels_last)
    yield "naive", "", partial(_block, t, lambda q, k, v: naive(q.flatten(2), k.flatten(2), v.flatten(2)).view_as(v))
    for name, backend, channels in _backends(device, d, e):
        wide = {key: F.pad(t[key], (0, 0) * (t[key].dim() - 1) + (0, channels - d)) for key in ("wq", "wk", "bq")}
        call = partial(_block, {**t, **wide, "x": x}, partial(_on_maps, partial(fused, backend)))
        yield name, f"channels-last, {channels} channels in q and k", call


def compiled_baseline(t: Tensors, device: Device, training: bool) -> Iterator[tuple[str, str, Call]]:
    """Yield what torch.compile makes of the formula."""
    torch._dynamo.reset()  # it would stop compiling after eight shapes, and say nothing
    made = torch.compile(naive, dynamic=False, backend="aot_eager" if device.rehearsal else "inductor")
    yield "compiled", "the formula", _pass(made, [t[name][:, 0] for name in ("q", "k", "v")], t["grad_o"][:, 0], training)


def refusal_of(call: Call) -> str:
    """Return why PyTorch's fused attention refuses a call, which it tells in warnings; empty where it does not."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            call()
        except RuntimeError as error:
            told = "; ".join(dict.fromkeys(str(w.message).partition(" (Triggered")[0] for w in said))
            return f"{describe(error).partition(' (at ')[0][:160]} {told[:600]}"
    return ""


def _pass(attend: Attend, inputs: list[Tensor], grad: Tensor, training: bool) -> Call:
    given = [x.clone().requires_grad_(training) for x in inputs]
    return (lambda: torch.autograd.grad(attend(*given), given, grad)) if training else partial(attend, *given)


def _backends(device: Device, d: int, e: int) -> Iterator[tuple[str, SDPBackend, int]]:
    """Yield PyTorch's backends with channels that q and k may be padded to, fewest first."""
    for name, backend in (REHEARSAL_BACKENDS if device.rehearsal else BACKENDS).items():
        yield from ((name, backend, channels) for channels in dict.fromkeys((-(-d // 8) * 8, e)) if channels >= d)


def _block(t: Tensors, attend: Attend) -> Tensor:
    x, dtype = t["x"], t["x"].dtype
    q, k, v = (
        F.conv2d(x, t[weight][:, :, None, None], None if bias is None else t[bias].to(dtype))
        for weight, bias in (("wq", "bq"), ("wk", None), ("wv", "bv"))
    )
    zeros, ones = torch.zeros_like(t["norm_scale"]), torch.ones_like(t["norm_scale"])
    return F.relu(F.batch_norm(x + attend(q, k, v), zeros, ones, t["norm_scale"], t["norm_shift"], eps=0.0))


def _on_maps(attend: Attend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    rows = (x.flatten(2).transpose(1, 2)[:, None] for x in (q, k, v))  # (B, 1, N, channels), views of channels-last maps
    return attend(*rows)[:, 0].transpose(1, 2).reshape(v.shape)


def _positions_first(x: Tensor, channels: int) -> Tensor:
    """Turn x (B, h, c, N) into contiguous (B, h, N, channels), with zeros in what c lacks."""
    return F.pad(x.transpose(2, 3), (0, channels - x.shape[2])).contiguous().detach()


def table_path(session: Session) -> Path:
    """Return where the dispatch's table of this GPU lies."""
    return session.folder / "tables" / f"{slug(session.suite.identity['gpu'])}.json"


def write_dispatch_table(session: Session) -> None:
    """Write the table anew, with every comparison that came out so far."""
    entries = [entry for record in session.records.records.values() if (entry := entry_of(record)) is not None]
    if entries:
        provenance = {**session.suite.identity, "command": session.suite.command}
        write_table(table_path(session), session.suite.identity["gpu"], entries, provenance)


def entry_of(record: Mapping[str, Any]) -> Entry | None:
    """Return the entry that a comparison gives, or None where it is no comparison of ways that the dispatch has."""
    step = record["id"].split()[0]
    names = [name for name in WAYS.get(step, ()) if record["state"] == "ok" and name in record["times"]]
    if not names:
        return None
    best = min(names, key=lambda name: record["times"][name]["median_ms"])
    ours = best == WAYS[step][0]
    tiles = {name: convert(Tile, tile) for name, tile in record["tiles"].items() if ours and name in KERNELS[step]}
    return Entry(
        backward=step == "backward", block=step == "block", dtype=record["dtype"], qk_channels=record["d"],
        value_channels=record["C"], batch=1, queries=record["N"], keys=record["N"], ms=record["times"][best]["median_ms"],
        implementation="triton" if ours else "steps" if step == "block" else "sdpa", tiles=tiles,
    )  # fmt: skip

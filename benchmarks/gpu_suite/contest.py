"""Time our kernels beside their rivals at one shape: the forward pass, the whole block, a training step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_suite.floor import chip, floor_ms
from benchmarks.gpu_suite.launches import Launch
from benchmarks.gpu_suite.place import Place
from benchmarks.gpu_suite.records import describe
from benchmarks.gpu_suite.rivals import Rival, block_rivals, forward_rivals, naive, training_rivals
from benchmarks.gpu_suite.timing import Burst, interleave
from hyctas.attention.block import in_steps

OURS = "ours"


def inputs_of(launch: Launch, place: Place, seed: int) -> dict[str, Tensor]:
    """Draw the inputs of a launch; for gradients also o and lse."""
    generator = torch.Generator(place.device).manual_seed(seed)
    tensors = launch.inputs(place.device, generator)
    if launch.step == "backward":
        from hyctas.attention.launch import run_forward

        q, k, v = tensors["q"], tensors["k"], tensors["v"]
        tensors["o"], tensors["lse"] = run_forward(q, k, v, launch.scale, launch.tiles["forward"])
    return tensors


def forward(launch: Launch, place: Place, seed: int) -> dict[str, Any]:
    """Time the forward pass with a launch's tile, beside its rivals."""
    tensors = inputs_of(launch, place, seed)
    rivals, refused = forward_rivals(tensors, place)
    with torch.no_grad():
        found = contend({OURS: Rival(lambda: launch.run(tensors)), **rivals}, place)
    moved = _bytes(tensors, "q", "k", "v") + _bytes(tensors, "grad_o")  # o has grad_o's shape
    return {**_about(launch), **found, "refused": refused, **_memory(found, _bytes(tensors, "q", "k", "v"), moved),
            **floor_share(found, launch, place)}  # fmt: skip


def block(launches: Mapping[str, Launch], launch: Launch, place: Place, seed: int) -> dict[str, Any]:
    """Time the whole block: in one launch (by name of how k is made), in steps, and as a module computes it.

    Args:
        launches: our one-launch ways by name; none where no tile is known.
        launch: shapes.
        place: where.
        seed: of the inputs.
    """
    t = inputs_of(launch, place, seed)
    rivals, refused = block_rivals(t, place)
    ours = {name: Rival(lambda one=one: one.run(t)) for name, one in launches.items()}  # type: ignore[misc]
    ours["steps"] = Rival(lambda: in_steps(**t, scale=launch.scale), "three products, hyctas::self_attention, elementwise rest")
    with torch.no_grad():
        found = contend({**ours, **rivals}, place)
    moved = 2 * _bytes(t, "x") + _bytes(t, *(name for name in t if name != "x"))
    return {**_about(launch), **found, "refused": refused, **_memory(found, moved - _bytes(t, "x"), moved)}


def training(launch: Launch, place: Place, seed: int) -> dict[str, Any]:
    """Time a forward and a backward pass with a launch's tiles, both together and each alone, beside rivals."""
    from hyctas.attention.launch import run_forward

    t = inputs_of(launch, place, seed)
    rivals, refused = training_rivals(t, place)

    def ours_forward() -> tuple[Tensor, Tensor]:
        return run_forward(t["q"], t["k"], t["v"], launch.scale, launch.tiles["forward"])

    def ours() -> tuple[Tensor, ...]:
        o, lse = ours_forward()
        return launch.run({**t, "o": o, "lse": lse})

    parts = {OURS: Rival(ours), "ours_forward": Rival(ours_forward), "ours_backward": Rival(lambda: launch.run(t))}
    found = contend({**parts, **rivals}, place)
    times = found["times"]
    if "ours_backward" in times and "ours_forward" in times:
        found["backward_over_forward"] = times["ours_backward"]["median_ms"] / times["ours_forward"]["median_ms"]
    return {**_about(launch), **found, "refused": refused}


def compiled(launch: Launch, place: Place, seed: int) -> dict[str, Any]:
    """Time what torch.compile makes of the plain formula, forward or a training step, beside ours."""
    torch._dynamo.reset()  # it would stop compiling after eight shapes, and say nothing
    t = inputs_of(launch, place, seed)
    made = torch.compile(naive, dynamic=False, backend="aot_eager" if place.rehearsal else "inductor")
    plain = [t[name][:, 0].clone() for name in ("q", "k", "v")]
    if launch.step == "forward":
        with torch.no_grad():
            both = {OURS: Rival(lambda: launch.run(t)), "compiled": Rival(lambda: made(*plain))}
            return {**_about(launch), **contend(both, place)}
    from hyctas.attention.launch import run_forward

    def ours() -> tuple[Tensor, ...]:
        o, lse = run_forward(t["q"], t["k"], t["v"], launch.scale, launch.tiles["forward"])
        return launch.run({**t, "o": o, "lse": lse})

    for x in plain:
        x.requires_grad_()
    theirs = Rival(lambda: torch.autograd.grad(made(*plain), plain, t["grad_o"][:, 0]))
    return {**_about(launch), **contend({OURS: Rival(ours), "compiled": theirs}, place)}


def contend(rivals: Mapping[str, Rival], place: Place) -> dict[str, Any]:
    """Time contenders in turn.

    Returns:
        `times` by name, each with the `peak_bytes` that one call adds; `errors` of those that failed; `state` is `error`, with
        the `error`, where one of ours did.
    """
    bursts: dict[str, Burst] = {}
    peaks: dict[str, int | None] = {}
    errors: dict[str, str] = {}
    for name, rival in rivals.items():
        try:
            rival.call()
            peaks[name] = place.peak_bytes(rival.call)
            bursts[name] = Burst(rival.call, place)
        except Exception as error:  # out of memory, most likely; the others are timed nevertheless
            errors[name] = describe(error)
            if not place.healthy():
                raise RuntimeError(f"{name} broke the GPU's context: {errors[name]}") from error
    times = {name: {**timing.to_json(), "peak_bytes": peaks[name], "note": rivals[name].note}
             for name, timing in interleave(bursts, 0.35).items()} if bursts else {}  # fmt: skip
    failed = [f"{name}: {text}" for name, text in errors.items() if name == OURS or name.startswith("ours_")]
    return {"times": times, "errors": errors, **({"state": "error", "error": "; ".join(failed)} if failed else {})}


def floor_share(found: Mapping[str, Any], launch: Launch, place: Place) -> dict[str, Any]:
    """Return the floor of a forward pass and the share of it that ours reaches, or why there is none."""
    known = chip(place.name)
    if known is None:
        return {"floor_missing": f"the rates of {place.name} are not known (benchmarks/gpu_suite/floor.py)"}
    floor = floor_ms(known, launch.d, launch.e, launch.queries, launch.keys)
    share = {"floor_share": floor / found["times"][OURS]["median_ms"]} if OURS in found["times"] else {}
    return {"floor_ms": floor, **share}


def _about(launch: Launch) -> dict[str, Any]:
    tiles = {name: tile.to_json() for name, tile in launch.tiles.items()}
    return {"step": launch.step, "dtype": launch.dtype, "C": launch.e, "d": launch.d, "N": launch.queries, "tiles": tiles}


def _memory(found: Mapping[str, Any], inputs: int, both: int) -> dict[str, Any]:
    """Return inputs and outputs in bytes, and how much of that ours holds at its peak."""
    ours = found["times"].get(OURS, {}).get("peak_bytes")
    return {"io_bytes": both, **({"peak_over_io": (inputs + ours) / both} if ours is not None else {})}


def _bytes(tensors: Mapping[str, Tensor], *names: str) -> int:
    return sum(tensors[name].numel() * tensors[name].element_size() for name in names)

"""List all that the networks of a grid space can hold: every cell and operator, and networks that together have them all."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from hyctas.arch.genotype import Cell, Genotype
from hyctas.arch.node import cell_operator, slot_name
from hyctas.arch.operators import Operator, Shape, half
from hyctas.plan import lower
from hyctas.spaces.stages import ALIGNED, REPLACED, Stage, separable_width

if TYPE_CHECKING:
    from hyctas.spaces.grid import Space


@lru_cache(maxsize=16)
def keys(space: Space, size: tuple[int, int], num_classes: int) -> tuple[str, ...]:
    """List the latency-table keys of all networks of the space at an image size, sorted."""
    found = {operator.key((shape,)) for _, operator, shape in cells(space, size, widest=False)}
    for genotype in networks_for_decoders(space):
        found.update(node.key for node in lower(genotype, size, num_classes).nodes if node.part not in ("stem", "trunk"))
    return tuple(sorted(found))


def cells(space: Space, size: tuple[int, int], *, widest: bool) -> Iterator[tuple[str, Operator, Shape]]:
    """Yield every cell's slot, operator and input shape: of all networks, or of the widest ones alone."""
    sizes = {1: size}
    for stride in (1, 2, 4, 8, 16):
        sizes[2 * stride] = (half(sizes[stride][0]), half(sizes[stride][1]))
    for stage in space.stages:
        before = _widths_before(space, stage)
        inputs = sizes[stage.reduction // stage.stride]
        for cell in _first_cells(space, stage, widest=widest):
            for width in before[-1:] if widest else before:
                if cell.op == "pool" and cell.out != width:
                    continue
                operator = cell_operator(cell, (width,), ALIGNED)
                yield slot_name("stage", stage.name, 0, operator), operator, (width, *inputs)
        for ordinal, cell, width in _later_cells(space, stage, widest=widest):
            operator = cell_operator(cell, (width,), ALIGNED)
            yield slot_name("stage", stage.name, ordinal, operator), operator, (width, *sizes[stage.reduction])


def _widths_before(space: Space, stage: Stage) -> tuple[int, ...]:
    """Return the widths that a stage's first cell can get, ascending."""
    if stage.name == "2":
        return (3,)
    if stage.name == "4":
        plain = set(space.stages[0].widths) if {"conv", "resnet"} & {*space.stems} else set[int]()
        separable = {separable_width(w) for w in space.stages[0].widths} if "separable" in space.stems else set[int]()
        return tuple(sorted(plain | separable))
    previous = space.stages[stage.index - 1]
    widths = set(previous.widths)
    if previous.stride == 1:
        widths |= set(space.stages[previous.index - 1].widths) if previous.first[0] == "skip" else set()
    if stage.name == "8" and "resnet" in space.stems:
        widths |= set(space.stages[0].widths)
    return tuple(sorted(widths))


def _first_cells(space: Space, stage: Stage, *, widest: bool) -> Iterator[Cell]:
    widths = stage.widths[-1:] if widest else stage.widths
    if stage.name == "2":
        kinds = [(3, True)] * bool({"conv", "separable"} & {*space.stems}) + [(7, False)] * ("resnet" in space.stems)
        for width, (kernel, relu6) in itertools.product(widths, kinds):
            yield Cell("conv", width, 2, stage="2", kernel=kernel, relu6=relu6)
        return
    if stage.name == "4" and "resnet" in space.stems:
        for width in space.stages[0].widths[-1:] if widest else space.stages[0].widths:
            yield Cell("pool", width, 2, stage="4")
    for op, width in itertools.product([op for op in stage.first if op != "skip"], widths):
        yield from _shaped(stage, op, width, stage.stride, "", widest=widest)


def _later_cells(space: Space, stage: Stage, *, widest: bool) -> Iterator[tuple[int, Cell, int]]:
    """Yield the cells after a stage's first: ordinal, cell, input width; for keys (not widest) one ordinal stands for all."""
    widths = set(stage.widths)
    if stage.name == "2":
        for width in stage.widths[-1:] if widest else stage.widths if "separable" in space.stems else ():
            yield 1, stage.cell("inverted", separable_width(width), 1, 3, 1), width
        return
    if stage.name == "4" and "resnet" in space.stems:
        widths |= set(space.stages[0].widths)
    ops = {*stage.operators} - {"skip"} if stage.depth > 1 else set()
    if stage.name == "8" and not ops:
        ops = {"conv"}  # what a branch that would be empty gets
    firsts = {"inverted" if first == "inverted" else "" for first in stage.first if first != "skip"}
    kinds = {(REPLACED.get(op, op) if first else op, first) for first in firsts for op in ops}
    for width in sorted(widths)[-1:] if widest else sorted(widths):
        for op, first in sorted(kinds):
            for cell in _shaped(stage, op, width, 1, first, widest=widest):
                yield from ((ordinal, cell, width) for ordinal in (range(1, max(2, stage.depth)) if widest else (1,)))
        added = [Cell("attention", width, 1, variant.at(width)) for variant in space.attention] if stage.attention else []
        if space.context and stage.reduction == 32:
            added.append(Cell("context", width))
        yield from ((0, cell, width) for cell in added)


def _shaped(stage: Stage, op: str, width: int, stride: int, first: str, *, widest: bool) -> Iterator[Cell]:
    """Yield a cell at every kernel and expansion, or at the largest alone."""
    if op != "inverted":
        yield stage.cell(op, width, stride, 3, 1, first)
        return
    kernels, expansions = (stage.kernels[-1:], stage.expansions[-1:]) if widest else (stage.kernels, stage.expansions)
    for kernel, expansion in itertools.product(kernels, expansions):
        yield stage.cell(op, width, stride, kernel, expansion)


def networks_for_decoders(space: Space) -> Iterator[Genotype]:
    """Yield networks that together have every operator behind the trunk at every pair of widths."""
    narrow = {f"b{final}.8.{i}.op": "skip" for final in space.finals for i in range(1, space.stage("8").depth)}
    for decoder, level in itertools.product(space.decoders, space.choices["decoder.width"]):
        base = {"decoder": decoder, "decoder.width": level}
        ends = itertools.zip_longest(space.stage("8").widths, _ends(space, 16), _ends(space, 32))
        for w8, w16, w32 in ends:
            for branches in space.branch_sets:
                chosen: dict[str, Any] = {**narrow, **base, "branches": branches}
                chosen["stem.8.width"] = w8 or space.stage("8").widths[0]
                for final in branches:
                    for stride, end in ((16, w16), (32, w32)):
                        if end is not None and final >= stride:
                            stage, width = end
                            chosen[f"b{final}.{stage}.width"] = width
                            if stage.endswith("b"):
                                chosen[f"b{final}.{stage}.first"] = space.stage(stage).first[-1]
                yield space.network(chosen)
        for kind, block, width in itertools.product(space.heads, space.head_blocks, space.choices["head.width"]):
            head = {"head.kind": kind, "head.block": block, "head.width": width}
            for w4, w8 in itertools.zip_longest(_taps(space), space.stage("8").widths):
                low = {"stem.8.width": w8 or space.stage("8").widths[0]}
                yield space.network({**narrow, **base, **head, **low, **(w4 or {})})
    for level, variant in itertools.product(space.choices["decoder.width"], space.attention):
        yield space.network({"decoder.width": level, "head.attention": True, "attention": variant})


def _ends(space: Space, stride: int) -> list[tuple[str, int]]:
    """Return the stage and width of every feature at a stride that a decoder can get."""
    if stride > max(space.finals):
        return []
    return [(stage.name, width) for stage in space.stages if stage.reduction == stride for width in stage.widths]


def _taps(space: Space) -> list[dict[str, Any]]:
    """Return the choices that give a head every width of stride-4 features."""
    taps: list[dict[str, Any]] = []
    if {"conv", "separable"} & {*space.stems}:
        kind = next(kind for kind in space.stems if kind != "resnet")
        taps += [{"stem.kind": kind, "stem.4.width": width} for width in space.stage("4").widths]
    if "resnet" in space.stems:
        taps += [{"stem.kind": "resnet", "stem.2.width": width} for width in space.stages[0].widths]
    return taps


def covering_networks(space: Space) -> Iterator[Genotype]:
    """Yield the largest networks of every branch set, decoder and head, optional stages in and out; most branches first."""
    by_size = sorted(space.branch_sets, key=lambda chosen: -len(chosen))
    optional = [name for name, choices in space.choices.items() if name.endswith(".first") and choices[0] == "skip"]
    ends = [{name: space.choices[name][end] for name in optional} for end in (0, -1)]
    variants = [{}, *({"head.attention": True, "attention": variant} for variant in space.attention)]
    for choice in itertools.product(by_size, space.decoders, space.heads, space.head_blocks, variants, ends):
        branches, decoder, kind, block, attention, stages = choice
        frame = {"branches": branches, "decoder": decoder, "head.kind": kind, "head.block": block}
        yield space.corner(largest=True, **frame, **attention, **stages)

"""Hand-made networks of `edge`: what a good engineer would build, at two or three widths each.

A search starts from them, users train them without searching (`edge:lite0-16` instead of a genotype), and they are what
a searched network has to beat. `-w75` and `-w50` have three quarters and half of the channels.

| family         | what it is                                                                                                |
|----------------|------------------------------------------------------------------------------------------------------------|
| `lite0`        | EfficientNet-Lite0 with a light decoder: one 1x1 per stride, summed at 1/8, the head at 1/4               |
| `lite0-16`     | the same, cut at stride 16                                                                                  |
| `lite0-16-attention` | `lite0-16` with self-attention at the end of its trunk                                              |
| `lite0-16-branch`    | `lite0-16` with a second branch at 1/8                                                              |
| `resnet`       | ResNet-18 with the same decoder                                                                             |
| `plain`        | plain and residual 3x3 convolutions with pooled context (`benchmarks/yardstick.py`)                         |
| `two-branch`   | a thin branch at 1/8 beside a deep one to 1/32, as in BiSeNet and DDRNet                                    |
| `hyctas`       | three branches, light-weight convolutions, attention at 1/16 and 1/32, as in the paper's S                  |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from export.errors import InvalidInput
from hyctas.arch.genotype import Genotype
from hyctas.space import edge
from hyctas.spaces.search_space import SearchSpace, genes_in

Row = tuple[str, ...]
"""Operators of a stage's cells."""
Widths = Sequence[int]
"""Channels of the stages that a network has, in order."""

LITE = {
    "4": (3, 6, ("inverted",) * 2), "8": (5, 6, ("inverted",) * 2), "16a": (3, 6, ("inverted",) * 3),
    "16b": (5, 6, ("inverted",) * 3), "32a": (5, 6, ("inverted",) * 4), "32b": (3, 6, ("inverted",)),
}  # fmt: skip
"""EfficientNet-Lite0's stages: kernel, expansion, operators (tensorflow/tpu, models/official/efficientnet/lite)."""
LITE_WIDTHS = {"": (32, 24, 40, 80, 112, 192, 320), "-w75": (24, 16, 32, 64, 80, 128, 240), "-w50": (16, 16, 24, 40, 56, 96, 160)}
DECODER_WIDTHS = {"": (64, 32), "-w75": (40, 24), "-w50": (32, 16)}


def _network(
    stem: str, widths: Widths, stages: Mapping[str, tuple[int, int, Row]], decoder_widths: tuple[int, int],
    branches: tuple[int, ...], **more: Any,
) -> Genotype:  # fmt: skip
    """Return a network whose branches run along the deepest one; `more` sets single genes by name."""
    space = edge()
    chosen: dict[str, Any] = {"stem.kind": stem, "stem.2.width": widths[0], "branches": branches}
    for width, (name, (kernel, expansion, row)) in zip(widths[1:], stages.items(), strict=True):
        own = ["stem"] if name == "4" else [f"b{final}" for final in branches if final >= space.stage(name).reduction]
        for start in {"stem"} if name == "8" else own:
            chosen |= {f"{start}.{name}.first": row[0], f"{start}.{name}.width": width}
            if "inverted" in row:
                chosen |= {f"{start}.{name}.kernel": kernel, f"{start}.{name}.expansion": expansion}
        for start in own:
            chosen |= {f"{start}.{name}.{i}.op": op for i, op in enumerate(row) if i}
    if stem == "resnet":  # its stage 4 begins with a max-pooling and has the stem's width
        del chosen["stem.4.first"], chosen["stem.4.width"]
    chosen |= {
        "decoder": "sum", "decoder.width": space.stage("8").widths.index(decoder_widths[0]), "head.kind": "plain",
        "head.width": space.stage("4").widths.index(decoder_widths[1]),
    }  # fmt: skip
    return space.network(chosen | more)


def _lite(suffix: str, branches: tuple[int, ...], **more: Any) -> Genotype:
    count = 6 if 32 in branches else 4
    stages = dict(list(LITE.items())[:count])
    return _network("separable", LITE_WIDTHS[suffix][: count + 1], stages, DECODER_WIDTHS[suffix], branches, **more)


def _residual(widths: Widths, decoder: tuple[int, int]) -> Genotype:
    pool = ("pool", "residual", "residual")
    stages = {"4": (3, 1, pool), **{name: (3, 1, ("residual",) * 2) for name in ("8", "16a", "32a")}}
    return _network("resnet", widths, stages, decoder, (32,))


def _plain(widths: Widths, decoder: tuple[int, int]) -> Genotype:
    long, short = ("conv", "residual", "residual"), ("conv", "residual")
    stages = {"4": (3, 1, ("conv",)), "8": (3, 1, long), "16a": (3, 1, short), "32a": (3, 1, long)}
    return _network("conv", widths, stages, decoder, (32,), **{"b32.context": True})


def _two_branch(widths: Widths, decoder: tuple[int, int]) -> Genotype:
    deep = ("conv", "residual")
    stages = {"4": (3, 1, ("conv",)), "8": (3, 1, ("conv", "residual")), "16a": (3, 1, deep), "32a": (3, 1, deep)}
    more = {"b8.8.2.op": "residual", "b32.context": True}
    return _network("conv", widths, stages, decoder, (8, 32), **more)


def _hyctas(widths: Widths, decoder: tuple[int, int]) -> Genotype:
    stages = {
        "4": (3, 1, ("conv",)), "8": (3, 1, ("conv", "downup")), "16a": (3, 1, ("downup", "downup2x")),
        "32a": (3, 1, ("downup", "downup2x")),
    }  # fmt: skip
    more = {"b16.16a.attention": True, "b32.32a.attention": True, "b8.8.2.op": "downup2x", "decoder": "concat"}
    return _network("conv", widths, stages, decoder, (8, 16, 32), **more)


@cache
def members() -> dict[str, Genotype]:
    """Return the hand-made networks of `edge` by name."""
    found: dict[str, Genotype] = {}
    for suffix in LITE_WIDTHS:
        found[f"lite0{suffix}"] = _lite(suffix, (32,))
        found[f"lite0-16{suffix}"] = _lite(suffix, (16,))
        found[f"lite0-16-attention{suffix}"] = _lite(suffix, (16,), **{"b16.16b.attention": True})
        more = {"b8.8.2.op": "inverted", "b8.8.3.op": "inverted"}
        found[f"lite0-16-branch{suffix}"] = _lite(suffix, (8, 16), **more)
    found["resnet"] = _residual((64, 64, 128, 256, 512), (64, 32))
    found["resnet-w50"] = _residual((32, 32, 64, 128, 256), (64, 32))
    found["plain"] = _plain((16, 32, 64, 128, 128), (64, 32))
    found["plain-w75"] = _plain((16, 24, 40, 80, 96), (40, 24))
    found["two-branch"] = _two_branch((32, 32, 64, 128, 256), (64, 32))
    found["two-branch-w50"] = _two_branch((16, 32, 32, 64, 128), (32, 32))
    found["hyctas"] = _hyctas((16, 32, 64, 128, 256), (64, 32))
    found["hyctas-w50"] = _hyctas((16, 24, 32, 64, 128), (32, 24))
    return found


def member(name: str) -> Genotype:
    """Return a hand-made network of `edge`.

    Raises:
        InvalidInput: there is none of that name; the text lists all.
    """
    if name not in members():
        raise InvalidInput(f"there is no hand-made network edge:{name}; there are: {', '.join(members())}")
    return members()[name]


def members_of(space: SearchSpace) -> dict[str, Genotype]:
    """Return the hand-made networks that a space holds, by name."""
    return {name: genotype for name, genotype in members().items() if genes_in(space, genotype) is not None}


def family(name: str) -> str:
    """Return the family of a hand-made network: its name without the width."""
    return name.partition("-w")[0]

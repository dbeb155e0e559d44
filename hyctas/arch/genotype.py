"""Describe a network as plain frozen data: explicit channel numbers, canonical JSON, a normal form and an id.

Two genotypes describe the same network exactly when their normal forms are equal, and then their ids are equal:

1. a stride-1 skip means an absent cell and is dropped; a stride-2 skip is a cell and is kept;
2. branches are sorted by their final stride;
3. shared prefixes are not written down: which cells two branches share follows from the cells (`shared_length`).

Classes and labels are not part of a genotype. A field declared with `elided` is in JSON only where it is not at its default. No
torch here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from export.codec import decode, elided, plain
from export.errors import InvalidInput
from export.files import check_version
from hyctas.arch.operators import CELLS

FORMAT_VERSION = 1
HEAD_KINDS = ("light", "plain", "head1", "head2")
HEAD_BLOCKS = ("conv", "downup2x")
DECODERS = ("concat", "sum")
STAGES = ("2", "4", "8", "16a", "16b", "32a", "32b")
"""Stages of a trunk with stages, in order: the stride, and a letter where two stages have one stride."""
LINEAR = tuple(
    op for op, (kind, _) in CELLS.items() if op != "attention" and {"relu", "linear"} & {f.name for f in dataclasses.fields(kind)}
)
"""Cells that can end without ReLU; attention says it among its own choices."""
TRUNK_STRIDE = 8
"""Stride at which the stem ends and all branches start."""


@dataclass(frozen=True)
class Arithmetic:
    """Where published arithmetic differs from the corrected one: one field per difference, read by `plan.lower` alone."""

    linear_stem: bool = False
    """The first stem convolution has no ReLU."""
    linear_fusion: bool = False
    """The convolutions that bring a branch back to stride 8 have no ReLU."""
    linear_projection: bool = False
    """The head's projections of low-level features have no ReLU."""
    fusion_norms: bool = False
    """The channel weights of a fusion come through batch norms on 1x1 maps instead of biases."""
    wide_attention: bool = False
    """Around a half-resolution attention, the 1x1 convolutions work at full resolution."""
    late_pooling: bool = False
    """A stride-2 attention attends at its input's resolution and averages afterwards."""
    aligned: bool = elided(False)
    """Stride-2 convolutions pad as `operators.Layer.padding` says for aligned ones, and the image is never padded as a whole."""


@dataclass(frozen=True)
class Attention:
    """The free choices of a self-attention cell (see `operators.SelfAttention`)."""

    heads: int = 1
    qk_channels: int = 8
    scale: float | None = None
    pool: int = 1
    half_resolution: bool = False
    residual: str = "gamma"
    linear: bool = elided(False)


@dataclass(frozen=True)
class Cell:
    """One operator of the stem or of a branch; in the stem, the last one at stride 4 and at stride 8 feed the head."""

    op: str
    """One of `hyctas.arch.operators.CELLS`."""
    out: int
    """Output channels."""
    stride: int = 1
    attention: Attention | None = None
    """Given exactly when `op` is "attention"."""
    stage: str = elided("")
    """One of `STAGES`; empty throughout a network without stages."""
    kernel: int = elided(3)
    """Kernel of a "conv", and of an "inverted"'s depthwise convolution: 3, 5 or 7."""
    expansion: int = elided(1)
    """Of an "inverted": channels inside, as a multiple of the input's."""
    relu6: bool = elided(False)
    """The ReLUs of a "conv" or "inverted" are cut at 6."""
    linear: bool = elided(False)
    """It ends without ReLU, for features that have negative values: one of `LINEAR`."""


@dataclass(frozen=True)
class Fusion:
    """The decoder up to stride 8, and its channels.

    `concat`: every branch comes back by itself (a 1x1, concatenation with its own features of the next stride, a 3x3; `refine16`
    and `refine8` channels), then all are joined to `out`. `sum`: one 1x1 to `out` channels per stride, added, a 3x3 (as in FPN,
    Lin et al., CVPR 2017, with the sum at the largest resolution).
    """

    refine16: int
    refine8: int
    out: int
    decoder: str = elided("concat")
    """One of `DECODERS`; with `sum`, all three numbers are equal."""


@dataclass(frozen=True)
class Head:
    """From fused features to logits.

    `light` predicts at stride 8; `plain` joins the stem's stride-4 features as they are, by a 1x1, and predicts at stride 4;
    `head1` projects them first and joins by a block; `head2` joins the stem's stride-8 features before.
    """

    kind: str
    """One of `HEAD_KINDS`."""
    channels: int
    """Channels in front of the prediction."""
    block: str = "conv"
    """One of `HEAD_BLOCKS`: the operator that joins."""
    low4: int = 0
    """Channels that the stride-4 features are projected to (head1, head2)."""
    low8: int = 0
    """Channels that the stride-8 features are projected to (head2)."""
    attention: Attention | None = None
    """A self-attention on the fused features, before anything else."""


Branch = tuple[Cell, ...]


@dataclass(frozen=True)
class Genotype:
    """A whole network, up to its classes."""

    stem: tuple[Cell, ...]
    branches: tuple[Branch, ...]
    fusion: Fusion
    head: Head
    arithmetic: Arithmetic = Arithmetic()
    instance_head: Head | None = None
    """For panoptic segmentation: a second head that gives instance centres and offsets to them."""

    def __post_init__(self) -> None:
        _check(self)

    @cached_property
    def id(self) -> str:
        """The first 12 hexadecimal digits of the sha256 of the normal form's JSON."""
        return hashlib.sha256(normal_form(self).to_json().encode()).hexdigest()[:12]

    @property
    def final_strides(self) -> tuple[int, ...]:
        """Final stride of each branch."""
        return tuple(final_stride(branch) for branch in self.branches)

    def to_json(self) -> str:
        """Write canonical JSON: sorted keys, no spaces."""
        value = {"format_version": FORMAT_VERSION, **plain(self)}
        for cell in value["stem"]:  # a plain convolution of the stem is its channels and its stride
            if cell["op"] == "conv":
                del cell["op"], cell["attention"]
        return json.dumps(value, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Genotype:
        """Read what `to_json` writes (any spacing); a field that has a default may be left out.

        Raises:
            InvalidInput: not JSON, an unknown format version, an unknown, missing or wrongly typed field, or values that
                describe no network; the text names the place.
        """
        try:
            return decode(cls, text)
        except ValueError as error:
            raise InvalidInput(f"genotype is not valid: {error}") from None

    @classmethod
    def before_decoding(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Take the version off, and complete the stem's plain convolutions; ValueError for a version that is not read."""
        check_version(value, (FORMAT_VERSION,))
        stem = value.get("stem")
        cells = [{"op": "conv", **cell} if isinstance(cell, dict) else cell for cell in stem] if isinstance(stem, list) else stem
        return {name: cells if name == "stem" else item for name, item in value.items() if name != "format_version"}


def final_stride(branch: Branch) -> int:
    """Return the stride at which a branch ends."""
    stride = TRUNK_STRIDE
    for cell in branch:
        stride *= cell.stride
    return stride


def normal_form(genotype: Genotype) -> Genotype:
    """Return the genotype in which equivalent networks are equal (rules 1 and 2 above)."""
    return dataclasses.replace(genotype, branches=tuple(sorted(normal_branches(genotype), key=final_stride)))


def shared_length(first: Branch, second: Branch) -> int:
    """Count the leading cells that two branches share: equal ones, never the last cell of either."""
    longest = min(len(first), len(second)) - 1
    for index in range(longest):
        if first[index] != second[index]:
            return index
    return max(longest, 0)


def _check(genotype: Genotype) -> None:
    """Raise InvalidInput where values describe no network."""
    strides = [cell.stride for cell in genotype.stem]
    product = 1
    for stride in strides:
        product *= stride
    if product != TRUNK_STRIDE or any(stride not in (1, 2) for stride in strides):
        raise InvalidInput(f"stem strides {strides} must be 1 or 2 with product {TRUNK_STRIDE}")
    channels = [cell.out for part in (genotype.stem, *genotype.branches) for cell in part]
    channels += [genotype.fusion.refine16, genotype.fusion.refine8, genotype.fusion.out, genotype.head.channels]
    channels += [genotype.instance_head.channels // 2] if genotype.instance_head else []
    if min(channels) < 1:
        raise InvalidInput("every channel number of a genotype must be at least 1")
    parts = {"stem": genotype.stem, **{f"branches[{index}]": branch for index, branch in enumerate(genotype.branches)}}
    for part, cells in parts.items():
        for position, cell in enumerate(cells):
            _check_cell(f"{part}[{position}]", cell)
        if part != "stem":
            _check_stages(part, (*genotype.stem, *cells))
    ends = sorted(genotype.final_strides)
    if not ends or len(set(ends)) != len(ends) or any(end not in (8, 16, 32) for end in ends):
        raise InvalidInput(f"branches end at strides {ends}; they must be distinct ones of 8, 16, 32")
    if any(not branch for branch in normal_branches(genotype)):
        raise InvalidInput("a branch has no cell besides stride-1 skips")
    fusion = genotype.fusion
    if fusion.decoder not in DECODERS or (fusion.decoder == "sum" and not fusion.refine16 == fusion.refine8 == fusion.out):
        raise InvalidInput(f"fusion: decoders are {DECODERS}, a sum has one number of channels; got {fusion}")
    for name, head in (("head", genotype.head), ("instance_head", genotype.instance_head)):
        if head is not None:
            _check_head(name, head)


def _check_cell(where: str, cell: Cell) -> None:
    if cell.op not in CELLS:
        raise InvalidInput(f"{where}: unknown op {cell.op!r}; known: {', '.join(CELLS)}")
    if cell.stride not in (1, 2):
        raise InvalidInput(f"{where}: stride {cell.stride} is not 1 or 2")
    if (cell.attention is not None) != (cell.op == "attention"):
        raise InvalidInput(f'{where}: the field "attention" belongs to op "attention" and to no other')
    if cell.stage and cell.stage not in STAGES:
        raise InvalidInput(f"{where}: unknown stage {cell.stage!r}; stages are {', '.join(STAGES)}")
    if cell.kernel not in ((3, 5, 7) if cell.op in ("conv", "inverted") else (3,)):
        raise InvalidInput(f"{where}: kernel {cell.kernel} is not 3, 5 or 7 of a conv or an inverted, nor 3 of any other op")
    if cell.expansion < 1 or (cell.expansion > 1 and cell.op != "inverted"):
        raise InvalidInput(f"{where}: expansion {cell.expansion} is not at least 1, of an inverted")
    if cell.relu6 and cell.op not in ("conv", "inverted"):
        raise InvalidInput(f"{where}: relu6 belongs to conv and inverted, not to {cell.op}")
    if cell.linear and cell.op not in LINEAR:
        raise InvalidInput(f"{where}: linear belongs to {', '.join(LINEAR)}, not to {cell.op}")


def _check_stages(part: str, cells: tuple[Cell, ...]) -> None:
    """Check that the stages of a branch, its stem before it, ascend and have the strides that they are named after."""
    stages = [cell.stage for cell in cells]
    if not any(stages):
        return
    stride = 1
    for cell in cells:
        stride *= cell.stride
        if int(cell.stage.rstrip("ab") or 0) != stride:
            raise InvalidInput(f"{part}: a cell at stride {stride} is of stage {cell.stage!r}; its stage must be named after it")
    if sorted(stages, key=STAGES.index) != stages:
        raise InvalidInput(f"{part}: stages {stages} do not ascend")


def _check_head(name: str, head: Head) -> None:
    if head.kind not in HEAD_KINDS or head.block not in HEAD_BLOCKS:
        raise InvalidInput(f"{name} {head.kind!r}/{head.block!r}: kinds are {HEAD_KINDS}, blocks {HEAD_BLOCKS}")
    if (head.low4 > 0) != (head.kind in ("head1", "head2")) or (head.low8 > 0) != (head.kind == "head2"):
        raise InvalidInput(f"{name} {head.kind}: low4 belongs to head1 and head2, low8 to head2; got {head.low4}, {head.low8}")


def normal_branches(genotype: Genotype) -> tuple[Branch, ...]:
    """Return the branches without their stride-1 skips."""
    return tuple(tuple(c for c in branch if c.op != "skip" or c.stride == 2) for branch in genotype.branches)

"""Define the operators of the search space as frozen data: one definition from which everything else derives.

An operator's `layers` list its weights. Module (`hyctas/nn/blocks.py`), ONNX graph, parameters, MACs, bytes moved and the key of
the latency table all come from that one list, so they cannot disagree.

| operator           | what it computes (reference section of the paper's code in brackets)                                |
|--------------------|------------------------------------------------------------------------------------------------------|
| `Conv`             | conv k x k (stride 1 or 2), batch norm, ReLU [2.4, id 1]; several sources: resize, concat or add, conv |
| `Residual`         | two 3x3 convs with a shortcut: ResNet's basic block (He et al., CVPR 2016)                           |
| `InvertedResidual` | 1x1 to more channels, depthwise k x k, linear 1x1, shortcut (MobileNetV2, EfficientNet-Lite)         |
| `MaxPool`          | 3x3 at stride 2, between ResNet's stem and its first block                                           |
| `Context`          | x + conv1x1(global average of x) (ParseNet, 2015)                                                    |
| `Skip`             | stride 2: two 1x1 convs on the even and the odd pixels, concat, norm, ReLU [2.4, id 0]               |
| `DownUp`           | light-weight convolution: 3x3 convs at half resolution beside a full-resolution 1x1 [2.5, ids 2, 3]  |
| `SelfAttention`    | 1x1, self-attention over all positions, 1x1, with a shortcut [2.6, id 4]                             |
| `FeatureFusion`    | 1x1 conv over all branches, re-weighted per channel from the global average [2.7]                    |
| `Predict`          | 1x1 conv with bias to the classes                                                                    |

Shapes are (channels, height, width) of one image. Spatial sizes halve by rounding up, so any input size works. A field declared
with `elided` is in keys only where it is not at its default.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from export.codec import convert, decode, elided, plain

Shape = tuple[int, int, int]
BYTES_PER_ELEMENT = 4
"""Size of an fp32 element; `bytes_moved` counts in fp32 whatever the target computes in."""


@dataclass(frozen=True)
class Layer:
    """One convolution of an operator, with what follows it.

    Its weights are `<name>.weight` (out, sum(sources) / groups, kernel, kernel), `<name>.bias` where `bias`, and with `norm` a
    batch norm over its outputs. A convolution after a concatenation holds one input block per source.
    """

    name: str
    sources: tuple[int, ...]
    out: int
    kernel: int = 1
    stride: int = 1
    bias: bool = False
    norm: bool = True
    groups: int = 1
    """1, or as many as channels (depthwise)."""
    aligned: bool = False
    """Padding at stride 2: see `padding`."""
    starts_at_zero: bool = False
    """Its output is 0 in a fresh network (the norm's scale, or without a norm the weights, start at 0)."""

    @property
    def depthwise(self) -> bool:
        return self.groups > 1

    @property
    def parameters(self) -> int:
        """Count trainable parameters: weights, bias, and the norm's scale and shift."""
        return self.out * self.fan_in + self.out * self.bias + 2 * self.out * self.norm

    @property
    def fan_in(self) -> int:
        """Count the weights behind one output channel."""
        return sum(self.sources) // self.groups * self.kernel**2

    def macs(self, height: int, width: int) -> int:
        """Count multiply-accumulates for one image with the given output size."""
        return self.out * self.fan_in * height * width

    def padding(self, length: int) -> tuple[int, int]:
        """Return the zeros before and after an axis of the input; a negative number crops.

        At stride 2, `aligned` pads (k - 2) // 2 before, and after what ceil(length / 2) outputs need: TensorFlow's rule ("same")
        at even lengths, and the same alignment at odd ones. Otherwise (k - 1) // 2 on both sides.
        """
        if not (self.aligned and self.stride == 2):
            return self.kernel // 2, self.kernel // 2
        before = (self.kernel - 2) // 2
        return before, 2 * (half(length) - 1) + self.kernel - length - before


@dataclass(frozen=True)
class Norm:
    """A batch norm that does not follow a convolution. Its weights are `<name>.weight` and `<name>.bias`, (channels)."""

    name: str
    channels: int

    @property
    def parameters(self) -> int:
        return 2 * self.channels


@dataclass(frozen=True)
class Scalar:
    """One trainable number `<name>`."""

    name: str
    parameters: ClassVar[int] = 1


def half(size: int) -> int:
    """Return the size after a stride of 2: rounded up, so that odd sizes need no special care."""
    return (size + 1) // 2


@dataclass(frozen=True)
class Operator:
    """What all operators share: sources, output channels, and everything that derives from the layers."""

    sources: tuple[int, ...]
    """Channels of each input; inputs of different resolution are resized to the largest and concatenated."""
    out: int
    """Output channels."""

    label: ClassVar[str]
    """Name in genotypes, node names and reports."""

    def __post_init__(self) -> None:
        if not self.sources or min(self.sources) < 1 or self.out < 1:
            raise ValueError(f"{type(self).__name__} needs positive channels, got {self.sources} -> {self.out}")
        if self.stride not in (1, 2):
            raise ValueError(f"{type(self).__name__} has stride 1 or 2, not {self.stride}")

    @property
    def stride(self) -> int:
        return 1

    def layers(self) -> tuple[Layer | Norm | Scalar, ...]:
        """List everything that holds weights, in order of use."""
        raise NotImplementedError(type(self).__name__)

    def layer_sizes(self, height: int, width: int) -> dict[str, tuple[int, int]]:
        """Give the output size of every convolution, for an input of the given size."""
        raise NotImplementedError(type(self).__name__)

    def core_macs(self, height: int, width: int) -> int:
        """Count multiply-accumulates outside the layers (the attention itself)."""
        return 0

    def input_size(self, shapes: Sequence[Shape]) -> tuple[int, int]:
        """Return the size that inputs are resized to: the largest of them."""
        if tuple(shape[0] for shape in shapes) != self.sources:
            raise ValueError(f"{self} got inputs of shapes {list(shapes)}; their channels must be {self.sources}")
        return max((shape[1], shape[2]) for shape in shapes)

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        """Return the (channels, height, width) of the output."""
        height, width = self.input_size(shapes)
        return (self.out, height, width) if self.stride == 1 else (self.out, half(height), half(width))

    @property
    def parameters(self) -> int:
        """Count trainable parameters."""
        return sum(layer.parameters for layer in self.layers())

    def macs(self, shapes: Sequence[Shape]) -> int:
        """Count multiply-accumulates for one image: convolutions and attention products, as torch's flop counter does."""
        size = self.input_size(shapes)
        sizes = self.layer_sizes(*size)
        convs = sum(layer.macs(*sizes[layer.name]) for layer in self.layers() if isinstance(layer, Layer))
        return convs + self.core_macs(*size)

    def bytes_moved(self, shapes: Sequence[Shape]) -> int:
        """Count bytes of inputs, output and weights, each once, in fp32: the least that must move."""
        tensors = [*shapes, self.output_shape(shapes)]
        return BYTES_PER_ELEMENT * (sum(c * h * w for c, h, w in tensors) + self.parameters)

    def key(self, shapes: Sequence[Shape]) -> str:
        """Return the row of the latency table: canonical JSON of the class name, all fields, and the input shapes."""
        self.input_size(shapes)
        value = {"operator": type(self).__name__, **plain(self), "inputs": list(shapes)}
        return json.dumps(value, separators=(",", ":"))


@dataclass(frozen=True)
class Conv(Operator):
    """Convolution, batch norm and (optionally) ReLU."""

    kernel: int = 3
    cell_stride: int = 1
    relu: bool = True
    relu6: bool = elided(False)
    """The ReLU is cut at 6."""
    aligned: bool = elided(False)
    """Padding at stride 2 (`Layer.padding`)."""
    add: bool = elided(False)
    """Several sources, of equally many channels, are added instead of concatenated."""
    label = "conv"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.add and len(set(self.sources)) != 1:
            raise ValueError(f"sources are added where all have equally many channels, not {self.sources}")

    @property
    def stride(self) -> int:
        return self.cell_stride

    def layers(self) -> tuple[Layer, ...]:
        sources = self.sources[:1] if self.add else self.sources
        return (Layer("conv", sources, self.out, self.kernel, self.stride, aligned=self.aligned),)

    def layer_sizes(self, height: int, width: int) -> dict[str, tuple[int, int]]:
        return {"conv": (height, width) if self.stride == 1 else (half(height), half(width))}


@dataclass(frozen=True)
class SingleInput(Operator):
    """What blocks of a trunk share: one source, and a stride of 1 or 2."""

    cell_stride: int = 1
    aligned: bool = elided(False)
    """Padding at stride 2 (`Layer.padding`)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.sources) != 1:
            raise ValueError(f"{type(self).__name__} takes one input")

    @property
    def stride(self) -> int:
        return self.cell_stride

    @property
    def keeps_shape(self) -> bool:
        """Say whether the output has the input's shape."""
        return self.stride == 1 and self.sources == (self.out,)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the output's height and width."""
        return (height, width) if self.stride == 1 else (half(height), half(width))


@dataclass(frozen=True)
class Residual(SingleInput):
    """ReLU(norm(conv3x3(ReLU(norm(conv3x3(x))))) + shortcut(x)); the shortcut is a 1x1 where the shape changes.

    ResNet's basic block (He et al., CVPR 2016, figure 5 and section 4.1, option B).
    """

    linear: bool = elided(False)
    """No ReLU after the shortcut."""
    label = "residual"

    def layers(self) -> tuple[Layer, ...]:
        first = Layer("first", self.sources, self.out, 3, self.stride, aligned=self.aligned)
        second = Layer("second", (self.out,), self.out, 3)
        if self.keeps_shape:
            return first, second
        return first, second, Layer("shortcut", self.sources, self.out, 1, self.stride, aligned=self.aligned)

    def layer_sizes(self, height: int, width: int) -> dict[str, tuple[int, int]]:
        return dict.fromkeys(("first", "second", "shortcut"), self.output_size(height, width))


@dataclass(frozen=True)
class InvertedResidual(SingleInput):
    """1x1 to `expansion` times the channels, depthwise k x k, linear 1x1; a shortcut where the shape stays.

    MobileNetV2's block (Sandler et al., CVPR 2018, section 3.3) and EfficientNet-Lite's. With expansion 1 there is no first 1x1.
    """

    kernel: int = 3
    expansion: int = 6
    relu6: bool = True
    """The ReLUs are cut at 6."""
    label = "inverted"

    @property
    def hidden(self) -> int:
        """Channels of the depthwise convolution."""
        return self.sources[0] * self.expansion

    def layers(self) -> tuple[Layer, ...]:
        wide = (self.hidden,)
        layers = (
            Layer("depthwise", wide, self.hidden, self.kernel, self.stride, groups=self.hidden, aligned=self.aligned),
            Layer("project", wide, self.out),
        )
        return layers if self.expansion == 1 else (Layer("expand", self.sources, self.hidden), *layers)

    def layer_sizes(self, height: int, width: int) -> dict[str, tuple[int, int]]:
        size = self.output_size(height, width)
        return {"expand": (height, width), "depthwise": size, "project": size}


@dataclass(frozen=True)
class MaxPool(SingleInput):
    """The largest of 3x3 pixels, at stride 2; what is padded is never the largest."""

    cell_stride: int = 2
    label = "pool"

    def layers(self) -> tuple[Layer, ...]:
        return ()

    def layer_sizes(self, height: int, width: int) -> dict[str, tuple[int, int]]:
        return {}


@dataclass(frozen=True)
class Context(Operator):
    """x + conv1x1(global average of x), which starts as x (Liu et al., ParseNet, 2015, section 3.1, with a learned sum)."""

    label = "context"

    def layers(self) -> tuple[Layer, ...]:
        return (Layer("conv", self.sources, self.out, bias=True, norm=False, starts_at_zero=True),)

    def layer_sizes(self, height: int, width: int) -> dict[str, tuple[int, int]]:
        return {"conv": (1, 1)}


@dataclass(frozen=True)
class Skip(Operator):
    """Halve the resolution with 1x1 convolutions only (factorised reduction).

    The published release ignores its stride (a defect); here it has always stride 2, and a stride-1 skip is no cell at all.
    """

    label = "skip"

    @property
    def stride(self) -> int:
        return 2

    def layers(self) -> tuple[Layer | Norm, ...]:
        even = self.out // 2
        return (
            Layer("even", self.sources, even, 1, 2, norm=False),
            Layer("odd", self.sources, self.out - even, 1, 2, norm=False),
            Norm("norm", self.out),
        )

    def layer_sizes(self, height: int, width: int) -> dict[str, tuple[int, int]]:
        size = (half(height), half(width))
        return {"even": size, "odd": size}


@dataclass(frozen=True)
class DownUp(Operator):
    """Light-weight convolution: `depth` 3x3 convolutions at half resolution.

    Stride 1: ReLU(Up(convs(Down(x))) + norm(conv1x1(x))); stride 2: ReLU(convs(Down(x))), without Up and shortcut.
    """

    depth: int = 1
    cell_stride: int = 1
    linear: bool = elided(False)
    """No ReLU at the end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth not in (1, 2):
            raise ValueError(f"DownUp has depth 1 or 2, not {self.depth}")

    @property
    def label(self) -> str:  # type: ignore[override]
        return "downup" if self.depth == 1 else "downup2x"

    @property
    def stride(self) -> int:
        return self.cell_stride

    def layers(self) -> tuple[Layer, ...]:
        convs = [Layer("first", self.sources, self.out, 3)]
        if self.depth == 2:
            convs.append(Layer("second", (self.out,), self.out, 3))
        if self.stride == 1:
            convs.append(Layer("shortcut", self.sources, self.out, 1))
        return tuple(convs)

    def layer_sizes(self, height: int, width: int) -> dict[str, tuple[int, int]]:
        low = (half(height), half(width))
        return {"first": low, "second": low, "shortcut": (height, width)}


@dataclass(frozen=True)
class SelfAttention(Operator):
    """Self-attention between two 1x1 convolutions, with a shortcut around all.

    y = ReLU(norm(conv1x1(x))); a = attention(q, k, v of y); z = y + gamma * a (or y + norm(a)); output =
    ReLU(shortcut(x) + norm(conv1x1(ReLU(norm(z))))); the last norm starts at 0. Stride 2 averages 2x2 pixels before anything else
    (`pool_last`: see there).
    """

    heads: int = 1
    qk_channels: int = 8
    """Channels of q and of k, all heads together."""
    scale: float | None = None
    """Factor on the logits q.k; None: unscaled, as published."""
    pool: int = 1
    """Keys and values are averaged over pool x pool pixels; 1: all positions."""
    half_resolution: bool = False
    """Work at half resolution inside (average before, bilinear after); the shortcut stays at full resolution."""
    residual: str = "gamma"
    """How the attention joins its input: "gamma" (a trained factor) or "bn" (a batch norm)."""
    cell_stride: int = 1
    wide_projections: bool = False
    """With half resolution: the 1x1 convolutions before and after the attention stay at full resolution, as published."""
    pool_last: bool = False
    """With stride 2: attend at the input's resolution and average afterwards; the shortcut is a 3x3, as published."""
    linear: bool = elided(False)
    """No ReLU after the shortcut: for inputs that have negative values, which then pass unchanged at the start."""
    label = "attention"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.sources) != 1:
            raise ValueError("SelfAttention takes one input")
        if self.qk_channels % self.heads or self.out % self.heads:
            raise ValueError(f"{self.heads} heads do not divide {self.qk_channels} q/k channels and {self.out} channels")
        if self.residual not in ("gamma", "bn") or self.pool < 1:
            raise ValueError(f'residual is "gamma" or "bn" and pool at least 1, not {self.residual!r} and {self.pool}')
        if self.wide_projections and not self.half_resolution:
            raise ValueError("wide_projections says what stays at full resolution where the attention works at half resolution")
        if self.pool_last and (self.stride == 1 or self.half_resolution):
            raise ValueError("pool_last needs stride 2 and full resolution")

    @property
    def stride(self) -> int:
        return self.cell_stride

    def layers(self) -> tuple[Layer | Norm | Scalar, ...]:
        c = (self.out,)
        joint = Scalar("gamma") if self.residual == "gamma" else Norm("joint", self.out)
        kernel, stride = (3, 2) if self.pool_last else (1, 1)
        plain = self.sources == c and self.stride == 1
        shortcut = () if plain else (Layer("shortcut", self.sources, self.out, kernel, stride),)
        return (
            *shortcut,
            Layer("reduce", self.sources, self.out),
            Layer("query", c, self.qk_channels, bias=True, norm=False),
            Layer("key", c, self.qk_channels, bias=True, norm=False),
            Layer("value", c, self.out, bias=True, norm=False),
            joint,
            Norm("norm", self.out),
            Layer("expand", c, self.out, starts_at_zero=True),
        )

    def _sizes(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]]:
        """Return the sizes of the output, of the 1x1 convolution before the attention, of the queries, and of the keys."""
        output = (height, width) if self.stride == 1 else (half(height), half(width))
        full = (height, width) if self.pool_last else output
        inner = (half(full[0]), half(full[1])) if self.half_resolution else full
        keys = (-(-inner[0] // self.pool), -(-inner[1] // self.pool))
        return output, full if self.wide_projections else inner, inner, keys

    def layer_sizes(self, height: int, width: int) -> dict[str, tuple[int, int]]:
        output, reduce, inner, keys = self._sizes(height, width)
        expand = output if self.wide_projections or self.pool_last else inner
        return {"shortcut": output, "reduce": reduce, "query": inner, "key": keys, "value": keys, "expand": expand}

    def core_macs(self, height: int, width: int) -> int:
        _, _, (h, w), (kh, kw) = self._sizes(height, width)
        return h * w * kh * kw * (self.qk_channels + self.out)


@dataclass(frozen=True)
class FeatureFusion(Operator):
    """Join the branches: f = ReLU(norm(conv1x1(concat))); output f + f * sigmoid(two 1x1 convs of the global average)."""

    norms: bool = False
    """The two convolutions of the global average have batch norms instead of biases, as published (unstable at batch 2)."""
    label = "fusion"

    def layers(self) -> tuple[Layer, ...]:
        c = (self.out,)
        return (
            Layer("join", self.sources, self.out),
            Layer("squeeze", c, self.out, bias=not self.norms, norm=self.norms),
            Layer("excite", c, self.out, bias=not self.norms, norm=self.norms),
        )

    def layer_sizes(self, height: int, width: int) -> dict[str, tuple[int, int]]:
        return {"join": (height, width), "squeeze": (1, 1), "excite": (1, 1)}


@dataclass(frozen=True)
class Predict(Operator):
    """Map features to one logit per class with a 1x1 convolution and bias."""

    label = "predict"

    def layers(self) -> tuple[Layer, ...]:
        return (Layer("conv", self.sources, self.out, bias=True, norm=False),)

    def layer_sizes(self, height: int, width: int) -> dict[str, tuple[int, int]]:
        return {"conv": (height, width)}


OPERATORS: dict[str, type[Operator]] = {
    kind.__name__: kind
    for kind in (Conv, Residual, InvertedResidual, MaxPool, Context, Skip, DownUp, SelfAttention, FeatureFusion, Predict)
}


CELLS: dict[str, tuple[type[Operator], dict[str, Any]]] = {
    "skip": (Skip, {}), "conv": (Conv, {}), "downup": (DownUp, {"depth": 1}), "downup2x": (DownUp, {"depth": 2}),
    "attention": (SelfAttention, {}), "residual": (Residual, {}), "inverted": (InvertedResidual, {}), "pool": (MaxPool, {}),
    "context": (Context, {}),
}  # fmt: skip
"""What genotypes name as a cell: the operator, and the fields that the name decides."""


def from_key(key: str) -> tuple[Operator, tuple[Shape, ...]]:
    """Rebuild the operator and its input shapes from a latency table's key.

    Raises:
        ValueError: not a key that `Operator.key` writes.
    """
    try:
        fields = decode(dict[str, Any], key)
        kind, inputs = OPERATORS[fields.pop("operator")], convert(tuple[Shape, ...], fields.pop("inputs"))
        operator = convert(kind, fields)
        canonical = operator.key(inputs) == key
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not the key of an operator of this release ({error}): {key}") from None
    if not canonical:
        raise ValueError(f"not the key of an operator of this release, which writes it otherwise: {key}")
    return operator, inputs

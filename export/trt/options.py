"""Say how an engine is to be built, as plain data that a manifest can keep. No torch, ONNX or TensorRT here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any

from export.errors import InvalidInput
from export.ranges import OneOf, Range, Settings

PRECISIONS = ("fp32", "fp16", "bf16", "mixed", "int8", "fp8")
PRESETS = ("release", "search")
PARITY_LIMITS = {
    "fp32": (1e-3, 0.999), "fp16": (0.1, 0.99), "mixed": (0.1, 0.99), "bf16": (0.5, 0.95), "int8": (0.5, 0.95), "fp8": (0.5, 0.95),
}  # fmt: skip
"""Per precision the largest error in standard deviations of the output, and the share of pixels that must keep their label."""
TF32_LIMITS = (0.05, 0.99)
"""The same for fp32 whose convolutions may round to TF32."""


def target_precision(precision: str) -> str:
    """Return the precision of the target (`tensorrt:fp16`) that an engine runs as: mixed ones run as fp16."""
    return "fp16" if precision == "mixed" else precision


@dataclass(frozen=True)
class ShapeRange:
    """The shapes that one input may have at run time; `opt` is what the engine is tuned for."""

    name: str
    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    def __post_init__(self) -> None:
        lengths = {len(shape) for shape in (self.min, self.opt, self.max)}
        ordered = len(lengths) == 1 and all(0 < a <= b <= c for a, b, c in zip(self.min, self.opt, self.max, strict=True))
        if not self.name or not self.min or not ordered:
            found = f"min {self.min}, opt {self.opt}, max {self.max}"
            raise InvalidInput(f"the shapes of input {self.name!r} must be of one length with 1 <= min <= opt <= max; got {found}")

    def fits(self, shape: Sequence[int]) -> bool:
        """Say whether an input of this shape, with -1 for dynamic extents, can have these."""
        ends = zip(shape, self.min, self.max, strict=True) if len(shape) == len(self.min) else [(0, 1, 1)]
        return all(extent == -1 or extent == low == high for extent, low, high in ends)


@dataclass(frozen=True, kw_only=True)
class BuildOptions(Settings):
    """How TensorRT is to build an engine. `search` and `release` give the two sets that we use."""

    precision: Annotated[str, OneOf(PRECISIONS)]
    """What the ONNX graph computes in, one of `PRECISIONS`; the builder changes no types, it refuses a graph that does not fit."""
    tf32: bool = False
    """Whether fp32 convolutions and products may round their inputs to TF32's 10 mantissa bits (TensorRT's own default)."""
    level: Annotated[int, Range(0, 5)] = 3
    """TensorRT's optimisation level, 0 to 5: how many kernels are tried, and whether they are compiled for the shapes at hand."""
    timing_iterations: Annotated[int, Range(1, 100)] = 8
    """How often each kernel is timed while building."""
    workspace_mib: Annotated[int, Range(1, 2**20)] | None = None
    """Most scratch memory of one layer in MiB; None lets TensorRT take what the device has, too much on small devices."""
    max_aux_streams: Annotated[int, Range(0, 1024)] | None = None
    """Streams besides the main one; 0 runs one layer at a time, as latency tables need it; None leaves it to TensorRT."""
    shapes: tuple[ShapeRange, ...] = ()
    """Ranges of dynamic inputs; none for graphs of static shape."""
    plugins: bool = False
    """Whether nodes that have an ahead-of-time plugin are built with it."""
    capabilities: tuple[Annotated[int, Range(10, 999)], ...] = ()
    """Compute capabilities that the engine is for, for instance (86, 89): of TensorRT-RTX alone, which needs no GPU to build."""
    detailed: bool = True
    """Whether the engine keeps what the inspector tells of its layers; speed is the same."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len({shape.name for shape in self.shapes}) < len(self.shapes):
            raise InvalidInput(f"shapes is {[shape.name for shape in self.shapes]}; allowed: one range per input")

    @classmethod
    def search(cls, precision: str, **changes: Any) -> BuildOptions:
        """Return options for measuring many small engines: quick builds, one layer at a time."""
        return cls(**{"precision": precision, "level": 2, "max_aux_streams": 0, **changes})

    @classmethod
    def release(cls, precision: str, **changes: Any) -> BuildOptions:
        """Return options for the engine that is kept: every kernel is tried, which takes minutes."""
        return cls(**{"precision": precision, "level": 5, **changes})

    @classmethod
    def of_preset(cls, preset: str, precision: str, **changes: Any) -> BuildOptions:
        """Return the options of one of `PRESETS`."""
        return cls.release(precision, **changes) if preset == "release" else cls.search(precision, **changes)

    @property
    def preset(self) -> str:
        """Which of `search` and `release` the level is nearer to."""
        return "release" if self.level > self.search(self.precision).level else "search"

    @property
    def parity_limits(self) -> tuple[float, float]:
        """Tolerance and agreement of labels (`export.parity`) that an engine must keep to be written."""
        return TF32_LIMITS if self.tf32 and self.precision == "fp32" else PARITY_LIMITS[self.precision]

    def to_json(self) -> dict[str, Any]:
        """Return plain values; `from_json` reads them."""
        shapes = [{"name": one.name, "min": list(one.min), "opt": list(one.opt), "max": list(one.max)} for one in self.shapes]
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "shapes": shapes, "capabilities": list(self.capabilities)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> BuildOptions:
        """Read what `to_json` wrote; `InvalidInput` for an unknown key or a value that is not allowed."""
        known = {field.name for field in fields(cls)}
        if not set(value) <= known:
            raise InvalidInput(f"unknown build options {sorted(set(value) - known)}; known: {sorted(known)}")
        try:
            ranges = [(str(one["name"]), [tuple(one[end]) for end in ("min", "opt", "max")]) for one in value.get("shapes", ())]
            shapes = tuple(ShapeRange(name, *ends) for name, ends in ranges)
            return cls(**{**value, "shapes": shapes, "capabilities": tuple(value.get("capabilities", ()))})
        except (TypeError, KeyError) as error:
            raise InvalidInput(f"build options {dict(value)} are not usable: {error}") from None

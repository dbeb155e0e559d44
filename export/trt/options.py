"""Say how an engine is to be built, as plain data that a manifest can keep. No torch, ONNX or TensorRT here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from export.errors import InvalidInput

PRECISIONS = ("fp32", "fp16", "bf16", "mixed", "int8", "fp8")
PRESETS = ("release", "search")
LEVELS = range(6)
PARITY_LIMITS = {
    "fp32": (1e-3, 0.999), "fp16": (0.1, 0.99), "mixed": (0.1, 0.99), "bf16": (0.5, 0.95), "int8": (0.5, 0.95), "fp8": (0.5, 0.95),
}  # fmt: skip
"""Per precision the largest error in standard deviations of the output, and the share of pixels that must keep their label."""
TF32_LIMITS = (0.05, 0.99)
"""The same for fp32 whose convolutions may round to TF32."""


_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("tf32", "plugins", "detailed"), (bool,)), **dict.fromkeys(("level", "timing_iterations"), (int,)),
    **dict.fromkeys(("workspace_mib", "max_aux_streams"), (int, type(None))), "precision": (str,),
    **dict.fromkeys(("shapes", "capabilities"), (list, tuple)),
}  # fmt: skip
"""What values of `BuildOptions` are in JSON."""


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

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"name": self.name, "min": list(self.min), "opt": list(self.opt), "max": list(self.max)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ShapeRange:
        """Read what `to_json` wrote."""
        return cls(str(value["name"]), tuple(value["min"]), tuple(value["opt"]), tuple(value["max"]))


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How TensorRT is to build an engine. `search` and `release` give the two sets that we use."""

    precision: str
    """What the ONNX graph computes in, one of `PRECISIONS`; the builder changes no types, it refuses a graph that does not fit."""
    tf32: bool = False
    """Whether fp32 convolutions and products may round their inputs to TF32's 10 mantissa bits (TensorRT's own default)."""
    level: int = 3
    """TensorRT's optimisation level, 0 to 5: how many kernels are tried, and whether they are compiled for the shapes at hand."""
    timing_iterations: int = 8
    """How often each kernel is timed while building."""
    workspace_mib: int | None = None
    """Most scratch memory of one layer in MiB; None lets TensorRT take what the device has, too much on small devices."""
    max_aux_streams: int | None = None
    """Streams besides the main one; 0 runs one layer at a time, as latency tables need it; None leaves it to TensorRT."""
    shapes: tuple[ShapeRange, ...] = ()
    """Ranges of dynamic inputs; none for graphs of static shape."""
    plugins: bool = False
    """Whether nodes that have an ahead-of-time plugin are built with it."""
    capabilities: tuple[int, ...] = ()
    """Compute capabilities that the engine is for, for instance (86, 89): of TensorRT-RTX alone, which needs no GPU to build."""
    detailed: bool = True
    """Whether the engine keeps what the inspector tells of its layers; speed is the same."""

    def __post_init__(self) -> None:
        _check(self.precision in PRECISIONS, "precision", self.precision, f"one of {', '.join(PRECISIONS)}")
        _check(self.level in LEVELS, "level", self.level, "0 to 5")
        _check(1 <= self.timing_iterations <= 100, "timing_iterations", self.timing_iterations, "1 to 100")
        _check(self.workspace_mib is None or self.workspace_mib >= 1, "workspace_mib", self.workspace_mib, "None, or at least 1")
        streams = self.max_aux_streams
        _check(streams is None or streams >= 0, "max_aux_streams", streams, "None, or at least 0")
        names = [shape.name for shape in self.shapes]
        _check(len(set(names)) == len(names), "shapes", names, "one range per input")

    @classmethod
    def search(cls, precision: str, **changes: Any) -> BuildOptions:
        """Return options for measuring many small engines: quick builds, one layer at a time."""
        return replace(cls(precision=precision, level=2, max_aux_streams=0), **changes)

    @classmethod
    def release(cls, precision: str, **changes: Any) -> BuildOptions:
        """Return options for the engine that is kept: every kernel is tried, which takes minutes."""
        return replace(cls(precision=precision, level=5), **changes)

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
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        shapes = [shape.to_json() for shape in self.shapes]
        return {**values, "shapes": shapes, "capabilities": list(self.capabilities)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> BuildOptions:
        """Read what `to_json` wrote.

        Raises:
            InvalidInput: an unknown key or a value that is not allowed.
        """
        known = {field.name for field in fields(cls)}
        if not set(value) <= known:
            raise InvalidInput(f"unknown build options {sorted(set(value) - known)}; known: {sorted(known)}")
        if wrong := [name for name, kinds in _KINDS.items() if name in value and type(value[name]) not in kinds]:
            raise InvalidInput(f"{wrong[0]} is {value[wrong[0]]!r}, a {type(value[wrong[0]]).__name__}")
        shapes = tuple(ShapeRange.from_json(shape) for shape in value.get("shapes", ()))
        try:
            return cls(**{**value, "shapes": shapes, "capabilities": tuple(value.get("capabilities", ()))})
        except TypeError as error:
            raise InvalidInput(f"build options {dict(value)} are not usable: {error}") from None


def _check(holds: bool, name: str, found: object, allowed: str) -> None:
    if not holds:
        raise InvalidInput(f"{name} is {found!r}; allowed: {allowed}")

"""Say how an engine is to be built, as plain data that a manifest can keep. No torch, ONNX or TensorRT here."""

from __future__ import annotations

from collections.abc import Mapping
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
    plugins: bool = False
    """Whether nodes that have an ahead-of-time plugin are built with it."""
    capabilities: tuple[Annotated[int, Range(10, 999)], ...] = ()
    """Compute capabilities that the engine is for, for instance (86, 89): of TensorRT-RTX alone, which needs no GPU to build."""
    detailed: bool = True
    """Whether the engine keeps what the inspector tells of its layers; speed is the same."""

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
        return {**vars(self), "capabilities": list(self.capabilities)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> BuildOptions:
        """Read what `to_json` wrote; `InvalidInput` for an unknown key or a value that is not allowed."""
        known = {field.name for field in fields(cls)}
        if not set(value) <= known:
            raise InvalidInput(f"unknown build options {sorted(set(value) - known)}; known: {sorted(known)}")
        try:
            return cls(**{**value, "capabilities": tuple(value.get("capabilities", ()))})
        except TypeError as error:
            raise InvalidInput(f"build options {dict(value)} are not usable: {error}") from None

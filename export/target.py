"""Name where a network runs: `<runtime>-<device>:<precision>`, for instance `onnxruntime-cpu:fp32` or `tensorrt:fp16`."""

from __future__ import annotations

from dataclasses import dataclass

from export.errors import InvalidInput

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
RUNTIMES: dict[str, tuple[str, ...]] = {
    "onnxruntime-cpu": ("fp32", "int8"),
    "onnxruntime-cuda": ("fp32",),
    "openvino-cpu": ("fp32", "bf16", "int8"),
    "torch-cpu": ("fp32", "bf16"),
    "torch-cuda": ("fp32", "fp16", "bf16"),
    "aotinductor-cpu": ("fp32", "bf16"),
    "aotinductor-cuda": ("fp32", "fp16", "bf16"),
    "tensorrt": PRECISIONS,
    "tensorrt-rtx": ("fp32", "fp16", "bf16", "int8"),
}

TENSORRT = ("tensorrt", "tensorrt-rtx")
"""The runtimes that build and run engines."""


@dataclass(frozen=True, order=True)
class Target:
    """A runtime with its device, and the precision that it computes in."""

    runtime: str
    """One of `RUNTIMES`, device included (TensorRT implies it)."""
    precision: str

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES:
            raise InvalidInput(f"unknown runtime {self.runtime!r}; known: {', '.join(RUNTIMES)}")
        if self.precision not in RUNTIMES[self.runtime]:
            allowed = ", ".join(f"{self.runtime}:{p}" for p in RUNTIMES[self.runtime])
            raise InvalidInput(f"{self.runtime} does not offer precision {self.precision!r}; allowed: {allowed}")

    def __str__(self) -> str:
        return f"{self.runtime}:{self.precision}"

    @property
    def device(self) -> str:
        """The device kind that timing happens on: `cpu` or `cuda`."""
        return "cpu" if self.runtime.endswith("-cpu") else "cuda"

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read `<runtime>[-<device>]:<precision>`.

        Raises:
            InvalidInput: unknown runtime or precision, or no precision given.
        """
        runtime, colon, precision = text.partition(":")
        if not colon:
            choices = ", ".join(f"{runtime}:{p}" for p in RUNTIMES.get(runtime, PRECISIONS))
            raise InvalidInput(f"target {text!r} names no precision; write one of: {choices}")
        return cls(runtime, precision)


def parse_size(text: str) -> tuple[int, int]:
    """Read an image size written HEIGHTxWIDTH, for instance `360x480`.

    Raises:
        InvalidInput: not two positive integers joined by `x`.
    """
    height, cross, width = text.lower().partition("x")
    if not (cross and height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise InvalidInput(f"size {text!r} is not HEIGHTxWIDTH, for instance 360x480")
    return int(height), int(width)


def format_size(size: tuple[int, int]) -> str:
    """Write an image size as HEIGHTxWIDTH."""
    return f"{size[0]}x{size[1]}"

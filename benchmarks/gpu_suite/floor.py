"""The least time that self-attention can take on a chip, by counting. No torch here.

Of 2 N M (d + e) operations on tensor cores (d padded to 16, what they take), N M exponentials in the special-function units, and
every byte moved once, the slowest is the floor: perfect overlap of all three. No kernel reaches it; FlashAttention-3 reports up to
75 % of the tensor cores' rate on the same chip (arXiv 2407.08608).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Chip:
    """Rates of one GPU."""

    name: str
    """As the driver gives it."""
    tensor: float
    """Dense 16-bit operations per second that a large matrix product reaches."""
    bytes_per_second: float
    """Of a large copy, read and write counted."""
    exponentials: float
    """Per second."""
    source: str


CHIPS = (
    Chip(
        name="NVIDIA H200",
        tensor=788e12,
        bytes_per_second=4.3e12,
        exponentials=132 * 16 * 1.755e9,
        source="788 TFLOP/s and 4.3 TB/s: measured on an H200 (8192 x 8192 x 8192 bf16 product of random numbers; large copy); "
        "exponentials: 132 multiprocessors x 16 per clock (CUDA C++ Programming Guide, arithmetic instructions) x 1.755 GHz",
    ),
)


def chip(gpu: str) -> Chip | None:
    """Return the rates of a GPU, or None where they are not known."""
    return next((known for known in CHIPS if known.name == gpu), None)


def floor_ms(chip: Chip, d: int, e: int, queries: int, keys: int) -> float:
    """Return the floor of one forward pass in 16-bit, one head, in milliseconds."""
    tensor = 2 * queries * keys * (max(16, d) + e) / chip.tensor
    exponentials = queries * keys / chip.exponentials
    moved = 2 * (d * (queries + keys) + e * (queries + keys)) / chip.bytes_per_second
    return 1e3 * max(tensor, exponentials, moved)

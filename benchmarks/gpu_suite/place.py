"""The device that is measured: a GPU, or for a rehearsal of the script this machine's CPU."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from hyctas.attention.tiles import architecture

REHEARSAL_ARCHITECTURE, REHEARSAL_PROCESSORS = 90, 4
"""Whose tiles a rehearsal takes, and how many multiprocessors it pretends to have."""
_PLENTY = 2**18


@dataclass(frozen=True)
class Place:
    """One device."""

    kind: str
    """`cuda`, or `cpu` in a rehearsal."""

    @property
    def device(self) -> torch.device:
        """The torch device."""
        return torch.device(self.kind, 0) if self.kind == "cuda" else torch.device(self.kind)

    @property
    def rehearsal(self) -> bool:
        """Whether nothing measured here means anything."""
        return self.kind == "cpu"

    @property
    def name(self) -> str:
        """The GPU's name."""
        return "a CPU, as a rehearsal" if self.rehearsal else torch.cuda.get_device_name(self.device)

    @property
    def architecture(self) -> int:
        """The architecture whose tiles are taken; 0 before compute capability 8.0."""
        if self.rehearsal:
            return REHEARSAL_ARCHITECTURE
        return architecture(torch.cuda.get_device_capability(self.device)) or 0

    @property
    def processors(self) -> int:
        """The number of multiprocessors."""
        if self.rehearsal:
            return REHEARSAL_PROCESSORS
        return int(torch.cuda.get_device_properties(self.device).multi_processor_count)

    @property
    def no_kernels(self) -> str:
        """Why our Triton kernels cannot run here; empty where they can (in a rehearsal: in Triton's interpreter)."""
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed"
        if self.rehearsal and os.environ.get("TRITON_INTERPRET") != "1":
            return "Triton's interpreter is off"
        return "" if self.architecture else "the GPU's compute capability is below 8.0, where Triton has no tensor cores"

    def synchronize(self) -> None:
        """Wait until the device has done what it was told."""
        if not self.rehearsal:
            torch.cuda.synchronize(self.device)

    def healthy(self) -> bool:
        """Return whether the device still answers, and free what an error left behind."""
        if self.rehearsal:
            return True
        try:
            torch.cuda.synchronize(self.device)
            self.release()
        except RuntimeError:  # an illegal access and its kind stay with the context for ever
            return False
        return True

    def release(self) -> None:
        """Give back the memory that nothing holds any more."""
        if not self.rehearsal:
            torch.cuda.empty_cache()

    def poison(self, sizes: Sequence[int]) -> bool:
        """Fill the memory that the next allocations will get with NaN, and say whether they do get it.

        Args:
            sizes: bytes of what will be allocated.

        Returns:
            whether blocks of these sizes were seen to hold NaN; False on a CPU, whose allocator is not ours.
        """
        if self.rehearsal:
            return False
        self.release()
        small = [torch.empty(_PLENTY, dtype=torch.uint8, device=self.device) for _ in range(32)]
        for block in (torch.empty(2 * sum(sizes) + 2**22, dtype=torch.uint8, device=self.device), *small):
            block.fill_(255)  # all bits set is a NaN in every floating-point format
        del small, block
        probes = [torch.empty(max(1, size // 4), dtype=torch.float32, device=self.device) for size in sizes]
        return all(bool(probe.isnan().all()) for probe in probes)

    def peak_bytes(self, call: Callable[[], object]) -> int | None:
        """Return the most memory that a call held at a time beyond what was there before, its results included; None on a CPU."""
        if self.rehearsal:
            call()
            return None
        self.synchronize()
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        result = call()
        self.synchronize()
        peak = torch.cuda.max_memory_allocated(self.device) - before
        del result
        return int(peak)

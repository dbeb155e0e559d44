"""Time a training step of `edge:lite0-16` with the fast gradients of depthwise convolutions and with PyTorch's own.

    python -m benchmarks.depthwise

Steps of both kinds alternate; medians of process time (all threads) and of wall time, and their ratios.
"""

from __future__ import annotations

import statistics
import time

import torch

from hyctas.network import build
from hyctas.nn import blocks
from hyctas.spaces.members import member
from hyctas.training.losses import segmentation_loss

STEPS, BATCH, CROP, THREADS = 15, 12, (192, 256), 2


def main() -> None:
    """Run the command line."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    network = build(member("lite0-16"), 11).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    images = torch.randn(BATCH, 3, *CROP).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 11, (BATCH, *CROP))
    fast = blocks.fits
    times: dict[str, list[tuple[float, float]]] = {"PyTorch's": [], "fast": []}
    for step in range(2 * STEPS + 4):
        kind = ("PyTorch's", "fast")[step % 2]
        blocks.fits = fast if kind == "fast" else lambda x, weight: False
        started = time.process_time(), time.perf_counter()
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(images)
        segmentation_loss(logits, labels, None).backward()
        optimiser.step()
        if step >= 4:
            times[kind].append((time.process_time() - started[0], time.perf_counter() - started[1]))
    blocks.fits = fast
    medians = {kind: [statistics.median(values) for values in zip(*found, strict=True)] for kind, found in times.items()}
    print(f"{BATCH} crops of {CROP[0]}x{CROP[1]}, {THREADS} threads, torch {torch.__version__}, medians of {STEPS} steps")
    for kind, (process, wall) in medians.items():
        print(f"{kind:>10} gradients: {process:.3f} s process time, {wall:.3f} s wall time")
    ratios = [a / b for a, b in zip(medians["PyTorch's"], medians["fast"], strict=True)]
    print(f"{'ratio':>10}: {ratios[0]:.2f} process time, {ratios[1]:.2f} wall time")


if __name__ == "__main__":
    main()

"""Time self-attention on the CPU beside naive attention and PyTorch's own, in torch and in ONNX Runtime, with its memory.

    python -m benchmarks.attention_cpu --out benchmarks/results/cpu/attention [--threads 2] [--rounds 9]

One head, d = C/8, fp32, batch 1. Times are medians of interleaved rounds; memory is the rise of the process's peak resident size
during one call in a process of its own, outputs included (Linux). Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.bench_report import markdown_rows
from export.files import write_json, write_text
from export.machine import fingerprint
from export.onnx.exporter import export_modules
from export.ranges import Range, Threads, argument
from hyctas.attention import self_attention

SHAPES = ((64, 2048), (64, 8192), (128, 8192), (256, 2048), (256, 8192))
"""C and N of each row."""


class Ours(nn.Module):
    """`hyctas.attention.self_attention`."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self_attention(q, k, v)


class Naive(nn.Module):
    """Two matrix products and a softmax, with the N x N map in memory."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.matmul(v, torch.softmax(torch.matmul(q.transpose(2, 3), k), dim=3).transpose(2, 3))


class Sdpa(nn.Module):
    """PyTorch's `scaled_dot_product_attention`; with `pad`, q and k get zero channels up to v's, which its fused kernel needs."""

    def __init__(self, pad: bool) -> None:
        super().__init__()
        self.pad = pad

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        missing = v.shape[2] - q.shape[2] if self.pad else 0
        query, key, value = (F.pad(t.transpose(2, 3), (0, more)) for t, more in ((q, missing), (k, missing), (v, 0)))
        return F.scaled_dot_product_attention(query.contiguous(), key.contiguous(), value.contiguous(), scale=1.0).transpose(2, 3)


TORCH: dict[str, Callable[[], nn.Module]] = {
    "ours": Ours, "naive": Naive, "sdpa": lambda: Sdpa(False), "sdpa padded": lambda: Sdpa(True),
}  # fmt: skip
ONNX: dict[str, Callable[[], nn.Module]] = {"onnxruntime ours": Ours, "onnxruntime naive": Naive}


def inputs(c: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw q, k (1, 1, C/8, N) and v (1, 1, C, N)."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, c // 8, n, generator=generator) for _ in range(2))
    return q, k, torch.randn(1, 1, c, n, generator=generator)


def caller(name: str, c: int, n: int, threads: int, folder: Path) -> Callable[[], Any]:
    """Return what runs one implementation once."""
    tensors = inputs(c, n)
    if name in TORCH:
        module = TORCH[name]().eval()
        return lambda: module(*tensors)
    import onnxruntime

    path = export_modules([(ONNX[name](), tensors)], folder, [f"{name.replace(' ', '_')}_{c}_{n}"])[0]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # else its threads slow down what is timed next
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feeds = {x.name: t.numpy() for x, t in zip(session.get_inputs(), tensors, strict=True)}
    return lambda: session.run(None, feeds)


def peak_mib(name: str, c: int, n: int, threads: int, folder: Path) -> float:
    """Return by how much one call raises the peak memory of a fresh process, in MiB."""
    command = [sys.executable, "-m", "benchmarks.attention_cpu", "--one", name, str(c), str(n), str(folder)]
    command += ["--threads", str(threads)]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]))


def one(name: str, c: int, n: int, folder: Path, threads: int) -> None:
    """Print the rise of this process's peak memory over one call, in MiB."""
    torch.set_num_threads(threads)
    with torch.inference_mode():
        caller(name, c, 64, threads, folder)()  # libraries loaded, threads started
        call = caller(name, c, n, threads, folder)
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = memory_kib("VmRSS")
        kept = call()
        after = memory_kib("VmHWM")
    del kept
    print(json.dumps((after - before) / 1024))


def memory_kib(field: str) -> int:
    """Return a field of this process's memory status: VmRSS (now) or VmHWM (its peak)."""
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))


def measure(c: int, n: int, threads: int, rounds: int, folder: Path) -> dict[str, dict[str, float]]:
    """Measure all implementations of one shape."""
    names = [*TORCH, *ONNX]
    calls = {name: caller(name, c, n, threads, folder) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    expected = calls["naive"]()
    for name, call in calls.items():
        found = call()
        found = torch.from_numpy(found[0]) if isinstance(found, list) else found
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4), f"{name} computes something else"
    for _ in range(rounds):
        for name in names:
            start = time.perf_counter_ns()
            calls[name]()
            times[name].append((time.perf_counter_ns() - start) / 1e6)
    result = {}
    for name in names:
        ordered = np.percentile(times[name], [25, 75])
        result[name] = {
            "median_ms": statistics.median(times[name]), "p25_ms": float(ordered[0]), "p75_ms": float(ordered[1]),
            "peak_mib": peak_mib(name, c, n, threads, folder),
        }  # fmt: skip
    return result


def table(results: dict[str, dict[str, dict[str, float]]], command: str, machine: str, threads: int) -> str:
    """Return the results as Markdown."""
    lines = [
        "# Self-attention on the CPU", "",
        f"{machine}, {threads} threads; one head, d = C/8, fp32, batch 1. Medians of interleaved rounds, and the rise of a fresh",
        "process's peak memory over one call (the output, 4 C N bytes, is part of it; so are buffers that later calls reuse).", "",
    ]  # fmt: skip
    cells = [["C", "N", "implementation", "median ms", "of naive", "p25-p75 ms", "memory MiB"]]
    for shape, rows in results.items():
        c, n = shape.split("x")
        for name, row in rows.items():
            base = rows["onnxruntime naive" if name.startswith("onnx") else "naive"]["median_ms"]
            spread = f"{row['p25_ms']:.1f}-{row['p75_ms']:.1f}"
            ratio = row["median_ms"] / base
            cells.append([c, n, name, f"{row['median_ms']:.1f}", f"{ratio:.2f}", spread, f"{row['peak_mib']:.0f}"])
    return "\n".join([*lines, markdown_rows(cells, 3), "", "```", command, "```", ""])


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write FILE.json and FILE.md")
    parser.add_argument("--threads", type=argument(Threads), default=2)
    parser.add_argument("--rounds", type=argument(Annotated[int, Range(1, 1000)]), default=9)
    parser.add_argument("--one", nargs=4, metavar=("NAME", "C", "N", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, c, n, folder = arguments.one
        return one(name, int(c), int(n), Path(folder), arguments.threads)
    torch.set_num_threads(arguments.threads)
    results = {}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for c, n in SHAPES:
            results[f"{c}x{n}"] = measure(c, n, arguments.threads, arguments.rounds, Path(folder))
            print(json.dumps({f"{c}x{n}": results[f"{c}x{n}"]}), flush=True)
    machine = fingerprint()
    command = f"python -m benchmarks.attention_cpu --threads {arguments.threads} --rounds {arguments.rounds}"
    command += f" --out {arguments.out}" if arguments.out else ""
    text = table(results, command, f"{machine['cpu']}, {machine['usable_cores']} cores", arguments.threads)
    print(text)
    if arguments.out:
        write_json(arguments.out.with_suffix(".json"), {"machine": machine, "threads": arguments.threads, "results": results})
        write_text(arguments.out.with_suffix(".md"), text)


if __name__ == "__main__":
    main()

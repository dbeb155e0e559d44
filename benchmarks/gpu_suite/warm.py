"""Compile launches ahead of time: `python -m benchmarks.gpu_suite.warm` answers jobs, one JSON line each, until its input ends.

The launcher itself runs, on tensors without memory, with Triton told to compile only. So exactly what a launch on the GPU will ask
for lands in Triton's cache on disk, and the machine code tells what it costs. No GPU is touched.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

from benchmarks.gpu_suite.launches import Launch


def main() -> None:
    """Answer jobs."""
    os.environ.pop("TRITON_INTERPRET", None)
    os.nice(5)  # what measures meanwhile goes first
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the compiler prints must not stand between the answers
    for line in sys.stdin:
        start = time.monotonic()
        try:
            answer = compile_kernel(json.loads(line))
        except Exception as error:  # a tile that the compiler refuses is an answer
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        print(json.dumps({**answer, "seconds": round(time.monotonic() - start, 2)}), file=answers, flush=True)


def job(launch: Launch, kernel: str, arch: int, processors: int) -> dict[str, Any]:
    """Describe the compilation of one kernel of a launch."""
    return {"launch": launch.to_json(), "kernel": kernel, "arch": arch, "processors": processors}


def compile_kernel(job: Mapping[str, Any]) -> dict[str, Any]:
    """Compile one kernel of a launch, and say what its machine code needs.

    Returns:
        the fields of `hyctas.attention.resources.Resources`, and what is `wrong` with them: reasons not to launch it.

    Raises:
        ValueError: the launch has no such kernel.
        Exception: whatever the compiler refuses the tile with.
    """
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime.jit import JITFunction

    from hyctas.attention import launch as launcher
    from hyctas.attention.cases import Case
    from hyctas.attention.compiled import read_resources
    from hyctas.attention.resources import judge

    target = GPUTarget("cuda", int(job["arch"]), 32)
    driver: Any = SimpleNamespace(
        get_current_device=lambda: 0, get_current_stream=lambda device: 0, get_current_target=lambda: target
    )
    triton.runtime.driver.set_active(driver)
    launcher.multiprocessors = lambda tensor: int(job["processors"])  # else tensors without a GPU have one
    compiled: list[Any] = []
    original = JITFunction.run

    def only_compile(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        if self.fn.__name__ == f"{job['kernel']}_kernel":
            compiled.append(original(self, *args, grid=grid, warmup=True, **options))

    JITFunction.run = only_compile
    try:
        launch = Launch.from_json(job["launch"])
        tensors = launch.inputs(torch.device("meta"))
        if "q" in tensors:
            lse = torch.empty(launch.batch, launch.heads, launch.queries, device="meta")
            tensors |= {"o": torch.empty_like(tensors["grad_o"]), "lse": lse}
        launch.run(tensors)
    finally:
        JITFunction.run = original
    if len(compiled) != 1:
        raise ValueError(f"{launch.step} launches {job['kernel']} {len(compiled)} times")
    name, resources = str(job["kernel"]), read_resources(compiled[0], int(job["arch"]))
    about: dict[str, Any] = {"arch": int(job["arch"]), "tile": launch.tile(name), "channels": launch.e, "qk_channels": launch.d}
    case = Case(kernel=name, dtype=launch.dtype, **about)
    return {**asdict(resources), "wrong": judge(case, resources)}


if __name__ == "__main__":
    main()

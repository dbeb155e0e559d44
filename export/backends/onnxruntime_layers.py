"""Time the parts of a model inside ONNX Runtime, by its own profile of every kernel."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from export.backends.layer_times import summed, timed, warm

if TYPE_CHECKING:
    import onnx

KERNEL = "_kernel_time"
"""Behind the node's name in the profile."""


def time_parts(open_session: Callable[[Any], Any], options: Any, warmup_ms: float, runs: int) -> dict[str, list[float]]:
    """Run a model with and without a profile, in turns, and sum its kernels by the part that they belong to.

    Args:
        open_session: takes the session options.
        options: those of a session that is timed.
        warmup_ms: run untimed for at least this long, and twice.
        runs: timed runs.

    Returns:
        Milliseconds of every run, by part.
    """
    import onnx

    with tempfile.TemporaryDirectory(prefix="hyctas-") as folder:
        plain, optimised = open_session(options), Path(folder) / "optimised.onnx"
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        options.optimized_model_filepath = str(optimised)
        session = open_session(options)
        rng = np.random.default_rng(0)
        feeds = {spec.name: rng.standard_normal(spec.shape, dtype=np.float32) for spec in session.get_inputs()}
        warm(lambda: session.run(None, feeds), warmup_ms)
        warm(lambda: plain.run(None, feeds), warmup_ms)
        whole_ms = []
        for _ in range(runs):
            session.run(None, feeds)
            whole_ms += timed(lambda: plain.run(None, feeds), 1)
        events = json.loads(Path(session.end_profiling()).read_text())
        owners = parts_of(onnx.load(optimised, load_external_data=False).graph)
    return summed(kernels_of(events, runs), owners, whole_ms)


def parts_of(graph: onnx.GraphProto) -> dict[str, str]:
    """Name the part of every node of an optimised graph.

    A fused node bears the name of one that it was made of. What was inserted (`ReorderInput`, ...) belongs to the part that
    reads it; where the model's output alone does, it belongs to none.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found: dict[str, str] = {}
    for node in reversed(graph.node):  # so that readers are known before what they read
        part, behind, _ = node.name.partition("/")
        read_by = [found[reader.name] for name in node.output for reader in readers.get(name, []) if reader.name in found]
        if behind or read_by:
            found[node.name] = part if behind else read_by[0]
    return found


def kernels_of(events: list[Mapping[str, Any]], runs: int) -> dict[str, list[float]]:
    """Return the milliseconds of every kernel in the last runs of a profile."""
    kernels: dict[str, list[float]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(KERNEL):
            kernels.setdefault(name.removesuffix(KERNEL), []).append(event["dur"] / 1e3)
    return {name: times[-runs:] for name, times in kernels.items()}

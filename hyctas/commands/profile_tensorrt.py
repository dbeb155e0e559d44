"""Say what profiling by TensorRT has to build, and what its builds show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from export.runtime import Runtime
from export.target import TENSORRT, Target
from export.trt.grouped import count_engines, estimate, rough_ms
from export.trt.tensorrt_runtime import TensorRTRuntime
from hyctas.arch.operators import BYTES_PER_ELEMENT, from_key
from hyctas.cli.show import Bar, say
from hyctas.engine.table_attention import TRIALS, MeasuredAttention, attention_shapes
from latency import LatencyTable, Protocol, Workload
from latency.journal import journal_path, read_journal
from latency.profiling import BATCH, in_order
from latency.table import Row

if TYPE_CHECKING:
    from hyctas.cli.profile import ProfileJob

ALONE = ("selfattention",)
"""Families that TensorRT may compile into one layer with their neighbours: each operator gets a file of its own."""
BUILDS = 3
"""Of every operator, where TensorRT chooses kernels again in each."""


def protocol_of(job: ProfileJob, target: Target) -> Protocol:
    """Return how operators are timed; TensorRT builds each `BUILDS` times where the TOML file says nothing else."""
    return replace(job.protocol, builds=job.builds or (BUILDS if target.runtime in TENSORRT else job.protocol.builds))


def engines_ahead(wanted: Sequence[Workload], builds: int, path: Path) -> tuple[int, str]:
    """Count the engines to be built for what a table and its journal lack, and say how long that may take."""
    known = set(LatencyTable.load(path).rows) if path.exists() else set()
    journal = read_journal(journal_path(path), lambda said: None) if journal_path(path).exists() else None
    todo = in_order([workload for workload in wanted if workload.key not in known | set(journal.rows if journal else ())])
    costs = []
    for workload in todo:
        operator, shapes = from_key(workload.key)
        costs.append(rough_ms(operator.macs(shapes), operator.bytes_moved(shapes) / BYTES_PER_ELEMENT))
    alone = [workload.op in ALONE for workload in todo]
    engines = count_engines((costs[at : at + BATCH], alone[at : at + BATCH]) for at in range(0, len(todo), BATCH))
    trials = TRIALS * len(attention_shapes(workload.key for workload in todo))
    return engines * builds + trials, estimate(len(todo), engines, builds, trials)


def follow(runtime: Runtime, shown: Bar, engines: int) -> None:
    """Have a runtime that builds engines tell of each; before the first operator is measured, they foretell the time left."""
    if isinstance(runtime, TensorRTRuntime):

        def tell(text: str) -> None:
            left = max(0, engines - runtime.engines)
            shown.tell(text, left * runtime.building_s / runtime.engines if runtime.engines else None)

        runtime.on_status = tell


def show_attention(runtime: Runtime) -> None:
    """Print which implementations attention got, where a runtime chooses one per shape."""
    attention = getattr(runtime, "attention", None)
    if isinstance(attention, MeasuredAttention) and attention.taken:
        say(attention.summary())


def show_spread(rows: Sequence[Row]) -> None:
    """Print how far builds, or passes, of an operator differ, where there are several."""
    spreads = sorted(row.spread for row in rows if row.spread is not None)
    if spreads:
        middle, high = spreads[len(spreads) // 2], spreads[len(spreads) * 9 // 10]
        said = "several measurements of one operator differ by"
        say(f"{said} {middle:.1%} (median of {len(spreads)} operators), {high:.1%} (90th percentile)")

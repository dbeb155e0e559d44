"""Add to a report what memory its models take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from export.bench_models import BenchModel
from export.bench_report import BenchReport
from export.model_memory import ModelMemory, measure_memory
from export.paced_report import PacedReport, PacedResult
from export.sustained_report import SustainedReport, SustainedResult
from export.target import Target
from hyctas.cli.show import say

Result = TypeVar("Result", PacedResult, SustainedResult)
Report = BenchReport | PacedReport | SustainedReport


def measure_memories(models: Sequence[BenchModel], target: Target, threads: int) -> dict[str, ModelMemory]:
    """Measure what each model takes, by name; of a network that has no file, say that it is left out."""
    found = {}
    for model in models:
        if model.path is None:
            say(f"memory of {model.name}: not measured, the target runs it as a module; give its ONNX file")
            continue
        found[model.name] = measure_memory(model, target, threads)
        say(f"memory of {model.name}: {found[model.name]}")
    return found


def with_memories(report: Report, memories: dict[str, ModelMemory]) -> Report:
    """Return a report with the memory of its models."""
    if isinstance(report, BenchReport):
        results = [
            replace(result, memory_mib=memory.peak_mib, device_memory_mib=memory.device_mib)
            if (memory := memories.get(result.name)) else result
            for result in report.models
        ]  # fmt: skip
        return replace(report, models=tuple(results))
    if isinstance(report, PacedReport):
        return replace(report, models=tuple(_noted(result, memories) for result in report.models))
    return replace(report, models=tuple(_noted(result, memories) for result in report.models))


def _noted(result: Result, memories: dict[str, ModelMemory]) -> Result:
    """Return a result with its memory as a note."""
    memory = memories.get(result.name)
    return result if memory is None else replace(result, notes=(*result.notes, f"it takes {memory}"))

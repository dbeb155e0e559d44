"""Measure operators on a target, keep the latencies in a table, predict networks from it and judge the predictions.

Importing this package imports neither torch nor numpy; the names below load their module on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latency.predictor import fit as fit
    from latency.predictor import predict as predict
    from latency.profiling import profile as profile
    from latency.protocol import Protocol as Protocol
    from latency.table import LatencyTable as LatencyTable
    from latency.workload import Unit as Unit
    from latency.workload import Workload as Workload

_HOMES = {
    "LatencyTable": "latency.table",
    "Protocol": "latency.protocol",
    "Unit": "latency.workload",
    "Workload": "latency.workload",
    "fit": "latency.predictor",
    "predict": "latency.predictor",
    "profile": "latency.profiling",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'latency' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)

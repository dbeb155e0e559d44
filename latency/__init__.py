"""Measure operators on a target, keep the latencies in a table, predict networks from it and judge the predictions."""

from latency.judge import judge
from latency.predictor import fit, predict
from latency.profiling import profile
from latency.protocol import Protocol
from latency.table import LatencyTable
from latency.workload import Unit, Workload

__all__ = ["LatencyTable", "Protocol", "Unit", "Workload", "fit", "judge", "predict", "profile"]

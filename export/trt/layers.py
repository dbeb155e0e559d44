"""Time an engine's layers, describe them, and tell whether its attention was fused.

Times and descriptions are written in the JSON schemas of trtexec (`--exportProfile`, `--exportLayerInfo`), so that tools for those
read them. A layer's time is for comparing layers: the profiler disturbs, and the sum is not the engine's latency.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from export.errors import InvalidInput
from export.trt.log import checked

if TYPE_CHECKING:
    import onnx

FUSED = re.compile(r"_?ge(mm|mv)_mha|kgen_mha|_mha_v\d|fmha|flash_?attention", re.I)
"""Names and tactics of kernels that compute attention in one go, for instance `_gemm_mha_v2_myl3_6`."""
_NODE = re.compile(r"\[ONNX Layer: (.*?)\]")
_FIELD = r"^Name: (?P<name>.*?), LayerType: .*?TacticName: (?P<tactic>.*?), StreamId: .*?Metadata: (?P<metadata>.*)$"


@dataclass(frozen=True)
class Layer:
    """One layer of an engine."""

    name: str
    tactic: str
    """The kernel's name; may be empty."""
    nodes: tuple[str, ...]
    """The ONNX nodes that it computes, by name."""

    @property
    def fused(self) -> bool:
        """Whether it is attention in one kernel."""
        return bool(FUSED.search(self.tactic) or re.match(FUSED, self.name))


@dataclass
class LayerTimes:
    """Collects what TensorRT's profiler reports, run by run."""

    runs: int = 0
    times_ms: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    """By layer, with a number that tells layers of one name apart, in the order of execution."""
    _seen: dict[str, int] = field(default_factory=dict)

    def begin_run(self) -> None:
        """Say that the next report is a run's first."""
        self.runs += 1
        self._seen = {}

    def add(self, name: str, ms: float) -> None:
        """Take the time of one layer in the present run."""
        number = self._seen.get(name, 0)
        self._seen[name] = number + 1
        self.times_ms.setdefault((name, number), []).append(ms)

    def to_json(self) -> list[dict[str, Any]]:
        """Return trtexec's schema: the number of runs, then name, total, mean, median and share of each layer.

        Raises:
            InvalidInput: nothing was reported, or no layer took time.
        """
        total = sum(sum(times) for times in self.times_ms.values())
        if not total > 0:
            raise InvalidInput(f"{len(self.times_ms)} layers took {total} ms in {self.runs} runs; there is no profile to write")
        rows: list[dict[str, Any]] = [{"count": self.runs}]
        for (name, _), times in self.times_ms.items():
            spent = sum(times)
            rows.append({
                "name": name, "timeMs": spent, "averageMs": spent / len(times), "medianMs": statistics.median(times),
                "percentage": 100 * spent / total,
            })  # fmt: skip
        return rows


@dataclass(frozen=True)
class FusedAttention:
    """Whether an engine's attention runs in fused kernels."""

    kernels: Mapping[str, str]
    """By softmax of the graph the layer that computes it; empty where no layer names it."""
    fused: frozenset[str]
    """The softmaxes whose layer is attention in one kernel."""

    @property
    def verdict(self) -> str:
        """`yes`: all are fused; `no`: some are not; `unknown`: there is none, or no layer names one."""
        if not any(self.kernels.values()):
            return "unknown"
        return "yes" if self.fused == set(self.kernels) else "no"

    @property
    def evidence(self) -> tuple[str, ...]:
        """The layers that say so."""
        return tuple(dict.fromkeys(filter(None, self.kernels.values())))

    def summary(self) -> str:
        """Put it in one line."""
        shown = ", ".join(self.evidence[:3]) + (f" and {len(self.evidence) - 3} more" if len(self.evidence) > 3 else "")
        return f"fused attention: {self.verdict} ({len(self.fused)} of {len(self.kernels)}; {shown})"


def profiler_of(trt: Any, times: LayerTimes) -> Any:
    """Return a `trt.IProfiler` that reports to `times`; it must live as long as the context that it is given to."""

    class Profiler(trt.IProfiler):
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times.add(layer_name, ms)

    return Profiler()


def layer_info(trt: Any, engine: Any) -> dict[str, Any]:
    """Describe an engine's layers as trtexec does: `Layers`, and `Bindings` (10.x) or `I/O Tensors` (11.x).

    `Layers` holds objects for an engine that was built with detailed profiling verbosity, names for one that was not, and
    nothing for one that was built without names.

    Raises:
        TensorRTFailed: the inspector gives nothing.
        InvalidInput: it gives something else.
    """
    inspector: Any = checked("making the engine's inspector", engine.create_engine_inspector)
    form = trt.LayerInformationFormat.JSON
    text: str = checked("describing the engine's layers", lambda: inspector.get_engine_information(form) or None)
    try:
        value = json.loads(text, strict=False)  # names and metadata hold separators (0x1E, 0x1F), perhaps not escaped
        layers = value["Layers"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InvalidInput(f"the engine's description is not as expected ({error!r}): {text[:120]!r}") from None
    if not isinstance(layers, list):
        raise InvalidInput(f"the engine's description has 'Layers' of type {type(layers).__name__}, not list")
    return dict(value)


def fused_attention(layers: Sequence[Layer], softmaxes: Sequence[str]) -> FusedAttention:
    """Tell which attention an engine computes in one kernel, from the ONNX nodes that its layers name (see `softmax_nodes`).

    An engine that was built without detailed profiling verbosity names none.
    """
    found = {name: next((layer for layer in layers if name in layer.nodes), None) for name in softmaxes}
    kernels = {name: layer.name if layer is not None else "" for name, layer in found.items()}
    return FusedAttention(kernels, frozenset(name for name, layer in found.items() if layer is not None and layer.fused))


def softmax_nodes(model: onnx.ModelProto) -> list[str]:
    """Return the names of a graph's softmaxes: in networks of ours, one or more per attention and no others."""
    return [node.name for node in model.graph.node if node.op_type == "Softmax"]


def builder_layers(text: str) -> tuple[Layer, ...]:
    """Read the message `Layers:` that TensorRT-RTX's builder logs, with detailed profiling verbosity, when an engine is built."""
    found = re.finditer(_FIELD, text, re.M)
    return tuple(Layer(match["name"], match["tactic"], tuple(_NODE.findall(match["metadata"]))) for match in found)


def engine_layers(info: Mapping[str, Any]) -> tuple[Layer, ...]:
    """Return the layers of what `layer_info` returned."""
    rows = [row if isinstance(row, Mapping) else {"Name": row} for row in info.get("Layers", ())]
    texts = [[str(row.get(key, "")) for key in ("Name", "TacticName", "Metadata")] for row in rows]
    return tuple(Layer(name, tactic, tuple(_NODE.findall(metadata))) for name, tactic, metadata in texts)

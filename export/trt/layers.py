"""Time an engine's layers, describe them, and tell whether its attention was fused. No torch here.

Times and descriptions are written in the JSON schemas of trtexec (`--exportProfile`, `--exportLayerInfo`), so that tools for those
read them. A layer's time is for comparing layers: the profiler disturbs, and the sum is not the engine's latency.
"""

from __future__ import annotations

import functools
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.errors import InvalidInput
from export.files import write_json
from export.trt.api_run import EngineLike, InspectorLike
from export.trt.log import checked

FUSED = re.compile(r"_?ge(mm|mv)_mha|kgen_mha|_mha_v\d", re.I)
"""Names of layers that compute attention in one go, for instance `_gemm_mha_v2_myl3_6`."""
FUSED_TACTIC = re.compile(FUSED.pattern + r"|fmha|flash_?attention", re.I)
"""The same for names of kernels (`TacticName`). A layer's name holds those of ONNX nodes, which a network may call so."""
PLUGIN = re.compile(r"self_?attention", re.I)
"""Names that our own attention plugins have in common."""
SOFTMAX = re.compile(r"softmax|maxr?subexpsum", re.I)
"""A softmax on its own: by its ONNX name, or by what TensorRT makes of it (`__myl_MaxrSubExpSumDivMul_myl36_5`)."""
_MOVES = ("Reformatting CopyNode", "reshape_before_", "reshape_after_", "squeeze_after_", "unsqueeze_")
"""Beginnings of names of layers that only move data, and name what they move it for."""
_WHOLE = "{ForeignNode["
"""Beginning of the name of all that TensorRT's compiler made of a part of the graph: it tells the first and the last node."""


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
            rows.append(
                {
                    "name": name,
                    "timeMs": spent,
                    "averageMs": spent / len(times),
                    "medianMs": statistics.median(times),
                    "percentage": 100 * spent / total,
                }
            )
        return rows


@dataclass(frozen=True)
class FusedAttention:
    """Whether an engine's attention runs in fused kernels."""

    verdict: str
    """`yes`: every attention found is; `no`: a softmax of its own is left; `unknown`: no layer says anything."""
    evidence: tuple[str, ...]
    """The names of the layers that say so; for `unknown`, why."""

    def summary(self) -> str:
        """Put it in one line."""
        shown = ", ".join(self.evidence[:3]) + (f" and {len(self.evidence) - 3} more" if len(self.evidence) > 3 else "")
        return f"fused attention: {self.verdict} ({shown})"


def profiler_of(trt: Any, times: LayerTimes) -> Any:
    """Return a `trt.IProfiler` that reports to `times`; it must live as long as the context that it is given to."""
    return _profiler_class(trt)(times)


@functools.cache
def _profiler_class(trt: Any) -> Any:
    class Profiler(trt.IProfiler):
        def __init__(self, times: LayerTimes) -> None:
            trt.IProfiler.__init__(self)
            self._times = times

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self._times.add(layer_name, ms)

    return Profiler


def layer_info(trt: Any, engine: EngineLike) -> dict[str, Any]:
    """Describe an engine's layers as trtexec does: `Layers`, and `Bindings` (10.x) or `I/O Tensors` (11.x).

    `Layers` holds objects for an engine that was built with detailed profiling verbosity, names for one that was not, and
    nothing for one that was built without names.

    Raises:
        TensorRTFailed: the inspector gives nothing.
        InvalidInput: it gives something else.
    """
    inspector: InspectorLike = checked("making the engine's inspector", engine.create_engine_inspector)
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


def write_profile(times: LayerTimes, path: Path) -> None:
    """Write layer times in the schema of trtexec's `--exportProfile`."""
    write_json(path, times.to_json())


def write_layer_info(info: Mapping[str, Any], path: Path) -> None:
    """Write what `layer_info` returned, which is the schema of trtexec's `--exportLayerInfo`."""
    write_json(path, dict(info))


def fused_attention(info: Mapping[str, Any], plugins: Sequence[str] = (), *, native: bool = False) -> FusedAttention:
    """Tell from the layers whether attention is fused.

    A softmax that is left means no, whatever else was fused; one that is no attention's cannot be told from one that is. Engines
    that were built without detailed profiling verbosity show what TensorRT's compiler made as a whole, of which nothing is known.

    Args:
        info: as `layer_info` returns it, or read from a file of trtexec's.
        plugins: names of attention plugins besides those that `PLUGIN` matches.
        native: whether all attention is TensorRT's own layer, which it builds with a fused kernel or not at all, under names that
            nobody has seen.
    """
    fused, left, whole = [], [], []
    layers = [layer if isinstance(layer, Mapping) else {"Name": layer} for layer in info.get("Layers", ())]
    for layer in layers:
        name = str(layer.get("Name", ""))
        tactic = str(layer.get("TacticName", ""))
        if name.startswith(_MOVES):
            continue
        if name.startswith(_WHOLE):
            whole.append(name)
        elif FUSED.search(name) or FUSED_TACTIC.search(tactic) or _is_plugin(layer, plugins):
            fused.append(name)
        elif any(SOFTMAX.search(text) for text in (name, tactic, str(layer.get("LayerType", "")))):
            left.append(name)
    if left:
        return FusedAttention("no", tuple(left))
    if native and not fused:
        return FusedAttention("yes", ("TensorRT's own attention layer, which is built with a fused kernel or not at all",))
    if whole:
        why = f"{len(whole)} layers are shown as a whole; build the engine with detailed profiling verbosity"
        return FusedAttention("unknown", (why,))
    if fused:
        return FusedAttention("yes", tuple(fused))
    if not layers:
        return FusedAttention("unknown", ("the engine was built without layer names; build it with detailed profiling verbosity",))
    return FusedAttention("unknown", (f"none of {len(layers)} layers is attention or softmax by its name",))


def _is_plugin(layer: Mapping[str, Any], plugins: Sequence[str]) -> bool:
    """Tell whether a layer is an attention plugin, by its type and the names that its description holds."""
    texts = [str(layer.get(key, "")) for key in ("LayerType", "PluginType", "PluginName", "Name")]
    if "plugin" not in texts[0].lower() and not texts[1] and not texts[2]:
        return False
    return any(PLUGIN.search(text) or any(name in text for name in plugins) for text in texts)

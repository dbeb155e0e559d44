"""A builder for the TensorRT of `fakes_run`: turns ONNX graphs into plans whose layers are the graph's nodes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from onnx import TensorProto

from export.trt import build
from export.trt import tensorrt_runtime as runtime
from export.trt.build import BuildResult
from export.trt.cuda import device
from export.trt.log import TensorRTFailed
from export.trt.options import BuildOptions
from tests.export.trt.fakes_run import Rig, plan

if TYPE_CHECKING:
    import pytest

KINDS = {TensorProto.FLOAT: "FLOAT", TensorProto.FLOAT16: "HALF", TensorProto.BFLOAT16: "BF16", TensorProto.INT8: "INT8"}


class FakeBuilder:
    """Stands in for `build_engine`.

    Attributes:
        graphs: what was built, in order.
        options: how.
        caches: with which timing cache.
        layers: names a plan's layers; default one per node. The fake profiler gives the n-th layer n hundredths of a millisecond.
        fails: says of a graph whether TensorRT fails.
        ms: what one run of an engine takes.
    """

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.graphs: list[onnx.ModelProto] = []
        self.options: list[BuildOptions] = []
        self.caches: list[Path | None] = []
        self.layers: Callable[[onnx.ModelProto], list[Any]] = lambda model: [node.name for node in model.graph.node]
        self.fails: Callable[[onnx.ModelProto], bool] = lambda model: False
        self.ms: Callable[[onnx.ModelProto], float] = lambda model: 0.25

    def __call__(self, graph: bytes, options: BuildOptions, *, timing_cache: Path | None = None, **_: Any) -> BuildResult:
        model = onnx.ModelProto.FromString(graph)
        self.graphs.append(model)
        self.options.append(options)
        self.caches.append(timing_cache)
        if self.fails(model):
            raise TensorRTFailed("building the engine", ["error: could not find any implementation"])
        inputs = tensors(model.graph.input)
        data = plan(
            inputs, tensors(model.graph.output), version=self.rig.trt.version, layers=self.layers(model), ms=self.ms(model),
            attention_scale=_scale(model) if list(inputs) == ["q", "k", "v"] else None,
        )  # fmt: skip
        digest = hashlib.sha256(graph).hexdigest()
        return BuildResult(data, 0.1, len(model.graph.node), options, digest, ("the timing cache was new",))


def tensors(infos: Any) -> dict[str, list[Any]]:
    types = {info.name: info.type.tensor_type for info in infos}
    return {name: [KINDS[t.elem_type], *(d.dim_value for d in t.shape.dim)] for name, t in types.items()}


def _scale(model: onnx.ModelProto) -> float:
    """Return the factor on the logits in a graph of one attention."""
    constants = [a.f for node in model.graph.node if node.op_type == "Constant" for a in node.attribute if a.name == "value_float"]
    return float(constants[0])


def install_builder(monkeypatch: pytest.MonkeyPatch, rig: Rig) -> FakeBuilder:
    """Let `TensorRTRuntime`, and the lab that attention is chosen in, build with a fake and talk to the rig's GPU."""
    builder = FakeBuilder(rig)
    monkeypatch.setattr(build, "build_engine", builder)
    for module in (runtime, device):
        monkeypatch.setattr(module, "open_backend", lambda name=None: rig.backend)
    return builder

"""Models that read each other's outputs, and what a runtime says of each inside the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import nn

from export.backends.layer_times import summed
from export.backends.onnxruntime_layers import kernels_of, parts_of
from export.onnx.exporter import export_modules
from export.onnx.join import Part, wire
from export.runtime import LayerRuntime
from export.runtimes import open_runtime
from export.target import Target

RUNS = 3


class Sum(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a + b


@pytest.fixture(scope="module")
def wired(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[nn.Module]]:
    """A convolution, one behind it, the sum of both, and another behind the first."""
    folder = tmp_path_factory.mktemp("wired")
    rectified = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
    modules = [nn.Conv2d(3, 16, 3, padding=1), rectified, Sum(), nn.Conv2d(16, 8, 1)]
    shapes = [[(1, 3, 32, 32)], [(1, 16, 32, 32)], [(1, 16, 32, 32)] * 2, [(1, 16, 32, 32)]]
    pairs = [(module.eval(), tuple(torch.zeros(s) for s in each)) for module, each in zip(modules, shapes, strict=True)]
    files = [onnx.load(path) for path in export_modules(pairs, folder, ["a", "b", "c", "d"])]
    reads = [("image",), ("first",), ("first", "second"), ("first",)]
    parts = [Part(*each) for each in zip(("first", "second", "third", "end"), files, reads, strict=True)]
    model = wire(parts, {"image": (1, 3, 32, 32)})
    onnx.save(model, folder / "whole.onnx")
    return folder / "whole.onnx", modules


def test_wired_models_compute_what_they_do_one_behind_another(wired: tuple[Path, list[nn.Module]]) -> None:
    path, (first, second, third, end) = wired
    session = open_runtime(Target.parse("onnxruntime-cpu:fp32"), 1).load_file(path)
    image = np.random.default_rng(0).standard_normal((1, 3, 32, 32), dtype=np.float32)
    with torch.no_grad():
        middle = first(torch.from_numpy(image))
        expected = [third(middle, second(middle)), end(middle)]
    assert [spec.name.partition("/")[0] for spec in session.outputs] == ["third", "end"]
    for found, wanted in zip(session.run({"image": image}), expected, strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)
    session.close()


@pytest.mark.parametrize("target", ["onnxruntime-cpu:fp32", "openvino-cpu:fp32"])
def test_a_runtime_times_every_part(wired: tuple[Path, list[nn.Module]], target: str) -> None:
    runtime = open_runtime(Target.parse(target), 1)
    assert isinstance(runtime, LayerRuntime) and runtime.times_layers
    found = runtime.time_parts(wired[0], warmup_ms=0, runs=RUNS)
    assert set(found) >= {"first", "second", "end"}, "a sum may be computed by the convolution before it"
    assert all(len(times) == RUNS and 0 <= min(times) < 1000 for times in found.values())
    assert min(found["second"]) > 0


def test_inserted_nodes_belong_to_the_part_that_reads_them() -> None:
    def node(name: str, source: str, out: str) -> onnx.NodeProto:
        return helper.make_node("Relu", [source], [out], name=name)

    chain = [
        node("ReorderInput", "image", "t0"), node("a/conv", "t0", "t1"), node("ReorderOutput", "t1", "t2"),
        node("Cast", "t2", "t3"), node("b/add", "t3", "t4"), node("ReorderOutput_1", "t4", "y"),
    ]  # fmt: skip
    owners = parts_of(helper.make_graph(chain, "g", [], []))
    assert owners == {"ReorderInput": "a", "a/conv": "a", "ReorderOutput": "b", "Cast": "b", "b/add": "b"}
    events = [{"cat": "Node", "name": f"{n.name}_kernel_time", "dur": 1000 + run} for run in range(4) for n in chain]
    events += [{"cat": "Session", "name": "model_run", "dur": 5}, {"cat": "Node", "name": "a/conv_fence_before", "dur": 7}]
    kernels = kernels_of(events, 2)
    assert kernels["a/conv"] == [1.002, 1.003]
    found = summed(kernels, owners, [6.015, 7.0, 0.1])
    assert found["a"] == pytest.approx([2.004, 2.006]) and found["b"] == pytest.approx([3.006, 3.009])
    slower = summed(kernels, owners, [6.615])
    assert slower["a"] == pytest.approx([2.204, 2.206]), "0.6 ms beside six kernels"

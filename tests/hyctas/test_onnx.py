"""ONNX equals torch, for random genotypes at even and odd sizes, every operator, and every kind of output."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export import check_parity, export_onnx
from export.onnx.exporter import export_modules
from export.runtimes import open_runtime
from export.target import Target
from hyctas.arch.operators import Conv, DownUp, FeatureFusion, Operator, Predict, SelfAttention, Skip
from hyctas.attention import chunked
from hyctas.cost.workloads import build_block, workloads
from hyctas.network import Native, build
from hyctas.nn.blocks import Block
from hyctas.space import edge, tiny

ONNX = Target("onnxruntime-cpu", "fp32")


def random_network(seed: int, space: object = None) -> torch.nn.Module:
    space = space or tiny()
    genotype = space.sample(np.random.default_rng(seed))  # type: ignore[attr-defined]
    return build(genotype, 5).eval()


def test_random_networks(tmp_path: Path) -> None:
    size = (45, 61)
    networks = [random_network(seed) for seed in range(2)]
    image = torch.randn(1, 3, *size)
    paths = export_modules([(Native(n), (image,)) for n in networks], tmp_path, [f"n{i}" for i in range(2)])
    runtime = open_runtime(ONNX, 1)
    for network, path in zip(networks, paths, strict=True):
        with runtime.load_file(path) as session, torch.inference_mode():
            (found,) = session.run({session.inputs[0].name: image.numpy()})
            expected = network.forward_native(image).numpy()  # type: ignore[operator]
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1e-3 * expected.std()


@pytest.mark.parametrize("output", ["native", "labels"])
def test_outputs_of_an_edge_network(tmp_path: Path, output: str) -> None:
    network = build(edge().smallest(), 5).eval()
    export_onnx(network, (75, 90), tmp_path / "n.onnx", output=output)
    report = check_parity(network, tmp_path / "n.onnx", size=(75, 90), count=1)
    assert report.passed, report.summary()
    model = onnx.load(tmp_path / "n.onnx")
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"} and not model.functions
    assert [value.name for value in model.graph.input] == ["image"]


OPERATORS: list[Operator] = [
    Conv((8, 16), 16, 3, 2),
    Skip((8,), 15),
    DownUp((8,), 16, 1, 1),
    DownUp((8,), 16, 2, 2),
    SelfAttention((8,), 16, 1, 8, None, 1, False, "gamma", 2),
    SelfAttention((16,), 16, 4, 16, 0.5, 2, True, "bn", 1),
    FeatureFusion((8, 8), 16),
    Predict((16,), 5),
]


def test_every_operator_at_an_odd_size(tmp_path: Path) -> None:
    blocks = [Block(op).eval() for op in OPERATORS]
    inputs = [tuple(torch.randn(1, c, 13, 9) for c in op.sources) for op in OPERATORS]
    paths = export_modules(list(zip(blocks, inputs, strict=True)), tmp_path, [f"o{i}" for i in range(len(blocks))])
    for block, tensors, path in zip(blocks, inputs, paths, strict=True):
        with open_runtime(ONNX, 1).load_file(path) as session, torch.inference_mode():
            feeds = {spec.name: t.numpy() for spec, t in zip(session.inputs, tensors, strict=True)}
            (found,), expected = session.run(feeds), block(*tensors).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4 * max(1.0, float(expected.std())), err_msg=str(block.operator))


def test_attention_in_chunks_exports_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block, x = Block(SelfAttention((8,), 8)).eval(), torch.randn(1, 8, 12, 10)
    with torch.inference_mode():
        expected = block(x).numpy()
    monkeypatch.setattr(chunked, "GRAPH_ELEMENTS", 120 * 30)
    (path,) = export_modules([(block, (x,))], tmp_path, ["a"])
    softmaxes = [node for node in onnx.load(path).graph.node if node.op_type == "Softmax"]
    assert len(softmaxes) == 4, "120 queries, 30 at a time"
    with open_runtime(ONNX, 1).load_file(path) as session:
        (found,) = session.run({session.inputs[0].name: x.numpy()})
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_workloads_build_what_their_keys_say() -> None:
    keys = tiny().keys((32, 32), 3)[::17]
    for workload in workloads(keys):
        block = build_block(workload.key).eval()
        with torch.inference_mode():
            output = block(*(torch.zeros(shape) for shape in workload.inputs))
        assert output.shape[0] == 1 and workload.op

"""An operator that is added as docs/architecture.md says reaches every reader: plan, cost, keys, supernet, ONNX, diagram."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from export import export_onnx
from hyctas.arch import operators
from hyctas.arch.genotype import Genotype
from hyctas.arch.operators import Layer, from_key
from hyctas.network import build
from hyctas.nn import blocks
from hyctas.nn.blocks import Apply, Block
from hyctas.nn.supernet import Supernet
from hyctas.plan import lower
from hyctas.report.diagram import diagram_svg
from hyctas.space import tiny
from hyctas.spaces.grid import Space
from hyctas.training.evaluate import reestimate_norms


@dataclass(frozen=True)
class Bottleneck(operators.SingleInput):
    """A 3x3 convolution between 1x1s, a quarter as wide, with a shortcut where the shape stays."""

    label = "bottleneck"

    def layers(self) -> tuple[Layer, ...]:
        inner = max(1, self.out // 4)
        return (
            Layer("reduce", self.sources, inner), Layer("conv", (inner,), inner, 3, self.stride, aligned=self.aligned),
            Layer("expand", (inner,), self.out),
        )  # fmt: skip

    def layer_sizes(self, height: int, width: int) -> dict[str, tuple[int, int]]:
        size = self.output_size(height, width)
        return {"reduce": (height, width), "conv": size, "expand": size}


def _bottleneck(op: Bottleneck, apply: Apply, x: Tensor) -> Tensor:
    y = apply("expand", F.relu(apply("conv", F.relu(apply("reduce", x)))))
    return F.relu(x + y) if op.keeps_shape else F.relu(y)


@pytest.fixture
def space(monkeypatch: pytest.MonkeyPatch) -> Space:
    """Add the operator, and return a space that has it."""
    monkeypatch.setitem(operators.OPERATORS, "Bottleneck", Bottleneck)
    monkeypatch.setitem(operators.CELLS, "bottleneck", (Bottleneck, {}))
    monkeypatch.setitem(blocks.COMPUTE, Bottleneck, _bottleneck)
    given = tiny()
    stages = tuple(
        dataclasses.replace(stage, first=(*stage.first, "bottleneck"), operators=("skip", "conv", "bottleneck"))
        if stage.name in ("16a", "32a") else stage
        for stage in given.stages
    )  # fmt: skip
    return dataclasses.replace(given, name="scratch", stages=stages)


def with_it(space: Space) -> Genotype:
    drawn = map(space.sample, map(np.random.default_rng, range(100)))
    return next(g for g in drawn if any(cell.op == "bottleneck" and cell.stride == 2 for branch in g.branches for cell in branch))


def test_plan_and_cost_agree_with_the_network(space: Space) -> None:
    genotype = with_it(space)
    assert Genotype.from_json(genotype.to_json()) == genotype and space.decode(space.encode(genotype)).id == genotype.id
    plan = lower(genotype, (45, 61), 5)
    network = build(genotype, 5)
    assert sum(node.operator.parameters for node in plan.nodes) == sum(p.numel() for p in network.parameters())
    assert network(torch.zeros(2, 3, 45, 61)).shape == (2, 5, 45, 61)


def test_every_network_is_made_of_keys_that_the_space_lists_and_that_can_be_measured(space: Space) -> None:
    keys = {key for key in space.keys((64, 96)) if "Bottleneck" in key}
    assert {node.key for node in lower(with_it(space), (64, 96), 19).nodes if node.operator.label == "bottleneck"} <= keys
    operator, shapes = from_key(min(keys))
    assert Block(operator)(*(torch.zeros(2, *shape) for shape in shapes)).shape[1:] == operator.output_shape(shapes)


def test_a_supernet_computes_what_the_extracted_network_computes_and_it_exports(space: Space, tmp_path: Path) -> None:
    genotype, image = with_it(space), torch.randn(2, 3, 64, 96)
    supernet = Supernet(space, 5)
    supernet(genotype, image).sum().backward()
    assert any("bottleneck" in name for name, p in supernet.named_parameters() if p.grad is not None)
    network = supernet.extract(genotype)
    reestimate_norms(network, [image])
    with torch.no_grad():
        torch.testing.assert_close(network.train()(image), supernet(genotype, image), rtol=1e-4, atol=1e-4)
    file = tmp_path / "model.onnx"
    export_onnx(network.finished().eval(), (64, 96), file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (native,) = session.run(None, {"image": image[:1].numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(native, network.finished().eval().forward_native(image[:1]).numpy(), rtol=1e-3, atol=1e-4)


def test_the_report_draws_it_with_its_docstring(space: Space) -> None:
    svg = diagram_svg(lower(with_it(space), (64, 96), 5))
    assert "bottleneck: A 3x3 convolution between 1x1s, a quarter as wide" in svg

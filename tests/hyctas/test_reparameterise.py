"""Re-parameterised convolutions: one function before, during and after; plain names afterwards; checkpoints continue."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from export import export_onnx
from export.runtimes import open_runtime
from export.target import Target
from hyctas.arch.operators import Layer
from hyctas.network import Network, build, load_weights, save_weights
from hyctas.nn.blocks import ConvNorm
from hyctas.space import edge, tiny
from hyctas.training.config import Recipe
from hyctas.training.evaluate import reestimate_norms
from hyctas.training.loop import Trainer
from hyctas.training.reparameterise import ReparameterisedConv, merge, reparameterise
from tests.hyctas.stopping import run_until

IMAGES = torch.rand(2, 3, 61, 83, generator=torch.Generator().manual_seed(3))
"""Odd sizes: the last windows of stride-2 convolutions reach into the padding."""


def lively(module: nn.Module) -> None:
    """Give every norm statistics, scale and shift of its own, as training does."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None and norm.running_var is not None
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)


@pytest.mark.parametrize("size", [(8, 10), (9, 11), (8, 11)])
@pytest.mark.parametrize(("aligned", "stride", "channels"), [(False, 1, 5), (False, 1, 4), (False, 2, 5), (True, 2, 5)])
def test_merging_one_convolution_is_exact(aligned: bool, stride: int, channels: int, size: tuple[int, int]) -> None:
    conv = ConvNorm(Layer("conv", (5,), channels, kernel=3, stride=stride, aligned=aligned)).double()
    branches = ReparameterisedConv(conv)
    assert (branches.identity_norm is not None) == (stride == 1 and channels == 5)
    lively(branches)
    x = torch.randn(2, 5, *size, dtype=torch.float64)
    before = branches.eval()(x)
    folded = copy.deepcopy(branches)
    folded.fold()
    plain = branches.merged()
    after = plain(x)
    assert before.shape == after.shape == (2, channels, -(-size[0] // stride), -(-size[1] // stride))
    assert (before - after).abs().max() <= 1e-9
    assert type(plain) is ConvNorm and plain.state_dict().keys() == conv.state_dict().keys()
    assert (before - folded(x)).abs().max() <= 1e-9 and folded.state_dict().keys() == {"weight", "bias"}


def test_a_bias_before_the_norm_is_folded_too() -> None:
    branches = ReparameterisedConv(ConvNorm(Layer("conv", (3,), 3, kernel=3, bias=True)).double())
    lively(branches)
    assert branches.bias is not None
    nn.init.normal_(branches.bias)
    x = torch.randn(1, 3, 6, 6, dtype=torch.float64)
    before = branches.eval()(x)
    assert (before - branches.merged()(x)).abs().max() <= 1e-9


@pytest.mark.parametrize("space", [tiny(), edge()], ids=lambda space: space.name)
def test_merging_a_network_is_exact(space: object, tmp_path: Path) -> None:
    network = build(space.largest(), 5)  # type: ignore[attr-defined]
    plain = {name: tensor.shape for name, tensor in network.state_dict().items()}
    count = reparameterise(network)
    assert count > 0 and reparameterise(network) == 0
    lively(network)
    network.double().eval()
    with torch.no_grad():
        before, unmerged = network(IMAGES.double()), network.folded()(IMAGES.double())
        assert merge(network) == count and merge(network) == 0
        after, folded = network(IMAGES.double()), network.folded()(IMAGES.double())
    scale = before.abs().max().clamp(min=1)
    assert all((before - other).abs().max() <= 1e-9 * scale for other in (unmerged, after, folded))
    assert {name: tensor.shape for name, tensor in network.state_dict().items()} == plain
    save_weights(network.float(), tmp_path / "n.safetensors")
    load_weights(build(space.largest(), 5), tmp_path / "n.safetensors")  # type: ignore[attr-defined]


@pytest.mark.parametrize("training", [True, False])
def test_branches_start_without_effect(training: bool) -> None:
    network = build(tiny().largest(), 5)
    lively(network)
    network.train(training)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    before = network(IMAGES)
    network.load_state_dict(state)
    reparameterise(network)
    torch.testing.assert_close(network(IMAGES), before)
    scales = [m.pointwise.norm.weight for m in network.modules() if isinstance(m, ReparameterisedConv) and m.pointwise]
    network(IMAGES).square().mean().backward()
    assert all(scale.grad is not None for scale in scales)
    assert any(scale.grad.abs().max() > 0 for scale in scales if scale.grad is not None), "a scale of 0 learns"


def trained(path: Path, steps: int) -> Network:
    torch.manual_seed(1)
    network = build(tiny().smallest(), 3)
    reparameterise(network)
    trainer = Trainer(network, Recipe(steps=4, amp=False), path)

    def step(number: int) -> dict[str, float]:
        loss = network.train()(IMAGES).square().mean()
        loss.backward()
        return {"loss": float(loss.detach())}

    run_until(trainer, step, steps)
    return network


def test_a_checkpoint_holds_the_branches_and_export_sees_one_convolution(tmp_path: Path) -> None:
    whole = trained(tmp_path / "a", 4)
    trained(tmp_path / "b", 2)
    network = trained(tmp_path / "b", 4)
    for one, two in zip(whole.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)
    reestimate_norms(network, [IMAGES], amp=False)
    with torch.no_grad():
        wanted = network.forward_native(IMAGES[:1])
    with pytest.raises(RuntimeError, match="pointwise"):
        network.finished()
    merge(network)
    network = network.finished()
    report = export_onnx(network, (61, 83), tmp_path / "n.onnx")
    assert report.operators["Conv"] == sum(isinstance(module, ConvNorm) for module in build(network.genotype, 3).modules())
    with open_runtime(Target.parse("onnxruntime-cpu:fp32"), threads=1).load_file(tmp_path / "n.onnx") as session:
        found = session.run({"image": IMAGES[:1].numpy()})[0]
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4)

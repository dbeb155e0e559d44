"""Heads besides the semantic one, in any space: auxiliary heads in training, instance heads, joined panoptic output."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from export.errors import InvalidInput
from export.onnx.exporter import export_onnx
from export.parity import check_parity
from hyctas import published
from hyctas.arch.genotype import Genotype
from hyctas.data import PREPROCESSING, Frames, Scenes
from hyctas.network import Native, build
from hyctas.panoptic import split
from hyctas.plan import lower
from hyctas.space import edge, tiny
from hyctas.training.config import NetworkRecipe
from hyctas.training.loop import Trainer
from hyctas.training.single import Single

TINY, EDGE = tiny(), edge()
SEMANTIC = published.genotype("S", 6)
PANOPTIC = published.genotype("S", 6, panoptic=True)


@given(st.integers(0, 2**32))
@settings(max_examples=40)
def test_auxiliary_heads_look_at_16_and_32(seed: int) -> None:
    genotype = EDGE.sample(np.random.default_rng(seed))
    plain, with_heads = lower(genotype, (96, 128), 7), lower(genotype, (96, 128), 7, auxiliary=True)
    strides = [stride for stride in (16, 32) if stride <= max(genotype.final_strides)]
    assert set(with_heads.outputs) == {"semantic", *(f"auxiliary{stride}" for stride in strides)}
    for stride in strides:
        node = with_heads.node(f"auxiliary{stride}")
        assert node.stride == stride and node.shape == (7, 96 // stride, 128 // stride)
    assert with_heads.needed() == plain.nodes, "the head's own nodes stay as they are"
    assert len(with_heads.needed(("auxiliary16",))) < len(with_heads.nodes)


def test_finished_network_has_no_auxiliary_heads() -> None:
    torch.manual_seed(0)
    genotype = TINY.sample(np.random.default_rng(3))
    network = build(genotype, 5, auxiliary=True).eval()
    finished = network.finished()
    assert finished.state_dict().keys() == build(genotype, 5).state_dict().keys()
    image = torch.randn(1, 3, 45, 61)
    with torch.inference_mode():
        assert torch.equal(finished(image), network(image)) and not finished.training
        logits = network.forward_all_logits(image)
    assert [tuple(value.shape) for value in logits] == [(1, 5, 45, 61)] * 3


def test_auxiliary_losses_train_what_only_they_reach(tmp_path: Path) -> None:
    torch.manual_seed(0)
    genotype = TINY.sample(np.random.default_rng(3))
    scenes = Scenes(seed=0, train=8, val=4, size=(32, 48))
    frames = Frames(scenes, "train", scenes.samples("train"))
    moved = {}
    for weight in (0.0, 0.4):
        recipe = NetworkRecipe(steps=2, crop=(32, 32), batch=2, threads=1, amp=False, auxiliary=weight, warmup_steps=1)
        network = build(genotype, 10, auxiliary=True)
        before = {name: value.clone() for name, value in network.named_parameters()}
        step = Single(network, recipe, frames, PREPROCESSING, recipe.auxiliary)
        Trainer(network, recipe, tmp_path / f"{weight}.pt").run(step)
        step.feed.close()
        moved[weight] = {name.split(".")[0] for name, value in network.named_parameters() if not torch.equal(value, before[name])}
    assert "auxiliary" not in moved[0.0] and "head" in moved[0.0]
    assert {"auxiliary", "head", "trunk", "stem"} <= moved[0.4]


@pytest.mark.parametrize("head", [0, 1, 2])
def test_joined_output_comes_apart(head: int) -> None:
    torch.manual_seed(0)
    genotype = published.genotype("S", 6, head, panoptic=True)
    network = build(genotype, 5).eval()
    image = torch.randn(2, 3, 70, 50)
    stride = 8 if head == 0 else 4
    height, width = -(-70 // stride), -(-50 // stride)
    with torch.inference_mode():
        joined = network.forward_panoptic(image)
        assert torch.equal(Native(network)(image), joined)
        parts = network.forward_outputs(image, ("semantic", "centre", "offset"))
        assert torch.equal(network.forward_native(image), parts["semantic"])
    assert joined.shape == (2, 8, height, width)
    assert all(torch.equal(part, value) for part, value in zip(split(joined), parts.values(), strict=True))


def test_networks_without_an_instance_head_say_so() -> None:
    network = build(SEMANTIC, 5)
    with pytest.raises(InvalidInput, match=r"no outputs \['centre', 'offset'\]; it has \['semantic'\]"):
        network.forward_panoptic(torch.zeros(1, 3, 32, 32))
    with pytest.raises(InvalidInput, match="shape"):
        split(torch.zeros(1, 3, 4, 4))


def test_instance_heads_are_part_of_the_genotype() -> None:
    assert PANOPTIC.id != SEMANTIC.id and Genotype.from_json(PANOPTIC.to_json()) == PANOPTIC
    assert replace(PANOPTIC, instance_head=None) == SEMANTIC
    assert PANOPTIC.instance_head is not None
    with pytest.raises(InvalidInput, match="instance_head head1: low4 belongs to head1"):
        replace(PANOPTIC, instance_head=replace(PANOPTIC.instance_head, low4=0))
    text = SEMANTIC.to_json().replace('"instance_head":null,', "")
    assert Genotype.from_json(text) == SEMANTIC, "a field with a default may be left out"


@pytest.mark.slow
def test_panoptic_onnx_and_its_parity(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build(PANOPTIC, 5).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.bias)  # zeros would be left out of the file
    path = tmp_path / "model.onnx"
    report = export_onnx(network, (64, 96), path, "panoptic")
    assert report.output.name == "panoptic" and report.output.shape == (1, 8, 16, 24)
    assert check_parity(network, path, count=1).passed
    model = onnx.load(path)  # an error in the offsets alone must show, however small their share
    biases = [t for t in model.graph.initializer if tuple(t.dims) == (2,) and t.data_type == onnx.TensorProto.FLOAT]
    (bias,) = biases
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(0.05), bias.name))
    onnx.save(model, path)
    broken = check_parity(network, path, count=1)
    assert not broken.passed and broken.label_agreement == 1
    with pytest.raises(InvalidInput, match="has no outputs"):
        export_onnx(build(SEMANTIC, 5).eval(), (64, 96), tmp_path / "no.onnx", "panoptic")

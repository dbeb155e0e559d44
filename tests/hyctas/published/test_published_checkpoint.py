"""Released weights: equal outputs, lossless saving, and every wrong key named.

The released S network's logits are known; every other network, head and output is compared with `oracle.py`, a second reading
of the released code that is itself held to those logits.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import fill
import numpy as np
import oracle
import pytest
import torch
from torch import Tensor

from export.errors import InvalidInput
from export.onnx.exporter import export_onnx
from export.parity import check_parity
from hyctas import published
from hyctas.arch.genotype import Cell, Genotype
from hyctas.artifacts.bundling import RELEASED_PREPROCESSING, load_trained
from hyctas.published.checkpoint import PublishedNetwork, read_checkpoint
from hyctas.published.frame import attention, complete

LIMIT = 1e-4
"""Allowed largest error, in standard deviations of the reference."""

every = pytest.mark.parametrize("name", published.NAMES)


def filled(genotype: Genotype, *, auxiliary: bool = False) -> dict[str, Tensor]:
    """Return weights for any published network: the fill rule on its keys."""
    empty = PublishedNetwork(genotype, 19, auxiliary=auxiliary)
    aliases = {key.published for key in empty.keys if key.alias}
    return {key: fill.tensor(key, tuple(value.shape)) for key, value in empty.state_dict().items() if key not in aliases}


def error(found: Tensor, reference: Tensor) -> float:
    """Return the largest absolute error in standard deviations of the reference."""
    assert found.shape == reference.shape
    return float((found - reference).abs().max() / reference.std())


def s_logits() -> Tensor:
    return torch.from_numpy(np.load(fill.DATA / "S_logits.npz")["logits_s4"])


def test_s_equals_the_released_logits() -> None:
    module = published.load_checkpoint("S", fill.state_dict("S"))
    with torch.inference_mode():
        logits = module(fill.image(128, 256))
    assert not module.training and logits.shape == (1, 19, 32, 64)
    assert error(logits, s_logits()) <= LIMIT


def test_oracle_equals_the_released_logits() -> None:
    net = json.loads(published.released_json("S"))
    assert error(oracle.outputs(net, fill.state_dict("S"), fill.image(128, 256))["semantic"], s_logits()) <= LIMIT


@pytest.mark.parametrize("name", ["M", "L"])
def test_m_and_l_equal_the_second_reading(name: str) -> None:
    state, image = fill.state_dict(name), fill.image(128, 256)
    expected = oracle.outputs(json.loads(published.released_json(name)), state, image)["semantic"]
    with torch.inference_mode():
        assert error(published.load_checkpoint(name, state)(image), expected) <= LIMIT


@pytest.mark.parametrize(("name", "head"), [("S", 0), ("S", 1), ("S", 2), ("M", 0), ("L", 1)])
def test_every_output_of_every_head(name: str, head: int) -> None:
    """Small base, all heads: semantic, auxiliary, centre, offset."""
    genotype = published.genotype(name, 6, head, panoptic=True)
    state, image = filled(genotype, auxiliary=False), fill.image(64, 128)
    aux = filled(published.genotype(name, 6, head), auxiliary=True)
    expected = oracle.outputs(json.loads(published.released_json(name)), {**aux, **state}, image)
    with torch.inference_mode():
        found = published.load_checkpoint(genotype, state).network.forward_outputs(image, ("semantic", "centre", "offset"))
        module = published.load_checkpoint(name, aux, head, auxiliary=True)
        found |= module.network.forward_outputs(image, ("auxiliary16", "auxiliary32"))
        stride = 8 if head == 0 else 4
        assert module(image).shape == (1, 19, 64 // stride, 128 // stride)
    assert found.keys() == expected.keys()
    for output, reference in expected.items():
        assert error(found[output], reference) <= LIMIT, output


def test_a_stride_2_attention_pools_afterwards() -> None:
    """None of the released networks has one; the released code attends at full resolution and pools."""
    file = json.loads(published.released_json("S"))
    file["ops"][0][1] = 4
    genotype = published.import_genotype(file, 6)
    state, image = filled(genotype), fill.image(64, 128)
    with torch.inference_mode():
        found = published.load_checkpoint(genotype, state)(image)
    assert error(found, oracle.outputs(file, state, image)["semantic"]) <= LIMIT


@every
def test_module_set_is_the_released_one(name: str) -> None:
    state = fill.state_dict(name, aliases=True)
    module = published.load_checkpoint(name, state)
    again = module.state_dict()
    assert again.keys() == {key for key, _, _ in fill.rows(name)} == state.keys()
    assert {key: tuple(value.shape) for key, value in again.items()} == {key: shape for key, shape, _ in fill.rows(name)}
    assert all(torch.equal(again[key], value) for key, value in state.items())
    assert published.load_checkpoint(name, again).state_dict().keys() == state.keys()


def test_saves_back_what_came() -> None:
    state = fill.state_dict("L")  # without aliases
    assert published.load_checkpoint("L", state).state_dict().keys() == state.keys()
    counter = "backbone.stem1.0.norm.num_batches_tracked"
    module = published.load_checkpoint("L", {**state, counter: torch.tensor(7)})
    assert module.state_dict()[counter] == 7 and module.state_dict().keys() == {*state, counter}
    twin = copy.deepcopy(module)
    twin.load_state_dict(fill.state_dict("L"))
    assert counter not in twin.state_dict() and counter in module.state_dict()
    genotype = published.genotype("S", 6, panoptic=True)
    panoptic = filled(genotype)
    assert published.load_checkpoint("S", panoptic).genotype == genotype, "base width and instance head are read off the tensors"
    with pytest.raises(TypeError, match="as a whole"):
        module.load_state_dict(state, strict=False)


def test_weights_that_are_not_needed_are_held_not_executed() -> None:
    state = fill.state_dict("S")
    module = published.load_checkpoint("S", state)
    for key in state:
        if key.startswith(("backbone.ffm16", "backbone.ffm32")):
            state[key] = torch.zeros_like(state[key])
    image = fill.image(64, 64)
    with torch.inference_mode():
        assert torch.equal(module(image), published.load_checkpoint("S", state)(image))
    assert sum(p.numel() for p in module.parameters()) - sum(p.numel() for p in module.network.parameters()) == 965_888


def wrong(change: str) -> dict[str, Any]:
    """Return a checkpoint of L (all names) with one defect."""
    state: dict[str, Any] = fill.state_dict("L", aliases=True)
    if change == "unknown":
        state["backbone.cells.0-0._op._op.0.conv9.weight"] = torch.zeros(1)
    elif change == "missing":
        del state["backbone.arms16.weight"]
    elif change == "shape":
        state["backbone.arms16.weight"] = torch.zeros(128, 255, 1, 1)
    elif change == "alias":
        state["backbone.cells.3-1._op._op.0.conv.weight"] = state["backbone.cells.3-1._op._op.0.conv.weight"] + 1
    elif change == "nan":
        state["backbone.ffm16.conv_1x1.weight"] = torch.full((256, 512, 1, 1), torch.nan)
    elif change == "auxiliary":
        state["sem_head_aux16.predictor.weight"] = torch.zeros(19, 256, 1, 1)
    elif change == "wrapped":
        state = {"state_dict": state}
    elif change == "object":
        state["backbone.arms16.weight"] = [1.0]
    return state


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("unknown", "unknown keys backbone.cells.0-0._op._op.0.conv9.weight"),
        ("missing", "missing keys backbone.arms16.weight"),
        ("shape", r"backbone.arms16.weight has shape \(128, 255, 1, 1\), expected \(128, 256, 1, 1\)"),
        ("alias", "cells.3-1._op._op.0.conv.weight is another name of backbone.cells.3-0._op._op.0.conv.weight"),
        ("nan", "backbone.ffm16.conv_1x1.weight holds NaN"),
        ("auxiliary", "sem_head_aux16.predictor.weight; auxiliary heads are held with auxiliary=True"),
        ("wrapped", "missing keys sem_head.predictor.weight; give the state dict"),
        ("object", "backbone.arms16.weight is a list"),
    ],
)
def test_wrong_checkpoints(change: str, text: str) -> None:
    with pytest.raises(InvalidInput, match=text):
        published.load_checkpoint("L", wrong(change))


def test_another_network_and_head() -> None:
    with pytest.raises(InvalidInput, match=r"unknown keys .* and \d+ more"):
        published.load_checkpoint("M", fill.state_dict("S"))
    with pytest.raises(InvalidInput, match=r"unknown keys sem_head.feature_projection_s4"):
        published.load_checkpoint("S", fill.state_dict("S"), head=0)
    with pytest.raises(InvalidInput, match="missing keys sem_head_aux"):
        published.load_checkpoint("S", fill.state_dict("S"), auxiliary=True)


def test_a_skip_has_no_released_weights() -> None:
    cells = (Cell("conv", 48, 1), Cell("skip", 96, 2), Cell("attention", 96, 1, attention(96)))
    with pytest.raises(InvalidInput, match=r"does not down-sample.*branches\[0\]\[1\]"):
        PublishedNetwork(complete((cells,), 6, 1), 19)


def test_checkpoint_files(tmp_path: Path) -> None:
    state, path = filled(published.genotype("S", 6)), tmp_path / "best.pth"
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}, path)
    assert read_checkpoint(path).keys() == state.keys()
    trained = load_trained(Path("published:S,base=6"), checkpoint=path)
    image = fill.image(33, 47)
    with torch.inference_mode():
        assert torch.equal(trained.network.forward_native(image), published.load_checkpoint("S", state)(image))
    assert trained.facts["weights"] == "released checkpoint" and trained.preprocessing == RELEASED_PREPROCESSING
    with pytest.raises(InvalidInput, match="goes with a published network"):
        load_trained(tmp_path, checkpoint=path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InvalidInput, match="not a checkpoint of plain tensors"):
        read_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(InvalidInput, match="no state dict"):
        read_checkpoint(path)
    torch.save({"state_dict": Path("x")}, path)
    with pytest.raises(InvalidInput, match="plain tensors"):
        read_checkpoint(path)
    with pytest.raises(InvalidInput, match="there is no checkpoint"):
        read_checkpoint(tmp_path / "none.pth")


@pytest.mark.slow
def test_onnx_runtime_agrees(tmp_path: Path) -> None:
    """With weights that make every attention count (fresh ones start at the shortcut)."""
    size = (128, 256)
    network = published.load_checkpoint("S", fill.state_dict("S")).network
    report = export_onnx(network, size, tmp_path / "model.onnx")
    assert report.output.shape == (1, 19, size[0] // 4, size[1] // 4)
    parity = check_parity(network, tmp_path / "model.onnx", size=size, count=1)
    assert parity.passed, parity.summary()

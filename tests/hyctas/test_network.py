"""Network: any size, folding, weights on disk, and attention against a plain reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from export.errors import CorruptFile, InvalidInput
from hyctas.attention import chunked
from hyctas.network import Network, build, load_weights, save_weights
from hyctas.nn.blocks import average_down, upsample
from hyctas.space import tiny

TINY = tiny()


def trained(seed: int, classes: int = 4) -> Network:
    """Return a network whose norms have seen data, so that eval mode means something."""
    network = build(TINY.sample(np.random.default_rng(seed)), classes).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(2, 3, 64, 64))
    return network.eval()


@given(st.integers(0, 10**6), st.integers(1, 75), st.integers(1, 75))
@settings(max_examples=15)
def test_any_size(seed: int, height: int, width: int) -> None:
    network = build(TINY.sample(np.random.default_rng(seed)), 3).eval()
    with torch.inference_mode():
        output = network(torch.randn(2, 3, height, width))
    assert output.shape == (2, 3, height, width) and torch.isfinite(output).all()


@given(st.integers(0, 10**6))
@settings(max_examples=8)
def test_folding_changes_nothing(seed: int) -> None:
    network, image = trained(seed).double(), torch.randn(1, 3, 45, 61, dtype=torch.float64)
    folded = network.folded()
    with torch.inference_mode():
        expected, got = network(image), folded(image)
    assert (expected - got).abs().max() <= 1e-9 * expected.std()
    assert any(isinstance(m, nn.BatchNorm2d) for m in network.modules()), "the original keeps its norms"


def test_state_dict_uses_node_names() -> None:
    network = build(TINY.smallest(), 3)
    nodes = {node.name for node in network.nodes}
    for key in network.state_dict():
        assert any(key.startswith(name + ".") for name in nodes), key


def test_weights_round_trip_and_errors(tmp_path: Path) -> None:
    network, path = trained(1), tmp_path / "w.safetensors"
    save_weights(network, path)
    other = build(network.genotype, 4).eval()
    load_weights(other, path)
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(network(image), other(image))
    with pytest.raises(CorruptFile, match=r"shape|unknown|lacks"):
        load_weights(build(TINY.largest(), 4), path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(CorruptFile, match="safetensors"):
        load_weights(other, path)
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    save_weights(network, path)
    with pytest.raises(CorruptFile, match="NaN"):
        load_weights(other, path)


def test_wrong_input_is_a_sentence() -> None:
    with pytest.raises(InvalidInput, match=r"\(N, 3, H, W\)"):
        build(TINY.smallest(), 3)(torch.zeros(3, 8, 8))


def test_halving_equals_bilinear_at_even_sizes() -> None:
    x = torch.randn(1, 2, 8, 10)
    expected = nn.functional.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False)
    torch.testing.assert_close(average_down(x, 2), expected)
    assert average_down(torch.ones(1, 1, 5, 7), 2).shape == (1, 1, 3, 4)
    torch.testing.assert_close(upsample(torch.ones(1, 1, 3, 4), (5, 7), 2), torch.ones(1, 1, 5, 7))


@given(st.integers(0, 10**6), st.sampled_from([(1, 1), (7, 5), (64, 16)]))
@settings(max_examples=10)
def test_attention_equals_the_formula(seed: int, lengths: tuple[int, int]) -> None:
    n, m = lengths
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, 3, c, length, generator=generator) for c, length in ((4, n), (4, m), (6, m)))
    o, lse = torch.ops.hyctas.self_attention(q, k, v, 0.3)
    logits = 0.3 * torch.einsum("bhdn,bhdm->bhnm", q.double(), k.double())
    torch.testing.assert_close(o.double(), torch.einsum("bhnm,bhem->bhen", logits.softmax(3), v.double()), rtol=0, atol=1e-5)
    torch.testing.assert_close(lse.double(), logits.logsumexp(3), rtol=0, atol=1e-5)


def test_attention_in_chunks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = torch.randn(1, 2, 4, 50), torch.randn(1, 2, 4, 30), torch.randn(1, 2, 8, 30)
    whole = torch.ops.hyctas.self_attention(q, k, v, 1.0)
    monkeypatch.setattr(chunked, "CACHE_ELEMENTS", 30 * 7)
    parts = torch.ops.hyctas.self_attention(q, k, v, 1.0)
    torch.testing.assert_close(parts, whole)
    with pytest.raises(ValueError, match="keys M"):
        torch.ops.hyctas.self_attention(q, k[..., :29], v, 1.0)

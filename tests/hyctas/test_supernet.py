"""Supernet: slices equal extracted networks, every network of the space fits, and shared weights are shared."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hyctas.arch.operators import Layer
from hyctas.network import Network
from hyctas.nn.blocks import ConvNorm, convolve
from hyctas.nn.supernet import Supernet
from hyctas.plan import lower
from hyctas.space import edge, tiny
from hyctas.spaces.slots import slots
from hyctas.training.evaluate import reestimate_norms

TINY, EDGE = tiny(), edge()
SUPERNET = Supernet(TINY, 5)
EDGE_SLOTS = slots(EDGE, 11)


def randomise(supernet: Supernet) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) * 0.4 - 0.1)


@given(st.integers(0, 10**6), st.sampled_from([(64, 64), (45, 61)]))
@settings(max_examples=15)
def test_a_slice_computes_the_same_as_the_extracted_network(seed: int, size: tuple[int, int]) -> None:
    randomise(SUPERNET)
    genotype = TINY.sample(np.random.default_rng(seed))
    network = SUPERNET.extract(genotype).train()  # batch statistics, as in the supernet
    image = torch.randn(2, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(SUPERNET(genotype, image), network(image), rtol=1e-4, atol=1e-4)
        native = SUPERNET.forward_native(genotype, image)
        torch.testing.assert_close(native, network.forward_native(image), rtol=1e-4, atol=1e-4)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_every_network_of_edge_fits_its_slots(seed: int) -> None:
    for node in lower(EDGE.sample(np.random.default_rng(seed)), (32, 32), 11).nodes:
        for layer in node.operator.layers():
            full = EDGE_SLOTS[node.slot][layer.name]
            assert type(full) is type(layer)
            if isinstance(layer, Layer) and isinstance(full, Layer):
                assert full.out >= layer.out and full.kernel >= layer.kernel
                assert (full.stride, full.depthwise, full.aligned) == (layer.stride, layer.depthwise, layer.aligned)
                blocks = node.blocks if len(full.sources) > 1 else (0,)
                for block, channels in zip(blocks, layer.sources, strict=True):
                    assert full.sources[block] >= channels


def test_only_the_slots_of_a_network_get_gradients() -> None:
    genotype = TINY.smallest()
    supernet = Supernet(TINY, 5)
    supernet(genotype, torch.randn(2, 3, 32, 32)).sum().backward()
    own = {node.slot for node in lower(genotype, (32, 32), 5).nodes}
    for name, parameter in supernet.named_parameters():
        assert (parameter.grad is not None) == any(name.startswith(slot + ".") for slot in own), name


def test_networks_of_different_branch_counts_share_their_slots() -> None:
    plans = [lower(TINY.corner(largest=True, branches=chosen, decoder="concat"), (32, 32), 5) for chosen in ((32,), (8, 16, 32))]
    single, triple = ({node.slot for node in plan.nodes} for plan in plans)
    assert single <= triple


def test_fusion_blocks_belong_to_branches() -> None:
    two = lower(TINY.corner(largest=True, branches=(16, 32), decoder="concat"), (32, 32), 5)
    fusion = next(node for node in two.nodes if node.part == "fusion")
    assert fusion.blocks == (1, 2)


def test_reestimated_norms_are_means_over_the_batches() -> None:
    network = SUPERNET.extract(TINY.smallest())
    batches = [torch.randn(4, 3, 32, 32), torch.randn(4, 3, 32, 32)]
    reestimate_norms(network, batches, amp=False)
    first = next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    conv = network.block(network.nodes[0].name).get_submodule("conv")
    assert isinstance(conv, ConvNorm)
    outputs = [convolve(conv.layer, batch, conv.weight, None) for batch in batches]
    expected = torch.stack([output.mean((0, 2, 3)) for output in outputs]).mean(0)
    torch.testing.assert_close(first.running_mean, expected, rtol=1e-4, atol=1e-5)
    assert not network.training and first.momentum == 0.1


def test_extract_copies() -> None:
    network: Network = SUPERNET.extract(TINY.smallest())
    before = next(SUPERNET.parameters()).clone()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert torch.equal(before, next(SUPERNET.parameters()))

"""Plan and cost: closed forms against torch's own counter, names, sharing, and the extent of the spaces."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from export.errors import InvalidInput
from hyctas.arch.operators import (
    Context,
    Conv,
    DownUp,
    FeatureFusion,
    InvertedResidual,
    MaxPool,
    Operator,
    Predict,
    Residual,
    SelfAttention,
    Skip,
    from_key,
)
from hyctas.attention.chunked import GRAPH_ELEMENTS
from hyctas.cost.memory import GRAPH_LOGITS, fits, inner_elements, live_mib, predicted_mib, weights_mib
from hyctas.network import build
from hyctas.nn.blocks import Block
from hyctas.plan import IMAGE, lower
from hyctas.space import edge, tiny
from hyctas.spaces.members import member

EDGE, TINY = edge(), tiny()
EDGE_KEYS = frozenset(EDGE.keys((360, 480), 11))
seeds = st.integers(0, 2**32 - 1)

SHAPES = ((8, 1, False), (16, 1, False), (16, 2, False), (16, 2, True))
"""Output channels, stride, aligned."""
OPERATORS: list[Operator] = [
    *(Conv(sources, 16, kernel, stride) for sources in ((8,), (8, 24)) for kernel in (1, 3) for stride in (1, 2)),
    *(Conv((8,), 16, kernel, 2, aligned=True) for kernel in (1, 3, 5, 7)),
    Conv((8, 8, 8), 16, 3, add=True),
    *(Residual((8,), *shape) for shape in SHAPES),
    *(InvertedResidual((8,), *shape, kernel, expansion) for shape in SHAPES for kernel, expansion in ((3, 1), (3, 6), (5, 3))),
    *(MaxPool((8,), 8, aligned=aligned) for aligned in (False, True)),
    Context((8,), 8),
    Skip((8,), 16),
    Skip((8,), 15),
    *(DownUp((8,), 16, depth, stride) for depth in (1, 2) for stride in (1, 2)),
    DownUp((8, 16), 16, 2),
    *(
        SelfAttention((c,), 16, heads, 8, 0.5, pool, half, residual, stride)
        for c, heads, pool, half, residual, stride in itertools.product(
            (8, 16), (1, 4), (1, 2), (False, True), ("gamma", "bn"), (1, 2)
        )
    ),
    FeatureFusion((8, 8, 16), 16),
    Predict((16,), 5),
]


@pytest.mark.parametrize("operator", OPERATORS, ids=str)
@pytest.mark.parametrize("size", [(7, 9), (1, 1)], ids=str)
def test_closed_forms_equal_torch(operator: Operator, size: tuple[int, int]) -> None:
    shapes = tuple((channels, *size) for channels in operator.sources)
    with torch.device("meta"):
        block = Block(operator).eval()
        inputs = [torch.empty(1, *shape) for shape in shapes]
    with FlopCounterMode(display=False) as counter:
        output = block(*inputs)
    assert tuple(output.shape[1:]) == operator.output_shape(shapes)
    assert counter.get_total_flops() == 2 * operator.macs(shapes)
    assert sum(p.numel() for p in block.parameters()) == operator.parameters
    assert from_key(operator.key(shapes)) == (operator, shapes)


@given(seeds, st.integers(33, 200), st.integers(33, 200))
@settings(max_examples=6)
def test_network_costs_equal_torch(seed: int, height: int, width: int) -> None:
    genotype = EDGE.sample(np.random.default_rng(seed))
    plan = lower(genotype, (height, width), 7)
    with torch.device("meta"):
        network = build(genotype, 7).eval()
        image = torch.empty(1, 3, height, width)
    with FlopCounterMode(display=False) as counter:
        native = network.forward_native(image)
    stride = plan.output_stride
    assert native.shape == (1, 7, math.ceil(height / stride), math.ceil(width / stride))
    assert network(image).shape == (1, 7, height, width)
    assert counter.get_total_flops() == 2 * plan.macs
    assert sum(p.numel() for p in network.parameters()) == plan.parameters


@given(seeds)
@settings(max_examples=60)
def test_every_node_of_edge_has_a_key(seed: int) -> None:
    plan = lower(EDGE.sample(np.random.default_rng(seed)), (360, 480), 11)
    assert {node.key for node in plan.nodes} <= EDGE_KEYS


@given(seeds)
def test_plan_is_ordered_and_named_once(seed: int) -> None:
    genotype = EDGE.sample(np.random.default_rng(seed))
    plan = lower(genotype, (360, 480), 11)
    seen = {IMAGE}
    for node in plan.nodes:
        assert node.name not in seen and seen.issuperset(node.inputs)
        assert node.shape[1:] == tuple(-(-side // node.stride) for side in plan.padded)
        seen.add(node.name)
    used = {name for node in plan.nodes for name in node.inputs}
    assert seen - used == {plan.nodes[-1].name}, "every node but the last feeds another"
    for final, branch in zip(genotype.final_strides, genotype.branches, strict=True):
        trunk = [node for node in plan.nodes if node.part == "trunk" and final in node.branches]
        assert [node.operator.out for node in trunk] == [cell.out for cell in branch]


def test_equal_branches_share_all_but_their_ends() -> None:
    plan = lower(TINY.largest(), (64, 64), 3)
    shared = [node.branches for node in plan.nodes if node.part == "trunk"]
    assert shared.count((8, 16, 32)) == 1 and (16, 32) in shared and (32,) in shared


def test_edge_is_what_it_promises() -> None:
    assert len(EDGE_KEYS) <= 1600
    assert lower(EDGE.smallest(), (360, 480), 11).macs < 0.3e9
    assert lower(EDGE.largest(), (360, 480), 11).macs > 8e9
    rng = np.random.default_rng(0)
    macs = [lower(EDGE.sample(rng), (360, 480), 11).macs for _ in range(300)]
    assert min(macs) < 0.6e9 and max(macs) > 7e9
    kinds = {count: sum(len(EDGE.sample(rng, (1, 2, 3)).branches) == count for _ in range(300)) for count in (1, 2, 3)}
    assert kinds[1] < kinds[2] < kinds[3]


KEYS = (
    '{"operator":"InvertedResidual","sources":[24],"out":40,"cell_stride":2,"aligned":true,"kernel":5,"expansion":6,"relu6":true,'
    '"inputs":[[24,90,120]]}',
    '{"operator":"SelfAttention","sources":[112],"out":112,"heads":2,"qk_channels":112,"scale":0.133631,"pool":1,'
    '"half_resolution":false,"residual":"gamma","cell_stride":1,"wide_projections":false,"pool_last":false,"linear":true,'
    '"inputs":[[112,23,30]]}',
)


def test_keys_stay_as_tables_have_them() -> None:
    assert {*KEYS} <= {node.key for node in lower(member("lite0-16-attention"), (360, 480), 11).nodes}


def test_spaces_differ_by_hash() -> None:
    assert EDGE.hash != TINY.hash and EDGE.hash == edge().hash


def test_live_activations_of_a_chain() -> None:
    plan = lower(TINY.smallest(), (32, 32), 3)
    largest = max(4 * (sum(map(math.prod, node.input_shapes)) + math.prod(node.shape)) for node in plan.nodes)
    inner = max(4 * inner_elements(node) for node in plan.nodes)
    most = 4 * sum(math.prod(node.shape) for node in plan.nodes) + 4 * 3 * 32 * 32 + inner
    assert largest <= live_mib(plan) * 2**20 <= most


def test_what_operators_hold_inside() -> None:
    def inner(operator: Operator, *shapes: tuple[int, int, int]) -> int:
        node = next(iter(lower(TINY.smallest(), (32, 32), 3).nodes))
        return inner_elements(replace(node, operator=operator, input_shapes=shapes))

    assert inner(Conv((8,), 16), (8, 32, 64)) == 0
    assert inner(InvertedResidual((16,), 24, cell_stride=2), (16, 32, 64)) == 96 * (32 * 64 + 16 * 32)
    assert inner(Conv((8, 4), 16), (8, 32, 64), (4, 16, 32)) == (4 + 12) * 32 * 64, "a resized copy, and all side by side"
    attention = SelfAttention((8,), 8, heads=2, pool=2)
    assert inner(attention, (8, 16, 16)) == 2 * 2 * 256 * 64, "logits and their softmax, of two heads"
    assert inner(SelfAttention((8,), 8), (8, 128, 128)) == 2 * GRAPH_LOGITS == 2 * GRAPH_ELEMENTS, "a chunk of them"


def test_predicted_memory_follows_the_fit() -> None:
    plan = lower(member("lite0-16"), (512, 1024), 19)
    assert live_mib(plan) > 60, "its first block expands to 96 channels at half the resolution: 48 MiB, and 12 after the stride"
    assert predicted_mib(plan, "a runtime that nobody measured") == pytest.approx(weights_mib(plan) + live_mib(plan))
    fit = fits()["onnxruntime-cpu"]
    assert predicted_mib(plan, "onnxruntime-cpu") == pytest.approx(
        fit.constant_mib + fit.per_weight * weights_mib(plan) + fit.per_live * live_mib(plan)
    )
    assert 0 < fit.mape <= fit.worst and fit.networks >= 10


def test_bad_sizes_and_shapes() -> None:
    with pytest.raises(InvalidInput, match="positive"):
        lower(TINY.smallest(), (0, 32), 3)
    with pytest.raises(ValueError, match="channels must be"):
        Conv((8,), 8).key([(9, 4, 4)])
    with pytest.raises(ValueError, match="heads do not divide"):
        SelfAttention((8,), 8, heads=3)

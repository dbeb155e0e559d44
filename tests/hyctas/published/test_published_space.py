"""The released search space: its size, its rules of compaction, shared prefixes, uniform draws, and what a search needs of it."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from export.errors import InvalidInput
from hyctas import published
from hyctas.arch.genotype import Genotype
from hyctas.arch.operators import Layer
from hyctas.nn.supernet import Supernet
from hyctas.plan import lower
from hyctas.published.compaction import broken, kept, least_length, segments
from hyctas.published.frame import WIDTHS, channels
from hyctas.space import edge
from hyctas.space import published as published_space
from hyctas.spaces.search_space import SearchSpace
from hyctas.spaces.slots import slots

SPACE = published_space()
SMALL = published_space(base_channels=3, layers=6, head=0)
seeds = st.integers(0, 2**32)


@pytest.mark.parametrize(("layers", "exponents"), [(16, (23.8, 46.6, 68.2)), (20, (29.5, 58.1, 85.3))])
def test_size(layers: int, exponents: tuple[float, ...]) -> None:
    """By number of branches, the vectors of genes that count: skips are operators, and equal networks are not taken off."""
    space = published_space(layers=layers)
    per_branch, counts = 5**layers * 5 ** (layers - 1), [0, 0, 0]
    for chosen in space.branch_sets:
        counts[len(chosen) - 1] += math.prod(len(space.paths[final]) * per_branch for final in chosen)
    assert tuple(round(math.log10(count), 1) for count in counts) == exponents
    paths = {final: len(chosen) for final, chosen in space.paths.items()}
    assert paths == {8: 1, 16: layers - 1, 32: (layers - 1) * (layers - 2) // 2}


# -- compaction ---------------------------------------------------------------------------------------------------------------


def test_floor_on_depth() -> None:
    assert [least_length(20, downs) for downs in (0, 1, 2)] == [7, 9, 11]
    assert [least_length(16, downs) for downs in (0, 1, 2)] == [5, 7, 9]
    assert len(published.genotype("S").branches[0]) == least_length(20, 2), "the S network stands on the floor"


def test_segments_lie_behind_down_samplings() -> None:
    assert segments(8, ()) == []
    assert [list(segment) for segment in segments(8, (1, 4))] == [[2, 3], [5, 6, 7]]
    assert [list(segment) for segment in segments(8, (2, 3))] == [[], [4, 5, 6, 7]]


@pytest.mark.parametrize(
    ("ops", "downs", "changed"),
    [
        ([1, 1, 1, 1, 1, 1], (), []),
        ([0, 0, 0, 0, 1, 1], (), []),  # 2 stay of 6, as allowed
        ([0, 0, 0, 0, 0, 1], (), [0]),  # one too few
        ([0, 0, 1, 1, 1, 1], (1,), []),  # a skip that down-samples is a cell
        ([1, 1, 0, 0, 0, 0], (1,), [2, 3]),  # all skip behind the down-sampling, and 4 must stay
        ([1, 1, 1, 0, 1, 1], (2, 4), [3]),  # all skip between two down-samplings
        ([0, 0, 1, 1, 1, 1], (2, 3), [0, 1]),  # all skip before the first is fine, but all 6 must stay
        ([1, 1, 1, 1, 1, 0], (4,), [5]),  # the end alone
    ],
)
def test_rules(ops: list[int], downs: tuple[int, ...], changed: list[int]) -> None:
    assert broken(ops, downs) == changed
    mended = [1 if layer in changed else op for layer, op in enumerate(ops)]
    assert broken(mended, downs) == [] and len(kept(mended, downs)) >= least_length(len(ops), len(downs))


@given(st.integers(6, 20).flatmap(lambda n: st.tuples(st.lists(st.integers(0, 4), min_size=n, max_size=n), seeds)))
@settings(max_examples=200)
def test_repair_always_mends(drawn: tuple[list[int], int]) -> None:
    ops, seed = drawn
    rng = np.random.default_rng(seed)
    downs = tuple(sorted(rng.choice(len(ops) - 1, size=rng.integers(0, 3), replace=False).tolist()))
    changed = broken(ops, downs)
    assert all(ops[layer] == 0 and layer not in downs for layer in changed)
    mended = [1 if layer in changed else op for layer, op in enumerate(ops)]
    assert broken(mended, downs) == []


@given(seeds)
@settings(max_examples=50)
def test_compacted_branches(seed: int) -> None:
    """Skips that keep the scale are gone, widths stay with their layers, and the end has full width."""
    rng = np.random.default_rng(seed)
    genes = SPACE.sample_genes(rng)
    genotype = SPACE.decode(genes)
    for final, branch in zip(genotype.final_strides, genotype.branches, strict=True):
        ops, downs, widths = SPACE._grid(genes, final)
        layers = kept(ops, downs)
        assert len(branch) == len(layers) >= least_length(20, len(downs))
        scale = 8
        for layer, cell in zip(layers, branch, strict=True):
            assert (cell.op == "skip") == (ops[layer] == 0) and (cell.op != "skip" or cell.stride == 2)
            scale *= cell.stride
            width = 1.0 if layer == layers[-1] else WIDTHS[widths[layer]]
            assert cell.out == channels(scale, 16, width)
        assert scale == final


# -- shared prefixes ----------------------------------------------------------------------------------------------------------


def shared(genotype: Genotype) -> Counter[tuple[int, ...]]:
    """Count trunk nodes by the branches that share them."""
    return Counter(node.branches for node in lower(genotype, (64, 64), 19).nodes if node.part == "trunk")


def three(*ops: str, downs: tuple[tuple[int, ...], ...] = ((), (3,), (3, 4)), widths: tuple[int, ...] = (2,) * 6) -> Genotype:
    """Return a network of three branches with cells of the given operators (a word each: c, d, a letter per layer)."""
    genes = np.zeros(len(SMALL.genes), dtype=np.int64)
    genes[0] = len(SMALL.branch_sets) - 1
    for final, letters, down in zip((8, 16, 32), ops, downs, strict=True):
        start = SMALL.index[f"b{final}.downs"]
        genes[start] = SMALL.paths[final].index(down)
        genes[start + 1 : start + 7] = ["scdxa".index(letter) for letter in letters]
        genes[start + 7 : start + 12] = widths[:5]
    return SMALL.decode(genes)


def test_equal_leading_cells_are_shared_until_the_first_difference() -> None:
    assert shared(three("cccccc", "cccccc", "cccccc")) == {(8, 16, 32): 3, (8,): 3, (16, 32): 1, (16,): 2, (32,): 2}
    assert shared(three("cccccc", "cdcccc", "cdcccc")) == {(8, 16, 32): 1, (8,): 5, (16, 32): 3, (16,): 2, (32,): 2}
    # equal again behind a difference: never shared again
    assert shared(three("dccccc", "cccccc", "dccccc"))[(8, 32)] == 3
    assert shared(three("dccccc", "cccccc", "xccccc")) == {(8,): 6, (16,): 6, (32,): 6}


def test_a_last_cell_is_never_shared() -> None:
    genotype = published.genotype("L")
    ends = [node for node in lower(genotype, (64, 64), 19).nodes if node.part == "trunk"]
    last = {final: [node for node in ends if final in node.branches][-1] for final in (8, 16, 32)}
    assert all(node.branches == (final,) for final, node in last.items())


# -- draws --------------------------------------------------------------------------------------------------------------------


def chi_square(counts: np.ndarray, shares: np.ndarray) -> float:
    """Return the statistic over its degrees of freedom: about 1 for draws that follow the shares."""
    expected = counts.sum() * shares / shares.sum()
    return float(((counts - expected) ** 2 / expected).sum() / (len(counts) - 1))


def test_draws_are_uniform_within_a_branch_count() -> None:
    """Against all valid vectors of the small space: paths, operators and widths of a branch, and sets of branches."""
    rng = np.random.default_rng(0)
    drawn = np.array([SMALL.sample_genes(rng, (1, 0, 0)) for _ in range(6000)])
    sets = np.bincount(drawn[:, 0], minlength=7)
    grids = {final: valid_grids(final) for final in (8, 16, 32)}
    assert sets[3:].sum() == 0
    assert chi_square(sets[:3], np.array([sum(grids[f].values()) for f in (8, 16, 32)], dtype=float)) < 4
    own = drawn[drawn[:, 0] == 2]
    start = SMALL.index["b32.downs"]
    paths = np.bincount(own[:, start], minlength=len(SMALL.paths[32]))
    assert chi_square(paths, np.array([grids[32][path] for path in range(len(SMALL.paths[32]))], dtype=float)) < 2.5
    assert chi_square(np.bincount(own[:, start + 7], minlength=5), np.ones(5)) < 4, "widths"
    assert chi_square(np.bincount(own[:, start + 1], minlength=5)[1:], np.ones(4)) < 4, "operators other than skip"


def valid_grids(final: int) -> Counter[int]:
    """Count, by brute force over skip or not, how many choices of operators are valid for every path."""
    counts: Counter[int] = Counter()
    for path, downs in enumerate(SMALL.paths[final]):
        for pattern in range(2**6):
            ops = [int(pattern >> layer & 1) for layer in range(6)]
            if not broken(ops, downs):
                counts[path] += 4 ** sum(ops)
    return counts


def test_ratios_weigh_branch_counts() -> None:
    rng = np.random.default_rng(1)
    counts = Counter(len(SPACE.sample(rng, (1, 2, 5)).branches) for _ in range(400))
    assert counts[1] < counts[2] < counts[3] and abs(counts[3] - 250) < 50
    assert {len(SPACE.sample(rng, (0, 1, 0)).branches) for _ in range(20)} == {2}
    for ratios in ((0, 0, 0), (1, -1, 1)):
        with pytest.raises(InvalidInput, match="branch ratios"):
            SPACE.sample_genes(rng, ratios)


def test_sets_of_two_branches_follow_their_sizes() -> None:
    rng = np.random.default_rng(2)
    drawn = np.array([SPACE.sample_genes(rng, (0, 1, 0))[0] for _ in range(4000)])
    counts = np.bincount(drawn, minlength=7)[3:6]  # (8, 16), (8, 32), (16, 32)
    assert counts[2] / counts.sum() > 0.9 and counts[0] < counts[1], "19, 171 and 19 x 171 pairs of paths, less what rules forbid"


# -- what a search needs ------------------------------------------------------------------------------------------------------


@given(seeds)
@settings(max_examples=40)
def test_encode_decode_vary(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = SPACE.sample_genes(rng), SPACE.sample_genes(rng)
    genotype = SPACE.decode(first)
    assert SPACE.decode(SPACE.encode(genotype)) == genotype
    assert np.array_equal(SPACE.repair(first), SPACE.encode(genotype))
    for child in (*SPACE.crossover(first, second, rng), SPACE.mutate(first, rng)):
        again = SPACE.repair(child)
        assert np.array_equal(SPACE.repair(again), again)
        assert SPACE.decode(again) == SPACE.decode(child)


def test_mutation_changes_and_moves_down_samplings() -> None:
    rng = np.random.default_rng(0)
    start = SPACE.encode(published.genotype("S"))
    gene = SPACE.index["b32.downs"]
    moved = [SPACE.mutate(start, rng, rate=1.0)[gene] for _ in range(200)]
    distances = [np.abs(np.subtract(SPACE.paths[32][m], SPACE.paths[32][start[gene]])).sum() for m in moved]
    assert max(distances) == 3 and min(distances) <= 1
    assert np.mean([(SPACE.mutate(start, rng) != start).any() for _ in range(50)]) > 0.7


def test_released_networks_are_of_the_space() -> None:
    for name in published.NAMES:
        assert SPACE.decode(SPACE.encode(published.genotype(name))) == published.genotype(name)
    for name in published.DRAWN:
        SPACE.encode(published.drawn(name))
    for other in (edge().smallest(), published.genotype("S", 12), published.genotype("S", head=2)):
        with pytest.raises(InvalidInput, match="not of the space published"):
            SPACE.encode(other)


def test_bad_vectors_and_spaces() -> None:
    with pytest.raises(InvalidInput, match="has 121 genes"):
        SPACE.decode(np.zeros(5, dtype=np.int64))
    genes = SPACE.encode(published.genotype("S"))
    genes[SPACE.index["b8.4.op"]] = 9
    with pytest.raises(InvalidInput, match=r"out of range: b8\.4\.op"):
        SPACE.decode(genes)
    with pytest.raises(InvalidInput, match="at least 6 layers"):
        published_space(layers=5)
    assert len({SPACE.hash, SMALL.hash, published_space(head=2).hash, published_space(base_channels=12).hash}) == 4
    assert isinstance(SPACE, SearchSpace) and isinstance(edge(), SearchSpace) and SPACE.name == "published"


@pytest.mark.parametrize("size", [(512, 1024), (360, 480)])
def test_keys_cover_every_network(size: tuple[int, int]) -> None:
    keys, rng = set(SPACE.keys(size)), np.random.default_rng(0)
    assert len(keys) == {512: 581, 360: 1035}[size[0]]
    for _ in range(150):
        genotype = SPACE.sample(rng, (1, 1, 1))
        assert {node.key for node in lower(genotype, size, 19).nodes} <= keys


def test_slots_cover_every_network() -> None:
    found, rng = slots(SPACE, 19), np.random.default_rng(0)
    for _ in range(100):
        for node in lower(SPACE.sample(rng), (64, 64), 19).nodes:
            for layer in node.operator.layers():
                full = found[node.slot][layer.name]
                if isinstance(layer, Layer) and isinstance(full, Layer):
                    blocks = node.blocks if len(full.sources) > 1 else (0,)
                    assert full.out >= layer.out
                    assert all(full.sources[block] >= c for block, c in zip(blocks, layer.sources, strict=True))


def test_supernet_of_the_space() -> None:
    """A drawn network computes the same inside the supernet and on its own."""
    torch.manual_seed(0)
    supernet, rng = Supernet(SMALL, 5), np.random.default_rng(0)
    image = torch.randn(2, 3, 64, 64)
    for genotype in (SMALL.largest(), SMALL.smallest(), *(SMALL.sample(rng) for _ in range(3))):
        network = supernet.extract(genotype).train()
        torch.testing.assert_close(supernet(genotype, image), network(image), rtol=1e-4, atol=1e-4)

"""Parameters and multiply-accumulates of the released networks, to the last digit (19 classes, 1024x2048)."""

from __future__ import annotations

import pytest
import torch

from hyctas import published
from hyctas.network import build
from hyctas.plan import Node, Plan, lower
from hyctas.published.checkpoint import PublishedNetwork

SIZE = (1024, 2048)
PARAMETERS = {"S": (14_383_398, 13_417_510), "M": (11_242_755, 10_276_867), "L": (44_794_423, 43_741_239)}
"""All published modules; without the fusions at 1/16 and 1/32 that its logits do not need."""
GMACS = {"S": (117.4, 0.9), "M": (155.7, 0.9), "L": (579.9, 1.6)}
"""All published modules; how much less without those fusions."""
SHARES = {"S": (39.6, 14.0, 17.2, 0.9, 45.8), "M": (39.6, 52.3, 17.2, 0.9, 45.8), "L": (39.6, 373.0, 34.6, 1.6, 131.1)}
"""GMAC of stem, trunk, decoder with fusion, unused fusions, head."""
ATTENTION = {"S": (11.7, 10), "M": (32.2, 21), "L": (205.4, 35)}
"""GMAC of the attention products, and their share in per cent."""
SEARCHED = {"S": 12, "M": 34, "L": 64}
"""Share of the trunk's cells, in per cent."""
HEADS = {
    ("S", 0): (14.32, 90.4), ("M", 0): (11.18, 128.7), ("L", 0): (44.70, 510.5),
    ("S", 2): (14.76, 120.3), ("M", 2): (11.62, 158.7), ("L", 2): (47.82, 607.8),
}  # fmt: skip
PANOPTIC = {"S": (15.34, 177.3), "M": (12.20, 215.6), "L": (47.94, 756.8)}
BASES = {
    ("S", 6): (2.04, 20.3), ("S", 8): (3.61, 33.4), ("S", 12): (8.10, 69.1), ("S", 20): (22.41, 178.3),
    ("M", 6): (1.60, 30.5), ("M", 8): (2.84, 48.1), ("M", 12): (6.34, 94.5), ("M", 20): (17.54, 231.8),
    ("L", 6): (6.76, 160.1), ("L", 8): (11.97, 248.7), ("L", 12): (25.23, 365.9), ("L", 20): (69.94, 840.1),
}  # fmt: skip
AUXILIARY = {"S": 19.79, "M": 16.65, "L": 50.20}
"""Million parameters with the auxiliary heads."""
HALF_SIZE = {"S": 27.2, "M": 32.9, "L": 106.5}
"""GMAC at 512x1024."""

every = pytest.mark.parametrize("name", published.NAMES)


def unused(node: Node) -> bool:
    """Say whether a node is one of the fusions at 1/16 and 1/32."""
    return node.name.startswith("auxiliary.") and node.operator.label == "fusion"


def module_set(plan: Plan) -> list[Node]:
    """List what the released code holds without auxiliary heads, of a plan with them."""
    return [node for node in plan.nodes if not node.part.startswith("aux") or unused(node)]


def cost(name: str, base: int = 16, head: int = 1, *, panoptic: bool = False) -> tuple[int, int]:
    """Return parameters and MACs of the published module set."""
    genotype = published.genotype(name, base, head, panoptic=panoptic)
    nodes = module_set(lower(genotype, SIZE, 19, auxiliary=True))
    return sum(node.operator.parameters for node in nodes), sum(node.macs for node in nodes)


@every
def test_parameters(name: str) -> None:
    everything, built = PARAMETERS[name]
    genotype = published.genotype(name)
    assert (cost(name)[0], lower(genotype, SIZE, 19).parameters) == (everything, built)
    with torch.device("meta"):
        assert sum(p.numel() for p in build(genotype, 19).parameters()) == built
        assert sum(p.numel() for p in PublishedNetwork(genotype, 19).parameters()) == everything


@every
def test_macs(name: str) -> None:
    whole, less = GMACS[name]
    everything, built = cost(name)[1], lower(published.genotype(name), SIZE, 19).macs
    assert round(everything / 1e9, 1) == whole and round((everything - built) / 1e9, 1) == less
    half = module_set(lower(published.genotype(name), (512, 1024), 19, auxiliary=True))
    assert round(sum(node.macs for node in half) / 1e9, 1) == HALF_SIZE[name]


@every
def test_share_of_every_part(name: str) -> None:
    nodes = module_set(lower(published.genotype(name), SIZE, 19, auxiliary=True))
    parts = (("stem",), ("trunk",), ("arm", "refine", "fusion"), ("auxiliary",), ("head",))
    assert tuple(round(sum(n.macs for n in nodes if n.part in part) / 1e9, 1) for part in parts) == SHARES[name]
    total = sum(node.macs for node in nodes)
    assert round(100 * sum(n.macs for n in nodes if n.part == "trunk") / total) == SEARCHED[name]
    core = sum(node.operator.core_macs(*node.input_shapes[0][1:]) for node in nodes)
    assert (round(core / 1e9, 1), round(100 * core / total)) == ATTENTION[name]


@pytest.mark.parametrize(("name", "head"), HEADS)
def test_heads(name: str, head: int) -> None:
    parameters, macs = cost(name, head=head)
    assert (round(parameters / 1e6, 2), round(macs / 1e9, 1)) == HEADS[name, head]


@every
def test_panoptic_and_auxiliary_heads(name: str) -> None:
    parameters, macs = cost(name, panoptic=True)
    assert (round(parameters / 1e6, 2), round(macs / 1e9, 1)) == PANOPTIC[name]
    assert round(lower(published.genotype(name), SIZE, 19, auxiliary=True).parameters / 1e6, 2) == AUXILIARY[name]


@pytest.mark.parametrize(("name", "base"), BASES)
def test_bases(name: str, base: int) -> None:
    parameters, macs = cost(name, base)
    assert (round(parameters / 1e6, 2), round(macs / 1e9, 1)) == BASES[name, base]


def test_cells_of_s_and_l() -> None:
    (branch,) = published.genotype("S").branches
    assert [cell.op for cell in branch] == (
        "downup2x downup downup conv downup attention conv downup2x downup2x downup downup2x".split()
    )
    assert [cell.out for cell in branch] == [85, 171, 171, 171, 341, 427, 171, 427, 171, 341, 512]
    assert [i for i, cell in enumerate(branch, 1) if cell.stride == 2] == [2, 4]
    plan = lower(published.genotype("L"), SIZE, 19)
    trunk = [node for node in plan.nodes if node.part == "trunk"]
    assert len(trunk) == 48, "60 cells; all branches share 1-4, the first two 1-8"
    assert [sum(node.branches == shared for node in trunk) for shared in ((8, 16, 32), (8, 16))] == [4, 4]
    largest = max(node.operator.sources[0] for node in trunk if node.operator.label == "attention")
    assert largest == 512 and {c.attention.qk_channels for b in plan.genotype.branches for c in b if c.attention} == {16, 32, 64}


def test_only_the_fusions_are_unused() -> None:
    plan = lower(published.genotype("L"), SIZE, 19, auxiliary=True)
    assert [node.name for node in plan.nodes if unused(node)] == ["auxiliary.s16.0.fusion", "auxiliary.s32.0.fusion"]
    assert not {node.name for node in plan.needed()} & {node.name for node in plan.nodes if node.part.startswith("aux")}


def test_drawn_networks_are_examples() -> None:
    lengths = {name: [len(branch) for branch in published.drawn(name).branches] for name in published.DRAWN}
    assert lengths == {"drawn2": [17, 15], "drawn3": [15, 17, 16]}
    for name in published.DRAWN:
        cells = [cell for branch in published.drawn(name).branches for cell in branch]
        assert sum(cell.op == "attention" for cell in cells) == 2
    assert published.drawn("drawn3").final_strides == (8, 16, 32)

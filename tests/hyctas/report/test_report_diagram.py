"""The diagram: one box per node, nothing overlaps, no line runs through a box, and the text is well-formed XML."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyctas.arch.genotype import Attention, Branch, Cell, Fusion, Genotype, Head
from hyctas.plan import Plan, lower
from hyctas.report.diagram import BOX_H, BOX_W, FAMILIES, diagram_svg, family
from hyctas.space import edge, tiny
from hyctas.spaces.members import members

EDGE, TINY = edge(), tiny()
NS = "{http://www.w3.org/2000/svg}"


def boxes(root: ET.Element) -> dict[str, tuple[float, float]]:
    """Return the upper left corner of every node's box."""
    found = {}
    for group in root.iter(f"{NS}g"):
        if (name := group.get("data-node")) is not None:
            assert name not in found
            rect = next(r for r in group.iter(f"{NS}rect") if r.get("class") == "hd-shape")
            found[name] = (float(rect.get("x", "nan")), float(rect.get("y", "nan")))
    return found


def segments(path: str) -> list[tuple[float, float, float, float]]:
    """Return the straight parts of an edge."""
    x = y = 0.0
    found = []
    for command, text in re.findall(r"([MHVQ])([-\d. ]+)", path):
        numbers = [float(part) for part in text.split()]
        old = (x, y)
        match command:
            case "H":
                x = numbers[0]
            case "V":
                y = numbers[0]
            case _:
                x, y = numbers[-2:]
        if command in "HV":
            found.append((*old, x, y))
    return found


def check(plan: Plan) -> None:
    root = ET.fromstring(diagram_svg(plan))
    placed = boxes(root)
    assert list(placed) == [node.name for node in plan.nodes]
    corners = list(placed.values())
    for i, (x, y) in enumerate(corners):
        for a, b in corners[:i]:
            assert abs(x - a) >= BOX_W or abs(y - b) >= BOX_H
    width, height = (float(part) for part in root.get("viewBox", "").split()[2:])
    assert all(0 <= x <= width - BOX_W and 0 <= y <= height - BOX_H for x, y in corners)
    legends = [p for p in root.iter(f"{NS}path") if "h16" in p.get("d", "")]
    edges = [p.get("d", "") for p in root.iter(f"{NS}path") if "hd-edge" in p.get("class", "") and p not in legends]
    assert len(edges) == sum(len(node.inputs) for node in plan.nodes)
    for path in edges:
        for x1, y1, x2, y2 in segments(path):
            for x, y in corners:  # a line may touch the boxes that it joins, never enter one
                inside_x = max(x1, x2) > x + 0.5 and min(x1, x2) < x + BOX_W - 0.5
                inside_y = max(y1, y2) > y + 0.5 and min(y1, y2) < y + BOX_H - 0.5
                assert not (inside_x and inside_y), path


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.sampled_from([EDGE, TINY]))
def test_any_network_is_drawn_whole(seed: int, space: object) -> None:
    assert space in (EDGE, TINY)
    check(lower((EDGE if space is EDGE else TINY).sample(np.random.default_rng(seed)), (360, 480), 11))


def long_branch(final: int, cells: int, seed: int) -> Branch:
    """Return a branch of `cells` cells beside its down-sampling ones."""
    rng = np.random.default_rng(seed)
    found, stride = [], 8
    while True:
        for _ in range(cells * 8 // final if final > 8 else cells):
            op = ("conv", "downup", "downup2x", "attention")[rng.integers(4)]
            found.append(Cell(op, 48, 1, Attention(1, 8) if op == "attention" else None))
        if stride == final:
            return tuple(found)
        stride *= 2
        found.append(Cell("skip", 48, 2))


@pytest.mark.parametrize("kind", ["light", "head1", "head2"])
@pytest.mark.parametrize("finals", [(8,), (16,), (32,), (8, 16), (16, 32), (8, 16, 32)])
def test_long_branches_and_every_head(kind: str, finals: tuple[int, ...]) -> None:
    stem = (Cell("conv", 16, 2), Cell("conv", 24, 2), Cell("conv", 24, 1), Cell("conv", 48, 2))
    head = Head(kind, 48, "conv", 24 if kind != "light" else 0, 16 if kind == "head2" else 0, Attention(1, 8))
    branches = tuple(long_branch(final, 20, final) for final in finals)
    plan = lower(Genotype(stem, branches, Fusion(48, 48, 48), head), (360, 480), 19)
    check(plan)


def test_shared_cells_are_drawn_once() -> None:
    shared = (Cell("conv", 24), Cell("downup", 24))
    branches = (
        (*shared, Cell("attention", 24, 1, Attention(1, 8))),
        (*shared, Cell("conv", 32, 2), Cell("conv", 32)),
        (*shared, Cell("conv", 32, 2), Cell("skip", 48, 2)),
    )
    stem = (Cell("conv", 8, 2), Cell("conv", 8, 2), Cell("conv", 24, 2))
    genotype = Genotype(stem, branches, Fusion(24, 24, 24), Head("light", 24))
    plan = lower(genotype, (64, 96), 5)
    placed = boxes(ET.fromstring(diagram_svg(plan)))
    assert sum(name.startswith("trunk.") for name in placed) == 6  # 2 shared by all, 1 shared by two, 3 of one branch each
    check(plan)


@pytest.mark.parametrize("name", ["lite0", "lite0-16-branch", "resnet", "plain", "two-branch", "hyctas"])
def test_hand_made_networks(name: str) -> None:
    check(lower(members()[name], (360, 480), 11))


def test_what_boxes_and_tooltips_say() -> None:
    def texts(name: str) -> list[str]:
        root = ET.fromstring(diagram_svg(lower(members()[name], (360, 480), 11)))
        return [text.text or "" for text in root.iter() if text.tag in (f"{NS}text", f"{NS}title")]

    assert {"conv 7x7", "max-pool", "residual", "sum", "conv 1x1"} <= {*texts("resnet")}
    assert any("240 channels inside (6 times), kernel 5x5" in text for text in texts("lite0-16"))
    assert {"context", "residual"} <= {*texts("plain")} and {"fusion", "downup2x", "attention"} <= {*texts("hyctas")}


def test_early_features_are_dashed_without_a_projection_too() -> None:
    svg = diagram_svg(lower(members()["lite0"], (360, 480), 11))
    assert svg.count('class="hd-edge hd-low"') == 2, "one in the drawing, one in the legend"


def test_every_operator_has_a_readable_family() -> None:
    plans = [lower(genotype, (64, 96), 5) for genotype in members().values()]
    assert {"residual", "inverted", "pool", "context", "sum"} <= {family(node) for plan in plans for node in plan.nodes}
    for name, (meaning, colour) in FAMILIES.items():
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]  # WCAG 2, relative luminance
        assert meaning and 1.05 / (luminance + 0.05) > 4, f"white on {name}"


def test_times_show_in_tooltips_and_bars() -> None:
    plan = lower(TINY.smallest(), (64, 96), 5)
    ms = {node.name: 1.0 for node in plan.nodes}
    ms[plan.nodes[0].name] = 2.0
    root = ET.fromstring(diagram_svg(plan, ms))
    titles = [title.text or "" for title in root.iter(f"{NS}title")]
    assert titles[0].startswith(plan.nodes[0].name)
    assert f"2.000 ms, {100 * 2 / (len(ms) + 1):.1f} % of the sum" in titles[0]
    bars = [float(r.get("width", "0")) for r in root.iter(f"{NS}rect") if r.get("class") == "hd-time"]
    assert bars[0] == 2 * bars[1] == BOX_W - 8
    assert "ms" not in "".join(t.text or "" for t in ET.fromstring(diagram_svg(plan)).iter(f"{NS}title"))


def test_drawing_is_deterministic() -> None:
    plan = lower(EDGE.sample(np.random.default_rng(3)), (360, 480), 11)
    assert diagram_svg(plan) == diagram_svg(plan)

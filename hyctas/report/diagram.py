"""Draw a network from its plan as hand-made SVG: a row per resolution, time from left to right.

1. Horizontal means computing at one resolution; straight down is down-sampling, up is up-sampling.
2. A row (lane) per stride. Within a lane every branch has a track of its own, but cells that branches share are drawn once.
3. A node's column is the first free one behind its inputs. Boxes never overlap, and lines run in the gaps between columns or
   along free tracks (`_Grid` keeps book of what is taken).

Only the plan's nodes are read.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hyctas.arch.operators import Conv, InvertedResidual
from hyctas.plan import IMAGE, Node, Plan

BOX_W, BOX_H, GAP_X, GAP_Y = 66, 36, 22, 12
LEFT, TOP, LANE_PAD = 84, 8, 8
CORNER = 7
LEGEND_WIDTH = 1040
"""A wide drawing scrolls; its legend stays where one looks first."""
FAMILIES = {
    "conv": ("3x3 convolution", "#1f6fb5"),
    "point": ("mixes channels", "#4f82b1"),
    "residual": ("two 3x3 convolutions with a shortcut, as in ResNet", "#2b4c9b"),
    "inverted": ("inverted residual, a depthwise convolution between 1x1s", "#8a5a00"),
    "skip": ("halves the resolution, nothing more", "#6b7480"),
    "pool": ("largest of 3x3 pixels", "#6b7480"),
    "downup": ("light convolution, at half resolution inside", "#0f8262"),
    "downup2x": ("light convolution, two deep", "#0a5c47"),
    "attention": ("every position looks at every other", "#d1480c"),
    "context": ("adds the average of all positions, through a 1x1", "#a83279"),
    "fusion": ("joins the branches", "#7a4fa8"),
    "sum": ("adds its inputs, then a 3x3 convolution", "#7a4fa8"),
    "predict": ("predicts the classes", "#4a5568"),
}
"""Family of a node: its meaning and its colour; white text is readable on every one."""
OTHER = "#4a5568"
"""Colour of an operator that has no entry above; its meaning is then the first line of its docstring."""
SHORT = {"point": "conv 1x1", "pool": "max-pool"}
LINES = {"same": "", "down": "down-sampling", "up": "up-sampling", "low": "early features to the head"}
STYLE = f"""
.hd{{font:11px system-ui,-apple-system,"Segoe UI",Roboto,Arial,sans-serif}}
.hd-lane{{fill:currentColor;opacity:.045}} .hd-name{{fill:currentColor;font-weight:600;font-size:13px}}
.hd-small{{fill:currentColor;opacity:.68;font-size:10px}} .hd-legend{{fill:currentColor;opacity:.85}}
.hd-box text{{fill:#fff;text-anchor:middle}} .hd-box .hd-op{{font-weight:600;font-size:10.5px}}
.hd-box .hd-width{{font-size:10.5px}} .hd-shape{{stroke:#fff;stroke-opacity:.28}}
.hd-attention .hd-shape{{stroke:{FAMILIES["attention"][1]};stroke-opacity:.45;stroke-width:5;paint-order:stroke}}
.hd-time{{fill:#ffd166}} .hd-image rect{{fill:none;stroke:currentColor;stroke-opacity:.6}}
.hd-image text{{fill:currentColor;text-anchor:middle}}
.hd-edge{{fill:none;stroke:currentColor;stroke-opacity:.55;stroke-width:1.4}}
.hd-down{{stroke:#1f78c8;stroke-opacity:.95}} .hd-up{{stroke:#a05bd0;stroke-opacity:.95}} .hd-low{{stroke-dasharray:5 3}}
"""


@dataclass(frozen=True)
class _Place:
    column: int
    row: int


@dataclass
class _Grid:
    """Where everything stands."""

    rows: dict[tuple[int, str], int]
    """(stride, track) -> row."""
    places: dict[str, _Place] = field(default_factory=dict)
    boxes: set[_Place] = field(default_factory=set)
    lines: set[_Place] = field(default_factory=set)
    """Where a straight vertical line runs: no box may stand there."""

    def __post_init__(self) -> None:
        self.strides = {row: stride for (stride, _), row in self.rows.items()}

    @property
    def columns(self) -> int:
        return 1 + max(place.column for place in self.places.values())

    def empty(self, row: int, columns: range) -> bool:
        """Say whether no box stands in a stretch of a row."""
        return all(_Place(column, row) not in self.boxes for column in columns)

    def put(self, name: str, row: int, inputs: Sequence[str], column: int = 0) -> None:
        """Place a node in the first free column from `column` on and behind its inputs.

        Another resolution may stand directly above or below its input.
        """
        sources = [self.places[source] for source in inputs]
        column = max((p.column + (self.strides[p.row] == self.strides[row]) for p in sources), default=column)
        while self._blocked(column, row, sources):
            column += 1
        self.places[name] = _Place(column, row)
        self.boxes.add(self.places[name])
        for source in sources:
            if source.column == column:
                self.lines |= {_Place(column, between) for between in _between(source.row, row)}

    def _blocked(self, column: int, row: int, sources: Sequence[_Place]) -> bool:
        if _Place(column, row) in self.boxes | self.lines:
            return True
        vertical = [source for source in sources if source.column == column]
        return any(_Place(column, between) in self.boxes for source in vertical for between in _between(source.row, row))


def diagram_svg(plan: Plan, ms: Mapping[str, float] | None = None) -> str:
    """Draw a plan.

    Args:
        plan: any network.
        ms: latency by node name, all nodes or none; each box then shows its share as a yellow bar at its foot.
    """
    grid = _layout(plan.nodes)
    lanes = _lanes(plan, grid)
    width = LEFT + grid.columns * (BOX_W + GAP_X) + GAP_X
    bottom = max(y + height for y, height in lanes.values())
    parts = [f"<style>{STYLE}</style>", _markers(), *_lane_marks(plan, lanes, width)]
    tops = _tops(grid, lanes)
    strides = {IMAGE: 1, **{node.name: node.stride for node in plan.nodes}}
    for node in plan.nodes:
        parts += [_edge(grid, tops, source, node, strides) for source in node.inputs]
    parts.append(_image(plan, _corner(grid, tops, IMAGE)))
    total, largest = (sum(ms.values()), max(ms.values())) if ms else (0.0, 0.0)
    for node in plan.nodes:
        time = (ms[node.name], ms[node.name] / total, ms[node.name] / largest) if ms and node.name in ms else None
        parts.append(_box(node, _corner(grid, tops, node.name), time))
    legend, height = _legend(plan, bottom + 14, width, timed=bool(ms))
    parts.append(legend)
    label = html.escape(f"Diagram of network {plan.genotype.id} with {len(plan.nodes)} operators")
    return (
        f'<svg class="hd" xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{label}" viewBox="0 0 {width} {height}" '
        f'style="width:100%;max-width:{width}px;min-width:{round(0.82 * width)}px">' + "\n".join(parts) + "</svg>"
    )


def family(node: Node) -> str:
    """Name a node's family: one of `FAMILIES`, or the operator's label."""
    if not isinstance(node.operator, Conv):
        return node.operator.label
    return "sum" if node.operator.add else "point" if node.operator.kernel == 1 else "conv"


def described(node: Node) -> tuple[str, str]:
    """Return the meaning and the colour of a node's family."""
    lines = (type(node.operator).__doc__ or "").splitlines()
    return FAMILIES.get(family(node), (lines[0].rstrip(".") if lines else node.operator.label, OTHER))


def _short(node: Node) -> str:
    """Name an operator in a box."""
    kind, operator = family(node), node.operator
    if kind == "conv" and isinstance(operator, Conv) and operator.kernel != 3:
        return f"conv {operator.kernel}x{operator.kernel}"
    return SHORT.get(kind, kind)


# -- layout -------------------------------------------------------------------------------------------------------------------


def _layout(nodes: Sequence[Node]) -> _Grid:
    tracks = {IMAGE: (1, "main"), **_tracks(nodes)}
    order = {"low": 0, "main": 1, "8": 2, "16": 3, "32": 4}
    rows = {track: row for row, track in enumerate(sorted(set(tracks.values()), key=lambda t: (t[0], order[t[1]])))}
    grid = _Grid(rows)
    grid.put(IMAGE, rows[tracks[IMAGE]], ())
    last = 0  # column of the main line, so that projections for the head stand where they are needed
    for node in nodes:
        row = rows[tracks[node.name]]
        if _is_projection(node):
            grid.put(node.name, row, (), last)
        else:
            grid.put(node.name, row, node.inputs)
            last = grid.places[node.name].column
    return grid


def _tracks(nodes: Sequence[Node]) -> dict[str, tuple[int, str]]:
    """Give every node its lane (stride) and its track in it."""
    own8 = ("trunk", "arm", "refine", "lateral")
    trunk8 = [min(n.branches) for n in nodes if n.part in own8 and n.stride == 8]
    main8 = str(min(trunk8)) if trunk8 else "main"  # stem, fusion and head continue the line of the first branch
    found = {}
    for node in nodes:
        track = str(min(node.branches)) if node.branches else main8 if node.stride == 8 else "main"
        if _is_projection(node) and node.stride == 8:
            track = "low"
        found[node.name] = (node.stride, track)
    return found


def _is_projection(node: Node) -> bool:
    return _is_early(node, node.inputs[0])


def _is_early(node: Node, source: str) -> bool:
    """Say whether an input of a node brings the stem's features to the head."""
    return node.part == "head" and source.startswith("stem.")


def _between(first: int, second: int) -> range:
    return range(min(first, second) + 1, max(first, second))


def _lanes(plan: Plan, grid: _Grid) -> dict[int, tuple[float, float]]:
    """Return y and height of every lane, by stride."""
    strides = sorted({stride for stride, _ in grid.rows})
    lanes, y = {}, float(TOP)
    for stride in strides:
        count = sum(other == stride for other, _ in grid.rows)
        height = count * BOX_H + (count - 1) * GAP_Y + 2 * LANE_PAD
        lanes[stride] = (y, float(height))
        y += height + 4
    return lanes


def _tops(grid: _Grid, lanes: Mapping[int, tuple[float, float]]) -> list[float]:
    """Return the y of the boxes of every row."""
    tops, seen = [], dict[int, int]()
    for stride, _ in sorted(grid.rows, key=lambda key: grid.rows[key]):
        tops.append(lanes[stride][0] + LANE_PAD + seen.get(stride, 0) * (BOX_H + GAP_Y))
        seen[stride] = seen.get(stride, 0) + 1
    return tops


def _corner(grid: _Grid, tops: Sequence[float], name: str) -> tuple[float, float]:
    place = grid.places[name]
    return LEFT + place.column * (BOX_W + GAP_X), tops[place.row]


# -- drawing ------------------------------------------------------------------------------------------------------------------


def _lane_marks(plan: Plan, lanes: Mapping[int, tuple[float, float]], width: float) -> list[str]:
    parts = []
    for stride, (y, height) in lanes.items():
        size = (-(-plan.padded[0] // stride), -(-plan.padded[1] // stride))
        middle = y + height / 2
        parts.append(
            f'<rect class="hd-lane" x="0" y="{y:g}" width="{width:g}" height="{height:g}" rx="8"/>'
            f'<text class="hd-name" x="12" y="{middle - 1:g}">1/{stride}</text>'
            f'<text class="hd-small" x="12" y="{middle + 12:g}">{size[0]}x{size[1]}</text>'
        )
    return parts


def _markers() -> str:
    def marker(kind: str, style: str) -> str:
        return (
            f'<marker id="hd-head-{kind}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6.5" markerHeight="6.5" orient="auto">'
            f'<path d="M0 0.5 8 4 0 7.5Z" {style}/></marker>'
        )

    grey = 'fill="currentColor" opacity=".6"'
    styles = {"same": grey, "low": grey, "down": 'fill="#1f78c8"', "up": 'fill="#a05bd0"'}
    return "<defs>" + "".join(marker(kind, style) for kind, style in styles.items()) + "</defs>"


def _edge(grid: _Grid, tops: Sequence[float], source: str, node: Node, strides: Mapping[str, int]) -> str:
    here, there = strides[source], node.stride
    kind = "low" if _is_early(node, source) else "same" if here == there else "down" if here < there else "up"
    path = _path(grid, tops, grid.places[source], grid.places[node.name])
    return f'<path class="hd-edge hd-{kind}" marker-end="url(#hd-head-{kind})" d="{path}"/>'


def _path(grid: _Grid, tops: Sequence[float], first: _Place, second: _Place) -> str:
    """Lead from a box to another: straight where they share a row or a column, else with two corners in a gap."""
    x1, x2 = (LEFT + place.column * (BOX_W + GAP_X) for place in (first, second))
    y1, y2 = tops[first.row] + BOX_H / 2, tops[second.row] + BOX_H / 2
    if first.row == second.row:
        return f"M{x1 + BOX_W:g} {y1:g}H{x2 - 1:g}"
    if first.column == second.column:
        half = BOX_H / 2 if y2 > y1 else -BOX_H / 2
        return f"M{x1 + BOX_W / 2:g} {y1 + half:g}V{y2 - half - (1 if half > 0 else -1):g}"
    between = range(first.column + 1, second.column)
    shift = (first.row % 3 - 1) * 4  # lines of different tracks lie side by side in a gap
    if grid.empty(second.row, between):
        turn = x1 + BOX_W + GAP_X / 2 + shift
    else:
        turn = x2 - GAP_X / 2 + shift
    bend = CORNER if y2 > y1 else -CORNER
    return (
        f"M{x1 + BOX_W:g} {y1:g}H{turn - CORNER:g}Q{turn:g} {y1:g} {turn:g} {y1 + bend:g}"
        f"V{y2 - bend:g}Q{turn:g} {y2:g} {min(turn + CORNER, x2 - 2):g} {y2:g}H{x2 - 1:g}"
    )


def _image(plan: Plan, corner: tuple[float, float]) -> str:
    x, y = corner
    size = f"{plan.size[0]}x{plan.size[1]}"
    return (
        f'<g class="hd-image"><rect x="{x:g}" y="{y:g}" width="{BOX_W}" height="{BOX_H}" rx="{BOX_H // 2}"/>'
        f'<text x="{x + BOX_W / 2:g}" y="{y + 15:g}">image</text>'
        f'<text x="{x + BOX_W / 2:g}" y="{y + 27:g}" font-size="9.5">{size}</text></g>'
    )


def _box(node: Node, corner: tuple[float, float], time: tuple[float, float, float] | None) -> str:
    """Draw a node; `time` is its ms, its share of all nodes' and its share of the slowest node's."""
    (x, y), kind = corner, family(node)
    meaning, colour = described(node)
    channels, height, width = node.shape
    stride = " ↓2" if node.operator.stride == 2 else ""
    shape = f"output: {channels} channels, {height}x{width}, 1/{node.stride} of the image"
    lines = [node.name, meaning, *_details(node), shape, f"{node.macs / 1e6:.2f} million multiply-accumulates"]
    bar = ""
    if time is not None:
        lines.append(f"{time[0]:.3f} ms, {100 * time[1]:.1f} % of the sum of all operators")
        length = max(1.0, (BOX_W - 8) * time[2])
        bar = f'<rect class="hd-time" x="{x + 4:g}" y="{y + BOX_H - 5.5:g}" width="{length:.1f}" height="3" rx="1.5"/>'
    title = html.escape("\n".join(lines))
    return (
        f'<g class="hd-box hd-{kind}" data-node="{html.escape(node.name)}"><title>{title}</title>'
        f'<rect class="hd-shape" x="{x:g}" y="{y:g}" width="{BOX_W}" height="{BOX_H}" rx="7" fill="{colour}"/>'
        f'<text class="hd-op" x="{x + BOX_W / 2:g}" y="{y + 13.5:g}">{_short(node)}</text>'
        f'<text class="hd-width" x="{x + BOX_W / 2:g}" y="{y + 26.5:g}">{channels}{stride}</text>{bar}</g>'
    )


def _details(node: Node) -> list[str]:
    """Say in a tooltip what an operator's name leaves open."""
    operator = node.operator
    if not isinstance(operator, InvertedResidual):
        return []
    return [f"{operator.hidden} channels inside ({operator.expansion} times), kernel {operator.kernel}x{operator.kernel}"]


def _legend(plan: Plan, y: float, width: float, *, timed: bool) -> tuple[str, float]:
    """Draw what colours and lines mean; return it with the height of the whole drawing."""
    present = {family(node): described(node) for node in plan.nodes}
    order = [*FAMILIES, *sorted(present.keys() - FAMILIES)]
    entries = [
        (f'<rect x="{{x}}" y="{{y}}" width="14" height="12" rx="3" fill="{colour}"/>', f"{SHORT.get(kind, kind)}: {meaning}")
        for kind, (meaning, colour) in sorted(present.items(), key=lambda item: order.index(item[0]))
    ]
    low = any(_is_early(node, source) for node in plan.nodes for source in node.inputs)
    for kind, meaning in LINES.items():
        if meaning and (kind != "low" or low):
            entries.append((f'<path class="hd-edge hd-{kind}" marker-end="url(#hd-head-{kind})" d="M{{x}} {{m}}h16"/>', meaning))
    entries.append(("", "number: channels; ↓2: halves height and width"))
    if timed:
        mark = '<rect class="hd-time" x="{x}" y="{m}" width="14" height="3" rx="1.5"/>'
        entries.append((mark, "measured time (the longest fills its box)"))
    parts, x, edge = [], 12.0, min(width, LEGEND_WIDTH)
    for mark, text in entries:
        step = (22 if mark else 0) + 6.1 * len(text) + 20
        if x + step > edge and x > 12:
            x, y = 12.0, y + 20
        parts.append(mark.format(x=f"{x:g}", y=f"{y:g}", m=f"{y + 6:g}"))
        parts.append(f'<text class="hd-legend" x="{x + (22 if mark else 0):g}" y="{y + 10:g}">{html.escape(text)}</text>')
        x += step
    return "".join(parts), y + 24

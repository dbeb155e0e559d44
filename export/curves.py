"""Draw values over time as SVG, without scripts or outside resources."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT, LEFT, RIGHT = 720.0, 130.0, 62.0, 20.0
BAR_HEIGHT = 30.0
CSS = (
    "h2{font-size:1.05rem;margin:1.6rem 0 .2rem}.curve{width:100%;max-width:45rem;font-size:11px;display:block;margin:.6rem 0}"
    ".curve text{fill:currentColor}.curve .axis{stroke:currentColor;stroke-opacity:.2;fill:none}"
    ".curve polyline{fill:none;stroke:#1f6fb5;stroke-width:2}.curve circle{fill:#1f6fb5}"
    ".curve .thin{stroke-width:.9;stroke-opacity:.75}.curve circle.thin{fill-opacity:.6}"
    ".curve .limit{stroke:#c2487f;stroke-dasharray:5 4;fill:none}.curve .bar{fill:#d9480f}"
)


@dataclass(frozen=True)
class Line:
    """Values at even steps; None where there is none."""

    name: str
    values: Sequence[float | None]
    thin: bool = False


@dataclass(frozen=True)
class Chart:
    """Lines over one time, and below them, if wanted, bars from 0 to 1."""

    title: str
    unit: str
    lines: Sequence[Line]
    seconds: float
    """The whole width."""
    limit: float | None = None
    """Drawn as a dashed line across."""
    bars: Sequence[float] = ()
    bars_name: str = ""
    from_zero: bool = False
    """Whether the height begins at 0 however little the values differ."""

    def to_svg(self) -> str:
        """Return one SVG element; nothing where no line has a value."""
        found = [value for line in self.lines for value in line.values if value is not None]
        if not found:
            return ""
        low, high = min(found), max([*found, *([self.limit] if self.limit is not None else [])])
        from_zero = self.from_zero or low < 0.7 * high
        low = 0.0 if from_zero else low - 0.1 * (high - low or high or 1.0)
        high += 0.05 * (high - low) or 1.0
        count = max(len(line.values) for line in self.lines)
        step = (WIDTH - LEFT - RIGHT) / max(1, count)

        def y(value: float) -> float:
            return HEIGHT - HEIGHT * (value - low) / (high - low)

        parts = [_axis(y(value), f"{value:.4g}") for value in (low, (low + high) / 2, high)]
        if self.limit is not None:
            parts.append(f'<path class="limit" d="M{LEFT:g} {y(self.limit):.1f}H{WIDTH - RIGHT:g}"/>')
        for line in self.lines:
            parts += _drawn(line, step, y)
        bottom = HEIGHT + (BAR_HEIGHT + 16 if self.bars else 0)
        parts += [_bar(i, share, step, bottom) for i, share in enumerate(self.bars)]
        if self.bars:
            parts.append(f'<text x="0" y="{bottom - 6:g}">{html.escape(self.bars_name)}</text>')
        parts.append(f'<text x="{LEFT:g}" y="{bottom + 18:g}">0 s</text>')
        parts.append(f'<text x="{WIDTH - RIGHT:g}" y="{bottom + 18:g}" text-anchor="end">{self.seconds:.3g} s</text>')
        label = html.escape(f"{self.title} over time, {self.unit}", quote=True)
        return (
            f'<svg class="curve" viewBox="0 -18 {WIDTH:g} {bottom + 42:g}" role="img" aria-label="{label}">'
            f'<text x="{LEFT:g}" y="-6">{html.escape(f"{self.title}, {self.unit}")}</text>{"".join(parts)}</svg>'
        )


def _axis(y: float, text: str) -> str:
    axis = f'<path class="axis" d="M{LEFT:g} {y:.1f}H{WIDTH - RIGHT:g}"/>'
    return f'{axis}<text x="{LEFT - 6:g}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'


def _drawn(line: Line, step: float, y: Callable[[float], float]) -> list[str]:
    """Draw a line; it is broken where values are missing."""
    name = ' class="thin"' if line.thin else ""
    pieces: list[list[str]] = [[]]
    for index, value in enumerate(line.values):
        if value is None:
            pieces.append([])
        else:
            pieces[-1].append(f"{LEFT + (index + 0.5) * step:.1f},{y(value):.1f}")
    found = []
    for points in filter(None, pieces):
        if len(points) > 1:
            found.append(f'<polyline{name} points="{" ".join(points)}"/>')
        else:
            x, height = points[0].split(",")
            found.append(f'<circle{name} cx="{x}" cy="{height}" r="2"/>')
    return found


def _bar(index: int, share: float, step: float, bottom: float) -> str:
    place = f'x="{LEFT + index * step:.1f}" y="{bottom - BAR_HEIGHT * share:.1f}"'
    return f'<rect class="bar" {place} width="{max(1.0, step - 1):.1f}" height="{BAR_HEIGHT * share:.1f}"/>' if share else ""

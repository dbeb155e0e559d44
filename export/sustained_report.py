"""Hold and render how a model's speed changed over a long run, and what the machine did meanwhile."""

from __future__ import annotations

import html
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from export.bench_report import TimingReport, load_remark
from export.curves import Chart, Line
from export.sensors import NAMES, Reading

FORMAT_VERSION = 1
WINDOW_S = 60.0
"""The first and the last minute are compared; of a run of less than two minutes, its halves."""
MAX_RATIO = 1.05
"""Time of the last minute by that of the first above which the report warns."""


@dataclass(frozen=True)
class Interval:
    """What happened in a few seconds."""

    start_s: float
    """Since the model's first run, as `end_s`."""
    end_s: float
    outputs: int
    frames: int | None
    """That arrived, dropped ones included; None without a pace."""
    missed: int
    """Frames dropped or late."""
    run_p50_ms: float
    run_p99_ms: float
    age_p99_ms: float | None
    """None without a pace."""
    others_share: float | None
    """Share of the cores that other processes used."""
    sensors: Reading


@dataclass(frozen=True)
class SustainedResult:
    """One model's long run."""

    name: str
    file: str | None
    sha256: str | None
    size: str | None
    intervals: tuple[Interval, ...]
    """At least one."""
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        return self.intervals[-1].end_s

    def _median_ms(self, start_s: float, end_s: float) -> float:
        """Return the median of the medians of the intervals that lie in a span, at least of the one nearest to it."""
        inside = [i.run_p50_ms for i in self.intervals if i.start_s >= start_s - 1e-6 and i.end_s <= end_s + 1e-6]
        nearest = self.intervals[0 if start_s <= 0 else -1].run_p50_ms
        return statistics.median(inside or [nearest])

    @property
    def median_ms(self) -> float:
        return statistics.median(interval.run_p50_ms for interval in self.intervals)

    @property
    def window_s(self) -> float:
        """How long a beginning and an end are compared."""
        return min(WINDOW_S, self.seconds / 2)

    @property
    def first_ms(self) -> float:
        return self._median_ms(0.0, self.window_s)

    @property
    def last_ms(self) -> float:
        return self._median_ms(self.seconds - self.window_s, self.seconds)

    @property
    def ratio(self) -> float:
        """Time of a run at the end by that in the beginning; above 1 the model became slower."""
        return self.last_ms / self.first_ms

    @property
    def missed_share(self) -> float | None:
        """Share of the frames that were dropped or late; None without a pace."""
        frames, missed = sum(i.frames or 0 for i in self.intervals), sum(i.missed for i in self.intervals)
        return missed / frames if frames else None


@dataclass(frozen=True)
class SustainedReport(TimingReport):
    """Long runs of models, one after another."""

    target: str
    threads: int
    mode: str
    pace: float | None
    """Frames per second; None: back to back."""
    seconds: float
    """Asked for, per model."""
    state: str
    """`running`, `done` or `stopped`."""
    source: str
    """Where the frames come from."""
    versions: dict[str, str]
    machine: dict[str, Any]
    others_share: float | None
    unavailable: dict[str, str]
    """Why a sensor's value is missing."""
    models: tuple[SustainedResult, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        models = [
            {**asdict(model), "first_ms": model.first_ms, "last_ms": model.last_ms, "ratio": model.ratio} for model in self.models
        ]
        return {"format_version": FORMAT_VERSION, **asdict(self), "models": models}

    @property
    def title(self) -> str:
        pace = "back to back" if self.pace is None else f"{self.pace:.4g} frames per second"
        return f"{super().title}, {pace}, {duration(self.seconds)} each"

    def remarks(self) -> list[str]:
        """Return what a reader of the numbers should know."""
        found = load_remark(self.others_share)
        if self.state != "done":
            found.append(f"{self.state}: {', '.join(f'{m.name} {duration(m.seconds)}' for m in self.models) or 'nothing'} so far")
        found += [f"{model.name}: {slower}" for model in self.models if (slower := _slower(model))]
        found += [f"{NAMES[name][0]}: not available, {reason}" for name, reason in self.unavailable.items()]
        found.append(f"frames: {self.source}")
        return [*found, *(f"{model.name}: {note}" for model in self.models for note in model.notes)]

    def rows(self) -> list[list[str]]:
        """Return the table's cells, its head first."""
        window = duration(min((model.window_s for model in self.models), default=WINDOW_S))
        fields = [field for field in NAMES if any(_last(model, field) is not None for model in self.models)]
        head = ["model", "size", "median ms", f"first {window}", f"last {window}", "last by first", "worst p99 ms"]
        head += ["missed"] * (self.pace is not None) + [f"{NAMES[field][0]} {NAMES[field][1]}" for field in fields]
        return [head, *(_row(model, self.pace is not None, fields) for model in self.models)]

    def curves(self) -> str:
        """Return times and sensors over time of every model, as HTML."""
        period_ms = None if self.pace is None else 1000 / self.pace
        return "".join(_curves(model, period_ms) for model in self.models)


def duration(seconds: float) -> str:
    """Write a duration for people."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    return f"{int(seconds) // 60} min" + (f" {round(seconds) % 60} s" if round(seconds) % 60 else "")


def _slower(model: SustainedResult) -> str:
    """Say that a model became slower, and what else changed; nothing where it kept its speed."""
    if model.ratio <= MAX_RATIO:
        return ""
    first, last = model.intervals[0], model.intervals[-1]
    changes = []
    for field, (name, unit) in NAMES.items():
        before, after = getattr(first.sensors, field), getattr(last.sensors, field)
        if before is not None and after is not None and round(before) != round(after):
            changes.append(f"{name} {before:.0f} to {after:.0f} {unit}")
    if first.others_share is not None and last.others_share is not None:
        changes.append(f"load by others {first.others_share:.0%} to {last.others_share:.0%}")
    because = f" ({', '.join(changes)})" if changes else ""
    return f"a run takes {model.ratio - 1:.0%} longer at the end than in the beginning{because}"


def _row(model: SustainedResult, paced: bool, fields: Sequence[str]) -> list[str]:
    worst = max(interval.run_p99_ms for interval in model.intervals)
    times = [f"{ms:.2f}" for ms in (model.median_ms, model.first_ms, model.last_ms)]
    sensors = ["" if value is None else f"{value:.0f}" for value in (_last(model, field) for field in fields)]
    missed = [f"{model.missed_share or 0:.1%}"] * paced
    return [model.name, model.size or "no image", *times, f"{model.ratio:.3f}", f"{worst:.2f}", *missed, *sensors]


def _last(model: SustainedResult, field: str) -> float | None:
    """Return a sensor's last value."""
    values = [getattr(interval.sensors, field) for interval in model.intervals]
    return next((value for value in reversed(values) if value is not None), None)


def _curves(model: SustainedResult, period_ms: float | None) -> str:
    intervals, seconds = model.intervals, model.seconds
    times = [Line("median", [i.run_p50_ms for i in intervals]), Line("p99", [i.run_p99_ms for i in intervals], thin=True)]
    missed = [i.missed / i.frames for i in intervals if i.frames]
    charts = [Chart("time of a run: median, and thin p99", "ms", times, seconds, period_ms, missed, "missed")]
    charts += [
        Chart(name, unit, [Line(name, [getattr(interval.sensors, field) for interval in intervals])], seconds)
        for field, (name, unit) in NAMES.items()
    ]
    others = [None if i.others_share is None else 100 * i.others_share for i in intervals]
    charts.append(Chart("cores used by other processes", "%", [Line("others", others)], seconds, from_zero=True))
    note = "Dashed: the deadline, one period. Bars: share of missed frames." if period_ms is not None else ""
    return f"<h2>{html.escape(model.name)}</h2>{''.join(chart.to_svg() for chart in charts)}<p>{note}</p>"

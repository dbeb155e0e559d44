"""Hold and render what frames that arrive by the clock became: JSON for machines, Markdown and one HTML page for people."""

from __future__ import annotations

import html
from dataclasses import asdict, dataclass
from typing import Any

from export.bench_report import TimingReport, load_remark
from export.curves import Chart, Line

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Second:
    """What happened to the frames that arrived in one second."""

    frames: int
    missed: int
    """Dropped, or late."""
    age_p50_ms: float | None
    """None where all were dropped."""
    age_max_ms: float | None
    rung: float | None = None
    """Of a ladder: which of its networks gave the outputs, on average, 1 the most accurate."""


@dataclass(frozen=True)
class RungUse:
    """How much of the time one network of a ladder was in charge."""

    name: str
    miou: float | None
    """As its bundle notes it."""
    share: float


@dataclass(frozen=True)
class LadderUse:
    """What a governor did with a ladder."""

    rungs: tuple[RungUse, ...]
    switches: int
    miou: float | None
    """Mean, weighted by time; None where the bundles do not note them all."""

    def __str__(self) -> str:
        shares = ", ".join(f"{rung.name} {rung.share:.0%}" for rung in self.rungs)
        return f"{self.switches} switch{'es' * (self.switches != 1)}; of the time: {shares}"


@dataclass(frozen=True)
class PacedResult:
    """How one model kept up."""

    name: str
    file: str | None
    sha256: str | None
    size: str | None
    frames: int
    """That arrived."""
    dropped: int
    late: int
    """Outputs older than one period."""
    outputs_per_second: float
    age_p50_ms: float
    age_p99_ms: float
    jitter_ms: float
    """Standard deviation of the time from one output to the next."""
    run_p50_ms: float
    run_p99_ms: float
    seconds: tuple[Second, ...]
    notes: tuple[str, ...] = ()
    ladder: LadderUse | None = None
    """Of a bundle with several networks."""

    @property
    def dropped_share(self) -> float:
        return self.dropped / self.frames

    @property
    def missed_share(self) -> float:
        """Share of the frames that were dropped or late."""
        return (self.dropped + self.late) / self.frames


@dataclass(frozen=True)
class PacedReport(TimingReport):
    """Models under one pace, one after another."""

    target: str
    threads: int
    mode: str
    pace: float
    """Frames per second."""
    source: str
    """Where the frames come from."""
    versions: dict[str, str]
    machine: dict[str, Any]
    others_share: float | None
    models: tuple[PacedResult, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"format_version": FORMAT_VERSION, **asdict(self)}

    @property
    def title(self) -> str:
        return f"{super().title}, {self.pace:.4g} frames per second"

    def remarks(self) -> list[str]:
        """Return what a reader of the numbers should know."""
        notes = [f"{result.name}: {result.ladder}" for result in self.models if result.ladder]
        notes += [f"{result.name}: {note}" for result in self.models for note in result.notes]
        return [*load_remark(self.others_share), f"frames: {self.source}", *notes]

    def rows(self) -> list[list[str]]:
        """Return the table's cells, its head first."""
        ladders = any(result.ladder for result in self.models)
        return [[*HEAD, *["mIoU over time", "switches"] * ladders], *(
            [
                result.name, result.size or "no image", f"{result.missed_share:.1%}", f"{result.dropped_share:.1%}",
                f"{result.outputs_per_second:.1f}", f"{result.age_p50_ms:.1f}", f"{result.age_p99_ms:.1f}",
                f"{result.jitter_ms:.2f}", f"{result.run_p50_ms:.2f}", str(result.frames), *_ladder_cells(result) * ladders,
            ]
            for result in self.models
        )]  # fmt: skip

    def curves(self) -> str:
        """Return age and misses over time of every model, as HTML."""
        return "".join(_curve(result, 1000 / self.pace) for result in self.models)


HEAD = [
    "model", "size", "missed", "dropped", "outputs/s", "age p50 ms", "age p99 ms", "jitter ms", "run p50 ms", "frames",
]  # fmt: skip


def _ladder_cells(result: PacedResult) -> list[str]:
    if result.ladder is None:
        return ["", ""]
    miou = "not noted" if result.ladder.miou is None else f"{result.ladder.miou:.1%}"
    return [miou, str(result.ladder.switches)]


def _curve(result: PacedResult, period_ms: float) -> str:
    """Draw the age of the outputs over time, with the deadline, and the share of missed frames below."""
    seconds = result.seconds
    lines = [
        Line("median", [second.age_p50_ms for second in seconds]),
        Line("oldest", [second.age_max_ms for second in seconds], thin=True),
    ]
    missed = [second.missed / second.frames if second.frames else 0.0 for second in seconds]
    chart = Chart("age of the outputs", "ms", lines, len(seconds), period_ms, missed, "missed")
    rungs = Chart("network in charge", "1 the most accurate", [Line("rung", [s.rung for s in seconds])], len(seconds))
    return (
        f"<h2>{html.escape(result.name)}</h2>{chart.to_svg()}{rungs.to_svg()}"
        "<p>Age of the outputs, second by second: the median, and thin the oldest; dashed the deadline, one period. Bars: share of "
        "missed frames.</p>"
    )

"""Run models on frames that arrive by the clock, as from a camera: what is missed, what is dropped, how old an output is.

Frame i arrives at i / pace. One frame waits at most: while a model runs, a new frame takes the place of the one that waits, which
is dropped. The age of an output is the time since its frame arrived; a deadline is missed where a frame was dropped, or its output
is older than one period.
"""

from __future__ import annotations

import html
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from export.bench_models import BenchModel, OpenModel, open_models
from export.bench_report import circumstances, markdown_table, page
from export.bench_timing import MAX_LOAD, named, no_garbage_collection
from export.errors import Give, InvalidInput
from export.load import others_share, read_load
from export.machine import fingerprint
from export.prediction.segment import frame
from export.runtime import Runtime
from export.target import format_size

FORMAT_VERSION = 1
WARM_UP_RUNS = 10


class Clock(Protocol):
    """Seconds from any origin."""

    def now(self) -> float: ...

    def sleep_until(self, moment: float) -> None: ...


class MonotonicClock:
    """The system's."""

    def now(self) -> float:
        return time.monotonic()

    def sleep_until(self, moment: float) -> None:
        time.sleep(max(0.0, moment - time.monotonic()))


@dataclass(frozen=True)
class Output:
    """What became of a frame that was not dropped; times in seconds."""

    frame: int
    started: float
    """Since the first frame arrived."""
    ended: float


@dataclass(frozen=True)
class Second:
    """What happened to the frames that arrived in one second."""

    frames: int
    missed: int
    """Dropped, or late."""
    age_p50_ms: float | None
    """None where all were dropped."""
    age_max_ms: float | None


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

    @property
    def dropped_share(self) -> float:
        return self.dropped / self.frames

    @property
    def missed_share(self) -> float:
        """Share of the frames that were dropped or late."""
        return (self.dropped + self.late) / self.frames


@dataclass(frozen=True)
class PacedReport:
    """Models under one pace, one after another."""

    target: str
    threads: int
    mode: str
    pace: float
    """Frames per second."""
    versions: dict[str, str]
    machine: dict[str, Any]
    others_share: float | None
    models: tuple[PacedResult, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"format_version": FORMAT_VERSION, **asdict(self)}

    @property
    def title(self) -> str:
        return f"{self.target}, {self.threads} thread{'s' * (self.threads != 1)}, mode {self.mode}, {self.pace:g} frames per second"

    def remarks(self) -> list[str]:
        """Return what a reader of the numbers should know."""
        found = [f"{result.name}: {note}" for result in self.models for note in result.notes]
        if self.others_share is not None and self.others_share > MAX_LOAD:
            found.insert(0, f"other processes used {self.others_share:.0%} of the cores during the measurement")
        return found

    def rows(self) -> list[list[str]]:
        """Return the table's cells, `HEAD` first."""
        return [HEAD, *(
            [
                result.name, result.size or "no image", f"{result.missed_share:.1%}", f"{result.dropped_share:.1%}",
                f"{result.outputs_per_second:.1f}", f"{result.age_p50_ms:.1f}", f"{result.age_p99_ms:.1f}",
                f"{result.jitter_ms:.2f}", f"{result.run_p50_ms:.2f}", str(result.frames),
            ]
            for result in self.models
        )]  # fmt: skip

    def to_markdown(self) -> str:
        """Return a table and the circumstances, GitHub flavour."""
        place = circumstances(self.machine, self.versions, self.others_share)
        return markdown_table(self.title, place, self.rows(), self.remarks())

    def to_html(self) -> str:
        """Return one page without scripts or outside resources; a curve per model shows age and misses over time."""
        curves = "".join(_curve(result, 1000 / self.pace) for result in self.models)
        place = circumstances(self.machine, self.versions, self.others_share)
        return page(self.title, place, self.rows(), self.remarks(), curves)


HEAD = [
    "model", "size", "missed", "dropped", "outputs/s", "age p50 ms", "age p99 ms", "jitter ms", "run p50 ms", "frames",
]  # fmt: skip


def pace(
    models: Sequence[BenchModel], runtime: Runtime, frames_per_second: float, seconds: float, mode: str = "model",
    images: Sequence[bytes] = (), progress: Callable[[int, int], None] | None = None,
) -> PacedReport:  # fmt: skip
    """Run every model for `seconds` on frames that arrive by the clock.

    Args:
        models: at least one.
        runtime: where all of them run.
        frames_per_second: of the clock.
        seconds: per model; at least ten frames.
        mode: what one frame is: `model`, `labels` or `end-to-end`, as `export.bench_timing.bench` has them.
        images: JPEG files in memory, used in turn.
        progress: called with (percent, 100) between runs.

    Raises:
        InvalidInput: too few frames, an unknown mode, or a model that does not fit it.
    """
    if frames_per_second * seconds < 10:
        raise InvalidInput(
            f"{seconds:g} s at {frames_per_second:g} frames per second are less than 10 frames",
            Give("seconds"),
        )
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="hyctas-bench-") as temporary:
        opened = [stack.enter_context(model) for model in open_models(models, runtime, Path(temporary))]
        results, before = [], read_load()
        with no_garbage_collection():
            for index, model in enumerate(opened):
                with named(model):
                    once = frame(model, mode, images)
                for _ in range(WARM_UP_RUNS):
                    once()

                def show(share: float, index: int = index) -> None:
                    if progress is not None:
                        progress(int(100 * (index + share) / len(opened)), 100)

                results.append(summarise(model, play(once, frames_per_second, seconds, MonotonicClock(), show), frames_per_second))
        others = others_share(before, read_load())
    return PacedReport(
        str(runtime.target), runtime.threads, mode, frames_per_second, runtime.versions(), fingerprint(), others, tuple(results)
    )


def play(
    once: Callable[[], object], frames_per_second: float, seconds: float, clock: Clock, progress: Callable[[float], None]
) -> list[Output]:
    """Let frames arrive and `once` process the newest, until the last frame is done; return the outputs in order."""
    outputs: list[Output] = []
    total, last, start = round(frames_per_second * seconds), -1, clock.now()
    while last < total - 1:
        newest = min(total - 1, int((clock.now() - start) * frames_per_second + 1e-6))
        if newest == last:
            clock.sleep_until(start + (last + 1) / frames_per_second)
            continue
        started = clock.now() - start
        once()
        outputs.append(Output(newest, started, clock.now() - start))
        last = newest
        progress((newest + 1) / total)
    return outputs


def summarise(model: OpenModel, outputs: Sequence[Output], frames_per_second: float) -> PacedResult:
    """Reduce outputs to numbers."""
    period, total = 1 / frames_per_second, outputs[-1].frame + 1
    ages = np.array([output.ended - output.frame * period for output in outputs])
    runs = np.array([output.ended - output.started for output in outputs])
    gaps = np.diff([output.ended for output in outputs])
    late = ages > period
    arrivals = np.floor(np.arange(total) * period + 1e-6).astype(int)  # second in which each frame arrives
    frames = np.array([output.frame for output in outputs])
    seconds = []
    for second, arrived in enumerate(np.bincount(arrivals).tolist()):
        own = arrivals[frames] == second
        missed = arrived - int(own.sum()) + int(late[own].sum())
        found = 1000 * ages[own]
        age = (float(np.median(found)), float(found.max())) if len(found) else (None, None)
        seconds.append(Second(arrived, missed, *age))
    age50, age99 = (float(value) for value in 1000 * np.percentile(ages, (50, 99)))
    run50, run99 = (float(value) for value in 1000 * np.percentile(runs, (50, 99)))
    return PacedResult(
        name=model.name, file=model.file, sha256=model.sha256, size=format_size(model.image.size) if model.image else None,
        frames=total, dropped=total - len(outputs), late=int(late.sum()),
        outputs_per_second=len(outputs) / max(outputs[-1].ended, total * period), age_p50_ms=age50, age_p99_ms=age99,
        jitter_ms=1000 * statistics.pstdev(gaps.tolist()) if len(gaps) else 0.0, run_p50_ms=run50, run_p99_ms=run99,
        seconds=tuple(seconds), notes=model.remarks,
    )  # fmt: skip


def _curve(result: PacedResult, period_ms: float) -> str:
    """Draw the age of the outputs over time, with the deadline, and the share of missed frames below."""
    width, height, left = 720.0, 130.0, 52.0
    seconds = result.seconds
    top = max([period_ms, *(second.age_max_ms for second in seconds if second.age_max_ms is not None)]) * 1.05
    step = (width - left) / max(1, len(seconds))

    def y(ms: float) -> float:
        return height - height * ms / top

    def line(values: Sequence[float | None], name: str) -> str:
        points = [f"{left + (i + 0.5) * step:.1f},{y(ms):.1f}" for i, ms in enumerate(values) if ms is not None]
        return f'<polyline class="{name}" points="{" ".join(points)}"/>'

    bars = "".join(
        f'<rect class="missed" x="{left + i * step:.1f}" y="{height + 46 - 30 * second.missed / second.frames:.1f}" '
        f'width="{max(1.0, step - 1):.1f}" height="{30 * second.missed / second.frames:.1f}"/>'
        for i, second in enumerate(seconds)
    )
    return (
        f"<h2>{html.escape(result.name)}</h2>"
        f'<svg class="pace" viewBox="0 0 {width:g} {height + 70:g}" role="img" aria-label="Age of the outputs over time">'
        f'<text x="0" y="12">{top:.0f} ms</text><text x="0" y="{y(period_ms) + 4:.1f}">{period_ms:.1f}</text>'
        f'<path class="deadline" d="M{left:g} {y(period_ms):.1f}H{width:g}"/>'
        + line([second.age_max_ms for second in seconds], "oldest") + line([second.age_p50_ms for second in seconds], "median")
        + f'{bars}<text x="0" y="{height + 40:g}">missed</text><text x="{left:g}" y="{height + 64:g}">0 s</text>'
        f'<text x="{width - 40:g}" y="{height + 64:g}">{len(seconds)} s</text></svg>'
        "<p>Age of the outputs, second by second: the median, and thin the oldest; dashed the deadline, one period. Bars: share of "
        "missed frames.</p>"
    )

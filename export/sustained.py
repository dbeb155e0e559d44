"""Run models for minutes, back to back or by the clock, and keep what happened every few seconds: does the device throttle?

What an interval holds is handed on as soon as the interval ends, so that a run which is stopped has lost nothing before it.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from export.arrivals import Arrival, Clock, MonotonicClock, Output, Pictures, back_to_back, play
from export.bench_models import BenchModel, OpenModel
from export.bench_timing import no_garbage_collection
from export.contestant import Contestant, Running
from export.load import LoadReading, others_share, read_load
from export.machine import fingerprint
from export.paced import arrivals, check_frames, described, notes_of, open_contestants, preparation
from export.runtime import Runtime
from export.sensors import Sensors
from export.sustained_report import Interval, SustainedReport, SustainedResult
from export.target import format_size

LONG_S = 300.0
"""From this duration on an interval lasts ten seconds, else one."""
Keep = Callable[[SustainedReport], object]
"""Takes what has been measured so far."""


@dataclass(frozen=True)
class Plan:
    """What is run, apart from the models."""

    seconds: float
    """Per model."""
    pace: float | None = None
    """Frames per second; None: back to back."""
    mode: str = "model"
    images: Sequence[bytes] = ()
    """JPEG files in memory, used in turn."""
    pictures: Pictures | None = None
    """A video or camera in their place; it needs a pace."""

    @property
    def interval_s(self) -> float:
        return 10.0 if self.seconds >= LONG_S else 1.0

    def arrivals(self, clock: Clock) -> Iterator[Arrival]:
        """Return when frames arrive."""
        if self.pace is None:
            return back_to_back(clock, self.seconds)
        return arrivals(clock, self.pace, self.seconds, self.pictures)


def sustain(
    models: Sequence[BenchModel], runtime: Runtime, plan: Plan, keep: Keep, progress: Callable[[int, int], None] | None = None
) -> SustainedReport:
    """Run every model for the plan's time. Stopped by Ctrl-C, it returns what there is, with the state `stopped`.

    Args:
        models: at least one.
        runtime: where all of them run.
        plan: for how long, and on which frames.
        keep: called after every interval, between two runs, with all that was measured.
        progress: called with (percent, 100) between runs.

    Raises:
        InvalidInput: too few frames, an unknown mode, or a model that does not fit it.
    """
    if plan.pace is not None:
        check_frames(plan.pace, plan.seconds)
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="hyctas-bench-") as temporary:
        contestants = open_contestants(models, runtime, Path(temporary), stack)
        sensors, before = Sensors(runtime.target.device != "cpu"), read_load()
        report = SustainedReport(
            str(runtime.target), runtime.threads, plan.mode, plan.pace, plan.seconds, "running",
            described(plan.pictures, plan.images), runtime.versions(), fingerprint(), None, sensors.unavailable, (),
        )  # fmt: skip
        state = "done"
        try:
            with no_garbage_collection():
                for index, contestant in enumerate(contestants):

                    def show(share: float, index: int = index) -> None:
                        if progress is not None:
                            progress(int(100 * (index + share) / len(contestants)), 100)

                    former = report
                    for result in _run(contestant, plan, sensors, show):
                        report = replace(former, models=(*former.models, result), others_share=others_share(before, read_load()))
                        keep(report)
                    show(1)
        except KeyboardInterrupt:
            state = "stopped"
    return replace(report, state=state)


def _run(contestant: Contestant, plan: Plan, sensors: Sensors, show: Callable[[float], None]) -> Iterator[SustainedResult]:
    """Run one model; yield what there is after every interval."""
    ladder = len(contestant.models) > 1 and plan.pace is not None
    contestant = contestant if ladder else replace(contestant, models=contestant.models[:1])
    deadline_s = math.inf if plan.pace is None else 1 / plan.pace
    running = Running(contestant, *preparation(plan.mode, plan.images, plan.pictures), deadline_s)
    model, governor, clock = contestant.models[0], running.governor, MonotonicClock()
    intervals, span, outputs = list[Interval](), list[Output](), list[Output]()
    used = [0.0] * len(contestant.models)
    sensors.read()  # power counts from here on
    recorder = _Recorder(plan, sensors)
    try:
        for output in play(running, plan.arrivals(clock), clock):
            span.append(output)
            used[governor.level] += output.run
            governor.observe(output.age, output.run)
            outputs = [*outputs[:1], output]  # the first and the last one, for a camera's rate
            show(min(1.0, output.ended / plan.seconds))
            if recorder.is_over(output):
                intervals.append(recorder.interval(span))
                span = []
                yield _result(model, intervals)
    except KeyboardInterrupt:
        if span:
            yield _result(model, [*intervals, recorder.interval(span)])
        raise
    notes = () if plan.pace is None else notes_of(plan.pictures, outputs, plan.pace)
    if span:
        intervals.append(recorder.interval(span))
    if ladder:
        shares = ", ".join(f"{m.name} {seconds / sum(used):.0%}" for m, seconds in zip(contestant.models, used, strict=True))
        notes = (*notes, f"{governor.switches} switches between the networks of the ladder; of the time: {shares}")
    yield _result(model, intervals, notes)


class _Recorder:
    """Reduces outputs to intervals. By the clock, an interval ends where the next frame is not due yet: reading sensors and
    writing take a few milliseconds."""

    def __init__(self, plan: Plan, sensors: Sensors) -> None:
        self._plan, self._sensors = plan, sensors
        self._load: LoadReading | None = read_load()
        self._start_s, self._frames = 0.0, 0

    def is_over(self, output: Output) -> bool:
        """Say whether an interval ends with an output."""
        elapsed, length, pace = output.ended - self._start_s, self._plan.interval_s, self._plan.pace
        has_time = pace is None or output.age < 0.5 / pace
        return elapsed >= length and (has_time or elapsed >= 2 * length)

    def interval(self, outputs: Sequence[Output]) -> Interval:
        """Reduce the outputs since the last interval."""
        runs, ages = (1000 * np.array(values) for values in zip(*((o.run, o.age) for o in outputs), strict=True))
        pace, last = self._plan.pace, outputs[-1]
        frames = last.frame + 1 - self._frames
        late = 0 if pace is None else int((ages > 1000 / pace).sum())
        load = read_load()
        found = Interval(
            start_s=self._start_s, end_s=last.ended, outputs=len(outputs), frames=None if pace is None else frames,
            missed=frames - len(outputs) + late, run_p50_ms=float(np.median(runs)), run_p99_ms=float(np.percentile(runs, 99)),
            age_p99_ms=None if pace is None else float(np.percentile(ages, 99)), others_share=others_share(self._load, load),
            sensors=self._sensors.read(),
        )  # fmt: skip
        self._load, self._start_s, self._frames = load, last.ended, last.frame + 1
        return found


def _result(model: OpenModel, intervals: Sequence[Interval], notes: Sequence[str] = ()) -> SustainedResult:
    size = format_size(model.image.size) if model.image else None
    return SustainedResult(model.name, model.file, model.sha256, size, tuple(intervals), (*model.remarks, *notes))

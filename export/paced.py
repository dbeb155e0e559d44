"""Run models on frames that arrive by the clock, as from a camera: what is missed, what is dropped, how old an output is.

Frame i arrives at i / pace; a camera's pictures arrive when they do. One frame waits at most: while a model runs, a new frame takes
the place of the one that waits, which is dropped. The age of an output is the time since its frame arrived; a deadline is missed
where a frame was dropped, or its output is older than one period. Of a bundle with several networks, a governor picks the one that
keeps the deadline (`export/governor.py`).
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from export.arrivals import EPSILON, Arrival, Clock, MonotonicClock, Output, Pictures, by_the_clock, of_pictures, play
from export.bench_models import BenchModel, OpenModel, check_names
from export.bench_timing import no_garbage_collection
from export.bundle.imaging import decode
from export.contestant import Contestant, Process, Running, open_contestant, weighted_miou
from export.errors import Give, InvalidInput
from export.governor import Governor
from export.load import others_share, read_load
from export.machine import fingerprint
from export.paced_report import LadderUse, PacedReport, PacedResult, RungUse, Second
from export.prediction.segment import frame, on_pictures, synthetic_jpeg
from export.runtime import Runtime
from export.target import format_size

WARM_UP_SIZE = (720, 1280)
"""Of a picture to warm up with where a video or camera gives the real ones."""
MIN_FRAMES = 10
RATE_TOLERANCE = 0.05
"""Share by which a camera's rate may differ from the pace before that is said."""


def pace(
    models: Sequence[BenchModel], runtime: Runtime, frames_per_second: float, seconds: float, mode: str = "model",
    images: Sequence[bytes] = (), progress: Callable[[int, int], None] | None = None, pictures: Pictures | None = None,
) -> PacedReport:  # fmt: skip
    """Run every model for `seconds` on frames that arrive by the clock.

    Args:
        models: at least one.
        runtime: where all of them run.
        frames_per_second: of the clock; with a camera, which has its own, one by it is the deadline.
        seconds: per model; at least ten frames.
        mode: what one frame is: `model`, `labels` or `end-to-end`, as `export.bench_timing.bench` has them. A picture of
            `pictures` is decoded when it arrives; then `labels` begins with its pre-processing.
        images: JPEG files in memory, used in turn.
        progress: called with (percent, 100) between runs.
        pictures: a video or camera, in the place of `images`.

    Raises:
        InvalidInput: too few frames, an unknown mode, or a model that does not fit it.
    """
    check_frames(frames_per_second, seconds)
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="hyctas-bench-") as temporary:
        contestants = open_contestants(models, runtime, Path(temporary), stack)
        results, before = [], read_load()
        with no_garbage_collection():
            for index, contestant in enumerate(contestants):
                running = Running(contestant, *preparation(mode, images, pictures), 1 / frames_per_second)
                clock, outputs, levels = MonotonicClock(), list[Output](), list[int]()
                for output in play(running, arrivals(clock, frames_per_second, seconds, pictures), clock):
                    outputs.append(output)
                    levels.append(running.governor.level)
                    running.governor.observe(output.age, output.run)
                    if progress is not None:
                        progress(int(100 * (index + min(1.0, output.ended / seconds)) / len(models)), 100)
                notes = notes_of(pictures, outputs, frames_per_second)
                result = summarise(contestant.models[0], outputs, frames_per_second, notes)
                ladder = len(contestant.models) > 1
                results.append(with_ladder(result, contestant, outputs, levels, running.governor) if ladder else result)
        others = others_share(before, read_load())
    if progress is not None:
        progress(100, 100)
    source = described(pictures, images)
    return PacedReport(
        str(runtime.target), runtime.threads, mode, frames_per_second, source, runtime.versions(), fingerprint(), others,
        tuple(results),
    )  # fmt: skip


def check_frames(frames_per_second: float, seconds: float) -> None:
    """Refuse a time in which hardly anything arrives.

    Raises:
        InvalidInput: less than `MIN_FRAMES` frames.
    """
    if frames_per_second * seconds < MIN_FRAMES:
        raise InvalidInput(
            f"{seconds:g} s at {frames_per_second:g} frames per second are less than {MIN_FRAMES} frames", Give("seconds")
        )


def open_contestants(models: Sequence[BenchModel], runtime: Runtime, folder: Path, stack: ExitStack) -> list[Contestant]:
    """Open every model, to be closed with a stack."""
    check_names(models)
    return [stack.enter_context(open_contestant(model, runtime, folder)) for model in models]


def preparation(
    mode: str, images: Sequence[bytes], pictures: Pictures | None
) -> tuple[Callable[[OpenModel], Process], Image.Image | None]:
    """Return what makes a model process frames, and a frame to warm up with."""
    if pictures is not None:
        return (lambda model: on_pictures(model, mode)), decode(synthetic_jpeg(WARM_UP_SIZE, seed=0))

    def prepare(model: OpenModel) -> Process:
        once = frame(model, mode, images)
        return lambda picture: once()

    return prepare, None


def arrivals(clock: Clock, frames_per_second: float, seconds: float, pictures: Pictures | None) -> Iterator[Arrival]:
    """Return when frames arrive."""
    return by_the_clock(clock, frames_per_second, seconds) if pictures is None else of_pictures(pictures, seconds)


def described(pictures: Pictures | None, images: Sequence[bytes]) -> str:
    """Say where frames come from."""
    if pictures is not None:
        return pictures.name
    return f"{len(images)} image{'s' * (len(images) != 1)} in memory, in turn" if images else "one in memory, again and again"


def notes_of(pictures: Pictures | None, outputs: Sequence[Output], frames_per_second: float) -> tuple[str, ...]:
    """Return what a reader should know of a video or camera.

    Raises:
        InvalidInput: nothing came of it.
    """
    if pictures is None:
        return ()
    if len(outputs) < 2:
        why = "".join(f"; {note}" for note in pictures.notes)
        raise InvalidInput(f"{pictures.name}: {len(outputs) or 'no'} picture came, and a pace has several{why}")
    found = (outputs[-1].frame - outputs[0].frame) / (outputs[-1].arrived - outputs[0].arrived)
    differs = abs(found / frames_per_second - 1) > RATE_TOLERANCE
    rate = [f"{pictures.name} sent {found:.1f} frames per second; the deadline is that of {frames_per_second:g}"] if differs else []
    return (*pictures.notes, *rate)


def with_ladder(
    result: PacedResult, contestant: Contestant, outputs: Sequence[Output], levels: Sequence[int], governor: Governor
) -> PacedResult:
    """Return a result with what its governor did: a network counts for as long as its outputs were the newest."""
    ends = np.array([output.ended for output in outputs])
    lasts = np.diff(ends, append=ends[-1] + governor.deadline_s)
    chosen = np.array(levels)
    shares = [float(lasts[chosen == level].sum() / lasts.sum()) for level in range(len(contestant.models))]
    use = [
        RungUse(model.name, miou, share) for model, miou, share in zip(contestant.models, contestant.mious, shares, strict=True)
    ]
    second_of = np.floor([output.arrived + EPSILON for output in outputs]).astype(int)
    seconds = [
        replace(second, rung=float(chosen[second_of == index].mean()) + 1 if (second_of == index).any() else None)
        for index, second in enumerate(result.seconds)
    ]
    ladder = LadderUse(tuple(use), governor.switches, weighted_miou(contestant.mious, shares))
    return replace(result, ladder=ladder, seconds=tuple(seconds))


def summarise(
    model: OpenModel, outputs: Sequence[Output], frames_per_second: float, notes: Sequence[str] = ()
) -> PacedResult:
    """Reduce outputs to numbers."""
    period, total = 1 / frames_per_second, outputs[-1].frame + 1
    ages = np.array([output.age for output in outputs])
    runs = np.array([output.run for output in outputs])
    gaps = np.diff([output.ended for output in outputs])
    late = ages > period
    frames = np.array([output.frame for output in outputs])
    moments = np.interp(np.arange(total), frames, [output.arrived for output in outputs])  # dropped frames came in between
    arrived = np.floor(moments + EPSILON).astype(int)  # second in which each frame arrives
    seconds = []
    for second, count in enumerate(np.bincount(arrived).tolist()):
        own = arrived[frames] == second
        missed = count - int(own.sum()) + int(late[own].sum())
        found = 1000 * ages[own]
        age = (float(np.median(found)), float(found.max())) if len(found) else (None, None)
        seconds.append(Second(count, missed, *age))
    age50, age99 = (float(value) for value in 1000 * np.percentile(ages, (50, 99)))
    run50, run99 = (float(value) for value in 1000 * np.percentile(runs, (50, 99)))
    return PacedResult(
        name=model.name, file=model.file, sha256=model.sha256, size=format_size(model.image.size) if model.image else None,
        frames=total, dropped=total - len(outputs), late=int(late.sum()),
        outputs_per_second=len(outputs) / max(outputs[-1].ended, outputs[-1].arrived + period), age_p50_ms=age50,
        age_p99_ms=age99, jitter_ms=1000 * statistics.pstdev(gaps.tolist()) if len(gaps) else 0.0, run_p50_ms=run50,
        run_p99_ms=run99, seconds=tuple(seconds), notes=(*model.remarks, *notes),
    )  # fmt: skip

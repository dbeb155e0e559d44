"""Time models back to back, interleaved in rounds (A B A B ...), so that drift of the machine hits all of them alike."""

from __future__ import annotations

import gc
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from export.bench_models import BenchModel, OpenModel, open_models
from export.bench_report import MAX_CV, MAX_LOAD, BenchReport, BenchResult, summarise
from export.errors import InvalidInput
from export.load import others_share, read_load
from export.machine import fingerprint, usable_cores
from export.prediction.segment import MODES, frame
from export.runtime import Runtime
from export.runtimes import open_runtime
from export.target import Target, format_size

SLICE_S = 0.1
"""How long one model runs before the next one's turn."""
MIN_ROUNDS = 5


@dataclass
class _Lane:
    model: OpenModel
    once: Callable[[], float]
    repeats: int = 1
    samples: list[float] = field(default_factory=list)
    medians: list[float] = field(default_factory=list)
    """One per round."""


def bench(
    models: Sequence[BenchModel],
    target: Target,
    threads: int,
    seconds: float = 3.0,
    warmup_s: float = 0.5,
    mode: str = "model",
    progress: Callable[[int, int], None] | None = None,
    images: Sequence[bytes] = (),
    runtime: Runtime | None = None,
) -> BenchReport:
    """Time models, ours or foreign, against the first of them.

    Args:
        models: at least one.
        target: where all of them run.
        threads: threads inside one operator.
        seconds: measured time per model; at least `MIN_ROUNDS` rounds are run.
        warmup_s: time per model before anything counts.
        mode: `model` (the session's step alone), `labels` (from a tensor in host memory to labels; upsampling and argmax in
            numpy unless the model does them) or `end-to-end` (JPEG bytes to overlay). `model` times whatever has inputs, with
            random ones where they are not one image; the other two need one.
        progress: called with (percent, 100).
        images: JPEG files in memory, used in turn; by default one smooth random image of each model's size.
        runtime: the target's, where it is open already or has settings of its own.

    Raises:
        InvalidInput: unknown mode, or a model that does not fit it.
        Unavailable: the target cannot run here.
    """
    _check_arguments(mode, seconds, warmup_s)
    runtime = runtime or open_runtime(target, threads)
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="hyctas-bench-") as temporary:
        opened = [stack.enter_context(model) for model in open_models(models, runtime, Path(temporary))]
        lanes = [_lane(model, mode, images) for model in opened]
        before = read_load()
        with no_garbage_collection():
            for lane in lanes:
                with named(lane.model):
                    _warm_up(lane, warmup_s)
            _measure(lanes, seconds, progress)
        others = others_share(before, read_load())
        results = tuple(_result(lane, lanes[0]) for lane in lanes)
    return BenchReport(
        target=str(target),
        threads=threads,
        mode=mode,
        seconds=seconds,
        versions=runtime.versions(),
        machine=fingerprint(),
        others_share=others,
        models=results,
        warnings=_warnings(results, others, threads),
    )


def _check_arguments(mode: str, seconds: float, warmup_s: float) -> None:
    if mode not in MODES:
        raise InvalidInput(f"mode {mode!r} is unknown; write one of {', '.join(MODES)}")
    if not (seconds > 0 and warmup_s >= 0 and math.isfinite(seconds + warmup_s)):
        raise InvalidInput(f"seconds must be positive and warmup_s not negative; got {seconds} and {warmup_s}")


def _lane(model: OpenModel, mode: str, images: Sequence[bytes]) -> _Lane:
    with named(model):
        return _Lane(model, frame(model, mode, images))


@contextmanager
def named(model: OpenModel) -> Iterator[None]:
    """Say which model it is that cannot be run."""
    try:
        yield
    except InvalidInput as error:
        raise InvalidInput(f"model {model.name!r}: {error}") from None


def _warm_up(lane: _Lane, seconds: float) -> None:
    """Run for `seconds` (3 times at least) and choose how many runs make a slice."""
    times: list[float] = []
    end = time.monotonic() + seconds
    while len(times) < 3 or time.monotonic() < end:
        times.append(lane.once())
    lane.repeats = max(1, min(2000, round(SLICE_S * 1000 / statistics.median(times))))


def _measure(lanes: Sequence[_Lane], seconds: float, progress: Callable[[int, int], None] | None) -> None:
    start, total = time.monotonic(), seconds * len(lanes)
    rounds = 0
    while rounds < MIN_ROUNDS or time.monotonic() - start < total:
        for lane in lanes:
            if len(lanes) > 1:
                lane.once()  # brings the model back into the caches that its rivals filled
            times = [lane.once() for _ in range(lane.repeats)]
            lane.samples += times
            lane.medians.append(statistics.median(times))
        rounds += 1
        if progress is not None:
            progress(min(99, int(100 * (time.monotonic() - start) / total)), 100)
    if progress is not None:
        progress(100, 100)


def _result(lane: _Lane, first: _Lane) -> BenchResult:
    model, output = lane.model, lane.model.session.outputs[0]
    numbers = summarise(lane.samples, lane.medians, None if lane is first else first.medians)
    return BenchResult(
        name=model.name,
        file=model.file,
        sha256=model.sha256,
        size=format_size(model.image.size) if model.image else None,
        output=f"{output.name}: {output.dtype} {output.shape}",
        notes=model.remarks,
        **numbers,
    )


def _warnings(results: Sequence[BenchResult], others: float | None, threads: int) -> tuple[str, ...]:
    found = []
    cores = usable_cores()
    if others is not None and others > MAX_LOAD:
        found.append(f"other processes used {others:.0%} of the {cores} cores during the measurement")
    if threads > cores:
        found.append(f"{threads} threads were asked for on {cores} usable cores")
    for result in results:
        if result.cv > MAX_CV:
            found.append(f"{result.name}: the coefficient of variation is {result.cv:.1%}; above {MAX_CV:.0%} is noisy")
    return tuple(found)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keep Python from collecting garbage in between."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()

"""Run one model on frames, or a ladder of networks of which a governor picks the one that keeps the deadline."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from export.bench_models import BenchModel, OpenModel, open_models
from export.bench_timing import named
from export.errors import InvalidInput
from export.governor import Governor
from export.runtime import Runtime
from export.target import TENSORRT

Process = Callable[[Image.Image | None], object]
WARM_UP_RUNS = 10


@dataclass(frozen=True)
class Contestant:
    """What takes part under one name."""

    name: str
    models: tuple[OpenModel, ...]
    """One, or the networks of a ladder, most accurate first."""
    mious: tuple[float | None, ...]

    def __enter__(self) -> Contestant:
        return self

    def __exit__(self, *exception: object) -> None:
        for model in self.models:
            model.session.close()


def open_contestant(model: BenchModel, runtime: Runtime, folder: Path) -> Contestant:
    """Open a model; of a bundle that is a ladder, every network."""
    if model.path is None or not model.path.is_dir():
        return Contestant(model.name, tuple(open_models([model], runtime, folder)), (None,))
    from export.bundle.bundle_ladder import read_ladder

    rungs = read_ladder(model.path, with_engine=runtime.target.runtime in TENSORRT)
    names = [model.name, *(f"{model.name}/{rung.folder.name}" for rung in rungs[1:])]
    members = [replace(model, name=name, path=rung.folder) for name, rung in zip(names, rungs, strict=True)]
    return Contestant(model.name, tuple(open_models(members, runtime, folder)), tuple(rung.miou for rung in rungs))


class Running:
    """A contestant that is ready to run.

    Args:
        contestant: open.
        prepare: returns what processes a frame with one model.
        first: a frame to warm up with.
        deadline_s: how old an output may be.

    Raises:
        InvalidInput: a model does not fit what it is prepared for, or a ladder's network is not faster than the one before.
    """

    def __init__(
        self, contestant: Contestant, prepare: Callable[[OpenModel], Process], first: Image.Image | None, deadline_s: float
    ) -> None:
        self._processes = []
        times = []
        for model in contestant.models:
            with named(model):
                process = prepare(model)
            times.append(warm_up(process, first))
            self._processes.append(process)
        try:
            self.governor = Governor(times, deadline_s)
        except InvalidInput as error:
            raise InvalidInput(f"{contestant.name}: {error}") from None

    def __call__(self, picture: Image.Image | None) -> object:
        """Process a frame with the network in charge."""
        return self._processes[self.governor.level](picture)


def warm_up(process: Process, first: Image.Image | None) -> float:
    """Run a few times; return the median of the seconds that the later half took."""
    seconds = []
    for _ in range(WARM_UP_RUNS):
        start = time.perf_counter()
        process(first)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[WARM_UP_RUNS // 2 :])


def weighted_miou(mious: Sequence[float | None], shares: Sequence[float]) -> float | None:
    """Return the mean mIoU, each network's weighted by its share of the time; None where one that ran is unknown."""
    used = [(miou, share) for miou, share in zip(mious, shares, strict=True) if share]
    if any(miou is None for miou, _ in used):
        return None
    return sum((miou or 0.0) * share for miou, share in used)

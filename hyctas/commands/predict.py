"""Segment images, videos or a camera's pictures, as files or on a live web page."""

from __future__ import annotations

import contextlib
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from export.bench_timing import named
from export.bundle.imaging import decode
from export.contestant import Contestant, open_contestant, warm_up
from export.errors import CheckFailed, InvalidInput
from export.paced import WARM_UP_SIZE
from export.prediction.frame_source import FrameSource, open_sources
from export.prediction.ladder_segmenter import LadderSegmenter
from export.prediction.live_page import LivePage, is_local
from export.prediction.prediction import OutputNames, VideoSink, predict, read_paths, sink_for
from export.prediction.segment import Segmenter, synthetic_jpeg
from export.prediction.stage_times import RECENT, StageTimes
from export.target import TENSORRT
from hyctas.cli.advice import command_line, explain
from hyctas.cli.show import bar, say
from hyctas.cli.values import image_size
from hyctas.commands.model_files import RUN, bench_model, choose_target, kind_of, named_models
from hyctas.commands.output_paths import check_writable
from hyctas.engine.settings import LoadSettings
from hyctas.engine.table_attention import open_target

if TYPE_CHECKING:
    import numpy as np

    from hyctas.cli.predict import PredictJob

LOOPBACK = "127.0.0.1"
SHOW_SECONDS = 0.5
Steps = Segmenter | LadderSegmenter


def predict_sources(job: PredictJob) -> None:
    """Segment the sources and say how fast that was."""
    (path,) = named_models(job.model)
    kind, size = kind_of(path), image_size(job.size) if job.size else None
    if size and kind == ".pt2":
        raise InvalidInput("--size: a .pt2 file has a fixed size; leave --size out")
    if not job.sources:
        raise InvalidInput("nothing to segment: give images, folders of images, videos, or a camera (camera:0)")
    if job.serve is not None and job.labels:
        raise InvalidInput("--labels writes files and --serve does not; give one of them")
    address = None if job.serve is None else parse_address(job.serve)
    if address is None:
        check_writable(job.out / "overlay.png")
    target = choose_target(job.target, [(path, kind)])
    if target.precision == "int8" and kind == RUN:
        raise InvalidInput(f"{path} is a run folder, whose network is not quantised; make an int8 file or bundle of it: "
                           f"{command_line('export', 'BUNDLE/', network=path, target=target)}")  # fmt: skip
    sources = open_sources(job.sources)
    try:
        runtime = open_target(target, job.threads, **(LoadSettings().arguments() if target.runtime in TENSORRT else {}))
        model = bench_model(path, kind, str(path), target, size)
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hyctas-predict-")))
            contestant = stack.enter_context(open_contestant(model, runtime, folder))
            opened, segmenter = contestant.models[0], ready_segmenter(contestant)
            say(f"model: {path} on {target}, {job.threads} thread{'s' * (job.threads != 1)}")
            times, unreadable = StageTimes(), Unreadable()
            if address is None:
                write_files(job, sources, segmenter, times, unreadable)
            else:
                serve(address, sources, segmenter, times, unreadable)
            for note in (*opened.remarks, *(note for source in sources for note in source.notes)):
                say(f"note: {note}")
    finally:
        for source in sources:
            source.close()
    if not times.frames and unreadable.texts:
        raise InvalidInput("nothing of what was given could be read")
    say(times.summary())
    if isinstance(segmenter, LadderSegmenter):
        say(segmenter.summary())
    if dropped := sum(source.dropped for source in sources):
        say(f"dropped {dropped} of the camera's {dropped + times.frames} pictures, for newer ones")
    if unreadable.texts:
        count = len(unreadable.texts)
        raise CheckFailed(f"{count} file{'s' * (count != 1)} could not be read; the others are done")


def ready_segmenter(contestant: Contestant) -> Steps:
    """Return what segments pictures; of a ladder, with how long each network takes."""
    segmenters = []
    for model in contestant.models:
        with named(model):
            segmenters.append(Segmenter(model))
    if len(segmenters) == 1:
        return segmenters[0]
    picture, first = decode(synthetic_jpeg(WARM_UP_SIZE, seed=0)), segmenters[0]

    def whole(_: Image.Image | None) -> None:
        labels = first.fit(first.labels(first.run(first.prepare(picture))), picture)
        first.draw(picture, labels)

    runs = [warm_up(partial(_run, segmenter, segmenter.prepare(picture)), None) for segmenter in segmenters]
    beside = warm_up(whole, None) - runs[0]  # the same for all, and often so much that it would hide which network is faster
    return LadderSegmenter(segmenters, [max(0.0, beside) + run for run in runs])


def _run(segmenter: Segmenter, tensor: np.ndarray, _: Image.Image | None) -> None:
    segmenter.run(tensor)


class Unreadable:
    """Names what cannot be read, once."""

    def __init__(self) -> None:
        self.texts: dict[str, None] = {}

    def __call__(self, error: InvalidInput) -> None:
        if str(error) not in self.texts:
            self.texts[str(error)] = None
            print(f"error: {explain(error)}", file=sys.stderr, flush=True)


def parse_address(text: str) -> tuple[str, int]:
    """Read [HOST:]PORT; an IPv6 address stands in brackets.

    Raises:
        InvalidInput: it is not of this form.
    """
    host, _, port = text.rpartition(":")
    right = port.isascii() and port.isdigit() and int(port) < 65536
    if not right or (":" in host and not re.fullmatch(r"\[.*\]", host)):
        raise InvalidInput(f"--serve {text!r} is no [HOST:]PORT, for instance 8000 or 0.0.0.0:8000; a port is at most 65535")
    return host.strip("[]") or LOOPBACK, int(port)


def write_files(
    job: PredictJob, sources: Sequence[FrameSource], segmenter: Steps, times: StageTimes, unreadable: Unreadable
) -> None:
    """Write the overlays of every source into a folder. Ctrl-C is how a camera ends."""
    names, colours = OutputNames(job.out, read_paths(sources)), segmenter.model.colours
    with progress(sources, times) as show:
        for source in sources:
            before = times.frames
            with sink_for(source, names, colours, job.labels) as sink:
                try:
                    predict(source, segmenter, sink, times, show, unreadable)
                except KeyboardInterrupt:
                    if source.rate is not None:
                        raise
            if times.frames > before:
                count = times.frames - before
                where = sink.path if isinstance(sink, VideoSink) else f"{count} overlay{'s' * (count != 1)} into {job.out}"
                say(f"wrote {where}")


def serve(
    address: tuple[str, int], sources: Sequence[FrameSource], segmenter: Steps, times: StageTimes, unreadable: Unreadable
) -> None:
    """Show the sources on a live page until Ctrl-C; files begin again at their end."""
    live = any(source.rate is None for source in sources)

    def now() -> dict[str, object]:
        return times.to_json() | {"dropped": sum(source.dropped for source in sources) if live else None}

    title = ", ".join(source.name for source in sources)
    with LivePage(*address, title, now) as page, progress(sources, times, endless=True) as show:
        say(f"live: {page.url}  (Ctrl-C ends)")
        if not is_local(address[0]):
            say(f"note: everybody who reaches {address[0]} can see the pictures")
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                before = times.frames
                for source in sources:
                    predict(source, segmenter, page, times, paced(show, source.rate), unreadable, source.rate)
                if live or times.frames == before:
                    return


def paced(show: Callable[[], None], rate: float | None) -> Callable[[], None]:
    """Return what shows the progress of a source, and waits until its next frame is due."""
    due = time.monotonic()

    def wait() -> None:
        nonlocal due
        show()
        if rate is not None:
            due = max(time.monotonic(), due + 1 / rate)
            time.sleep(max(0.0, due - time.monotonic()))

    return wait


@contextmanager
def progress(sources: Sequence[FrameSource], times: StageTimes, endless: bool = False) -> Iterator[Callable[[], None]]:
    """Show how far the sources are, but for one image; yields what is called after each frame."""
    totals = [source.total or 0 for source in sources]
    total = sum(totals) if all(totals) and not endless else 0
    if total == 1:
        yield lambda: None
        return
    with bar("segment") as shown:
        last = 0.0

        def show() -> None:
            nonlocal last
            if (now := time.monotonic()) - last >= SHOW_SECONDS:
                last = now
                text = f"{times.frames} frames, {times.recent_fps():.1f} FPS"
                dropped = sum(source.dropped for source in sources)
                text += f", {dropped} dropped" * (dropped > 0)
                text += f"; one takes {sum(times.medians_ms(RECENT).values()):.1f} ms"
                shown.update(min(1.0, times.frames / total), text) if total else shown.tell(text)

        yield show

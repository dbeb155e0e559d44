"""hyctas-bench: time one or more models, interleaved, and write a report that another person can reproduce."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from export.target import TENSORRT, format_size
from hyctas.cli.entry import command
from hyctas.cli.jobs import BenchJob, best_target, check_writable, image_size
from hyctas.cli.streams import printable

if TYPE_CHECKING:
    import numpy as np

    from export.bench_models import BenchModel
    from export.bench_report import BenchReport
    from export.paced import PacedReport
    from export.runtime import Runtime
    from export.target import Target

T = TypeVar("T")
MAX_IMAGES = 16
REFRESH_SECONDS = 0.5
JPEG_MARK = b"\xff\xd8\xff"
BUNDLE, RUN = "bundle", "run folder"


def main() -> None:
    """Run the command line."""
    command(
        bench_models, BenchJob, "Time models against each other on one target: FPS report as JSON, Markdown and HTML.",
        name="hyctas-bench", example="runs/mine/bundle other.onnx --threads 2", resumes=False,
    )  # fmt: skip


def bench_models(job: BenchJob) -> None:
    """Time the models and write the report."""
    from export.bench_timing import bench
    from export.errors import InvalidInput
    from export.paced import PacedReport, pace
    from hyctas.cli.show import say
    from hyctas.engine.table_attention import open_target
    from latency.lock import measuring

    if job.kit is not None or job.ingest is not None:
        if job.pace is not None:
            raise InvalidInput("--pace runs models on this machine; a kit times them back to back on a device: leave --pace out")
        from hyctas.cli.kit_bench import ingest_bench, write_bench_kit

        (write_bench_kit if job.ingest is None else ingest_bench)(job)
        return
    name = "fps.json" if job.run else "bench.json"
    out = job.out or (job.run or Path()) / (name if job.pace is None else "paced.json")
    check_out(out)
    paths = job.models or ((job.run,) if job.run else ())
    if not paths:
        raise InvalidInput("nothing to time: give ONNX files, .pt2 files, bundles or run folders, or --run RUN for its network")
    kinds = [kind_of(path) for path in paths]
    size = image_size(job.size) if job.size else None
    if size and ".pt2" in kinds:
        raise InvalidInput("--size: a .pt2 file has a fixed size; leave --size out")
    target = choose_target(job.target, list(zip(paths, kinds, strict=True)))
    check_trust(job.trust, paths)
    runtime = open_target(target, job.threads, **(job.loading().arguments() if target.runtime in TENSORRT else {}))
    models = [bench_model(path, kind, name, target, size) for path, kind, name in zip(paths, kinds, names(paths), strict=True)]
    images = load_images(job.data) if job.data else _street(models[0], runtime) if job.mode == "end-to-end" else []
    if images:
        say(f"images: {len(images)} from {job.data or 'a generated street scene'}")
    say(f"target: {target}, {job.threads} thread{'s' * (job.threads != 1)}; mode {job.mode}; {len(models)} "
        f"model{'s' * (len(models) != 1)} for {job.seconds:g} s each")  # fmt: skip
    with measuring(say), still_bar("time models") as show:
        report: BenchReport | PacedReport
        if job.pace is None:
            report = bench(
                models, target, job.threads, seconds=job.seconds, mode=job.mode, progress=show, images=images, runtime=runtime
            )
        else:
            report = pace(models, runtime, job.pace, job.seconds, job.mode, images, show)
    if isinstance(report, PacedReport):
        print_paced(report)
    else:
        print_report(report)
    for path in write_report(report, out):
        say(f"wrote {path}")
    if job.run and (job.run / "train-network.json").exists():
        from hyctas.cli.report import report_run

        say(f"wrote {report_run(job.run)}")


def check_trust(trust: bool, paths: Sequence[Path]) -> None:
    """Refuse files whose reading executes code, unless told otherwise.

    Raises:
        InvalidInput: there is one.
    """
    from export.errors import InvalidInput

    found = next((path for path in paths if path.suffix.lower() == ".pt2"), None)
    if found is not None and not trust:
        raise InvalidInput(
            f"{found}: reading a .pt2 file executes code that stands in it (pickled objects, libraries compiled by AOTInductor). "
            "Repeat the command with --trust where you know who made it; an .onnx file or a bundle's model.onnx is data alone"
        )


def kind_of(path: Path) -> str:
    """Return `.onnx`, `.pt2`, `.engine`, `bundle` or `run folder`.

    Raises:
        InvalidInput: nothing there, or nothing that can be timed.
    """
    from export.errors import InvalidInput

    if not path.exists():
        raise InvalidInput(f"no such file or folder: {path}")
    if path.is_dir():
        if (path / "manifest.json").exists():
            return BUNDLE
        if (path / "network.safetensors").exists():
            return RUN
        raise InvalidInput(f"{path} is no bundle (manifest.json) and no run with a trained network (network.safetensors)")
    if path.suffix.lower() not in (".onnx", ".pt2", ".engine"):
        raise InvalidInput(f"{path}: suffix {path.suffix!r} is unknown; give .onnx, .pt2 or .engine files, bundles, or run folders")
    return path.suffix.lower()


def choose_target(text: str | None, models: Sequence[tuple[Path, str]]) -> Target:
    """Return the target asked for, or the best available one that runs all models; bundles and runs run on any.

    That is TensorRT where a bundle has an engine, or an engine is to be timed.

    Raises:
        InvalidInput: no one target runs all of them, or the one asked for does not.
    """
    from export.errors import InvalidInput
    from export.target import Target

    suffixes = (".onnx", ".pt2", ".engine")
    onnx, pt2, engine = (next((path for path, kind in models if kind == suffix), None) for suffix in suffixes)
    if engine and pt2:
        raise InvalidInput(f"{engine} runs on tensorrt, {pt2} on torch: no target runs both; time them in two commands")
    if engine:
        return _target_of_engine(text, engine)
    if onnx and pt2:
        raise InvalidInput(f"{onnx} runs on onnxruntime, {pt2} on torch: no target runs both; time them in two commands")
    runtimes = ("onnxruntime-",) if onnx else ("torch-",) if pt2 else ("onnxruntime-", "torch-")
    if text is not None:
        target = Target.parse(text)
        if (onnx or pt2) and target.runtime.startswith(("onnxruntime-", "torch-")) and not target.runtime.startswith(runtimes):
            raise InvalidInput(f"{target} does not run {onnx or pt2}; take {runtimes[0]}cpu:fp32, or a bundle (runs on both)")
        return target
    built = None if pt2 else _engine_of_bundles([path for path, kind in models if kind == BUNDLE])
    return best_target(runtimes) if built is None else _target_of_engine(None, built)


def _engine_of_bundles(folders: Sequence[Path]) -> Path | None:
    """Return the engine of the first bundle that has one, where TensorRT can be used."""
    from export.bundle.bundle_engine import ENGINE_NAME, bundle_of, engine_listed
    from export.trt.cuda.guard import unavailable_reason
    from export.trt.engine_file import read_manifest

    engines = {path: read_manifest(path) for path in (folder / ENGINE_NAME for folder in folders) if bundle_of(path)}
    usable = {name: unavailable_reason(name) is None for name in {built.machine.runtime for built in engines.values() if built}}
    able = [path for path, built in engines.items() if built is not None and usable[built.machine.runtime]]
    return next((path for path in able if engine_listed(path.parent)), None)  # last, since it hashes whole engines


def _target_of_engine(text: str | None, engine: Path) -> Target:
    """Return the target asked for, or the one that an engine's manifest says it was built for."""
    from export.errors import InvalidInput
    from export.target import Target
    from export.trt.engine_file import read_manifest

    manifest = read_manifest(engine)
    built = manifest.target if manifest is not None else "tensorrt:fp16"
    target = Target.parse(built if text is None else text)
    if target.runtime not in TENSORRT:
        raise InvalidInput(f"{target} does not run {engine}; take {built}, or time {engine.with_suffix('.onnx')}")
    return target


def names(paths: Sequence[Path]) -> list[str]:
    """Name models by their file names; by their paths where those are equal, numbered where these are equal as well."""
    short = [path.resolve().name for path in paths]
    full = [name if short.count(name) == 1 else str(path) for path, name in zip(paths, short, strict=True)]
    return [name if full.count(name) == 1 else f"{name} ({full[: i + 1].count(name)})" for i, name in enumerate(full)]


def load_images(spec: str) -> list[bytes]:
    """Read at most `MAX_IMAGES` images as JPEG files in memory, evenly spread over a folder of images or a data set.

    JPEG files are taken as they are (decoding turns them upright), others are encoded at quality 90.

    Raises:
        InvalidInput: no images there, or a file that is none.
    """
    from export.bundle.imaging import is_photograph
    from export.errors import InvalidInput
    from hyctas.data import open_source
    from hyctas.data.images import read_image

    folder = Path(spec).expanduser()
    files = sorted(filter(is_photograph, folder.iterdir())) if folder.is_dir() else []
    if files:
        chosen = [(read_image(path), path.read_bytes()) for path in _spread(files)]  # names a file that is no image
        return [data if data.startswith(JPEG_MARK) else _jpeg(array) for array, data in chosen]
    source = open_source(spec)
    split = "val" if "val" in source.splits else source.splits[0]
    samples = source.samples(split)
    if not samples:
        raise InvalidInput(f"data {spec!r}: split {split} has no images")
    return [_jpeg(source.load(split, sample)[0]) for sample in _spread(samples)]


def write_report(report: BenchReport | PacedReport, out: Path) -> tuple[Path, Path, Path]:
    """Write FILE.json, FILE.md and FILE.html."""
    from export.files import write_json, write_text

    paths = out, out.with_suffix(".md"), out.with_suffix(".html")
    write_json(paths[0], {**report.to_json(), "command_line": [Path(sys.argv[0]).name, *sys.argv[1:]]})
    write_text(paths[1], report.to_markdown())
    write_text(paths[2], report.to_html())
    return paths


def check_out(out: Path) -> None:
    """Refuse a report file that cannot be written, or that would replace something else.

    Raises:
        InvalidInput: no .json file, not writable, or taken.
    """
    from export.bench_report import FORMAT_VERSION
    from export.errors import CorruptFile, InvalidInput
    from export.files import read_json

    if out.suffix != ".json":
        raise InvalidInput(f"--out {out}: the report's name ends in .json; .md and .html files appear beside it")
    check_writable(out)
    taken = [path for path in (out, out.with_suffix(".md"), out.with_suffix(".html")) if path.exists()]
    if not taken:
        return
    try:
        ours = {"target", "models", "mode"} <= set(read_json(out, FORMAT_VERSION))
    except (OSError, CorruptFile):
        ours = False
    if not ours:
        raise InvalidInput(f"{taken[0]} exists and is no report of hyctas-bench; choose another --out or move it away")


@contextmanager
def still_bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """Open a progress bar that draws only when it is called, between timings: a drawing thread would disturb them."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from hyctas.cli.show import bar, console

    if not console.is_terminal:
        with bar(name) as shown:
            yield lambda done, total: shown.update(done / total)
        return
    columns = TextColumn("{task.description:<22}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as progress:
        task, drawn = progress.add_task(name), [0.0]
        progress.refresh()

        def show(done: int, total: int) -> None:
            if time.monotonic() - drawn[0] >= REFRESH_SECONDS or done == total:
                progress.update(task, completed=done, total=total, refresh=True)
                drawn[0] = time.monotonic()

        yield show


def bench_model(path: Path, kind: str, name: str, target: Target, size: tuple[int, int] | None) -> BenchModel:
    """Return what is opened of a file, bundle or run folder on a target; a run's network comes with its classes' colours.

    Raises:
        InvalidInput: made for another size, or for none that it says.
    """
    import numpy as np

    from export.bench_models import BenchModel
    from export.errors import InvalidInput

    if kind != RUN and not (kind == BUNDLE and target.runtime.startswith("torch-")):
        return BenchModel(name, path=path, size=size)
    from hyctas.artifacts.bundling import load_trained

    trained = load_trained(path)
    own = trained.size
    if kind == BUNDLE and size and own and size != own:
        raise InvalidInput(f"{path} is made for {format_size(own)}, asked for {format_size(size)}; leave --size out")
    if (size or own) is None:
        raise InvalidInput(f"{path} does not say for which image size; give --size HEIGHTxWIDTH")
    colours = np.array(trained.labels.colours, np.uint8)
    return BenchModel(name, module=trained.network, size=size or own, preprocessing=trained.preprocessing, colours=colours)


def _street(model: BenchModel, runtime: Runtime) -> list[bytes]:
    """Paint one clip of a street at a model's size, as JPEG files."""
    import tempfile

    from export.bench_models import open_models
    from hyctas.data import Scenes
    from hyctas.data.scenes import FRAMES_PER_CLIP

    size = model.size
    if size is None:
        with tempfile.TemporaryDirectory(prefix="hyctas-bench-") as folder:
            with open_models([replace(model, name="first")], runtime, Path(folder))[0] as opened:
                size = opened.usual_image().size
    scenes = Scenes(size=size, train=0, val=FRAMES_PER_CLIP)
    return [_jpeg(scenes.load("val", sample)[0]) for sample in scenes.samples("val")]


def _jpeg(image: np.ndarray) -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _spread(items: Sequence[T]) -> list[T]:
    step = max(1.0, len(items) / MAX_IMAGES)
    return [items[int(i * step)] for i in range(min(len(items), MAX_IMAGES))]


def print_paced(report: PacedReport) -> None:
    """Print what `--pace` found."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=report.title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    head, *rows = report.rows()
    for index, name in enumerate(head):
        table.add_column(name, justify="right" if index else "left", overflow="fold", no_wrap=index > 0)
    for row in rows:
        table.add_row(*(escape(printable(cell)) for cell in row))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    console.print(table)
    for remark in report.remarks():
        console.print(printable(f"note: {remark}"), soft_wrap=True, markup=False)


def print_report(report: BenchReport) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    sizes = sorted({result.size or "no image" for result in report.models})
    title = f"{report.target}, {report.threads} thread{'s' * (report.threads != 1)}, mode {report.mode}, {', '.join(sizes)}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("model", overflow="fold", min_width=8)
    columns = ("size",) * (len(sizes) > 1) + ("FPS", "median ms", "p90", "p95", "p99", "CV", "time by first")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for result in report.models:
        ratio = "1" if result.ratio_median is None else f"{result.ratio_median:.3f}"
        if result.ratio_p10 is not None:
            ratio += f" [{result.ratio_p10:.3f}, {result.ratio_p90:.3f}]"
        times = [f"{ms:.3f}" for ms in (result.median_ms, result.p90_ms, result.p95_ms, result.p99_ms)]
        cells = [f"{result.fps:.1f}", *times, f"{result.cv:.1%}", escape(ratio)]
        table.add_row(escape(printable(result.name)), *([result.size or "no image"] if len(sizes) > 1 else []), *cells)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    console.print(table)
    for warning in report.warnings:
        console.print(f"[yellow]warning:[/] {escape(printable(warning))}", soft_wrap=True)
    for result in report.models:
        for note in result.notes:
            console.print(printable(f"note: {result.name}: {note}"), soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()

"""Configure the jobs that the commands run: one frozen dataclass per command, its docstrings the help texts. No torch here."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from export.errors import InvalidInput
from export.files import utf8_path
from export.ranges import Classes, Minutes, Range, Seed, Settings, Threads
from export.target import Target, parse_size
from hyctas.cli.values import fill
from hyctas.presets import read_preset
from hyctas.search.search_settings import SearchSettings
from hyctas.training.config import NetworkRecipe, Recipe, SupernetRecipe

if TYPE_CHECKING:
    from hyctas.engine.settings import EngineSettings, LoadSettings
    from latency.protocol import Protocol


BUDGETS = ("minutes", "steps")
"""Settings of a recipe of which exactly one is given."""


@dataclass(frozen=True, kw_only=True)
class ProfileJob(Settings):
    """What hyctas-profile measures."""

    run: Path = Path("runs/new")
    """Run folder; the table is RUN/latency.json."""
    space: str = "edge"
    """Search space: edge, tiny, published, or a Python file with a function `space()`."""
    size: str = "360x480"
    """Image size, HEIGHTxWIDTH."""
    target: str | None = None
    """Where to measure, for instance onnxruntime-cpu:fp32; default: the best available one, printed."""
    threads: Threads = 1
    """Threads on a CPU target."""
    classes: Classes | None = None
    """Number of classes; default: those of --data, or 19."""
    data: str | None = None
    """Data set, to take the number of classes from."""
    networks: Annotated[int, Range(0, 1000)] = 60
    """Whole networks measured to calibrate the prediction; 0: none."""
    shard: str | None = None
    """Measure one part of the operators, for instance 2/4: several equal machines share the work; then --merge."""
    merge: tuple[Path, ...] = ()
    """Tables of equal machines that are joined to RUN/latency.json first; what none of them has is measured."""
    check: Path | None = None
    """Measure a sample of this table again and say whether it still describes this machine; nothing else happens."""
    kit: Path | None = None
    """Write a folder that measures all this with trtexec on a device without Python; target tensorrt:fp16 or :fp32."""
    ingest: Path | None = None
    """Take the table from a kit's folder that came back from the device; --space, --size, --target are the kit's."""
    restart: bool = False
    """Move the old table aside and start over."""
    expert: tyro.conf.Suppress[str] = "{}"
    """Settings of the measuring protocol from a TOML file, as JSON."""

    @classmethod
    def settings(cls) -> type[Protocol]:
        """Return what a TOML file may set besides the flags."""
        from latency.protocol import Protocol

        return Protocol

    def protocol(self) -> Protocol:
        """Return how operators are timed: defaults, then the TOML file.

        Raises:
            InvalidInput: a value of the wrong type, or out of range.
        """
        return fill(self.settings(), json.loads(self.expert))


@dataclass(frozen=True, kw_only=True)
class TrainJob(Settings):
    """What both kinds of training share. All further settings of the recipe (see docs/configuration.md) go into a TOML file."""

    run: Path = Path("runs/new")
    """Run folder."""
    data: str = "scenes"
    """Data set: scenes, scenes:seed=1,train=200,val=40,size=96x128, or a folder (docs/own_data.md lists the layouts)."""
    init: str | None = None
    """Weights to start from: efficientnet-lite0 (1, 2), a .pth or .safetensors file, timm:NAME, a run or bundle, none; default: \
efficientnet-lite0 for space edge, else none."""
    preset: str | None = None
    """Settings to start from: quick, standard or best; what a TOML file or another flag sets wins."""
    minutes: Minutes | None = None
    """Time budget in minutes; default 30."""
    steps: Annotated[int, Range(1, 10**9)] | None = None
    """Number of steps instead of a time budget: equal seeds then give equal weights."""
    size: str | None = None
    """Resize all images to HEIGHTxWIDTH first."""
    crop: str | None = None
    """Training crop, HEIGHTxWIDTH; default 240x320."""
    batch: Annotated[int, Range(2, 4096)] | None = None
    """Crops per step; default 12."""
    seed: Seed | None = None
    """Seed of every draw; default 0."""
    restart: bool = False
    """Move the old results aside and start over."""
    expert: tyro.conf.Suppress[str] = "{}"
    """Settings of the recipe from a TOML file, as JSON."""

    RECIPE: ClassVar[type[Recipe]] = Recipe

    @classmethod
    def settings(cls) -> type[Recipe]:
        """Return what a TOML file may set besides the flags."""
        return cls.RECIPE

    def recipe(self) -> Recipe:
        """Return the recipe: defaults, then the preset, then the TOML file, then the command line.

        Raises:
            InvalidInput: an unknown preset, a value of the wrong type, or out of range.
        """
        flags = ("minutes", "steps", "size", "crop", "batch", "seed")
        given = json.loads(self.expert) | {name: value for name in flags if (value := getattr(self, name)) is not None}
        values: dict[str, Any] = {"minutes": 30.0} if self.preset is None else read_preset(self.preset)
        if not given.keys().isdisjoint(BUDGETS):  # a budget of one kind replaces a budget of the other
            values = {name: value for name, value in values.items() if name not in BUDGETS}
        values |= given
        for name in ("size", "crop"):
            if isinstance(values.get(name), str):
                values[name] = image_size(values[name])
        return fill(self.RECIPE, values)


@dataclass(frozen=True, kw_only=True)
class TrainSupernetJob(TrainJob):
    """What `hyctas-train supernet` trains: RUN/supernet.safetensors."""

    space: str = "edge"
    """Search space: edge, tiny, published, or a Python file with a function `space()`."""
    limit: tuple[str, ...] = ()
    """Latency that the networks are for (ms=12 or fps=80): those predicted at 0.5 to 1.2 times it are trained, and no others."""
    table: Path | None = None
    """Latency table for --limit; default RUN/latency.json."""

    RECIPE: ClassVar[type[Recipe]] = SupernetRecipe


@dataclass(frozen=True, kw_only=True)
class TrainNetworkJob(TrainJob):
    """What `hyctas-train network` trains: RUN/network.safetensors."""

    space: str | None = None
    """Your own space file, where --init names a supernet that was trained on one: no run folder has code run."""
    network: Path | None = None
    """Genotype JSON, edge:NAME (hand-made ones), or published:S (M, L); default: the chosen network of RUN/pareto.json."""
    all_of_train: bool = False
    """Train on all of train, the part that networks are chosen by included: only val tells then how good it is."""
    teacher: tuple[Path, ...] = ()
    """Follow a trained network too: a run folder, bundle or ONNX file of the same classes; several are averaged."""

    RECIPE: ClassVar[type[Recipe]] = NetworkRecipe


@dataclass(frozen=True, kw_only=True)
class SearchJob(Settings):
    """What hyctas-search looks for: RUN/history.jsonl, finalists, pareto.json, pareto.svg."""

    run: Path = Path("runs/new")
    """Run folder with supernet.safetensors and latency.json."""
    space: str | None = None
    """Your own space file, where the supernet was trained on one: no run folder has code run."""
    data: str | None = None
    """Data set; default: the one that the supernet was trained on, where it was then."""
    table: Path | None = None
    """Latency table; default RUN/latency.json."""
    size: str | None = None
    """Image size that latency counts for, HEIGHTxWIDTH; default: the one that the table was calibrated for."""
    limit: tuple[str, ...] = ()
    """Limits that every network must keep, for instance: fps=30 ms=33 params=2e6 mib=64."""
    confidence: Annotated[float, Range(50, below=100)] | None = None
    """Keep the latency limit with this confidence in per cent (95), by an upper bound; default: by the prediction."""
    max_error: Annotated[float, Range(0, 1e6)] = 10.0
    """Refuse a latency table whose hold-out error (MAPE) exceeds this many per cent."""
    evaluations: Annotated[int, Range(2, 10**6)] = 200
    """Networks scored; twice as many are screened on a few images first."""
    images: Annotated[int, Range(2, 10**6)] = 60
    """Images of the choosing split that a network is scored on."""
    seed: Seed = 0
    """Seed of every draw."""
    measure: Annotated[int, Range(0, 1000)] = 8
    """Networks of the front that are measured whole on the target; 0: none."""
    finalists: Annotated[int, Range(0, 1000)] = 12
    """Networks that train for a while before one is chosen, the best hand-made ones among them; 0: choose by shared weights."""
    finalist_steps: Annotated[int, Range(1, 10**6)] = 100
    """Training steps of each finalist in the first round; then the worse half goes, and the next round has twice as many."""
    restart: bool = False
    """Move the old results aside and start over."""
    expert: tyro.conf.Suppress[str] = "{}"
    """Settings of the search from a TOML file, as JSON."""

    @classmethod
    def settings(cls) -> type[SearchSettings]:
        """Return what a TOML file may set besides the flags."""
        return SearchSettings

    def search(self) -> SearchSettings:
        """Return how networks are proposed and scored: defaults, then the TOML file.

        Raises:
            InvalidInput: a value of the wrong type, or out of range.
        """
        values = json.loads(self.expert)
        if isinstance(values.get("eval_size"), str):
            values["eval_size"] = image_size(values["eval_size"])
        return fill(self.settings(), values)


@dataclass(frozen=True, kw_only=True)
class DemoJob(Settings):
    """What hyctas-demo does."""

    run: Path = Path("runs/demo")
    """Run folder."""
    data: str | None = None
    """Your data set's folder (docs/own_data.md lists the layouts); default: generated street scenes."""
    fps: Annotated[float, Range(above=0, at_most=1e6)] | None = None
    """Frame rate to reach on the target; default: none, the whole front is searched."""
    target: str | None = None
    """Where the network will run, for instance onnxruntime-cpu:fp32; default: the best available here, TensorRT aside."""
    size: str | None = None
    """Image size, HEIGHTxWIDTH; default: that of the first image, at most 640 pixels long."""
    threads: Threads = 2
    """Threads on a CPU target."""
    minutes: Annotated[float, Range(1, 10_000)] = 4.0
    """How much work to do; from 30 on, the space is edge instead of tiny. Good results on real data take hours."""
    restart: bool = False
    """Move old results aside and start over."""


@dataclass(frozen=True, kw_only=True)
class ExportJob(Settings):
    """What hyctas-export writes, of which network."""

    file: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUTPUT")]
    """model.onnx, model.pt2, model.engine, or a folder (no suffix, or a / at its end) for a whole bundle."""
    network: Path | None = None
    """Run folder, genotype JSON, published:S (M, L), or bundle; default: the newest run with a trained network, printed."""
    checkpoint: Path | None = None
    """Weights of the released code (.pth) for a published network."""
    target: str | None = None
    """What it is meant for, for instance onnxruntime-cpu:fp32; default: the best available one that runs such a file."""
    output: Literal["native", "logits", "labels", "panoptic"] = "native"
    """native: logits at the head's stride; logits: at image size; labels: their argmax; panoptic: centres and offsets too."""
    size: str | None = None
    """Image size, HEIGHTxWIDTH; default: the one that the run or bundle was made for."""
    classes: Classes | None = None
    """Number of classes of a genotype; default 19."""
    threads: Threads = 1
    """Threads that it is meant to run with, for the manifest and the hyctas-bench command that is printed."""
    random_weights: bool = False
    """Export a genotype with random weights: to time it, not to segment with it."""
    rebuild: bool = False
    """Build an engine anew as its manifest says, from its bundle or the ONNX file beside it, if it does not fit this machine."""
    gpu: str | None = None
    """GPUs that a tensorrt-rtx engine is for, for instance sm_86,sm_89,sm_120: none of them need be here."""
    cuda_backend: Literal["torch", "cuda-bindings", "pycuda"] | None = None
    """Who talks to CUDA for an engine; default: the first that works."""
    expert: tyro.conf.Suppress[str] = "{}"
    """Settings of an engine's build from a TOML file, as JSON."""

    @classmethod
    def settings(cls) -> type[EngineSettings]:
        """Return what a TOML file may set besides the flags."""
        from hyctas.engine.settings import EngineSettings

        return EngineSettings

    def engine(self) -> EngineSettings:
        """Return how an engine is built: defaults, then the TOML file.

        Raises:
            InvalidInput: a value of the wrong type, or one that is not allowed.
        """
        return fill(self.settings(), json.loads(self.expert) | {"cuda_backend": self.cuda_backend})


@dataclass(frozen=True, kw_only=True)
class BenchJob(Settings):
    """What hyctas-bench times."""

    models: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="[MODEL ...]")] = ()
    """.onnx files (anybody's), .pt2 files, .engine files, bundles, run folders; the first is what the others are compared with."""
    target: str | None = None
    """Where to time, for instance onnxruntime-cpu:fp32; default: the best available one that runs the models, printed."""
    threads: Threads = 1
    """Threads on a CPU target."""
    seconds: Annotated[float, Range(above=0, at_most=86400)] = 3.0
    """Measured time per model."""
    pace: Annotated[float, Range(above=0, at_most=1e4)] | None = None
    """Let that many frames per second arrive by the clock, as from a camera, and report what is missed and how old outputs are."""
    mode: Literal["model", "labels", "end-to-end"] = "model"
    """model: the network alone; labels: tensor in memory to labels; end-to-end: JPEG bytes to overlay."""
    size: str | None = None
    """Image size, HEIGHTxWIDTH, for ONNX files with a dynamic one and for run folders."""
    out: Path | None = None
    """Report, FILE.json (FILE.md and FILE.html appear beside it); default RUN/fps.json, or bench.json without --run."""
    data: str | None = None
    """Images to time with: a folder of images, or a data set (see hyctas-train); default: a generated street scene."""
    run: Path | None = None
    """Run folder for the reports (RUN/report.html too); its trained network is timed where no models are given."""
    kit: Path | None = None
    """Write a folder that times the models with trtexec on a device without Python; target tensorrt:fp16 or :fp32."""
    ingest: Path | None = None
    """Make the report from a kit's folder that came back from the device."""
    cuda_backend: Literal["torch", "cuda-bindings", "pycuda"] | None = None
    """Who talks to CUDA for engines; default: the first that works."""
    trust: bool = False
    """Load .pt2 files, and engines without a manifest or changed since it was written: executes code in them."""
    expert: tyro.conf.Suppress[str] = "{}"
    """Settings of how engines are loaded from a TOML file, as JSON."""

    @classmethod
    def settings(cls) -> type[LoadSettings]:
        """Return what a TOML file may set besides the flags."""
        from hyctas.engine.settings import LoadSettings

        return LoadSettings

    def loading(self) -> LoadSettings:
        """Return how TensorRT engines are loaded: defaults, then the TOML file.

        Raises:
            InvalidInput: a value of the wrong type.
        """
        return fill(self.settings(), json.loads(self.expert) | {"cuda_backend": self.cuda_backend, "trust": self.trust})


@dataclass(frozen=True, kw_only=True)
class PredictJob(Settings):
    """What hyctas-predict segments, and where the results go."""

    sources: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="SOURCE [SOURCE ...]")]
    """Images, folders of images, videos, or a camera: camera:0, /dev/video0, rtsp://..., http://..."""
    model: Path | None = None
    """ONNX file, bundle, engine or run folder; default: models/balanced, where the current folder has it."""
    target: str | None = None
    """Where to run it, for instance onnxruntime-cpu:fp32; default: the best available one that runs the model, printed."""
    threads: Threads = 2
    """Threads on a CPU target."""
    size: str | None = None
    """Image size of the model, HEIGHTxWIDTH, for an ONNX file with a dynamic one and for a run folder."""
    out: Path = Path("predictions")
    """Folder for the overlays: NAME.overlay.png; NAME.overlay.mp4 of a video or camera."""
    labels: bool = False
    """Write label maps too, PNG of 8 bits: NAME.labels.png; of a video or camera a folder of them, NAME.labels."""
    serve: str | None = None
    """Show a live web page at [HOST:]PORT instead of writing files; without HOST only this machine sees it."""


@dataclass(frozen=True, kw_only=True)
class DoctorJob(Settings):
    """How hyctas-doctor answers."""

    json: bool = False
    """Print JSON, to attach to a bug report: no host name, user or path is in it."""


def check_writable(path: Path) -> None:
    """Refuse a path that cannot be written to before work is spent on it.

    Raises:
        InvalidInput: no folder can be there, it is read-only, or the name is empty or too long.
    """
    if not path.name or len(os.fsencode(path.name)) > 200:  # temporary names beside it are longer
        raise InvalidInput(f"cannot write {str(path)!r}: give a name of 1 to 200 bytes")
    utf8_path(path.absolute())
    try:
        place = path.absolute().parent
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.stat()  # unlike `exists`, it tells of symbolic links in a circle
        while not place.exists():
            place = place.parent
        fits = place.is_dir() and os.access(place, os.W_OK | os.X_OK)
    except OSError as error:
        raise InvalidInput(f"cannot write {path}: {error.strerror}") from None
    if not fits:
        why = "you may not write there" if place.is_dir() else "it is no folder"
        raise InvalidInput(f"cannot write {path}: {place} is in the way, {why}")


def parse_target(text: str | None) -> Target:
    """Return the target asked for, or the best available one."""
    if text is not None:
        return Target.parse(text)
    from export.runtimes import default_target

    return default_target()


def best_target(runtimes: tuple[str, ...]) -> Target:
    """Return the best available target among those whose runtime begins with one of `runtimes`.

    Raises:
        Unavailable: none of them can run here; the text is about the humblest.
    """
    from export.errors import Unavailable
    from export.runtimes import PREFERRED, available_targets

    states = {state.target: state for state in available_targets()}
    fitting = [states[name] for name in PREFERRED if name.startswith(runtimes)]
    for state in fitting:
        if state.ok:
            return Target.parse(state.target)
    raise Unavailable(fitting[-1].target, fitting[-1].reason, fitting[-1].install)


def image_size(text: str) -> tuple[int, int]:
    """Parse HEIGHTxWIDTH; at least 32 pixels each way.

    Raises:
        InvalidInput: not a size, or too small.
    """
    size = parse_size(text)
    if min(size) < 32:
        raise InvalidInput(f"size {text} is too small: networks halve the image five times; use at least 32x32")
    return size

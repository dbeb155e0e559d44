"""Configure the jobs that the commands run: one frozen dataclass per command, its docstrings the help texts. No torch here."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import tyro

from export.errors import InvalidInput
from export.target import Target, parse_size
from hyctas.training.config import Recipe, SupernetRecipe

R = TypeVar("R", bound=Recipe)


@dataclass(frozen=True, kw_only=True)
class ProfileJob:
    """What hyctas-profile measures."""

    run: Path = Path("runs/new")
    """Run folder; the table is RUN/latency.json."""
    space: str = "edge"
    """Search space: edge, tiny, or a Python file with a function `space()`."""
    size: str = "360x480"
    """Image size, HEIGHTxWIDTH."""
    target: str | None = None
    """Where to measure, for instance onnxruntime-cpu:fp32; default: the best available one, printed."""
    threads: int = 1
    """Threads on a CPU target."""
    classes: int | None = None
    """Number of classes; default: those of --data, or 19."""
    data: str | None = None
    """Data set, to take the number of classes from."""
    networks: int = 30
    """Whole networks measured to calibrate the prediction; 0: none."""
    budget_ms: float = 250.0
    """Time for the samples of one operator, in milliseconds."""
    restart: bool = False
    """Move the old table aside and start over."""


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """What both kinds of training share. All further settings of the recipe (see docs/configuration.md) go into a TOML file."""

    run: Path = Path("runs/new")
    """Run folder."""
    data: str = "scenes"
    """Data set: scenes, scenes:seed=1,train=200,val=40,size=96x128, or a folder (CamVid, Cityscapes, plain layout)."""
    minutes: float | None = None
    """Time budget in minutes; default 30."""
    steps: int | None = None
    """Number of steps instead of a time budget: equal seeds then give equal weights."""
    size: str | None = None
    """Resize all images to HEIGHTxWIDTH first."""
    crop: str | None = None
    """Training crop, HEIGHTxWIDTH; default 240x320."""
    batch: int | None = None
    """Crops per step; default 12."""
    seed: int | None = None
    """Seed of every draw; default 0."""
    restart: bool = False
    """Move the old results aside and start over."""
    expert: tyro.conf.Suppress[str] = "{}"
    """Settings of the recipe from a TOML file, as JSON."""

    RECIPE: ClassVar[type[Recipe]] = Recipe

    def recipe(self) -> Recipe:
        """Return the recipe: defaults, then the TOML file, then the command line.

        Raises:
            InvalidInput: a value of the wrong type, or out of range.
        """
        values: dict[str, Any] = json.loads(self.expert)
        for name in ("minutes", "steps", "batch", "seed", "max_gmacs"):
            if getattr(self, name, None) is not None:
                values[name] = getattr(self, name)
        for name in ("size", "crop"):
            if (text := getattr(self, name)) is not None:
                values[name] = image_size(text)
        if values.keys().isdisjoint(("minutes", "steps")):
            values["minutes"] = 30.0
        return fill(self.RECIPE, values)


@dataclass(frozen=True, kw_only=True)
class TrainSupernetJob(TrainJob):
    """What `hyctas-train supernet` trains: RUN/supernet.safetensors."""

    space: str = "edge"
    """Search space: edge, tiny, or a Python file with a function `space()`."""
    max_gmacs: float | None = None
    """Largest network trained, in GMAC at the crop's size; choose it above what your device can run in time."""

    RECIPE: ClassVar[type[Recipe]] = SupernetRecipe


@dataclass(frozen=True, kw_only=True)
class TrainNetworkJob(TrainJob):
    """What `hyctas-train network` trains: RUN/network.safetensors."""

    network: Path | None = None
    """Genotype JSON; default: the chosen network of RUN/pareto.json."""
    inherit: bool = False
    """Start from the weights of RUN/supernet.safetensors instead of random ones."""


@dataclass(frozen=True, kw_only=True)
class SearchJob:
    """What hyctas-search looks for: RUN/history.jsonl, pareto.json, pareto.svg."""

    run: Path = Path("runs/new")
    """Run folder with supernet.safetensors and latency.json."""
    table: Path | None = None
    """Latency table; default RUN/latency.json."""
    limit: tuple[str, ...] = ()
    """Limits that every network must keep, for instance: fps=30 ms=33 params=2e6 mib=64."""
    evaluations: int = 200
    """Networks evaluated by the search, and as many by the random baseline."""
    population: int = 24
    """Networks per generation."""
    images: int = 60
    """Images of the choosing split that a network is scored on."""
    eval_size: str | None = None
    """Resize those images to HEIGHTxWIDTH; default: as the supernet was trained."""
    norm_batches: int = 2
    """Batches of 8 images that norms are re-estimated on."""
    threads: int = 2
    """Threads for scoring; fixed, since results depend on it in the last digits."""
    seed: int = 0
    """Seed of every draw."""
    measure: int = 8
    """Networks of the front that are measured whole on the target."""
    restart: bool = False
    """Move the old results aside and start over."""


def parse_target(text: str | None) -> Target:
    """Return the target asked for, or the best available one."""
    if text is not None:
        return Target.parse(text)
    from export.runtimes import default_target

    return default_target()


def image_size(text: str) -> tuple[int, int]:
    """Parse HEIGHTxWIDTH; at least 32 pixels each way.

    Raises:
        InvalidInput: not a size, or too small.
    """
    size = parse_size(text)
    if min(size) < 32:
        raise InvalidInput(f"size {text} is too small: networks halve the image five times; use at least 32x32")
    return size


def fill(kind: type[R], values: dict[str, Any]) -> R:
    """Build a recipe from plain values.

    Raises:
        InvalidInput: an unknown name or a value of the wrong type; the text says what is allowed.
    """
    hints = typing.get_type_hints(kind)
    if unknown := sorted(set(values) - set(hints)):
        raise InvalidInput(f"unknown settings {unknown}; known: {', '.join(sorted(hints))}")
    converted = {}
    for name, value in values.items():
        value = tuple(value) if isinstance(value, list) else value
        if not _fits(value, hints[name]):
            shown = str(hints[name]) if typing.get_origin(hints[name]) else hints[name].__name__
            raise InvalidInput(f"{name} must be {shown}, found {value!r}")
        converted[name] = value
    return kind(**converted)


def _fits(value: object, hint: Any) -> bool:
    """Say whether a plain value has the type of a dataclass field."""
    if isinstance(hint, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        items = typing.get_args(hint)
        return isinstance(value, tuple) and len(value) == len(items) and all(map(_fits, value, items))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def field_names(kind: type) -> set[str]:
    """Return the names that a TOML file may set for a job: its flags and its recipe's settings."""
    names = {field.name for field in dataclasses.fields(kind)} - {"expert"}
    recipe = getattr(kind, "RECIPE", None)
    return names | ({field.name for field in dataclasses.fields(recipe)} if recipe else set())

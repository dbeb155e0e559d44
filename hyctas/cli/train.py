"""hyctas-train: train a supernet, or one network."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from export.ranges import Minutes, Range, Seed, Settings
from hyctas.cli.entry import command
from hyctas.cli.values import fill
from hyctas.presets import DEFAULT_PRESET, read_preset
from hyctas.training.config import NetworkRecipe, Recipe, SupernetRecipe
from hyctas.training.processes import group_closed

USAGE = """usage: hyctas-train {supernet,network} [OPTIONS]

  supernet   train all networks of a space at once, with shared weights (before hyctas-search)
  network    train one network from a genotype (after hyctas-search)

hyctas-train supernet --help and hyctas-train network --help list the options.
"""


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
    preset: str = DEFAULT_PRESET
    """Settings to start from: quick, standard or best; a TOML file and other flags override them."""
    minutes: Minutes | None = None
    """Time budget in minutes; default: the preset's, 30."""
    steps: Annotated[int, Range(1, 10**9)] | None = None
    """Number of steps instead of a time budget; the same seed then gives the same weights."""
    size: str | None = None
    """Resize all images to HEIGHTxWIDTH first."""
    crop: str | None = None
    """Training crop, HEIGHTxWIDTH; default: the preset's, 240x320."""
    batch: Annotated[int, Range(2, 4096)] | None = None
    """Crops per step, over all processes; default 12. Where they do not fit into memory, set device_batch in a TOML file."""
    seed: Seed | None = None
    """Seed of all random choices; default 0."""
    restart: bool = False
    """Move the old results aside and start over."""
    settings: tyro.conf.Fixed[dict[str, Any]] = field(default_factory=dict)
    """Settings of the recipe that are no flags, as a TOML file has them: what they leave out comes from the preset."""

    RECIPE: ClassVar[type[Recipe]] = Recipe
    ALTERNATIVES: ClassVar[tuple[str, ...]] = ("minutes", "steps")
    GROUPS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "training": ("preset", "minutes", "steps", "batch", "seed"), "image": ("size", "crop"),
    }  # fmt: skip

    def recipe(self) -> Recipe:
        """Return the recipe: the preset, then the TOML file, then the command line.

        Raises:
            InvalidInput: an unknown preset, a value of the wrong type, or out of range.
        """
        flags = ("minutes", "steps", "size", "crop", "batch", "seed")
        given = self.settings | {name: value for name in flags if (value := getattr(self, name)) is not None}
        values: dict[str, Any] = read_preset(self.preset)
        if not given.keys().isdisjoint(self.ALTERNATIVES):  # a budget of one kind replaces a budget of the other
            values = {name: value for name, value in values.items() if name not in self.ALTERNATIVES}
        return fill(self.RECIPE, values | given)


@dataclass(frozen=True, kw_only=True)
class TrainSupernetJob(TrainJob):
    """What `hyctas-train supernet` trains: RUN/supernet.safetensors."""

    space: str = "edge"
    """Search space: edge, tiny, published, or a Python file with a function `space()`."""
    limit: tuple[str, ...] = ()
    """Latency to aim at (ms=12 or fps=80): only networks predicted at 0.5 to 1.2 times it are trained."""
    table: Path | None = None
    """Latency table for --limit; default RUN/latency.json."""

    RECIPE: ClassVar[type[Recipe]] = SupernetRecipe
    GROUPS: ClassVar[Mapping[str, tuple[str, ...]]] = {**TrainJob.GROUPS, "latency": ("limit", "table")}


@dataclass(frozen=True, kw_only=True)
class TrainNetworkJob(TrainJob):
    """What `hyctas-train network` trains: RUN/network.safetensors."""

    space: str | None = None
    """Your own space file, if --init names a supernet that was trained on one: code that only a run folder names is never run."""
    network: Path | None = None
    """Genotype JSON, edge:NAME (hand-made ones), or published:S (M, L); default: the chosen network of RUN/pareto.json."""
    all_of_train: bool = False
    """Train on the whole train split, the part held out to choose by included: only val then says how good the network is."""
    teacher: tuple[Path, ...] = ()
    """Learn from trained networks too (distillation): run folders, bundles or ONNX files with the same classes; averaged."""

    RECIPE: ClassVar[type[Recipe]] = NetworkRecipe


def main() -> None:
    """Run the command line."""
    kind, arguments = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    if kind == "supernet":
        with group_closed():
            command(
                _train_supernet, TrainSupernetJob, "Train the weights that all networks of a space share.", arguments,
                name="hyctas-train supernet", example="--run runs/mine --data FOLDER --minutes 240",
            )  # fmt: skip
    elif kind == "network":
        with group_closed():
            command(
                _train_network, TrainNetworkJob, "Train one network.", arguments, name="hyctas-train network",
                example="--run runs/lite --network edge:lite0-16 --data FOLDER --preset standard",
            )  # fmt: skip
    else:
        known = kind in ("--help", "-h")
        print(USAGE, file=sys.stdout if known else sys.stderr, end="")
        sys.exit(0 if known else 2)


def _train_supernet(job: TrainSupernetJob) -> None:
    from hyctas.commands.train import train_supernet

    train_supernet(job)


def _train_network(job: TrainNetworkJob) -> None:
    from hyctas.commands.train import train_network

    train_network(job)


if __name__ == "__main__":
    main()

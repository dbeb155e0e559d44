"""Load a trained supernet from a run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from export.codec import Size, convert, reading
from export.errors import InvalidInput, Perform
from hyctas.artifacts.runs import Record
from hyctas.network import load_weights
from hyctas.nn.supernet import Supernet
from hyctas.spaces.search_space import SearchSpace
from hyctas.spaces.space_file import recorded_space
from hyctas.training.band import TrainedBand

COMMAND = "train-supernet"


@dataclass(frozen=True)
class _Data:
    OPEN: ClassVar = True
    classes: tuple[str, ...]


@dataclass(frozen=True)
class _Recipe:
    OPEN: ClassVar = True
    size: Size | None


@dataclass(frozen=True)
class _Config:
    """What of a supernet's configuration is read again."""

    OPEN: ClassVar = True
    space: str
    space_hash: str
    data: _Data
    recipe: _Recipe
    band: TrainedBand | None = None
    init: dict[str, Any] | None = None


@dataclass(frozen=True)
class SupernetRecord:
    """What is known of a run's supernet besides its weights."""

    path: Path
    """The weights."""
    space_name: str
    """As it was typed when it was trained; a Python file of this name is not run."""
    space_hash: str
    classes: tuple[str, ...]
    data: str
    """The data set, where it was then."""
    size: tuple[int, int] | None
    """What images were resized to."""
    band: TrainedBand | None
    """The latencies that it was trained for; None: all networks."""
    init: Mapping[str, Any] | None = None
    """The weights that it started from, as its run's record has them."""

    @classmethod
    def read(cls, run: Path) -> SupernetRecord:
        """Read RUN/train-supernet.json, and check that RUN/supernet.safetensors is what it tells of.

        Raises:
            InvalidInput: not trained, or not to the end.
            CorruptFile: the record or the weights are damaged.
        """
        path = run / "supernet.safetensors"
        if not path.exists():
            raise InvalidInput(f"there is no trained supernet in {run} ({path.name}), or it has not finished",
                               Perform("train supernet", {"run": run}))  # fmt: skip
        record = Record.of_finished(run, COMMAND)
        with reading(run / f"{COMMAND}.json"):
            config = convert(_Config, record.config, "$.config")
            data = convert(str, record.results.get("data"), "$.results.data")
        found = cls(path, config.space, config.space_hash, config.data.classes, data, config.recipe.size, config.band, config.init)
        record.check_file(path)
        return found

    def space(self, given: str | None = None) -> SearchSpace:
        """Return the space; a user's own one only where the user of this command names it.

        Raises:
            InvalidInput: it is not named, or has changed since.
        """
        return recorded_space(self.space_name, self.space_hash, self.path, given)

    def load(self, space: str | None = None) -> Supernet:
        """Load the weights.

        Args:
            space: the user's own space file, where the supernet was trained on one.

        Raises:
            InvalidInput: trained on another space.
            CorruptFile: the file is damaged.
        """
        searched = self.space(space)
        with torch.device("meta"):
            supernet = Supernet(searched, len(self.classes))
        supernet.to_empty(device="cpu")
        load_weights(supernet, self.path)
        return supernet

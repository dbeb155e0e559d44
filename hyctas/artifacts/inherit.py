"""Load a trained supernet from a run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from export.errors import CorruptFile, InvalidInput, Perform
from hyctas.artifacts.runs import Record
from hyctas.network import load_weights
from hyctas.nn.supernet import Supernet
from hyctas.spaces.search_space import SearchSpace
from hyctas.spaces.space_file import recorded_space
from hyctas.training.band import TrainedBand

COMMAND = "train-supernet"


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
        try:
            config, size = record.config, record.config["recipe"]["size"]
            found = cls(
                path, str(config["space"]), str(config["space_hash"]), tuple(map(str, config["data"]["classes"])),
                str(record.results["data"]), None if size is None else (int(size[0]), int(size[1])),
                TrainedBand.from_json(config["band"]) if config.get("band") else None,
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            what = f"lacks the space, the data set, the size or the band ({type(error).__name__}: {error})"
            raise CorruptFile(record.path, what) from None
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


def load_supernet(run: Path, space: str | None = None) -> Supernet:
    """Load RUN/supernet.safetensors; arguments and errors as of `SupernetRecord.read` and `SupernetRecord.load`."""
    return SupernetRecord.read(run).load(space)

"""Load a trained supernet from a run folder."""

from __future__ import annotations

from pathlib import Path

import torch

from export.errors import CorruptFile, InvalidInput
from export.files import read_json
from hyctas.network import load_weights
from hyctas.runs import FORMAT_VERSION
from hyctas.space_file import load_space
from hyctas.supernet import Supernet


def load_supernet(run: Path) -> Supernet:
    """Load RUN/supernet.safetensors.

    Args:
        run: the run folder.

    Raises:
        InvalidInput: not trained yet, or trained on another space.
        CorruptFile: the file is damaged.
    """
    path = run / "supernet.safetensors"
    if not path.exists():
        raise InvalidInput(f"there is no {path}; run hyctas-train supernet --run {run} first, or let it finish")
    record = read_json(run / "train-supernet.json", FORMAT_VERSION)
    try:
        config = record["config"]
        name, found, classes = config["space"], config["space_hash"], len(config["data"]["classes"])
    except (KeyError, TypeError):
        raise CorruptFile(run / "train-supernet.json", "lacks the space or the data set") from None
    space = load_space(name)
    if space.hash != found:
        raise InvalidInput(f"{path} was trained on space {name} with hash {found}; {space.name} now has hash {space.hash}")
    with torch.device("meta"):
        supernet = Supernet(space, classes)
    supernet.to_empty(device="cpu")
    load_weights(supernet, path)
    return supernet

"""Load a trained supernet from a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
    config, classes = _config(run), supernet_classes(run)
    name, found = config["space"], config["space_hash"]
    space = load_space(name)
    if space.hash != found:
        raise InvalidInput(f"{path} was trained on space {name} with hash {found}; {space.name} now has hash {space.hash}")
    with torch.device("meta"):
        supernet = Supernet(space, len(classes))
    supernet.to_empty(device="cpu")
    load_weights(supernet, path)
    return supernet


def supernet_classes(run: Path) -> tuple[str, ...]:
    """Return the names of the classes that a run's supernet was trained on.

    Raises:
        CorruptFile: the run's record is damaged.
    """
    return tuple(_config(run)["data"]["classes"])


def _config(run: Path) -> dict[str, Any]:
    path = run / "train-supernet.json"
    config: dict[str, Any] = read_json(path, FORMAT_VERSION).get("config", {})
    if not {"space", "space_hash", "data"} <= config.keys() or "classes" not in config["data"]:
        raise CorruptFile(path, "lacks the space or the data set")
    return config

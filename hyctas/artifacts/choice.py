"""Find the network that a run folder has chosen."""

from __future__ import annotations

import json
from pathlib import Path

from export.errors import CorruptFile, Give, InvalidInput, Perform
from export.files import read_json
from hyctas.arch.genotype import Genotype
from hyctas.published.spec import is_source, read_source
from hyctas.spaces.members import member

FORMAT_VERSION = 2
READ_VERSIONS = (FORMAT_VERSION, 1)
"""Version 1 also held a baseline of random networks."""
HANDMADE = "edge:"


def read_genotype(path: Path) -> Genotype:
    """Read a genotype file, or give a hand-made (`edge:NAME`) or a released network (`published:S`).

    Raises:
        InvalidInput: no such file, or it describes no network.
    """
    if str(path).startswith(HANDMADE):
        return member(str(path).removeprefix(HANDMADE))
    if is_source(str(path)):
        return read_source(str(path))
    try:
        return Genotype.from_json(path.read_text())
    except UnicodeDecodeError:
        raise InvalidInput(f"{path} is not a text file; expected genotype JSON") from None
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from None


def chosen_genotype(run: Path) -> Genotype:
    """Return the network that a search chose (RUN/pareto.json).

    Raises:
        InvalidInput: no search has finished there.
        CorruptFile: the file is damaged.
    """
    path = run / "pareto.json"
    if not path.exists():
        raise InvalidInput(f"there is no {path}", Perform("search", {"run": run}), Give("network", "GENOTYPE.json"))
    outcome = read_json(path, *READ_VERSIONS)
    try:
        candidates = (*outcome["front"], *outcome.get("finalists", ()))
        member = next(member for member in candidates if member["id"] == outcome["chosen"])
        return Genotype.from_json(json.dumps(member["genotype"]))
    except (KeyError, TypeError, StopIteration, InvalidInput) as error:
        raise CorruptFile(path, f"names no chosen network ({error})") from None


def chosen_weights(run: Path) -> Path:
    """Return the folder with the chosen network's weights: of its training as a finalist, without one the supernet's.

    Raises:
        CorruptFile: RUN/pareto.json is damaged.
    """
    weights = read_json(run / "pareto.json", *READ_VERSIONS).get("weights")
    return run if weights is None else run / str(weights)

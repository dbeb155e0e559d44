"""Find the network that a run folder has chosen."""

from __future__ import annotations

import json
from pathlib import Path

from export.errors import CorruptFile, InvalidInput
from export.files import read_json
from hyctas.genotype import Genotype
from hyctas.members import member
from hyctas.published.source import is_source, read_source

FORMAT_VERSION = 1
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
        raise InvalidInput(f"there is no {path}; run hyctas-search --run {run} first, or give a genotype with --network")
    front = read_json(path, FORMAT_VERSION)
    try:
        member = next(member for member in front["front"] if member["id"] == front["chosen"])
        return Genotype.from_json(json.dumps(member["genotype"]))
    except (KeyError, TypeError, StopIteration, InvalidInput) as error:
        raise CorruptFile(path, f"names no chosen network ({error})") from None

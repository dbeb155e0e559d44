"""Find a search space by the name or the file that a user gives."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from export.errors import Give, InvalidInput
from hyctas.space import SPACES
from hyctas.spaces.search_space import SearchSpace


def load_space(name: str) -> SearchSpace:
    """Return a built-in space by name, or call `space()` of a user's Python file.

    Raises:
        InvalidInput: no such space or file, or the file fails or gives something else; the text says which.
    """
    if name in SPACES:
        return SPACES[name]()
    path = Path(name)
    if path.suffix != ".py" or not path.is_file():
        raise InvalidInput(f"unknown space {name!r}; built in: {', '.join(SPACES)}; or give a Python file with a function space()")
    spec = importlib.util.spec_from_file_location(f"hyctas_space_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        space = module.space()
    except InvalidInput:
        raise
    except Exception as error:
        raise InvalidInput(f"{path} does not give a space: {type(error).__name__}: {error}") from error
    if not isinstance(space, SearchSpace):
        raise InvalidInput(f"space() of {path} returns a {type(space).__name__}, expected hyctas.space.Space")
    return space


def recorded_space(name: str, recorded_hash: str, where: Path, given: str | None) -> SearchSpace:
    """Return the space that a file of ours was made with, without running code that the file names.

    Args:
        name: what the file says: a built-in space, or the Python file that somebody typed when it was made.
        recorded_hash: the space's hash, of the same file.
        where: the file, for messages.
        given: what the user of this command names; it counts where `name` is a Python file.

    Raises:
        InvalidInput: it is a Python file that the user has not named, or a space with another hash.
    """
    if name not in SPACES and (given is None or given in SPACES):
        raise InvalidInput(
            f"{where} was made with the search space {name!r}, a Python file. A file that was received is no reason to run code: "
            "look at the space, and name it",
            Give("space", name),
        )
    space = load_space(name if name in SPACES else str(given))
    if space.hash != recorded_hash:
        raise InvalidInput(f"{where} was made with another version of space {name} (hash {recorded_hash}); it now has {space.hash}")
    return space

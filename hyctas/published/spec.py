"""Read what users write for a released network on the command line: `published:S`, `published:my.json,base=12,head=2`."""

from __future__ import annotations

from pathlib import Path

from export.errors import InvalidInput
from hyctas.arch.genotype import Genotype
from hyctas.published import DRAWN, NAMES, drawn, genotype, import_genotype

PREFIX = "published:"
SYNTAX = "published:NAME_OR_FILE.json[,base=16][,head=0|1|2][,panoptic]"


def is_source(text: str) -> bool:
    """Say whether a text asks for a released network."""
    return text.startswith(PREFIX)


def read_source(text: str) -> Genotype:
    """Return the genotype that a text asks for.

    Args:
        text: `published:` and S, M, L, drawn2, drawn3 or a file in the released JSON format; then options.

    Raises:
        InvalidInput: an unknown name or option, no such file, or not the released format.
    """
    name, *options = text.removeprefix(PREFIX).split(",")
    base, head, panoptic = 16, "1", False
    for option in options:
        key, _, value = option.partition("=")
        if key == "base" and value.isdecimal():
            base = int(value)
        elif key == "head" and value:
            head = value
        elif option == "panoptic":
            panoptic = True
        else:
            raise InvalidInput(f"{text}: option {option!r} is unknown; write {SYNTAX}")
    if name in NAMES:
        return genotype(name, base, head, panoptic=panoptic)
    if name in DRAWN:
        if panoptic:
            raise InvalidInput(f"{text}: drawn networks are examples without an instance head; leave panoptic out")
        return drawn(name, base, head)
    path = Path(name)
    if path.suffix != ".json" or not path.is_file():
        raise InvalidInput(f"{text}: {name!r} is neither one of {', '.join((*NAMES, *DRAWN))} nor a .json file; write {SYNTAX}")
    try:
        return import_genotype(path.read_text(), base, head, panoptic=panoptic)
    except UnicodeDecodeError:
        raise InvalidInput(f"{path} is not a text file; expected the released JSON format") from None
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from None

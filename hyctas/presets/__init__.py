"""Hold recipes with names: one TOML file each, of settings that supernets and networks share. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from export.codec import decode_toml
from export.errors import InvalidInput

FOLDER = Path(__file__).parent
DEFAULT_PRESET = "standard"


def preset_names() -> tuple[str, ...]:
    """Return the names of all presets, in alphabetical order."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def read_preset(name: str) -> dict[str, Any]:
    """Return the settings of a preset as its file has them; sizes are text, HEIGHTxWIDTH.

    Raises:
        InvalidInput: there is no preset of that name.
    """
    if name not in preset_names():
        raise InvalidInput(f"unknown preset {name!r}; known: {', '.join(preset_names())}")
    return decode_toml(dict[str, Any], FOLDER / f"{name}.toml")

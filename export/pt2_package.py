"""Read what a `.pt2` package that AOTInductor compiled says of itself, without executing it. No torch here."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

OURS = "hyctas_"
"""Begins the names of our entries."""


def compiled_facts(path: Path) -> dict[str, str] | None:
    """Return the metadata of a compiled package; None for programs that are not compiled, and for what is no package."""
    try:
        with zipfile.ZipFile(path) as archive:
            inside = [name for name in archive.namelist() if "/aotinductor/" in name]
            noted = [name for name in inside if name.endswith("_metadata.json")]
            found = json.loads(archive.read(noted[0])) if noted else {}
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError):
        return None
    if not inside:
        return None
    return {key: value for key, value in found.items() if isinstance(value, str)} if isinstance(found, dict) else {}

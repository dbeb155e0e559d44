"""Read the JSON files that trtexec writes (8.5 to 11), without trusting them: they may be torn, empty, or not quite JSON."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from pathlib import Path
from typing import Any

from export.trt.attribution import Layer, LayerInfo, layer_facts

MIN_SAMPLES = 5
MAX_MS = 1e9
"""Above, it is no time: 11 days."""
LARGEST = 64 * 2**20
"""Bytes of text that a result may have; a long one of ours has a tenth of it. A gzip file of 64 KiB may hold as much."""


class Unusable(ValueError):
    """A result that cannot be used; the text says why."""


def read_text(path: Path) -> str:
    """Read FILE, or FILE.gz.

    Raises:
        Unusable: neither is there, it is torn, or it is larger than `LARGEST` (unpacked).
    """
    packed = path.with_name(f"{path.name}.gz")
    try:
        with gzip.open(packed) if packed.exists() else open(path, "rb") as opened:
            data = opened.read(LARGEST + 1)
    except FileNotFoundError:
        raise Unusable(f"{path.name} is missing") from None
    except (OSError, EOFError, zlib.error) as error:
        raise Unusable(f"{packed.name} is torn ({error})") from None
    if len(data) > LARGEST:
        raise Unusable(f"{path.name} holds more than {LARGEST >> 20} MiB of text, so it is none of trtexec's results")
    return data.decode("utf-8", "replace")


def read_times(path: Path) -> list[float]:
    """Return `computeMs` of every query of an `--exportTimes` file.

    Raises:
        Unusable: torn, without times, or with times that are not positive and finite.
    """
    values = [query.get("computeMs") if isinstance(query, dict) else None for query in _array(path)]
    if not values:
        raise Unusable(f"{path.name} holds no times")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= MAX_MS:
            raise Unusable(f"{path.name} holds the time {value!r}")
    if len(values) < MIN_SAMPLES:
        raise Unusable(f"{path.name} holds {len(values)} times, fewer than {MIN_SAMPLES}")
    return [float(value) for value in values if value is not None]


def read_profile(path: Path) -> list[Layer]:
    """Return the layers of an `--exportProfile` file with their median times.

    Raises:
        Unusable: torn, or with times that are negative or not finite.
    """
    layers = []
    for entry in _array(path):
        if not isinstance(entry, dict) or "name" not in entry:
            continue  # the first element counts the iterations
        ms = entry.get("medianMs", entry.get("averageMs"))
        if isinstance(ms, bool) or not isinstance(ms, (int, float)) or not 0 <= ms <= MAX_MS:
            raise Unusable(f"{path.name}: layer {entry['name']!r} takes {ms!r} ms")
        layers.append(Layer(str(entry["name"]), float(ms)))
    if not sum(layer.ms for layer in layers) > 0:
        raise Unusable(f"{path.name} holds no layer that takes time")
    return layers


def read_layers(path: Path, inputs_outputs: re.Pattern[str]) -> LayerInfo:
    """Read an `--exportLayerInfo` file; it says nothing where it is missing or unreadable, since a profile alone will often do.

    Args:
        path: the file.
        inputs_outputs: matches the names of the engine's inputs and outputs.
    """
    try:
        text = read_text(path)
        layers = json.loads(text[text.index("{") : text.rindex("}") + 1], strict=False)["Layers"]
    except (Unusable, ValueError, KeyError, TypeError, RecursionError):
        return LayerInfo()
    return layer_facts(layers, inputs_outputs)


def _array(path: Path) -> list[Any]:
    """Parse the text between the first `[` and the last `]`."""
    text = read_text(path)
    first, last = text.find("["), text.rfind("]")
    if first < 0 or last < first or text[last + 1 :].strip():
        raise Unusable(f"{path.name} is torn: it does not end as a JSON array")
    try:
        value = json.loads(text[first : last + 1], strict=False)  # names hold separators (0x1E, 0x1F), perhaps not escaped
    except (ValueError, RecursionError):  # no JSON, a number too long for Python, endless nesting
        raise Unusable(f"{path.name} is torn: it is not JSON") from None
    if not isinstance(value, list):
        raise Unusable(f"{path.name} is no JSON array")
    return value

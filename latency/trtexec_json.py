"""Read the JSON files that trtexec writes (8.5 to 11), without trusting them: they may be torn, empty, or not quite JSON."""

from __future__ import annotations

import gzip
import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PREFIX = re.compile(r"(?<![A-Za-z0-9])(k\d{4,})_\d+_")
MIN_SAMPLES = 5


class Unusable(ValueError):
    """A result that cannot be used; the text says why."""


@dataclass(frozen=True)
class Layer:
    """One layer of an engine's profile."""

    name: str
    ms: float


def read_text(path: Path) -> str:
    """Read FILE, or FILE.gz.

    Raises:
        Unusable: neither is there, or it is torn.
    """
    packed = path.with_name(f"{path.name}.gz")
    try:
        data = gzip.decompress(packed.read_bytes()) if packed.exists() else path.read_bytes()
    except FileNotFoundError:
        raise Unusable(f"{path.name} is missing") from None
    except (OSError, EOFError, zlib.error) as error:
        raise Unusable(f"{packed.name} is torn ({error})") from None
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
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
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
        if isinstance(ms, bool) or not isinstance(ms, (int, float)) or not math.isfinite(ms) or ms < 0:
            raise Unusable(f"{path.name}: layer {entry['name']!r} takes {ms!r} ms")
        layers.append(Layer(str(entry["name"]), float(ms)))
    if not sum(layer.ms for layer in layers) > 0:
        raise Unusable(f"{path.name} holds no layer that takes time")
    return layers


@dataclass(frozen=True)
class LayerInfo:
    """What an `--exportLayerInfo` file adds to a profile."""

    conversions: frozenset[str] = frozenset()
    """Layers that only convert an engine's inputs or outputs to another layout."""
    hints: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """By layer: the ONNX nodes that it was made of (`Metadata`), and the tensors that it reads and writes."""


def read_layers(path: Path, inputs_outputs: re.Pattern[str]) -> LayerInfo:
    """Read an `--exportLayerInfo` file; it says nothing where it is missing or unreadable, since a profile alone will often do.

    Args:
        path: the file.
        inputs_outputs: matches the names of the engine's inputs and outputs.
    """
    try:
        text = read_text(path)
        layers = json.loads(text[text.index("{") : text.rindex("}") + 1])["Layers"]
    except (Unusable, ValueError, KeyError, TypeError, RecursionError):
        return LayerInfo()
    conversions, hints = set(), {}
    for layer in layers if isinstance(layers, list) else []:
        if not isinstance(layer, dict):
            continue  # names only: the engine was built without details
        name = str(layer.get("Name", ""))
        ends = [str(item.get("Name", "")) for side in ("Inputs", "Outputs") for item in _dicts(layer.get(side))]
        if name.startswith("Reformatting CopyNode") and any(inputs_outputs.fullmatch(end) for end in ends):
            conversions.add(name)
        hints[name] = (str(layer.get("Metadata", "")), " ".join(ends))
    return LayerInfo(frozenset(conversions), hints)


def _dicts(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


@dataclass(frozen=True)
class Shares:
    """What the layers of an engine say about its operators; all as shares of the whole profile."""

    of: Mapping[str, float]
    """By prefix: the operator's layers, with its part of the shared ones."""
    shared: float
    """Layers that name no operator or several."""
    conversions: float
    """Layers that convert inputs and outputs; they belong to nobody."""


def attribute(layers: Sequence[Layer], prefixes: Sequence[str], info: LayerInfo) -> Shares:
    """Give layers to their operators; what belongs to none or several is spread in proportion.

    A layer belongs to the one operator that its ONNX nodes mention (`LayerInfo.hints`; its name may list but the first and the
    last of them); without those to the one that its name mentions, or else to the one whose tensors it reads and writes.
    """
    own = dict.fromkeys(prefixes, 0.0)
    total, converting, shared = sum(layer.ms for layer in layers), 0.0, 0.0
    for layer in layers:
        metadata, tensors = info.hints.get(layer.name, ("", ""))
        named = _named((metadata, layer.name, tensors), set(prefixes))
        if layer.name in info.conversions:
            converting += layer.ms
        elif len(prefixes) == 1:
            own[prefixes[0]] += layer.ms
        elif named:
            own[named] += layer.ms
        else:
            shared += layer.ms
    known = sum(own.values())
    scale = (known + shared) / known if known > 0 else 0.0
    return Shares({prefix: ms * scale / total for prefix, ms in own.items()}, shared / total, converting / total)


def _named(texts: Sequence[str], prefixes: set[str]) -> str | None:
    """Return the prefix that the first telling text names; None where that text names several, or none tells."""
    for text in texts:
        found = set(PREFIX.findall(text)) & prefixes
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def _array(path: Path) -> list[Any]:
    """Parse the text between the first `[` and the last `]`."""
    text = read_text(path)
    first, last = text.find("["), text.rfind("]")
    if first < 0 or last < first or text[last + 1 :].strip():
        raise Unusable(f"{path.name} is torn: it does not end as a JSON array")
    try:
        value = json.loads(text[first : last + 1])
    except (json.JSONDecodeError, RecursionError):
        raise Unusable(f"{path.name} is torn: it is not JSON") from None
    if not isinstance(value, list):
        raise Unusable(f"{path.name} is no JSON array")
    return value

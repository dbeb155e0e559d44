"""Read the JSON files that trtexec writes (8.5 to 11), without trusting them: they may be torn, empty, or not quite JSON."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, TypeVar

from msgspec import Meta

from export.codec import convert
from export.trt.attribution import Layer, LayerInfo, layer_facts

T = TypeVar("T")
MIN_SAMPLES = 5
MAX_MS = 1e9
"""Above, it is no time: 11 days."""
LARGEST = 64 * 2**20
"""Bytes of text that a result may have; a long one of ours has a tenth of it. A gzip file of 64 KiB may hold as much."""


@dataclass(frozen=True)
class _Query:
    OPEN: ClassVar = True
    computeMs: Annotated[float, Meta(gt=0, le=MAX_MS)]


@dataclass(frozen=True)
class _Timed:
    """A layer of a profile."""

    OPEN: ClassVar = True
    name: str | None = None
    medianMs: Annotated[float, Meta(ge=0, le=MAX_MS)] | None = None
    averageMs: Annotated[float, Meta(ge=0, le=MAX_MS)] | None = None


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
    values = [query.computeMs for query in _array(_Query, path)]
    if len(values) < MIN_SAMPLES:
        raise Unusable(f"{path.name} holds {len(values)} times, fewer than {MIN_SAMPLES}")
    return values


def read_profile(path: Path) -> list[Layer]:
    """Return the layers of an `--exportProfile` file with their median times.

    Raises:
        Unusable: torn, or with times that are negative or not finite.
    """
    layers = []
    for entry in _array(_Timed, path):
        ms = entry.averageMs if entry.medianMs is None else entry.medianMs
        if entry.name is not None:  # the first element counts the iterations
            if ms is None:
                raise Unusable(f"{path.name}: layer {entry.name!r} has no time")
            layers.append(Layer(entry.name, ms))
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


def _array(kind: type[T], path: Path) -> tuple[T, ...]:
    """Decode the text between the first `[` and the last `]`."""
    text = read_text(path)
    first, last = text.find("["), text.rfind("]")
    if first < 0 or last < first or text[last + 1 :].strip():
        raise Unusable(f"{path.name} is torn: it does not end as a JSON array")
    try:
        value = json.loads(text[first : last + 1], strict=False)  # names hold separators (0x1E, 0x1F), perhaps not escaped
    except (ValueError, RecursionError):  # no JSON, a number too long for Python, endless nesting
        raise Unusable(f"{path.name} is torn: it is not JSON") from None
    try:
        return convert(tuple[kind, ...], value)  # type: ignore[valid-type]
    except ValueError as error:
        raise Unusable(f"{path.name}: {error}") from None

"""Attribute the layers of an engine to the operators that stand in it side by side.

All nodes and tensors of an operator begin with its prefix (`k0017_0_`: operator 17, copy 0). TensorRT keeps these names in the
names of its layers; fused kernels with names of their own list the ONNX nodes and tensors in the engine's layer information.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

PREFIX = re.compile(r"(?<![A-Za-z0-9])(k\d{4,})_\d+_")
MAX_SHARED = 0.20
"""Share of a profile that may name no single operator; above it, the profile says too little."""


@dataclass(frozen=True)
class Layer:
    """One layer of an engine's profile."""

    name: str
    ms: float


@dataclass(frozen=True)
class LayerInfo:
    """What an engine's layer information adds to a profile."""

    conversions: frozenset[str] = frozenset()
    """Layers that only convert an engine's inputs or outputs to another layout."""
    hints: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """By layer: the ONNX nodes that it was made of (`Metadata`), and the tensors that it reads and writes."""


@dataclass(frozen=True)
class Shares:
    """What the layers of an engine say about its operators; all as shares of the whole profile."""

    of: Mapping[str, float]
    """By prefix: the operator's layers, with its part of the shared ones."""
    shared: float
    """Layers that name no operator or several."""
    conversions: float
    """Layers that convert inputs and outputs; they belong to nobody."""


def inputs_outputs(prefixes: Sequence[str]) -> re.Pattern[str]:
    """Return what matches the names of the inputs and outputs of an engine that holds these operators."""
    return re.compile(rf"(?:{'|'.join(prefixes)})_\d+_[xy]\d+")


def layer_facts(layers: object, ends: re.Pattern[str]) -> LayerInfo:
    """Read the list `Layers` (not to be trusted) of an engine's layer information; names alone, without details, say nothing.

    `ends` matches the names of the engine's inputs and outputs.
    """
    conversions, hints = set(), {}
    for layer in _dicts(layers):
        name = str(layer.get("Name", ""))
        tensors = [str(item.get("Name", "")) for side in ("Inputs", "Outputs") for item in _dicts(layer.get(side))]
        if name.startswith("Reformatting CopyNode") and any(ends.fullmatch(tensor) for tensor in tensors):
            conversions.add(name)
        hints[name] = (str(layer.get("Metadata", "")), " ".join(tensors))
    return LayerInfo(frozenset(conversions), hints)


def attribute(layers: Sequence[Layer], prefixes: Sequence[str], info: LayerInfo) -> Shares:
    """Give layers to their operators; what belongs to none or several is spread in proportion.

    A layer belongs to the one operator that its ONNX nodes mention (`LayerInfo.hints`; its name may list but the first and the
    last of them); without those to the one that its name mentions, or else to the one whose tensors it reads and writes.

    Args:
        layers: at least one of them takes time.
        prefixes: of the operators.
        info: what more is known of the layers.
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


def _dicts(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []

"""Say what is wrong with a value that a reader accepted: types and units are checked against what its own dataclasses promise."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

SHARES = ("miou", "pixel_accuracy", "within5", "within10", "label_agreement", "min_agreement", "others_share", "confidence")
POSITIVE = ("fps", "bound_factor")
COUNTS = ("n", "builds", "rounds", "inputs", "threads", "generation", "images", "parameters", "macs", "size_bytes")


class Wrong(Exception):
    """A reader accepted something that is silently wrong; the text says what."""


def plain(value: Any) -> Any:
    """Return a value as text that is equal for equal values: arrays and tensors by content."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return [value.dtype.str, value.shape, value.tobytes()]
    if hasattr(value, "detach"):
        return plain(value.detach().float().numpy())
    return repr(value)


def check(value: Any, where: str = "value") -> None:
    """Check a dataclass, or containers of them, against its annotations and units.

    Raises:
        Wrong: a value of another type, not finite, or outside of what its name allows.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = _hints(type(value))
        for field in dataclasses.fields(value):
            item, place = getattr(value, field.name), f"{where}.{field.name}"
            if not _fits(item, hints[field.name]):
                raise Wrong(f"{place} is {_shown(item)}, not {hints[field.name]}")
            _check_unit(item, field.name, place)
            check(item, place)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            check(item, f"{where}[{_shown(name)}]")
    elif isinstance(value, (list, tuple)):
        for at, item in enumerate(value):
            check(item, f"{where}[{at}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise Wrong(f"{where} is {value}")


def _check_unit(item: Any, name: str, place: str) -> None:
    numbers = [n for n in (item.values() if isinstance(item, Mapping) else [item]) if isinstance(n, (int, float)) and n is not True]
    for n in numbers:
        right = (
            0 <= n <= 1 if name in SHARES or name == "iou" else
            0 < n < math.inf if name.endswith("_ms") and name not in ("warmup_ms", "budget_ms") else
            0 < n < math.inf if name in POSITIVE else
            0 <= n < math.inf if name in COUNTS else True
        )  # fmt: skip
        if not right:
            raise Wrong(f"{place} is {_shown(n)}")


@cache
def _hints(kind: type) -> dict[str, Any]:
    """Return the annotations of a dataclass; `Any` for one whose names its module imports for the type checker alone."""
    found = {}
    for name, text in ((field.name, field.type) for field in dataclasses.fields(kind)):
        try:
            found[name] = eval(text, vars(sys.modules[kind.__module__])) if isinstance(text, str) else text
        except NameError:
            found[name] = Any
    return found


def _fits(item: Any, hint: Any) -> bool:
    """Say whether a value is of the annotated type, to the depth that can be told at run time."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or isinstance(hint, typing.TypeVar):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(item, option) for option in arguments)
    if origin is typing.Annotated:
        return _fits(item, arguments[0])
    if origin is typing.Literal:
        return item in arguments
    if origin is tuple:
        if not isinstance(item, tuple):
            return False
        same = arguments[:1] * len(item) if arguments[-1:] == (...,) else arguments
        return len(item) == len(same) and all(map(_fits, item, same))
    if origin is not None and isinstance(origin, type):
        if not isinstance(item, origin):
            return False
        if isinstance(item, Mapping) and len(arguments) == 2:
            return all(_fits(name, arguments[0]) and _fits(inner, arguments[1]) for name, inner in item.items())
        return not isinstance(item, (list, set, frozenset)) or not arguments or all(_fits(inner, arguments[0]) for inner in item)
    if hint is float:
        return isinstance(item, (int, float)) and not isinstance(item, bool) and math.isfinite(item)
    if hint is int:
        return isinstance(item, (int, np.integer)) and not isinstance(item, bool)
    return not isinstance(hint, type) or isinstance(item, hint)


def check_text(text: str, most: int = 4000) -> None:
    """Check what a command prints or an error says: no control characters (they reach a terminal), no flood.

    Raises:
        Wrong: a control character, or too much.
    """
    bad = sorted({f"U+{ord(c):04X}" for c in text if (ord(c) < 32 and c not in "\n\t\r") or 127 <= ord(c) < 160})
    if bad:
        raise Wrong(f"control characters in what is printed: {', '.join(bad)}")
    if len(text) > most:
        raise Wrong(f"{len(text)} characters are printed, beginning with {text[:80]!r}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Wrong("a lone surrogate in what is printed") from None


def check_evaluation(evaluation: Any, num_classes: int) -> None:
    """Compare a recorded network's costs with those of its genotype.

    Raises:
        Wrong: they differ.
    """
    from hyctas.plan import lower

    plan = lower(evaluation.genotype, (64, 64), num_classes)
    if evaluation.parameters != plan.parameters or evaluation.macs != plan.macs:
        raise Wrong(f"network {evaluation.id}: {evaluation.parameters} parameters, {evaluation.macs} MACs recorded; "
                    f"it has {plan.parameters} and {plan.macs}")  # fmt: skip


def _shown(item: Any) -> str:
    try:
        return json.dumps(item)[:60]
    except (TypeError, ValueError):
        return repr(item)[:60]

"""Faults that are known and not mended yet, each with the reason; `make fuzz` counts them and does not fail on them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.fuzz.fuzzer import Fault


@dataclass(frozen=True)
class Known:
    """What a fault looks like, and why it stands."""

    kind: str
    """Pattern of the kind's name."""
    what: str
    """Pattern of what is wrong."""
    reason: str


KNOWN: tuple[Known, ...] = ()


def known(fault: Fault) -> str | None:
    """Return the reason why a fault stands; None for one that is not known."""
    return next((k.reason for k in KNOWN if re.search(k.kind, fault.kind) and re.search(k.what, fault.what)), None)

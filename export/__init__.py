"""Turn networks into files, run those on any runtime behind one protocol, and prove that they compute the same.

Importing this package imports neither torch nor onnx nor any runtime; the names below load their module on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export.bundle.bundle import read_bundle as read_bundle
    from export.bundle.bundle import write_bundle as write_bundle
    from export.onnx.exporter import export_modules as export_modules
    from export.onnx.exporter import export_onnx as export_onnx
    from export.parity import check_parity as check_parity
    from export.runtimes import open_runtime as open_runtime

_HOMES = {
    "check_parity": "export.parity",
    "export_modules": "export.onnx.exporter",
    "export_onnx": "export.onnx.exporter",
    "open_runtime": "export.runtimes",
    "read_bundle": "export.bundle.bundle",
    "write_bundle": "export.bundle.bundle",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'export' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)

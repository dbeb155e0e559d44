"""Read ONNX's own operator set in a model. Needs onnx alone, as the modules that run on a device do."""

from __future__ import annotations

import onnx

STANDARD = ("", "ai.onnx")
"""The names of ONNX's own domain."""


def standard_opset(model: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operator set that a model imports; 0 where it imports none."""
    return max((item.version for item in model.opset_import if item.domain in STANDARD), default=0)

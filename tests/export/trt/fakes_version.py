"""Stand in for the module `tensorrt` where nothing is asked of it but its version, its flags' numbers and a logger."""

from __future__ import annotations

import enum
from types import ModuleType
from typing import Any


class Severity(enum.Enum):
    """As TensorRT names them."""

    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __str__(self) -> str:
        return f"Severity.{self.name}"


class ILogger:
    """The base class of loggers."""

    Severity = Severity

    def __init__(self) -> None:
        self.made = True


def fake_tensorrt(version: str) -> Any:
    """Return a module of a version; contract tests hold the flags' numbers against the real bindings."""
    module: Any = ModuleType("tensorrt")
    first = 0 if version.startswith("11") else 1  # 11 removed EXPLICIT_BATCH
    flags = {"STRONGLY_TYPED": first, "PREFER_AOT_PYTHON_PLUGINS": first + 2}
    module.__version__, module.ILogger = version, ILogger
    module.NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", flags)
    return module

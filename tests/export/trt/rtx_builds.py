"""Give tests NVIDIA's parser and builder: TensorRT-RTX, which needs no GPU. Where it is not installed they skip, and say why."""

from __future__ import annotations

import os
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from export.errors import Unavailable
from export.trt.options import BuildOptions
from export.trt.rtx import import_rtx
from tests.export import foreign_files as foreign

CAPABILITY = 89


@cache
def missing() -> str:
    """Say why TensorRT-RTX is not here; empty where it is."""
    if os.environ.get("TENSORRT_RTX") == "0":
        return "switched off by TENSORRT_RTX=0"
    try:
        import_rtx()
    except Unavailable as error:
        return f"{error.reason}; `make test` installs it unless TENSORRT_RTX=0"
    return ""


needs_rtx = pytest.mark.skipif(bool(missing()), reason=f"TensorRT-RTX: {missing()}")


def module() -> ModuleType:
    """Return the module; tests that call it carry `needs_rtx`."""
    return import_rtx()


def options(precision: str = "fp16", **more: Any) -> BuildOptions:
    """Return options for a GPU that need not be here."""
    return BuildOptions(precision=precision, **{"capabilities": (CAPABILITY,), **more})


def graph(kind: int = TensorProto.FLOAT16, *, opset: int = 18, height: int | str = 8, nodes: int = 1, name: str = "Conv") -> bytes:
    """Return a chain of convolutions over `image` (1, 3, height, 8), computing in a type."""
    weight = np.ones((3, 3, 1, 1), np.float16 if kind == TensorProto.FLOAT16 else np.float32)
    names = ["image", *(f"y{index}" for index in range(nodes))]
    inputs = ["w"] if name == "Conv" else []
    made = [helper.make_node(name, [names[i], *inputs], [names[i + 1]], name=f"conv{i}") for i in range(nodes)]
    shape = [1, 3, height, 8]
    ends = [foreign.info(end, shape, kind) for end in (names[0], names[-1])]
    return bytes(foreign.model(made, ends[:1], ends[1:], {"w": weight}, opset=opset).SerializeToString())

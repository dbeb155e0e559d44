"""Hold everything that differs between versions of TensorRT (10.3 to 11.x) and TensorRT-RTX: no other file asks.

TensorRT-RTX counts its versions from 1 on: its numbers are never compared with TensorRT's.

What is named here and missing in a version is reached by `getattr`; every other name our code uses exists in all of them (a
contract test holds it against the bindings of 10.3.0, 10.16.1 and 11.4.0).
"""

from __future__ import annotations

import re
from typing import Any

from export.errors import Unavailable
from export.platform import RTX_WHEELS

OLDEST = (10, 3)
RTX_FROM = (1, 7)
"""The release of TensorRT-RTX that our files were built with; 2.x is not known."""
NEWEST_MAJOR = 11
PLUGINS_FROM = (10, 16)
"""Ahead-of-time plugins exist from 10.9 on; up to 10.15 arrays read back under NumPy 2 are corrupt."""
OPSETS = (((10, 3), 20), ((10, 15), 24), ((11, 5), 25))
"""From which version on the ONNX parser takes at least which opset, as its documentation says."""
RTX_OPSET = 27
"""The newest that TensorRT-RTX 1.7's parser was seen to take."""


def version_of(trt: Any) -> tuple[int, ...]:
    """Return TensorRT's version as numbers, for instance (10, 16, 1)."""
    return tuple(int(part) for part in re.findall(r"\d+", str(trt.__version__))[:3])


def is_rtx(trt: Any) -> bool:
    """Return whether a module is TensorRT-RTX."""
    return str(getattr(trt, "__name__", "")).startswith("tensorrt_rtx")


def check_supported(trt: Any) -> None:
    """Refuse versions that this code is not for: `Unavailable`."""
    version = version_of(trt)
    if is_rtx(trt):
        if not RTX_FROM <= version[:2] < (2,):
            raise Unavailable("tensorrt-rtx", f"version {trt.__version__} is not one of 1.7 to 1.x", RTX_WHEELS)
    elif version[:2] < OLDEST or version[0] > NEWEST_MAJOR:
        wanted = "pip install 'tensorrt>=10.16,<12' (on a Jetson, a JetPack with TensorRT 10.3 or newer)"
        raise Unavailable("tensorrt", f"version {'.'.join(map(str, version))} is not one of 10.3 to 11.x", wanted)


def check_arrays(trt: Any) -> None:
    """Refuse where TensorRT would hand out corrupt arrays; call it before anything that reads arrays back (plugins).

    Building and running read none: shapes are integers, and tensors live in our own memory.

    Raises:
        Unavailable: before 10.16 together with NumPy 2, under which every array read back repeats its first element.
    """
    import numpy

    version = version_of(trt)
    if version[:2] < PLUGINS_FROM and int(numpy.__version__.partition(".")[0]) >= 2:
        reason = f"TensorRT {'.'.join(map(str, version))} returns wrong arrays under NumPy {numpy.__version__}"
        raise Unavailable("tensorrt", reason, "pip install 'tensorrt>=10.16,<12', or pip install 'numpy<2'")


def network_flags(trt: Any, *, plugins: bool) -> int:
    """Return the flags of a strongly typed network, which may prefer ahead-of-time plugins, by name: 11 renumbered them."""
    names = ("STRONGLY_TYPED", "PREFER_AOT_PYTHON_PLUGINS") if plugins else ("STRONGLY_TYPED",)
    return sum(1 << int(getattr(trt.NetworkDefinitionCreationFlag, name)) for name in names)


def compute_capability(trt: Any, number: int) -> Any:
    """Return TensorRT-RTX's name of a compute capability, for instance 89."""
    return trt.ComputeCapability.__members__[f"SM{number}"]


def number_of(capability: tuple[int, int]) -> int:
    """Return a compute capability as one number, for instance 89."""
    return capability[0] * 10 + capability[1]


def has_plugins(trt: Any) -> bool:
    """Return whether ahead-of-time plugins can be relied on."""
    return not is_rtx(trt) and version_of(trt)[:2] >= PLUGINS_FROM


def newest_opset(trt: Any) -> int:
    """Return the ONNX operator set that the parser is documented to take at least."""
    if is_rtx(trt):
        return RTX_OPSET
    version = version_of(trt)[:2]
    return max(opset for first, opset in OPSETS if first <= max(version, OLDEST))

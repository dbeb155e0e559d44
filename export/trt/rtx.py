"""TensorRT for RTX: engines that are built on any machine, GPU or none, for GPUs that are named.

Its parser and builder come from the package index and need neither GPU nor driver; loading an engine does. An engine holds code
for every compute capability that it is built for, and kernels are compiled from it when it is loaded: what was compiled is kept in
a runtime cache per GPU and driver.
"""

from __future__ import annotations

import importlib
import importlib.util
import platform
import re
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from export.errors import Give, InvalidInput, Unavailable
from export.files import write_bytes
from export.platform import RTX_WHEELS
from export.trt.log import attempted, checked
from export.trt.timing_cache import cache_path, default_folder
from export.trt.versions import check_supported, is_rtx, number_of

if TYPE_CHECKING:
    from export.trt.engine_file import Machine
    from export.trt.options import BuildOptions

RUNTIME = "tensorrt-rtx"
MODULES = ("tensorrt_rtx", "tensorrt_rtx_bindings")
"""What NVIDIA's installer and the wheels of the package index call it."""
CAPABILITIES = (75, 80, 86, 89, 120, 121)
"""Compute capabilities that TensorRT-RTX 1.7 builds for; 9.0 (H100, H200) is not among them."""
_KNOWN = ", ".join(f"sm_{number}" for number in CAPABILITIES)
BUILD_LINE = "a machine with such a GPU; engines for it can be exported here, for tensorrt-rtx:fp16 and GPUs as sm_86,sm_89"


def import_rtx() -> ModuleType:
    """Return the module of TensorRT-RTX; its builder needs no GPU.

    Raises:
        Unavailable: not installed, of a version that this code is not for, or its libraries cannot be loaded.
    """
    install = f"{RTX_WHEELS} (95 MB, NVIDIA's licence)"
    if platform.machine().lower() not in ("x86_64", "amd64"):
        install = f"no installation helps: TensorRT-RTX has no wheels for {platform.machine()}"
    name = next((name for name in MODULES if importlib.util.find_spec(name) is not None), None)
    if name is None:
        raise Unavailable(RUNTIME, "the package tensorrt-rtx is not installed", install)
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        raise Unavailable(RUNTIME, f"{name} cannot be imported: {error}", install) from error
    check_supported(module)
    return module


def capabilities(text: str) -> tuple[int, ...]:
    """Read the GPUs that an engine is for, for instance `sm_86,sm_89,sm_120`.

    Raises:
        InvalidInput: one that TensorRT-RTX does not build for, or the same twice.
    """
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"sm_?(\d+)", part.strip().lower())
        if match is None or int(match[1]) not in CAPABILITIES:
            raise InvalidInput(f"{part.strip()!r} is no compute capability that TensorRT-RTX builds for; it has {_KNOWN}")
        found.append(int(match[1]))
    if len(set(found)) < len(found):
        raise InvalidInput(f"{text!r} names a compute capability twice")
    return tuple(sorted(found))


def check_gpu(capability: tuple[int, int]) -> None:
    """Refuse a GPU that TensorRT-RTX has no code for: `Unavailable`."""
    if (number := number_of(capability)) not in CAPABILITIES:
        raise Unavailable(RUNTIME, f"TensorRT-RTX is for {_KNOWN}, and here is sm_{number}", "take tensorrt:fp16 on this GPU")


def check_buildable(options: BuildOptions, attention: bool) -> None:
    """Refuse what the builder is known to refuse, before minutes are spent.

    `InvalidInput` where no compute capability is named, or sm_75 (Turing) is, which has neither bf16 nor products in fp32 of two
    computed matrices (`attention`).
    """
    if not options.capabilities:
        raise InvalidInput("the GPUs that the engine is for are not named", Give("gpu", "sm_86,sm_89,sm_120"))
    if 75 in options.capabilities and options.precision == "bf16":
        raise InvalidInput("sm_75 has no bf16: leave it out, or take tensorrt-rtx:fp16")
    if 75 in options.capabilities and options.precision in ("fp32", "mixed") and attention:
        raise InvalidInput("TensorRT-RTX computes no attention in fp32 on sm_75: leave it out, or take tensorrt-rtx:fp16")


def own_cache_path(trt: Any, machine: Machine) -> Path | None:
    """Return the file of the user's runtime cache for a machine; None for TensorRT, which compiles nothing when it loads."""
    return cache_path(default_folder(), machine).with_suffix(".jit") if is_rtx(trt) else None


class RuntimeCache:
    """Kernels that TensorRT-RTX compiled when it loaded an engine, kept so that the next start is quick.

    Args:
        engine: the engine, deserialised.
        path: file of the cache, there or not; one that does not fit (TensorRT-RTX compares) is overwritten.
    """

    def __init__(self, engine: Any, path: Path) -> None:
        self.path = path
        self.config = checked("creating a runtime configuration", engine.create_runtime_config)
        self._cache = checked("creating a runtime cache", self.config.create_runtime_cache)
        data = path.read_bytes() if path.is_file() else b""
        self.loaded = bool(data) and bool(attempted("reading the runtime cache", lambda: self._cache.deserialize(data)))
        checked("using the runtime cache", lambda: self.config.set_runtime_cache(self._cache))

    def store(self) -> str:
        """Write what was compiled; return what went wrong, empty where nothing did."""
        try:
            data = bytes(memoryview(checked("writing the runtime cache", self._cache.serialize)))
            write_bytes(self.path, data)
        except Exception as error:  # the run is worth more than its cache
            return f"the runtime cache {self.path.name} was not written: {error}"
        return ""

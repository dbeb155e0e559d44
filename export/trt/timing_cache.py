"""Keep what TensorRT measured while building, so that the next build is quicker and chooses the same kernels.

One file per TensorRT version, GPU and driver, since times hold for nothing else; the file is TensorRT's own format, which trtexec
(`--timingCacheFile`) shares. Another process may write meanwhile: what it wrote is combined with ours; of two that write in the
same instant one loses its entries, which costs time and nothing else.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.files import move_aside, write_bytes
from export.trt.log import TensorRTFailed, checked

if TYPE_CHECKING:
    from export.trt.engine_file import Machine


def default_folder() -> Path:
    """Return the folder that whatever builds engines for this user shares: `hyctas/tensorrt` in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hyctas" / "tensorrt"


def cache_path(folder: Path, machine: Machine) -> Path:
    """Return the file for a machine: `trt-<version>_<gpu>_sm<capability>_driver-<version>.timing`."""
    major, minor = machine.capability
    name = "trt" if machine.runtime == "tensorrt" else "rtx"
    parts = [f"{name}-{machine.tensorrt}", machine.gpu, f"sm{major}{minor}", f"driver-{machine.driver}"]
    return folder / ("_".join(re.sub(r"[^a-z0-9.]+", "-", part.lower()).strip("-") for part in parts) + ".timing")


@dataclass
class TimingCache:
    """A cache that a build uses."""

    path: Path
    """Its file, there or not."""
    loaded: str = ""
    """Hash of what was read; empty where nothing was."""
    notices: list[str] = field(default_factory=list)
    """What happened to an unusable file."""

    def move_aside(self, error: TensorRTFailed) -> None:
        """Move the file out of the way; the next build writes a fresh one."""
        said = f": {error.lines[-1]}" if error.lines else ""
        text = f"the timing cache {self.path.name} cannot be used here and was moved to {move_aside(self.path).name}"
        self.notices.append(f"{text} ({error.what} failed{said})")


def attach(config: Any, path: Path) -> TimingCache:
    """Give a build the cache of a file, or an empty one; an unusable file is moved aside, and a notice says so.

    Raises:
        TensorRTFailed: TensorRT takes not even an empty cache.
    """
    used, data = TimingCache(path), _content(path)
    try:
        _attach(config, data)
    except TensorRTFailed as error:
        if not data:
            raise
        used.move_aside(error)
        _attach(config, b"")
    else:
        used.loaded = hashlib.sha256(data).hexdigest() if data else ""
    return used


def store(config: Any, used: TimingCache) -> None:
    """Write a cache after a build, with what other processes wrote to its file since it was read.

    A failure is a notice: the engine that was built meanwhile is worth more than its cache.
    """
    try:
        # the attached one, not ours: a TensorRT that worked on a copy would otherwise be forgotten without a word
        cache: Any = checked("reading the timing cache", config.get_timing_cache)
        data = _content(used.path)
        if data and hashlib.sha256(data).hexdigest() != used.loaded:
            try:
                other = checked("reading the timing cache that another process wrote", lambda: config.create_timing_cache(data))
                checked("combining two timing caches", lambda: cache.combine(other, False))
            except TensorRTFailed as error:
                used.move_aside(error)
        write_bytes(used.path, host_bytes(checked("writing the timing cache", cache.serialize)))
    except (TensorRTFailed, OSError) as error:
        used.notices.append(f"the timing cache {used.path.name} was not written: {error}")


def host_bytes(memory: Any) -> bytes:
    """Copy memory of TensorRT's into Python's, where it lives as long as is needed."""
    data = bytes(memoryview(memory))
    assert len(data) == memory.nbytes, f"TensorRT announced {memory.nbytes} bytes and gave {len(data)}"
    return data


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _attach(config: Any, data: bytes) -> None:
    cache: Any = checked("reading the timing cache", lambda: config.create_timing_cache(data))
    checked("using the timing cache", lambda: config.set_timing_cache(cache, False))

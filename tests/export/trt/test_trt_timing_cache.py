"""Timing caches of TensorRT, which TensorRT-RTX has none of: files are used, combined, moved aside, and never cost an engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.trt.engine_file import Machine
from export.trt.timing_cache import attach, cache_path, store

MACHINE = Machine("11.4.0", "13.0", "580.1", "Some GPU", (8, 9), "Linux-x86_64")


class Memory(bytes):
    """Memory of TensorRT's."""

    @property
    def nbytes(self) -> int:
        return len(self)


@dataclass
class Cache:
    """A set of kernels, a line each."""

    lines: set[bytes]

    def combine(self, other: Cache, ignore_mismatch: bool) -> bool:
        self.lines |= other.lines
        return b"no" not in other.lines

    def serialize(self) -> Memory | None:
        return None if b"lost" in self.lines else Memory(b"\n".join(sorted(self.lines)))


@dataclass
class Config:
    """What of TensorRT's configuration is asked for caches."""

    cache: Any = field(default=None)

    def create_timing_cache(self, data: bytes) -> Cache | None:
        return None if data.startswith(b"{") else Cache(set(data.split(b"\n")) - {b""})

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return b"foreign" not in cache.lines

    def get_timing_cache(self) -> Cache:
        return self.cache


def built(path: Path, *kernels: bytes, meanwhile: bytes | None = None) -> list[str]:
    """Use the cache of a file, and time kernels; return the notices."""
    config = Config()
    used = attach(config, path)
    config.cache.lines |= set(kernels)
    if meanwhile is not None:
        path.write_bytes(meanwhile)
    store(config, used)
    return used.notices


def test_a_cache_is_written_for_this_machine_and_used_again(tmp_path: Path) -> None:
    path = cache_path(tmp_path, MACHINE)
    assert path.name == "trt-11.4.0_some-gpu_sm89_driver-580.1.timing"
    assert built(path, b"a") == built(path, b"b") == [] and path.read_bytes() == b"a\nb"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_an_unusable_cache_is_moved_aside_with_a_notice(tmp_path: Path) -> None:
    path = tmp_path / "x.timing"
    for content in (b"{ truncated", b"foreign"):
        path.write_bytes(content)
        (notice,) = built(path, b"a")
        assert f"{path.name} cannot be used here and was moved to {path.name}.unusable" in notice
        assert path.read_bytes() == b"a" and len(list(tmp_path.iterdir())) == 2


def test_what_another_process_wrote_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.timing"
    assert built(path, b"a", meanwhile=b"theirs") == [] and path.read_bytes() == b"a\ntheirs"
    (notice,) = built(path, b"b", meanwhile=b"no")
    assert "combining two timing caches failed" in notice


def test_an_engine_is_not_lost_to_its_cache(tmp_path: Path) -> None:
    (notice,) = built(tmp_path / "x.timing", b"lost")
    assert notice.startswith("the timing cache x.timing was not written: writing the timing cache failed")

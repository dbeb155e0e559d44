"""Read an ONNX file's metadata without the package onnx: labels and preprocessing of the engine beside it. No torch here.

Only the outermost fields of the file are looked at; the graph is skipped, however large it is.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from export.errors import CorruptFile

_METADATA = 14
"""Field `metadata_props` of ONNX's `ModelProto`, whose entries have the fields 1 (key) and 2 (value)."""
_SIZES = {1: 8, 5: 4}
"""Bytes of protobuf's wire types of fixed size."""


def onnx_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of an ONNX file by key; what is not UTF-8 text is left out.

    Raises:
        CorruptFile: not an ONNX file, or a truncated one.
    """
    with open(path, "rb") as handle:
        try:
            entries = [data for number, data in _fields(handle, path.stat().st_size) if number == _METADATA]
            return {key: value for key, value in map(_entry, entries) if key is not None and value is not None}
        except (EOFError, ValueError) as error:
            raise CorruptFile(path, f"is not a whole ONNX file ({error})") from None


def _entry(data: bytes) -> tuple[str | None, str | None]:
    parts = dict(_fields(io.BytesIO(data), len(data), every=True))
    return _text(parts.get(1, b"")), _text(parts.get(2, b""))


def _text(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _fields(handle: BinaryIO, size: int, every: bool = False) -> Iterator[tuple[int, bytes]]:
    """Yield number and content of the length-delimited fields that are metadata (or of all)."""
    while handle.tell() < size:
        number, kind = divmod(_varint(handle), 8)
        if kind == 0:
            _varint(handle)
        elif kind in _SIZES:
            handle.seek(_SIZES[kind], 1)
        elif kind == 2:
            length = _varint(handle)
            if handle.tell() + length > size:
                raise EOFError(f"field {number} ends behind the file")
            if every or number == _METADATA:
                yield number, handle.read(length)
            else:
                handle.seek(length, 1)
        else:
            raise ValueError(f"field {number} has the unknown wire type {kind}")


def _varint(handle: BinaryIO) -> int:
    value = shift = 0
    while True:
        byte = handle.read(1)
        if not byte or shift > 63:
            raise EOFError("it ends inside a number")
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
        shift += 7

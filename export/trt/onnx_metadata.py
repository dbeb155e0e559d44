"""Read an ONNX file's metadata without the package onnx: labels and preprocessing of the engine beside it.

Only the outermost fields of the file are looked at; the graph is skipped, however large it is.
"""

from __future__ import annotations

import contextlib
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
    found: dict[str, str] = {}
    with open(path, "rb") as handle:
        try:
            for entry in _fields(handle, path.stat().st_size, (_METADATA,)):
                parts = dict(_fields(io.BytesIO(entry[1]), len(entry[1]), (1, 2)))
                with contextlib.suppress(UnicodeDecodeError):
                    found[parts.get(1, b"").decode()] = parts.get(2, b"").decode()
        except (EOFError, ValueError) as error:
            raise CorruptFile(path, f"is not a whole ONNX file ({error})") from None
    return found


def _fields(handle: BinaryIO, size: int, wanted: tuple[int, ...]) -> Iterator[tuple[int, bytes]]:
    """Yield number and content of some length-delimited fields."""
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
            if number in wanted:
                yield number, handle.read(length)
            else:
                handle.seek(length, 1)
        else:
            raise ValueError(f"field {number} has the unknown wire type {kind}")


def _varint(handle: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        if not (byte := handle.read(1)):
            break
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise EOFError("it ends inside a number")

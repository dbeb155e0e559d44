"""Write files so that a kill or a full disk leaves either the old content or the new, never a half."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from export.claims import create_file, sweep
from export.errors import CorruptFile, InvalidInput

MAX_DIGITS = 300
"""Of an integer in JSON: as large as a float may be."""


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` with `data`: a new name in the same folder, fsync, rename. On failure the old file stays."""
    write_together({path: data})


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Replace several files: all are written under temporary names, then renamed in order. On failure the old files stay."""
    written: dict[Path, Path] = {}
    with contextlib.ExitStack() as stack:
        try:
            for path, data in contents.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                sweep(path)
                temporary, number = create_file(path)
                written[path] = temporary
                handle = stack.enter_context(os.fdopen(number, "wb"))  # open, and so owned, until the file has its name
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
            for path, temporary in written.items():
                os.replace(temporary, path)
        except BaseException:
            for temporary in written.values():
                temporary.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Replace `path` with UTF-8 `text`, safely."""
    write_bytes(path, text.encode())


def real_path(path: Path) -> Path:
    """Return a path without symbolic links; those in a circle stay, and opening it says so (`Path.resolve` raises RuntimeError)."""
    return Path(os.path.realpath(path))


def utf8_path(path: Path) -> str:
    """Return a path as text for libraries that take nothing but UTF-8.

    Raises:
        InvalidInput: it is none.
    """
    try:
        return os.fsencode(path).decode()
    except UnicodeDecodeError:
        raise InvalidInput(
            f"the path {str(path)!r} is not UTF-8, and runtimes of ONNX files open no other; rename the folder or the file"
        ) from None


def json_text(value: Any) -> str:
    """Return a value as indented JSON; NaN is refused."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Replace `path` with `value` as indented JSON (NaN refused), safely."""
    write_text(path, json_text(value))


def move_aside(path: Path) -> Path:
    """Rename a file that cannot be used to `NAME.unusable`, and return that; one that is gone already is no error."""
    aside = path.with_name(path.name + ".unusable")
    with contextlib.suppress(FileNotFoundError):  # another process was quicker
        os.replace(path, aside)
    return aside


def read_text(path: Path) -> str:
    """Read a file of UTF-8 text.

    Raises:
        FileNotFoundError: no such file.
        CorruptFile: it is no such text, or symbolic links stand in a circle.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise CorruptFile(path, "not a text file") from None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise CorruptFile(path, "is a symbolic link, and links stand in a circle") from None


def read_json(path: Path, *format_versions: int) -> Any:
    """Read a JSON file of ours as plain values; `export.codec.decode` also checks what they are.

    Raises:
        FileNotFoundError: no such file.
        CorruptFile: not JSON, a number that is not finite, or its `format_version` is none of those given.
    """
    text = read_text(path)
    try:
        value = parse_json(text)
        if format_versions:
            check_version(value, format_versions)
    except json.JSONDecodeError as error:
        raise CorruptFile(path, f"not valid JSON ({error.msg})", error.lineno) from None
    except ValueError as error:
        raise CorruptFile(path, str(error)) from None
    return value


def check_version(value: Any, format_versions: Sequence[int]) -> None:
    """Refuse a `format_version` that is not read, naming both; ValueError."""
    found = value.get("format_version") if isinstance(value, dict) else None
    if found not in format_versions or isinstance(found, bool):
        raise ValueError(f"has format_version {found!r}; this release reads {' and '.join(map(str, format_versions))}")


def parse_json(text: str | bytes) -> Any:
    """Parse JSON of whatever origin.

    Raises:
        ValueError: not JSON (`JSONDecodeError`), nested too deeply, a number that is not finite as a float, or text with half of a
            surrogate pair, which can neither be written nor be a file's name.
    """
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite, parse_int=_short)
        if (b"\\ud" if isinstance(text, bytes) else "\\ud") in text.lower():  # type: ignore[operator]
            json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogateescape")  # the names of files that are not UTF-8 pass
        return value
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair") from None


def _short(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"{text[:20]}... has {len(text)} digits")
    return int(text)


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is no number that is written here")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large for a number")
    return value


def check_own(path: Path, manifest: Path, listed: Callable[[], bool]) -> None:
    """Refuse to overwrite a file that is not ours: `InvalidInput` where one stands that its manifest does not list."""
    if not path.exists():
        return
    try:
        own = path.is_file() and listed()
    except (OSError, CorruptFile, KeyError, TypeError):
        own = False
    if not own:
        raise InvalidInput(f"{path} exists and was not written by this command (no {manifest.name} beside it that can be read); "
                           "choose another name or move it away")  # fmt: skip


def sha256(path: Path) -> str:
    """Hash a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()

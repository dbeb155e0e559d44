"""Mutate files: bytes of any, the structure of JSON, JSON lines and TOML, and what stands in a file's place, by seeded draws."""

from __future__ import annotations

import json
import shutil
import tomllib
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

TOKENS = (
    "NaN", "Infinity", "-Infinity", "1e999", "-1", "0", "-0.0", "0.5", "1.5", "5", "1e-320", "1e308", "9" * 400, "9" * 5000, "true",
    "false", "null", "[]", "{}", '""', '"1"', '"NaN"', '"../../x"', '"/dev/zero"', '"a\\nb"', '"\\u0000"', '"\\ud800"',
    '"\\u001b[31mred\\u001b]0;title\\u0007"', '"[bold]*x*<script>|"', '"' + "x" * 100_000 + '"', "[" * 100_000,
    "[" * 200 + "]" * 200, '{"a":' * 300 + "1" + "}" * 300, "[1, 2", "\u2028",
)  # fmt: skip
"""What a JSON value is replaced by, as text: some of it is no JSON on purpose."""
TOML_TOKENS = (
    "nan", "inf", "-inf", "-1", "0", "0.5", "1.5", "1e308", "9" * 400, "true", "false", "[]", "[1, 2]", "[32, 32, 32]", "{}",
    '""', '"1"', '"NaN"', '"64x64"', '"/dev/zero"', '"\\u001b[31mred"', '"' + "x" * 100_000 + '"', "[" * 5_000, "1979-05-27",
    "[[1]]", "x",
)  # fmt: skip
MARK = "\ue000{}\ue000"


def generator(seed: int, name: str, case: int) -> np.random.Generator:
    """Return the draws of one case: they depend on nothing else."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), case])


def mutate(data: bytes, form: str, rng: np.random.Generator) -> tuple[str, bytes]:
    """Return what was done, and the content after it.

    Args:
        data: a valid file.
        form: "json", "jsonl", "toml" or "bytes"; a fifth of the mutations of the first three are of bytes as well.
        rng: draws.
    """
    if form == "bytes" or rng.random() < 0.2:
        return _bytes(data, rng)
    return {"json": _json, "jsonl": _lines, "toml": _toml}[form](data, rng)


def misplace(path: Path, rng: np.random.Generator) -> str:
    """Put something else where a file belongs, and say what: a folder, links in a circle, nothing, an empty file."""
    path.unlink()
    what = _pick(rng, ("a folder", "links in a circle", "a dangling link", "an empty file", "nothing"))
    if what == "a folder":
        path.mkdir()
    elif what == "links in a circle":
        other = path.with_name(path.name + ".other")
        other.symlink_to(path.name)
        path.symlink_to(other.name)
    elif what == "a dangling link":
        path.symlink_to("nowhere")
    elif what == "an empty file":
        path.touch()
    return what


def restore(path: Path, data: bytes) -> None:
    """Undo what `misplace` and writes did."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.with_name(path.name + ".other").unlink(missing_ok=True)
    path.write_bytes(data)


def _bytes(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Flip, cut, double, splice; half of it within the first 4 KiB, where headers are."""
    size = len(data)
    reach = min(size, 4096) if rng.random() < 0.5 else size
    a, b = sorted(int(at) for at in rng.integers(0, max(1, reach), 2))
    match int(rng.integers(6)):
        case 0:
            flipped = bytearray(data)
            for at in rng.integers(0, max(1, reach), int(rng.integers(1, 9))) if size else ():
                flipped[at] ^= 1 << int(rng.integers(8))
            return "bits flipped", bytes(flipped)
        case 1:
            return f"cut at {b}", data[:b]
        case 2:
            return f"bytes {a} to {b} removed", data[:a] + data[b:]
        case 3:
            return f"bytes {a} to {b} doubled", data[:b] + data[a:]
        case 4:
            noise = rng.bytes(min(b - a, 256))
            return f"noise at {a}", data[:a] + noise + data[a + len(noise) :]
        case _:
            other = int(rng.integers(0, max(1, size)))
            return f"bytes {a} to {b} spliced into {other}", data[:other] + data[a:b] + data[other:]


def _json(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    what, text = _changed(json.loads(data), rng)
    return what, text.encode("utf-8", "surrogatepass")


def _lines(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    lines = data.decode().splitlines()
    at, other = (int(n) for n in rng.integers(0, len(lines), 2))
    match int(rng.integers(5)):
        case 0:
            what = f"line {at} doubled"
            lines.insert(at, lines[at])
        case 1:
            what = f"line {at} removed"
            del lines[at]
        case 2:
            what = f"lines {at} and {other} swapped"
            lines[at], lines[other] = lines[other], lines[at]
        case _:
            what, lines[at] = _changed(json.loads(lines[at]), rng)
            what = f"line {at}: {what}"
    return what, ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass")


def _toml(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Change one setting of a flat file."""
    lines = data.decode().splitlines()
    tomllib.loads(data.decode())
    at = int(rng.integers(len(lines)))
    name = lines[at].partition(" = ")[0]
    token = _pick(rng, TOML_TOKENS)
    match int(rng.integers(5)):
        case 0:
            lines.append(lines[at])
        case 1:
            lines.append(f"{_pick(rng, ('unknown', 'run', 'expert', 'network', '__class__', name + '_'))} = {token}")
        case 2:
            lines.insert(at, f"[{name}]")
        case _:
            lines[at] = f"{name} = {token}"
    return f"{name}: {token[:40]}", ("\n".join(lines) + "\n").encode()


def _changed(value: Any, rng: np.random.Generator) -> tuple[str, str]:
    """Change one place of a JSON value, and return it as text."""
    places = list(_places(value, ()))
    if not places:
        return "replaced", _pick(rng, TOKENS)
    if isinstance(value, dict) and "format_version" in value and rng.random() < 0.05:
        places = [("format_version",)]
    place = places[int(rng.integers(len(places)))]
    *way, last = place
    home = value
    for step in way:
        home = home[step]
    name, token = ".".join(map(str, place)), None
    change = _pick(rng, ("token", "token", "token", "remove", "rename", "unknown", "copy", "nudge", "nudge"))
    if change == "remove":
        del home[last]
    elif change == "rename" and isinstance(home, dict):
        home[f"{last}_"] = home.pop(last)
    elif change == "unknown" and isinstance(home, dict):
        home["unknown"] = home[last]
    elif change == "copy":
        other = _at(value, _pick(rng, places))
        home[last] = json.loads(json.dumps(other))
    elif change == "nudge" and isinstance(home[last], (int, float)) and not isinstance(home[last], bool):
        home[last] = _nudged(home[last], rng)
    else:
        change, token = "token", _pick(rng, TOKENS)
        home[last] = MARK.format("")
    text = json.dumps(value, indent=None if rng.random() < 0.5 else 1)
    if token is not None:
        text = text.replace(json.dumps(MARK.format("")), token, 1)
    shown = f" {token[:40]!r}" if token is not None else f" {home[last]!r}"[:60] if change == "nudge" else ""
    return f"{name}: {change}{shown}", text


def _nudged(number: float, rng: np.random.Generator) -> Any:
    changes: tuple[Callable[[Any], Any], ...] = (
        lambda n: -n, lambda n: n + 1, lambda n: n - 1, lambda n: n * 1000, lambda n: n / 1000, lambda n: n * 1.1, float, str,
        lambda n: n + 0.5, lambda n: n * 10**30, lambda n: [n], lambda n: bool(n),
    )  # fmt: skip
    return changes[int(rng.integers(len(changes)))](number)


def _places(value: Any, path: tuple[str | int, ...]) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from _places(item, (*path, key))


def _at(value: Any, path: tuple[str | int, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


def _pick(rng: np.random.Generator, options: Any) -> Any:
    return options[int(rng.integers(len(options)))]

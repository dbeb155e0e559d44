"""Say what launches fix at compile time: the cases of the offline gate, and the arguments that each kernel is compiled with.

Everything is read off the kernels' source text, so that no Triton is needed.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from export.errors import InvalidInput
from hyctas.attention.triton.tiles import ARCHITECTURES, COMBINE, DELTA, TWO_STEP, VALUE_CHANNELS, Tile, block, shipped

KERNELS = ("forward", "combine", "delta", "grad_v", "grad_qk", "grad_q", "block", "plugin")
WITHOUT_DOT = ("combine", "delta")
"""Kernels that multiply no matrices."""
DTYPES = {"float16": "*fp16", "bfloat16": "*bf16", "float32": "*fp32"}
ODD_CHANNELS = (32, 40, 96)
"""Below or between those that tiles are made for."""
FP16_ONLY = (86, 87)
"""Architectures that the gate compiles for fp16 alone."""
MASKED = {"even_keys": False}
"""Options of cases whose keys are a multiple of 16, but not of the tile's columns."""
RAGGED = {"queries_divisible": False, "keys_divisible": False, "even_keys": False}
"""Options of cases whose queries and keys are no multiples of 16."""
MODULES = {"block": "kernel_block", "plugin": "kernel_plugin"}
"""Modules that hold a kernel; others are in `kernels`."""
_OF_QK = ("q_ptr", "k_ptr", "grad_q_ptr", "grad_k_ptr")
_OF_V = ("v_ptr", "o_ptr", "grad_ptr", "grad_v_ptr", "x_ptr", "y_ptr", "wq_ptr", "wk_ptr", "wv_ptr")
_FP32 = ("lse_ptr", "delta_ptr", "partial_ptr", "statistics_ptr", "bq_ptr", "bv_ptr", "norm_scale_ptr", "norm_shift_ptr")
_INTEGERS = ("N", "M", "keys_per_split", "splits")


@dataclass(frozen=True, kw_only=True)
class Case:
    """What one launch of a kernel fixes at compile time."""

    kernel: str
    """One of `KERNELS`."""
    arch: int
    """Compute capability, major * 10 + minor."""
    tile: Tile
    channels: int
    """C, of v (of x, for `block`)."""
    qk_channels: int
    """D, of q and k."""
    dtype: str
    """Of v (of x): float16, bfloat16 or float32."""
    qk_dtype: str = ""
    """Of q and k; empty: as v."""
    queries_divisible: bool = True
    """The number of queries is a multiple of 16, so that rows of queries start aligned."""
    keys_divisible: bool = True
    even_keys: bool = True
    """The number of keys is a multiple of the tile's columns too."""
    split: bool = False
    """`forward` writes partial sums over a part of the keys."""
    atomic: bool = True
    """`grad_qk` adds up the gradient of q as well."""
    project_k: bool = True
    """`block` computes k itself."""

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS or self.arch not in ARCHITECTURES:
            raise InvalidInput(f"no kernel {self.kernel!r} for sm_{self.arch}; there are {', '.join(KERNELS)} for {ARCHITECTURES}")
        if self.dtype not in DTYPES or (self.qk_dtype or self.dtype) not in DTYPES:
            raise InvalidInput(f"kernels compute in {', '.join(DTYPES)}; got {self.dtype!r} and, for q and k, {self.qk_dtype!r}")
        if min(self.channels, self.qk_channels) < 1 or (self.even_keys and not self.keys_divisible):
            raise InvalidInput(f"channels are above 0, and a multiple of the tile's columns is divisible by 16; got {self}")

    @property
    def key(self) -> str:
        """Return all that the case says, on one line."""
        tile, qk = self.tile, self.qk_dtype or self.dtype
        words = (
            f"sm_{self.arch}", self.kernel, "split" * self.split, "fixed" * (not self.atomic), "given-k" * (not self.project_k),
            f"c{self.channels}", f"d{self.qk_channels}", self.dtype,
            f"qk-{qk}" if qk != self.dtype else "", "" if self.queries_divisible else "ragged-queries",
            "" if self.even_keys else "masked-keys" if self.keys_divisible else "ragged-keys",
            f"{tile.rows}x{tile.columns}x{tile.channels}", f"w{tile.warps}", f"s{tile.stages}",
        )  # fmt: skip
        return " ".join(filter(None, words))


@dataclass(frozen=True)
class Arguments:
    """A kernel's arguments as the launcher would specialise them."""

    types: Mapping[str, str]
    """Triton's type by name, in order; `constexpr` for compile-time ones."""
    constants: Mapping[str, Any]
    divisible: tuple[str, ...]
    """Pointers and integers that are multiples of 16."""


def shipped_cases() -> list[Case]:
    """List what the gate holds the shipped tiles to: with d = C / 8, what the launcher may launch but for a few combinations.

    Left out, since they are near others: all but fp16 on sm_86 and sm_87 (which take sm_80's tiles), gradients in bfloat16, splits
    where keys are ragged or not fp16, queries or keys ragged alone, and TF32 in one pass, which takes less than in three.
    """
    return [case for arch in ARCHITECTURES for case in (*_fp16_cases(arch), *([] if arch in FP16_ONLY else _other_cases(arch)))]


def _fp16_cases(arch: int) -> Iterator[Case]:
    yield Case(kernel="combine", arch=arch, tile=COMBINE, channels=128, qk_channels=16, dtype="float16")
    yield Case(kernel="delta", arch=arch, tile=DELTA, channels=128, qk_channels=16, dtype="float16")
    for c in VALUE_CHANNELS:
        yield from _of(arch, "forward", c, "float16", {}, MASKED, MASKED | {"split": True}, RAGGED)
        yield from _of(arch, "grad_v", c, "float16", {}, RAGGED)
        yield from _of(arch, "grad_qk", c, "float16", {}, {"atomic": False}, RAGGED)
        yield from _of(arch, "grad_q", c, "float16", {}, RAGGED)
        yield from _of(arch, "block", c, "float16", {}, MASKED, {"project_k": False}, RAGGED)
        yield from _of(arch, "plugin", c, "float16", {})


def _other_cases(arch: int) -> Iterator[Case]:
    for c in VALUE_CHANNELS:
        for kernel in (*TWO_STEP, "block"):
            yield from _of(arch, kernel, c, "float32", {}, RAGGED)
        yield from _of(arch, "forward", c, "bfloat16", {"qk_dtype": "float16"})  # as under bfloat16 autocast (`fp16_qk_autocast`)
        yield from _of(arch, "block", c, "bfloat16", {})
    for c in ODD_CHANNELS:
        yield from _of(arch, "forward", c, "float16", {})


def _of(arch: int, kernel: str, c: int, dtype: str, *variants: Mapping[str, Any]) -> Iterator[Case]:
    """Yield variants of a kernel with their shipped tiles; nothing where there is none."""
    for variant in variants:
        size, aligned = 4 if dtype == "float32" else 2, variant.get("keys_divisible", True)
        tile = shipped(arch, "forward" if kernel == "plugin" else kernel, c, size, aligned)
        if tile is not None:
            yield Case(kernel=kernel, arch=arch, tile=tile, channels=c, qk_channels=c // 8, dtype=dtype, **variant)


def arguments(case: Case) -> Arguments:
    """Return the arguments of a case's kernel, as `hyctas.attention.triton.launch` passes them (a test compares the two)."""
    tile, c, d = case.tile, case.channels, case.qk_channels
    fixed = {"block": block(c), "combine": tile.channels, "delta": tile.channels}
    constants = {
        "D": d, "C": c, "ROWS": tile.rows, "COLUMNS": tile.columns, "BLOCK_D": block(d),
        "CHANNELS": fixed.get(case.kernel, min(tile.channels, block(c))), "EVEN_KEYS": case.even_keys, "EVEN": case.even_keys,
        "SPLIT": case.split, "ATOMIC": case.atomic, "PROJECT_K": case.project_k, "PRECISION": "tf32x3", "UPCAST": False,
    }  # fmt: skip
    function = _definitions()[f"{case.kernel}_kernel"][0]
    assert isinstance(function, ast.FunctionDef)
    types = {argument.arg: "constexpr" if argument.annotation else _type(argument.arg, case) for argument in function.args.args}
    multiples = {"N": case.queries_divisible, "M": case.keys_divisible, "keys_per_split": True}  # the last: of the tile's columns
    divisible = tuple(name for name, kind in types.items() if kind[0] == "*" or multiples.get(name))
    return Arguments(types, {name: constants[name] for name, kind in types.items() if kind == "constexpr"}, divisible)


def source(case: Case) -> str:
    """Hash what the machine code is made from: the kernel, the functions and constants it uses (comments aside), its arguments."""
    definitions, wanted, used = _definitions(), [f"{case.kernel}_kernel"], dict[str, str]()
    while wanted:
        name = wanted.pop()
        node, used[name] = definitions[name]
        wanted += {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} & definitions.keys() - used.keys()
    made_from = json.dumps([sorted(used.items()), vars(arguments(case)), case.arch, case.tile.warps, case.tile.stages])
    return hashlib.sha256(made_from.encode()).hexdigest()[:16]


def _type(name: str, case: Case) -> str:
    if name == "grad_q_ptr" and case.kernel == "grad_qk" and case.atomic:
        return "*fp32"
    if name in _OF_QK:
        return DTYPES[case.qk_dtype or case.dtype]
    if name in _OF_V:
        return DTYPES[case.dtype]
    if name in _FP32:
        return "*fp32"
    if name in _INTEGERS:
        return "i32"
    if name == "scale":
        return "fp32"
    raise InvalidInput(f"{case.kernel}_kernel has an argument {name!r} of a type that cases.py does not know; add it there")


@cache
def _definitions() -> dict[str, tuple[ast.stmt, str]]:
    """Return the functions and constants of the kernels' files by name: syntax tree, and text without comments."""
    found = dict[str, tuple[ast.stmt, str]]()
    for module in ("kernels", *MODULES.values()):
        lines = (Path(__file__).parent / f"{module}.py").read_text().splitlines(keepends=True)
        for node in ast.parse("".join(lines)).body:
            text = "".join(lines[node.lineno - 1 : node.end_lineno])
            if isinstance(node, ast.FunctionDef):
                found[node.name] = node, _without_comments(text)
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                found[node.targets[0].id] = node, _without_comments(text)
    return found


def _without_comments(text: str) -> str:
    """Return the words of a piece of code, its docstring and comments left out."""
    words = list[str]()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in (tokenize.COMMENT, tokenize.NL):
            words.append(token.string.strip() or tokenize.tok_name[token.type])
        if token.type == tokenize.NEWLINE and words[-3:-2] == ["INDENT"] and words[-2].startswith(('"', "'")):
            del words[-2:]  # a string that is a statement of its own
    return " ".join(words)

"""Judge what compiled kernels need of a multiprocessor, and keep the numbers in `resources.json`. Needs no Triton."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from export.codec import decode
from export.errors import CorruptFile
from export.files import write_text
from hyctas.attention.triton.cases import WITHOUT_DOT, Case, source
from hyctas.attention.triton.tiles import SHARED_KIB, TENSOR_CORE

FORMAT_VERSION = 1
TABLE = Path(__file__).parent / "resources.json"
REGISTERS, TENSOR_COLUMNS = 65536, 512
"""Of a multiprocessor, on every shipped architecture."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a compiled kernel needs of a multiprocessor."""

    registers: int
    """Per thread."""
    stack_bytes: int
    """Per thread; above 0 where registers are spilled."""
    spill_instructions: int
    """Loads from and stores to local memory in the machine code."""
    shared_bytes: int
    """Per block, dynamic and static."""
    tensor_columns: int
    """Of tensor memory (from sm_100 on), of which there are 512."""
    tensor_core: Mapping[str, int]
    """Tensor-core instructions in the machine code, by opcode."""
    scalar_dots: int
    """Matrix products that the compiler left to ordinary multiply-adds."""
    warps: int


@dataclass(frozen=True)
class Row:
    """What is known of one case."""

    source: str
    """`hyctas.attention.triton.cases.source` when it was compiled."""
    resources: Resources

    @classmethod
    def before_decoding(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Part the resources from the source, beside which they stand in the file."""
        source = {name: value[name] for name in value if name == "source"}
        return {**source, "resources": {name: value[name] for name in value if name != "source"}}


@dataclass(frozen=True)
class Table:
    """The content of `resources.json`."""

    triton: str
    """Version that compiled all rows."""
    rows: Mapping[str, Row]
    """By `Case.key`."""

    def current(self, case: Case) -> Row | None:
        """Return a case's row, unless it was compiled from another source."""
        row = self.rows.get(case.key)
        return row if row is not None and row.source == source(case) else None


def judge(case: Case, resources: Resources) -> list[str]:
    """Return what is wrong with a compiled kernel; nothing if it holds."""
    reasons, limit = list[str](), SHARED_KIB[case.arch] * 1024
    if resources.stack_bytes or resources.spill_instructions:
        reasons.append(f"spills: {resources.stack_bytes} B of stack, {resources.spill_instructions} loads and stores")
    if resources.shared_bytes > limit:
        reasons.append(f"asks for {resources.shared_bytes} B of shared memory; a block of sm_{case.arch} gets {limit}")
    if resources.registers * resources.warps * 32 > REGISTERS:
        reasons.append(f"asks for {resources.registers} registers in each of {resources.warps * 32} threads; there are {REGISTERS}")
    if resources.tensor_columns > TENSOR_COLUMNS:
        reasons.append(f"asks for {resources.tensor_columns} columns of tensor memory; there are {TENSOR_COLUMNS}")
    # tiles for fp32 are small; for fewer than 64 rows sm_90 and sm_100 have but the older instruction
    wanted = dict.fromkeys([TENSOR_CORE[case.arch], *(["HMMA"] if case.dtype == "float32" else [])])
    if case.kernel not in WITHOUT_DOT and not any(resources.tensor_core.get(name) for name in wanted):
        reasons.append(f"has no {' or '.join(wanted)}, tensor-core instructions of sm_{case.arch}")
    if resources.scalar_dots:
        reasons.append(f"multiplies {resources.scalar_dots} pairs of matrices outside the tensor cores")
    return reasons


def blocks_per_multiprocessor(arch: int, resources: Resources) -> int:
    """Return how many blocks a multiprocessor runs at a time, by registers, shared memory and tensor memory."""
    threads, shared = resources.warps * 32, (SHARED_KIB[arch] + 1) * 1024
    limits = [REGISTERS // (threads * -(-max(1, resources.registers) // 8) * 8), shared // (resources.shared_bytes + 1024)]
    return min([*limits, *([TENSOR_COLUMNS // resources.tensor_columns] if resources.tensor_columns else [])])


def read_table(path: Path = TABLE) -> Table:
    """Read the numbers.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptFile: it is none of ours.
    """
    try:
        return decode(Table, path, FORMAT_VERSION)
    except CorruptFile as error:
        mend = "remove it and write it again: python -m hyctas.attention.triton.gate --update"
        raise CorruptFile(path, f"is no table of resources ({error.reason}); {mend}", error.line) from None


def write_table(table: Table, path: Path = TABLE) -> None:
    """Write the numbers, a row per line."""
    values = {key: {"source": row.source, **asdict(row.resources)} for key, row in sorted(table.rows.items())}
    rows = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in values.items()]
    head = f' "format_version": {FORMAT_VERSION},\n "triton": {json.dumps(table.triton)},\n "rows": {{\n'
    write_text(path, "{\n" + head + ",\n".join(rows) + "\n }\n}\n")

"""Keep every evaluation of a search in one file: a header line, then one line per evaluated network and kind, in order.

What is recorded is replayed, never computed again. An incomplete last line (a kill in the middle of a write) is dropped with a
notice; any other bad line is an error with file and line. No torch here.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from export.codec import NotNegative, Number, Share, decode, plain, reading, whole_lines
from export.errors import CorruptFile, Give, InvalidInput, StartOver
from export.files import check_version, write_bytes, write_text
from hyctas.arch.genotype import Genotype
from hyctas.cost.workloads import Costs

FORMAT_VERSION = 2
READ_VERSIONS = (FORMAT_VERSION, 1)
SEARCH, SCREEN = "search", "screen"
KINDS = (SEARCH, SCREEN, "random")


@dataclass(frozen=True)
class Evaluation:
    """One network with what was found of it."""

    kind: Annotated[str, Meta(pattern=f"^({'|'.join(KINDS)})$")]
    """"search": scored on all images; "screen": on the first few of them; "random", in files of version 1: of a baseline."""
    generation: Number
    id: str
    genotype: Genotype
    miou: Share
    """On the choosing split, with the supernet's weights."""
    predicted_ms: NotNegative
    parameters: Number
    macs: Number
    memory_mib: NotNegative

    def __post_init__(self) -> None:
        if self.id != self.genotype.id:
            raise ValueError(f"the id {self.id!r} is not that of its genotype, {self.genotype.id}")

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "genotype": json.loads(self.genotype.to_json())}


def read_history(path: Path) -> tuple[dict[str, Any], list[Evaluation], bytes]:
    """Return the header, the evaluations and an incomplete last line of a history; nothing is written.

    Raises:
        CorruptFile: a bad line.
    """
    lines, cut_off = whole_lines(path)
    header, evaluations = dict[str, Any](), list[Evaluation]()
    for number, line in lines:
        with reading(path, number):
            if number > 1:
                evaluations.append(decode(Evaluation, line))
            else:
                header = decode(dict[str, Any], line)
                check_version(header, READ_VERSIONS)
    return header, evaluations, cut_off


class History:
    """The evaluations of a search, on disk and in memory.

    Args:
        path: history.jsonl; made with the header if it does not exist.
        header: what decides the values: configuration, supernet sha256, table sha256, threads.
        notice: told of a dropped incomplete line.
        formerly: the same header as an earlier version wrote it; a file that has it is continued.

    Raises:
        InvalidInput: the file's header differs; the text names the differing fields.
        CorruptFile: a bad line that is not the last, or two lines that contradict each other.
    """

    def __init__(
        self, path: Path, header: dict[str, Any], notice: Callable[[str], None], formerly: dict[str, Any] | None = None
    ) -> None:
        self.path, self.notice = path, notice
        self.header, self._formerly = (_with_version(one) for one in (header, formerly or header))
        self.evaluations: list[Evaluation] = []
        self.known: dict[tuple[bool, str], Evaluation] = {}
        """By whether it is of a few images only, and id."""
        self._recorded: set[tuple[str, str]] = set()
        if path.exists() and path.stat().st_size:
            self._read(notice)
        else:
            write_text(path, json.dumps(self.header) + "\n")

    def add(self, evaluation: Evaluation) -> None:
        """Append an evaluation (once per kind) and flush it to the disk."""
        if (evaluation.kind, evaluation.id) in self._recorded:
            return
        flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(self.path, flags), "ab") as handle:
            start = handle.tell()
            try:
                handle.write((json.dumps(evaluation.to_json(), allow_nan=False) + "\n").encode())
                handle.flush()
                os.fsync(handle.fileno())
            except OSError:  # a full disk: leave no half line behind
                handle.truncate(start)
                raise
        self.evaluations.append(evaluation)
        self.known.setdefault((evaluation.kind == SCREEN, evaluation.id), evaluation)
        self._recorded.add((evaluation.kind, evaluation.id))

    def of(self, kind: str) -> list[Evaluation]:
        """Return the evaluations of a kind, in order."""
        return [evaluation for evaluation in self.evaluations if evaluation.kind == kind]

    def _read(self, notice: Callable[[str], None]) -> None:
        try:
            found, evaluations, cut_off = read_history(self.path)
            for number, evaluation in enumerate(evaluations, 2):
                with reading(self.path, number):
                    self._take(evaluation)
        except CorruptFile as error:
            raise CorruptFile(self.path, f"{error.reason}; fix or remove it", error.line, StartOver()) from None
        if found:
            self._check_header(found)
        if cut_off:
            notice(f"{self.path}: dropped an incomplete last line ({len(cut_off)} bytes)")
            write_bytes(self.path, self.path.read_bytes()[: -len(cut_off)] or json.dumps(self.header).encode() + b"\n")

    def _take(self, evaluation: Evaluation) -> None:
        """Take a line that was read.

        Raises:
            ValueError: an earlier line has the same network with other numbers, or for the same purpose.
        """
        known = self.known.setdefault((evaluation.kind == SCREEN, evaluation.id), evaluation)
        if replace(evaluation, kind=known.kind, generation=known.generation) != known:
            raise ValueError(f"an earlier line gives network {evaluation.id} other numbers")
        if (evaluation.kind, evaluation.id) in self._recorded:
            raise ValueError(f"an earlier line has network {evaluation.id} for {evaluation.kind} already")
        self._recorded.add((evaluation.kind, evaluation.id))
        self.evaluations.append(evaluation)

    def check_costs(self, costs: Callable[[Genotype], Costs]) -> None:
        """Check that what was recorded costs what the latency table says today.

        Raises:
            CorruptFile: a line has other costs.
        """
        for number, found in enumerate(self.evaluations, 2):
            wanted = costs(found.genotype)
            pairs = {
                "predicted_ms": (found.predicted_ms, wanted.latency_ms), "parameters": (found.parameters, wanted.parameters),
                "macs": (found.macs, wanted.macs), "memory_mib": (found.memory_mib, wanted.memory_mib),
            }  # fmt: skip
            for name, (read, computed) in pairs.items():
                if not math.isclose(read, computed, rel_tol=1e-6):
                    reason = f"{name} of network {found.id} is {read:g}, and {computed:g} by the latency table"
                    raise CorruptFile(self.path, f"{reason}; fix or remove the line", number, StartOver())

    def keep(self, asked: Set[tuple[str, str]]) -> int:
        """Forget, in memory, the evaluations of networks that a search has not asked for; return their number."""
        before = len(self.evaluations)
        self.evaluations = [e for e in self.evaluations if (e.kind, e.id) in asked]
        return before - len(self.evaluations)

    def _check_header(self, found: dict[str, Any]) -> None:
        differing = [name for name in self.header.keys() | found.keys() if self.header.get(name) != found.get(name)]
        if differing and found != self._formerly:
            shown = "\n  ".join(f"{name}: was {found.get(name)!r}, now {self.header.get(name)!r}" for name in sorted(differing))
            raise InvalidInput(f"{self.path} belongs to another search:\n  {shown}", Give("run"), StartOver())


def _with_version(header: dict[str, Any]) -> dict[str, Any]:
    return {"format_version": FORMAT_VERSION, **plain(header)}

"""Describe a device kit: a folder from which `trtexec` alone measures a table's operators and whole networks on a device.

    DIR/kit.json        this description (format_version 1)
    DIR/onnx/*.onnx     what is timed, in the target's precision
    DIR/run.sh          POSIX sh (latency/kit/kit_run.sh.txt); needs trtexec, nothing else
    DIR/results/        what run.sh writes and `latency.kit.ingest` reads

Several operators share a file, as independent graphs with inputs of their own, because an engine takes 10 s to minutes to
build on an embedded board and a space has about a thousand operators. An operator's row is its share of the engine's layer
profile times the median of a separate timing run; layers are attributed by the prefix (`k0017_0_`: operator 17, copy 0) that
all its nodes and tensors carry (fused kernels with names of their own by the ONNX nodes and tensors that the engine's layer
information lists for them). Where that breaks down:

1. A layer that names no operator, or several, is spread over the file in proportion; above `MAX_SHARED` of the profile (see
   `export.trt.attribution`) the file says too little, and its operators are reported missing. They then need files of their own
   (`alone`).
2. TensorRT compiles attention into one opaque layer, which may swallow its neighbours: such families are written alone.
3. A profile inflates short layers (events between them), so a file holds operators of similar cost only, and short ones
   several times over. Layers that convert an engine's inputs and outputs between layouts are left out where the engine's
   layer information shows them: inside a network the neighbour hands over the layout that fits.
4. One build per operator: TensorRT's choice of kernels varies between builds, and this spread is not measured.

Drift is judged by a canary file that is timed again every `CANARY_EVERY` files.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from export.codec import Count, decode, plain
from export.errors import InvalidInput
from export.files import write_json
from export.ranges import Range, Settings
from export.target import Target

FORMAT_VERSION = 1
CANARY_EVERY = 10
MAX_DRIFT = 0.03
FLOOR, CANARY, OPERATORS, NETWORK = "floor", "canary", "operators", "network"
KINDS = (FLOOR, CANARY, OPERATORS, NETWORK)


@dataclass(frozen=True, kw_only=True)
class Timing(Settings):
    """How trtexec builds and times; part of the identity of the table."""

    warmup_ms: Annotated[int, Range(0, 600_000)] = 500
    duration_s: Annotated[float, Range(0, 3600)] = 2
    iterations: Annotated[int, Range(1, 10**6)] = 100
    level: Annotated[int, Range(0, 5)] = 3
    avg_timing: Annotated[int, Range(1, 100)] = 8
    workspace_mib: Annotated[int, Range(1, 2**20)] = 1024


@dataclass(frozen=True)
class KitOperator:
    """An operator inside a file."""

    key: str
    op: str
    prefix: str
    """Of its nodes and tensors; `_<copy>_` follows."""
    copies: Count


@dataclass(frozen=True)
class KitFile:
    """One ONNX file: DIR/onnx/<name>.onnx."""

    name: str
    kind: str
    """One of `KINDS`."""
    sha256: str
    operators: tuple[KitOperator, ...] = ()
    network: str | None = None
    """Name of the network, where it holds one."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS or bool(self.operators) != (self.kind in (OPERATORS, CANARY)):
            raise ValueError(f"{self.name!r} is of an unknown kind, or of another kind than what it holds: {self.kind}")


@dataclass(frozen=True)
class Step:
    """One timing of a file; run.sh works them off in order."""

    name: str
    file: KitFile
    profile: bool
    keep: bool
    """The engine is needed again later."""
    block: int
    """Number of canaries timed before; a block ends at the next canary."""


@dataclass(frozen=True, kw_only=True)
class Kit:
    """A kit's description."""

    target: Target
    about: Mapping[str, Any]
    """What it is for; opaque here."""
    request: str
    """Hash of all that was asked for: an equal request is the same kit."""
    rounds: int
    """How often each network is timed, in turn with the others."""
    timing: Timing
    files: tuple[KitFile, ...]

    @property
    def id(self) -> str:
        """Twelve hex digits that stand in every result."""
        return digest([self.request, [file.sha256 for file in self.files]])[:12]

    @property
    def keys(self) -> tuple[str, ...]:
        """All operators."""
        return tuple(operator.key for file in self.files for operator in file.operators if file.kind == OPERATORS)

    @property
    def networks(self) -> tuple[str, ...]:
        """All networks."""
        return tuple(file.network for file in self.files if file.network is not None)

    def steps(self) -> list[Step]:
        """List what run.sh does, in order: floor, then files between canaries, networks in turn `rounds` times."""
        floor, canaries = ([file for file in self.files if file.kind == kind] for kind in (FLOOR, CANARY))
        work = [(file.name, file) for file in self.files if file.kind == OPERATORS]
        nets = [file for file in self.files if file.kind == NETWORK]
        work += [(f"{file.name}.r{turn}", file) for turn in range(self.rounds) for file in nets]
        order = [(file.name, file) for file in floor]
        for start in range(0, len(work), CANARY_EVERY):
            order += [(f"{file.name}.{start // CANARY_EVERY}", file) for file in canaries]
            order += work[start : start + CANARY_EVERY]
        order += [(f"{file.name}.{-(-len(work) // CANARY_EVERY)}", file) for file in canaries]
        left = Counter(file.name for _, file in order)
        steps, block = [], 0
        for name, file in order:
            left[file.name] -= 1
            block += file.kind == CANARY
            steps.append(Step(name, file, file.kind == OPERATORS, left[file.name] > 0, block))
        return steps

    def save(self, folder: Path) -> None:
        """Write DIR/kit.json."""
        write_json(folder / "kit.json", {"format_version": FORMAT_VERSION, **plain(self), "target": str(self.target)})

    @classmethod
    def before_decoding(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Read the target, which is text."""
        return {**value, "target": Target.parse(value["target"])} if isinstance(value.get("target"), str) else value

    @classmethod
    def load(cls, folder: Path) -> Kit:
        """Read DIR/kit.json.

        Raises:
            InvalidInput: there is none.
            CorruptFile: it cannot be read.
        """
        try:
            return decode(cls, folder / "kit.json", FORMAT_VERSION)
        except (FileNotFoundError, NotADirectoryError):
            raise InvalidInput(f"{folder} is no device kit: it has no kit.json") from None


def digest(value: object) -> str:
    """Hash plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()

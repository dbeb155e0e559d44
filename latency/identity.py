"""Name what a latency table was measured for, and say where two of these differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from export.codec import plain
from export.errors import TableMismatch
from export.runtime import OperatorRuntime, Runtime
from latency.measure import Protocol


class IdentityMismatch(TableMismatch):
    """Two tables, or a table and what is asked of it, were made under different conditions.

    Attributes:
        field: dotted name of the first field that differs.
        ours: its value in the table.
        theirs: its value in what was held against the table.
    """

    def __init__(self, field: str, ours: object, theirs: object, where: str) -> None:
        self.field, self.ours, self.theirs = field, ours, theirs
        super().__init__(
            f"{where}: {field} differs: {ours!r} in the table, {theirs!r} asked for. "
            "Latencies of different conditions do not mix; use another table file"
        )


@dataclass(frozen=True)
class Identity:
    """The conditions of a measurement. Rows may stand in one table only where all of this is equal."""

    target: str
    """For instance `onnxruntime-cpu:fp32`."""
    device: Mapping[str, Any]
    """The hardware (`export.machine.hardware()`): updates of the operating system leave a table valid, and in provenance."""
    versions: Mapping[str, str]
    """Versions, and what else of the runtime decides the speed (`Runtime.versions()`, `OperatorRuntime.operator_versions()`)."""
    threads: int
    protocol: Mapping[str, Any]
    """Fields of `Protocol`."""

    @classmethod
    def of(cls, runtime: Runtime, protocol: Protocol, machine: Mapping[str, Any]) -> Identity:
        """Describe what `runtime` measures on `machine`, in the form that JSON gives back."""
        value = {"device": dict(machine), "versions": versions_of(runtime), "protocol": protocol}
        return cls(target=str(runtime.target), threads=runtime.threads, **plain(value))

    def check(self, other: Identity, where: str) -> None:
        """Require that `other` is equal.

        Raises:
            IdentityMismatch: naming the first field that differs; `where` starts the text.
        """
        ours, theirs = flatten(vars(self)), flatten(vars(other))
        for name in [*ours, *(name for name in theirs if name not in ours)]:
            a, b = ours.get(name, "absent"), theirs.get(name, "absent")
            if a != b:
                raise IdentityMismatch(name, a, b, where)


def versions_of(runtime: Runtime) -> dict[str, str]:
    """Return the versions that decide a runtime's times, those of operators included."""
    return {**runtime.versions(), **(runtime.operator_versions() if isinstance(runtime, OperatorRuntime) else {})}


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Give nested mappings as one with dotted names."""
    flat: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, Mapping):
            flat |= flatten(item, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = item
    return flat
